"""What is trained under noise, and how robust trained models are."""

import dataclasses
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from sinkjax.data.prepare import prepare
from sinkjax.experiments.harness.jobs import Advance, run_jobs
from sinkjax.experiments.harness.sweep import Table
from sinkjax.experiments.harness.sweep_config import (
  GPU_SCALE,
  PAPER_SCALE,
  TOKENS_5B,
  TextConfig,
  text_run,
)
from sinkjax.experiments.harness.train_runs import (
  document_starts,
  forms,
  prepend,
)
from sinkjax.experiments.harness.trained_models import eval_jobs
from sinkjax.experiments.training.noise_training.robustness_score import (
  Force,
  robustness_score,
)
from sinkjax.train.run_config import TrainConfig
from sinkjax.weights import orbax_io

OWN, REGULARISED = "noise_training", "sink_regulariser"
"""The experiments whose models are measured, as rows name them."""

RANDOM, ADVERSARIAL = "noise", "adversarial"
"""Kinds of noise in training, as variants name them."""

LABELS = ("experiment", "variant", "seeds")
"""Keys of a row that are no measurement."""


@dataclasses.dataclass(frozen=True)
class Config(TextConfig):
  """What is trained, and which changes trained models meet.

  Attributes:
    noises: norms of random noise, over that of each token's embedding, under
      which models are trained; the plain one has none.
    adversarial: likewise, of noise along the gradient.
    share: of the changes that trained models meet, see
      `robustness_score.Force`.
    draws: likewise.
    gradients: of an attack on a trained model.
    tests: held-out texts of `tokens` tokens on which they are measured.
    tokens: T of these texts, with what stands in front.
  """

  noises: tuple[float, ...] = (0.5,)
  adversarial: tuple[float, ...] = (0.1,)
  share: float = 0.5
  draws: int = 4
  gradients: int = 4
  tests: int = 64
  tokens: int = 64


SCALES: dict[str, dict[str, Any]] = {
  "demo": {"adversarial": (), "seeds": (0,), "steps": 500},
  "cpu": {},
  "gpu": GPU_SCALE | {"length": 256, "batch": 64, "steps": 1000},
  "paper": PAPER_SCALE | {"steps": TOKENS_5B},
}
"""Fields of `Config` by --scale; those of `sink_regulariser`, so that the plain
run is shared."""


def variants(config: Config) -> dict[str, TrainConfig]:
  """The runs "plain", "noise_SHARE" and "adversarial_SHARE".

  Raises:
    ValueError: for a share that is not above 0.
  """
  if not all(x > 0 for x in (*config.noises, *config.adversarial)):
    raise ValueError(
      "noises and adversarial must be above 0, got "
      f"{config.noises} and {config.adversarial}"
    )
  runs = {"plain": text_run(config)}
  for share in config.noises:
    runs[f"{RANDOM}_{share:g}"] = text_run(config, noise=share)
  for share in config.adversarial:
    runs[f"{ADVERSARIAL}_{share:g}"] = text_run(
      config, noise=share, adversarial=True
    )
  return runs


def robustness_rows(
  config: Config, folder: pathlib.Path, progress: Callable[[int, int], Any]
) -> list[dict[str, Any]]:
  """The robustness of every trained model, see `rows_of`.

  Args:
    config: which changes they meet.
    folder: of the experiment; others are beside it.
    progress: called with (models done, models in all).
  """
  force = Force(config.share, config.draws, config.gradients, 0)
  request = {**force._asdict(), "tests": config.tests, "tokens": config.tokens}

  def evaluate(
    run: TrainConfig,
    trained: Mapping[str, Any],
    model: pathlib.Path,
    advance: Advance,
  ) -> dict[str, Any]:
    return {"final": evaluate_model(config, force, run, model)}

  evaluations = folder / "looks"  # the folder's name in recorded results
  jobs = eval_jobs(
    (folder.name, REGULARISED),
    evaluations,
    beside=folder.parent,
    request=request,
    steps=1,
    evaluate=evaluate,
  )
  found = run_jobs(jobs, evaluations, progress=progress)
  return rows_of(found, folder.name)


def evaluate_model(
  config: Config, force: Force, run: TrainConfig, model: pathlib.Path
) -> dict[str, float]:
  """A trained model's `robustness_score`, on texts read as in training."""
  data = prepare(
    run.corpus, vocab_size=run.text_vocab_size, held_out=run.held_out
  )
  params, cfg = orbax_io.load(model)
  # Small changes are lost in half precision.
  cfg = cfg.replace(
    attention="einsum",
    dtype="float32",
    precision="highest",
    bos_id=None,
    eos_id=None,
  )
  front = next(iter(forms(run, data).values()))
  rows = prepend(document_starts(data, config.tokens, config.tests), front)
  return robustness_score(cfg, params, rows, force)


def rows_of(
  found: Sequence[Mapping[str, Any]], own: str
) -> list[dict[str, Any]]:
  """One row a variant: its seeds, and a list of each number by seed.

  Args:
    found: outcomes of evaluations.
    own: the experiment's folder, for which `OWN` is written.
  """
  rows: dict[tuple[str, str], dict[str, Any]] = {}
  for one in sorted(found, key=lambda x: x["request"]["run"]["seed"]):
    of = one["request"]
    name = OWN if of["experiment"] == own else of["experiment"]
    row = rows.setdefault(
      (name, of["variant"]),
      {"experiment": name, "variant": of["variant"], "seeds": []},
    )
    row["seeds"].append(of["run"]["seed"])
    for key, value in one["final"].items():
      row.setdefault(key, []).append(value)
  return sorted(
    rows.values(),
    key=lambda x: (x["experiment"] != OWN, x["variant"] != "plain"),
  )


def robustness_table(rows: Sequence[Mapping[str, Any]]) -> Table:
  """The rows with a line for each seed."""
  names = [key for key in rows[0] if key not in LABELS]
  return ["experiment", "variant", "seed", *names], [
    [row["experiment"], row["variant"], seed, *(row[key][i] for key in names)]
    for row in rows
    for i, seed in enumerate(row["seeds"])
  ]
