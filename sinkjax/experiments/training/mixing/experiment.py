"""What is measured of every trained model, and what that comes to."""

import dataclasses
import functools
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from sinkjax.analysis.over_squashing import paths, uncovered
from sinkjax.config import ModelConfig
from sinkjax.data.prepare import prepare
from sinkjax.experiments.harness.api import Result
from sinkjax.experiments.harness.jobs import Job, run_jobs
from sinkjax.experiments.harness.train_runs import (
  document_starts,
  forms,
  prepend,
)
from sinkjax.experiments.harness.trained_models import eval_jobs
from sinkjax.metrics import bounds, spread
from sinkjax.metrics.collapse import collapse_measures
from sinkjax.metrics.sinks import attention_share, sink_score
from sinkjax.models.transformer import Params, forward
from sinkjax.train.run_config import TrainConfig
from sinkjax.transforms.capture import capture
from sinkjax.transforms.jacobian import jacobian_norms
from sinkjax.transforms.layer_gains import layer_gains
from sinkjax.weights import orbax_io

OF = ("context_length", "packing", "attention_variants", "sink_regulariser")
"""The experiments whose models are measured."""

FORMS = ("paper", "frozen", "full")
"""Bounds that must hold, see `analysis.over_squashing`: the last one for the
whole model, the others for one whose attention is held."""

EVAL_STEPS = 2
"""Steps of a model's progress bar: one for each form of its texts."""


@dataclasses.dataclass(frozen=True)
class Config:
  """What is measured.

  Attributes:
    of: experiments beside this one, in the same folder, whose models are
      taken; those that are not there are left out.
    tokens: T of a text, with what stands in front of it.
    texts: starts of held-out documents.
    swaps: tokens of each text that are replaced, one at a time, spread evenly
      over its first half.
    threshold: relative change that counts as reached, see
      `metrics.spread.reach`.
    budget_bytes: of the exact engine, see `jacobian_norms`.
  """

  of: tuple[str, ...] = OF
  tokens: int = 24
  texts: int = 3
  swaps: int = 4
  threshold: float = 0.1
  budget_bytes: int | None = 1 << 30


SCALES: dict[str, dict[str, Any]] = {
  "demo": {"tokens": 16, "texts": 2},
  "cpu": {},
  "gpu": {"tokens": 64, "texts": 8},
  "paper": {"tokens": 64, "texts": 16},
}
"""Fields of `Config` by --scale; the models are those of the other
experiments' scale."""


def plan(config: Config) -> list[str]:
  """What will be measured, for --dry_run."""
  return [
    f"the trained models of {', '.join(config.of)} in the same folder, which "
    f"are run first: exact Jacobians of {config.texts} texts of "
    f"{config.tokens} tokens"
  ]


def jobs(config: Config, folder: pathlib.Path) -> list[Job]:
  """A job for every trained model, and for every evaluation that is kept.

  Raises:
    ValueError: if there is none.
  """
  request = dataclasses.asdict(config)
  # Which other experiments are taken does not change what one model gives, so a
  # longer list keeps the evaluations that are there.
  del request["of"]
  return eval_jobs(
    config.of,
    folder,
    beside=folder.parent,
    request=request,
    steps=EVAL_STEPS,
    evaluate=functools.partial(evaluate, config),
  )


def evaluate(
  config: Config,
  run: TrainConfig,
  trained: Mapping[str, Any],
  model: pathlib.Path,
  advance: Callable[[int], Any] = lambda steps: None,
) -> dict[str, Any]:
  """One trained model, with what training put in front of a text and without.

  Returns:
    {"final": {form: scalars}, "maps": {form: [T, T] mean norms}}; forms as in
    `train_runs.measure`, whose `loss` is among the scalars.
  """
  data = prepare(
    run.corpus, vocab_size=run.text_vocab_size, held_out=run.held_out
  )
  params, cfg = orbax_io.load(model)
  # Jacobians and small changes need full precision.
  cfg = cfg.replace(attention="einsum", dtype="float32", precision="highest")
  texts = document_starts(data, config.tokens, config.texts)
  final, maps = {}, {}
  for done, (form, front) in enumerate(forms(run, data).items(), 1):
    rows = prepend(texts, front)
    found, norms = measure_model(config, cfg, params, rows, front=len(front))
    final[form] = {**found, "loss": trained["final"][form]["loss"]}
    maps[form] = norms.tolist()
    advance(done)
  return {"final": final, "maps": maps}


