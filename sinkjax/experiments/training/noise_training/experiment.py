"""Trained under noise, does a model grow a sink? And are sinks sturdy?

Small models are trained with noise on their embeddings, at random or along
the gradient, and without, on equal tokens. Each trained model then meets the
same changes, see `sturdiness`; so do the models of `sink_regulariser`, where
they are in the same folder, whose sinks were set by a term in the loss.
Barbero et al. (2025, arXiv 2504.02732) hold that sinks keep changes from
spreading.
"""

import dataclasses
import pathlib
from collections.abc import Callable
from typing import Any

import numpy as np

from sinkjax.data.prepare import prepare
from sinkjax.experiments.harness import sweep as text_sweep
from sinkjax.experiments.harness.api import Claim, Result
from sinkjax.experiments.harness.jobs import run_jobs
from sinkjax.experiments.harness.stats import (
  compare,
  format_ratio,
  mean,
  mean_over,
  slopes,
  unless_worse,
)
from sinkjax.experiments.harness.sweep import (
  GPU,
  TOKENS_5B,
  TextConfig,
  text_run,
)
from sinkjax.experiments.harness.train_runs import forms, headed, starts
from sinkjax.experiments.harness.trained_models import look_jobs
from sinkjax.experiments.training.noise_training.robustness_score import (
  KINDS,
  Force,
  sturdiness,
)
from sinkjax.train.run_config import TrainConfig
from sinkjax.weights import orbax_io

NAME, TITLE = "noise_training", "Training under noise, and sturdy models"
PAPER, CRITICS = "2504.02732", "2501.15269; 2510.17021"
REGULARISED = "sink_regulariser"
ADVERSARIAL = "adversarial"


@dataclasses.dataclass(frozen=True)
class Config(TextConfig):
  """What is trained, and what trained models meet.

  Attributes:
    noises: norms of random noise, over that of each token's embedding, under
      which models are trained; the plain one has none.
    adversarial: likewise of noise along the gradient.
    share: of the changes that trained models meet, see `sturdiness.Force`.
    draws: likewise.
    gradients: of an attack on a trained model.
    tests: held-out texts of `tokens` tokens that they read.
    tokens: T of these, what stands in front counted.
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
  "gpu": GPU | {"length": 256, "batch": 64, "steps": 1000},
  "paper": text_sweep.PAPER | {"steps": TOKENS_5B},
}
"""Fields of `Config` by --scale."""


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
    runs[f"noise_{share:g}"] = text_run(config, noise=share)
  for share in config.adversarial:
    runs[f"{ADVERSARIAL}_{share:g}"] = text_run(
      config, noise=share, adversarial=True
    )
  return runs


def plan(config: Config) -> list[str]:
  """What will be trained, in words."""
  return [
    *text_sweep.plan(variants(config), config.seeds),
    f"and looks at them and at the models of {REGULARISED} in the same "
    f"folder, if any: {config.tests} texts of {config.tokens} tokens",
  ]


def run(
  config: Config,
  *,
  folder: Any,
  progress: Callable[[int, int], Any] = lambda done, total: None,
) -> Result:
  """Trains what is left of the sweep, and looks at what was trained.

  Args:
    config: the sweep.
    folder: where runs are kept; other experiments stand beside it.
    progress: called with (steps done, steps in all).

  Raises:
    ValueError: as `jobs.run_jobs` and `variants`.

  Cost: that of the runs, an adversarial one five thirds of another; a look
    takes seconds.
  """
  folder = pathlib.Path(folder)
  sweep = text_sweep.run_sweep(
    config, variants(config), folder=folder, progress=progress
  )
  force = Force(config.share, config.draws, config.gradients, 0)
  request = {**force._asdict(), "tests": config.tests, "tokens": config.tokens}

  def look(run, trained, model, advance):
    return {"final": look_at(config, force, run, model)}

  jobs = look_jobs(
    (folder.name, REGULARISED),
    folder / "looks",
    beside=folder.parent,
    request=request,
    steps=1,
    look=look,
  )
  rows = rows_of(
    run_jobs(jobs, folder / "looks", progress=progress), folder.name
  )
  return text_sweep.sweep_result(
    NAME,
    TITLE,
    sweep,
    claims(rows),
    tables={"sturdiness.csv": _table(rows)},
    share=config.share,
    gradients=config.gradients,
    tests=config.tests,
    tokens=config.tokens,
    sturdiness=rows,
  )


def look_at(config: Config, force: Force, run: TrainConfig, model):
  """A trained model's `sturdiness`, texts read as it was trained."""
  data = prepare(
    run.corpus, vocab_size=run.text_vocab_size, held_out=run.held_out
  )
  params, cfg = orbax_io.load(model)
  cfg = cfg.replace(
    attention="einsum",
    dtype="float32",
    precision="highest",
    bos_id=None,
    eos_id=None,
  )
  front = next(iter(forms(run, data).values()))
  rows = headed(starts(data, config.tokens, config.tests), front)
  return sturdiness(cfg, params, rows, force)


def rows_of(found: list[dict[str, Any]], own: str) -> list[dict[str, Any]]:
  """One row a variant: its seeds, and a list of each number by seed.

  Args:
    found: outcomes of looks.
    own: the folder's name, for which `NAME` is written.
  """
  rows: dict[tuple[str, str], dict[str, Any]] = {}
  for one in sorted(found, key=lambda x: x["request"]["run"]["seed"]):
    of = one["request"]
    name = NAME if of["experiment"] == own else of["experiment"]
    row = rows.setdefault(
      (name, of["variant"]),
      {"experiment": name, "variant": of["variant"], "seeds": []},
    )
    row["seeds"].append(of["run"]["seed"])
    for key, value in one["final"].items():
      row.setdefault(key, []).append(value)
  return sorted(
    rows.values(),
    key=lambda x: (x["experiment"] != NAME, x["variant"] != "plain"),
  )