def measure_model(
  config: Config,
  cfg: ModelConfig,
  params: Params,
  rows: np.ndarray,
  *,
  front: int,
) -> tuple[dict[str, float | None], np.ndarray]:
  """Means over texts [P, T].

  Args:
    config: what is measured.
    cfg: the model.
    params: its parameters.
    rows: the texts, with what stands in front.
    front: how many tokens that is.

  Returns:
    Scalars, and [T, T] the mean of the exact norms of the Jacobian from embed
    to resid_post. The scalars are
    `first_mass`, attention on token 0, see `sink_score`;
    `mixing`, the share of the squared Jacobian between different tokens, and
    `mixing_rest`, the same without token 0 as source or target;
    `reach`, the effective reach without token 0;
    `bound_FORM`, for each bound that must hold, the mean log10 over pairs of
    different tokens without token 0, on the first text; `loose`, the decades
    of the full bound above the exact spectral norm; `violated`, how many pairs
    exceed it (all `None` where the bounds do not cover the model);
    `cosine`, `residual`, `rank`, `gap` of the last layer, see
    `collapse_measures`;
    `spread`, the relative change of later tokens at the last layer after a
    swap, and `reached`, the share of them above the threshold.
  """
  fn, texts = forward(cfg), jnp.asarray(rows)
  found: dict[str, float | None] = dict(_passes(cfg, params, rows))
  squares = jacobian_norms(fn, params, texts, budget_bytes=config.budget_bytes)
  found["mixing"] = _mean(spread.total_mixing(jnp.asarray(squares)))
  # What comes from token 0 is the effect of the sink itself, and would hide how
  # the other tokens mix.
  rest = jnp.asarray(squares[:, 1:, 1:])
  found["mixing_rest"] = _mean(spread.total_mixing(rest))
  found["reach"] = _mean(spread.effective_reach(rest))
  found |= _bounds(fn, params, texts[0], config.budget_bytes)
  found |= _swapped(config, cfg, params, rows, front)
  return found, squares.mean(axis=0)


def _mean(x: Any) -> float:
  return float(np.mean(np.asarray(x, np.float64)))


def _passes(
  cfg: ModelConfig, params: Params, rows: np.ndarray
) -> dict[str, float]:
  """The sink, and rank collapse at the last layer."""
  watched = capture(
    forward(cfg),
    {
      "alpha": ("pattern", lambda p: sink_score(attention_share(p))),
      "collapse": ("resid_post", collapse_measures),
    },
  )
  trace = jax.jit(watched)(params, jnp.asarray(rows)).trace
  last = np.asarray(trace["collapse"][-1], np.float64).mean(axis=0)
  names = ("cosine", "residual", "rank", "gap")
  return {
    "first_mass": _mean(trace["alpha"]),
    **dict(zip(names, map(float, last), strict=True)),
  }


def _bounds(
  fn: Callable, params: Params, tokens: jax.Array, budget: int | None
) -> dict[str, float | None]:
  """The bounds on one text, and the full one against the exact norms."""
  try:
    gains = layer_gains(fn, params, tokens)
  except ValueError:  # attention without a softmax, or with gates
    names = [f"bound_{form}" for form in FORMS] + ["loose", "violated"]
    return dict.fromkeys(names)
  logs, _ = paths(gains)
  true = jacobian_norms(
    fn, params, tokens, norm="spectral", budget_bytes=budget
  )
  # These are the pairs that `mixing_rest` is about: the diagonal is mostly the
  # residual stream, and column 0 the sink.
  seen = np.tri(len(tokens), k=-1, dtype=bool)
  seen[:, 0] = False
  decades = {form: logs[form][seen] / np.log(10) for form in FORMS}
  # A norm that underflowed to 0 has no logarithm.
  above = decades["full"] - np.log10(np.maximum(true[seen], 1e-30))
  over = bounds.violations(jnp.asarray(logs["full"]), jnp.asarray(true))
  without = uncovered(fn.cfg)
  return {
    **{
      f"bound_{form}": None if form in without else _mean(found)
      for form, found in decades.items()
    },
    "loose": _mean(above),
    "violated": float(over),
  }


def _swapped(
  config: Config, cfg: ModelConfig, params: Params, rows: np.ndarray, front: int
) -> dict[str, float]:
  """What a replaced token changes in the tokens after it, at the last layer.

  It is replaced by the first different token that follows it in the text,
  which starts over at its end.
  """
  length = rows.shape[1]
  # Jitted once, outside the loop: all swaps have texts of one shape.
  watched = jax.jit(capture(forward(cfg), {"x": ("resid_post", lambda x: x)}))
  before = watched(params, jnp.asarray(rows)).trace["x"][-1]
  # The first token of the text stays, because it is the sink where nothing
  # stands in front. The second half is left for the change to spread.
  places = np.linspace(front + 1, length // 2, config.swaps).round().astype(int)
  changes, reached = [], []
  for at in places:
    changed = rows.copy()
    for new, row in zip(changed, rows, strict=True):
      following = np.roll(row, -at)
      new[at] = following[np.argmax(following != row[at])]
    after = watched(params, jnp.asarray(changed)).trace["x"][-1]
    gap = np.asarray(spread.spread(before, after, relative=True), np.float64)
    # A causal model computes earlier tokens from the same numbers in the same
    # order, so any difference is an error of ours.
    if gap[:, :at].any():
      raise ArithmeticError("a replaced token changed a token before it")
    later = gap[:, at + 1 :]
    changes.append(later.mean(axis=1))
    reached.append((later > config.threshold).mean(axis=1))
  return {
    "spread": _mean(np.concatenate(changes)),
    "reached": _mean(np.concatenate(reached)),
  }


def measure(
  config: Config,
  *,
  folder: pathlib.Path,
  progress: Callable[[int, int], Any] = lambda done, total: None,
) -> Result:
  """Measures the models that are not measured yet, and collects all.

  Args:
    config: what is measured.
    folder: where evaluations are kept; the experiments' folders are beside it.
    progress: called with (steps done, steps in all).

  Raises:
    ValueError: as `run_jobs` and `jobs`.

  Cost: for each form, an exact map a text, and one more with the bounds.
  """
  folder = pathlib.Path(folder)
  found = run_jobs(jobs(config, folder), folder, progress=progress)
  return result_of(config, found)


def result_of(config: Config, found: Sequence[Mapping[str, Any]]) -> Result:
  """The `Result` of all evaluations."""
  groups: dict[tuple[str, str, str], list[Mapping[str, Any]]] = {}
  for one in found:
    of = one["request"]
    for form in one["final"]:
      key = of["experiment"], of["variant"], form
      groups.setdefault(key, []).append(one)
  names = list(next(iter(found[0]["final"].values())))
  rows = [
    {
      "experiment": experiment,
      "variant": variant,
      "form": form,
      "seeds": [one["request"]["run"]["seed"] for one in some],
      **{name: [one["final"][form][name] for one in some] for name in names},
    }
    for (experiment, variant, form), some in groups.items()
  ]
  first = ("experiment", "variant", "form")
  table = [
    [*(row[key] for key in first), seed, *(row[name][i] for name in names)]
    for row in rows
    for i, seed in enumerate(row["seeds"])
  ]
  return Result(
    numbers={
      "rows": rows,
      "tokens": config.tokens,
      "texts": config.texts,
      "threshold": config.threshold,
    },
    tables={"models.csv": ([*first, "seed", *names], table)},
    arrays={
      "map_" + "-".join(key): np.mean([one["maps"][key[2]] for one in some], 0)
      for key, some in groups.items()
    },
  )