def _table(rows):
  names = [
    key for key in rows[0] if key not in ("experiment", "variant", "seeds")
  ]
  return ["experiment", "variant", "seed", *names], [
    [row["experiment"], row["variant"], seed, *(row[key][i] for key in names)]
    for row in rows
    for i, seed in enumerate(row["seeds"])
  ]


WORDS = {
  "noise": "noise on its tokens",
  "swap": "a swapped token",
  "attack_first": "an attack on its first token",
  "attack": "an attack on another token",
}


def claims(rows: list[dict[str, Any]]) -> list[Claim]:
  """What noise in training does, then what a sink that was set does."""
  own = {r["variant"]: r for r in rows if r["experiment"] == NAME}
  set_ = {r["variant"]: r for r in rows if r["experiment"] == REGULARISED}
  if any(len(row["seeds"]) < 2 for row in rows):
    return []
  return [*_trained(own), *_regularised(set_)]


def _gap(one, other, key: str, *, log: bool = False) -> np.ndarray:
  """[S] one variant's number minus another's, by seeds that both have."""
  f = np.log if log else np.asarray
  seeds = [seed for seed in one["seeds"] if seed in other["seeds"]]
  return np.array(
    [
      f(one[key][one["seeds"].index(s)])
      - f(other[key][other["seeds"].index(s)])
      for s in seeds
    ]
  )


def _times(logs) -> str:
  return format_ratio(mean_over(logs, range(len(logs))))


def _trained(own) -> list[Claim]:
  """By variant: the sink, and what is left of a change's effect."""
  if "plain" not in own:
    return []
  plain, found = own["plain"], []
  for name, row in own.items():
    if name == "plain":
      continue
    kind, _, share = name.partition("_")
    what = "adversarial noise" if kind == ADVERSARIAL else "random noise"
    what = f"{what} of {share} of each embedding's norm"
    cost = _gap(row, plain, "loss")
    more = _gap(row, plain, "first_mass")
    found.append(
      compare(
        f"Trained under {what}, a model has more of a sink.",
        PAPER,
        "sinks are made against changes that spread; not tried",
        more,
        f"attention on the first token {mean(row['first_mass'])} against "
        f"{mean(plain['first_mass'])}; loss {mean(cost, '+.3f')} nats",
      )
    )
    for change in ("noise", "attack"):
      less = _gap(plain, row, f"{change}_kl", log=True)
      spread = _gap(row, plain, f"{change}_spread", log=True)
      made = compare(
        f"It is sturdier against {WORDS[change]} ({kind} {share}).",
        "our question",
        "not tried",
        less,
        f"KL {_times(-less)} that of the plain model, relative change of "
        f"later tokens {_times(spread)}; loss {mean(cost, '+.3f')} nats",
      )
      why = "but it is a worse model, and these look sturdy"
      found.append(unless_worse(made, cost, why))
  return found


def _regularised(rows) -> list[Claim]:
  """No sink against the one that comes by itself; then over all targets."""
  targets = {
    float(name.partition("_")[2]): row
    for name, row in rows.items()
    if name.startswith("target_")
  }
  if "free" not in rows or not targets:
    return []
  free, none, found = rows["free"], targets[min(targets)], []
  cost = _gap(none, free, "loss")
  for change in KINDS:
    more = _gap(none, free, f"{change}_kl", log=True)
    spread = _gap(none, free, f"{change}_spread", log=True)
    found.append(
      compare(
        f"A model that was kept from having a sink is changed more by "
        f"{WORDS[change]}.",
        PAPER,
        "not tried",
        more,
        f"KL {_times(more)} that of the model left alone, relative change of "
        f"later tokens {_times(spread)}; attention on the first token "
        f"{mean(none['first_mass'])} against {mean(free['first_mass'])}, loss "
        f"{mean(cost, '+.3f')} nats",
      )
    )
  every = list(rows.values())
  soft = [
    {
      **row,
      "soft": list(
        np.subtract(np.log(row["attack_first_kl"]), np.log(row["attack_kl"]))
      ),
    }
    for row in every
  ]
  worst = max(every, key=lambda row: np.mean(row["loss"]))
  above = np.mean(worst["loss"]) - np.mean(free["loss"])
  for name, words, sign, source in (
    (
      "noise_spread",
      "Over all targets, the more of a sink the less noise "
      "changes later tokens.",
      -1,
      PAPER,
    ),
    (
      "swap_spread",
      "Over all targets, the more of a sink the less a swapped "
      "token changes later ones.",
      -1,
      PAPER,
    ),
    (
      "soft",
      "The more of a sink, the more an attack on the first token does "
      "beside one on another.",
      1,
      CRITICS,
    ),
  ):
    some = (
      soft
      if name == "soft"
      else [{**row, name: list(np.log(row[name]))} for row in every]
    )
    values = slopes(some, name)
    if len(values) > 1:
      made = compare(
        words,
        source,
        "not tried",
        sign * values,
        f"logarithm {mean(values, '+.2f')} for each unit of attention on the "
        f"first token, over {len(every)} variants",
      )
      why = (
        f"{made.why}; models differ in their loss, too: {worst['variant']} is "
        f"{above:.2f} nats above the one left alone"
      )
      found.append(dataclasses.replace(made, why=why))
  return found
