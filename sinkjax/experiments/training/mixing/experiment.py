"""Does less sink mean more mixing? Trained models under the paper's theory.

The other experiments leave their trained models; here each is looked at with
the exact Jacobian, the over-squashing bounds, collapse and perturbation
spread. One table, in which training and theory meet.
"""

import dataclasses
import functools
import pathlib
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from sinkjax.analysis.over_squashing import paths
from sinkjax.data.prepare import prepare
from sinkjax.experiments.harness.api import Result
from sinkjax.experiments.harness.jobs import Job, run_jobs
from sinkjax.experiments.harness.train_runs import forms, headed, starts
from sinkjax.experiments.harness.trained_models import look_jobs
from sinkjax.experiments.training.mixing.claims import claims
from sinkjax.metrics import bounds, spread
from sinkjax.metrics.collapse import collapse_measures
from sinkjax.metrics.sinks import attention_share, sink_score
from sinkjax.models.transformer import forward
from sinkjax.train.run_config import TrainConfig
from sinkjax.transforms.capture import capture
from sinkjax.transforms.jacobian import jacobian_norms
from sinkjax.transforms.layer_gains import layer_gains
from sinkjax.weights import orbax_io

NAME, TITLE = "mixing", "Does less sink mean more mixing?"

OF = ("context_length", "packing", "attention_variants", "sink_regulariser")
"""The experiments whose models are looked at."""

FORMS = ("paper", "frozen", "full")
"""Of the bounds, those that must hold; the last one is of the whole model, the
others are of one whose attention is held."""

LOOKS = 2
"""Steps of a model's progress bar: one for each way of reading it."""


@dataclasses.dataclass(frozen=True)
class Config:
  """What is looked at.

  Attributes:
    of: experiments beside this one, in the same folder, whose models are
      taken; those that are not there are left out.
    tokens: T of a text, what stands in front of it counted.
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
  """What will be looked at, in words."""
  return [
    f"the trained models of {', '.join(config.of)} in the same folder, run "
    f"first: exact Jacobians of {config.texts} texts of {config.tokens} tokens"
  ]


def jobs(config: Config, folder: pathlib.Path) -> list[Job]:
  """A look at every trained model, and those at models that are gone.

  Raises:
    ValueError: if there is none.
  """
  request = dataclasses.asdict(config)
  del request["of"]
  return look_jobs(
    config.of,
    folder,
    beside=folder.parent,
    request=request,
    steps=LOOKS,
    look=functools.partial(look, config),
  )


def look(
  config: Config,
  run: TrainConfig,
  trained: Mapping[str, Any],
  model: pathlib.Path,
  advance: Callable[[int], Any] = lambda steps: None,
) -> dict[str, Any]:
  """One trained model, with what training put in front of a text and without.

  Returns:
    {"final": {form: scalars}, "maps": {form: [T, T] mean norms}}; forms as in
    `training_runs.measure`, whose `loss` is among the scalars.
  """
  data = prepare(
    run.corpus, vocab_size=run.text_vocab_size, held_out=run.held_out
  )
  params, cfg = orbax_io.load(model)
  cfg = cfg.replace(attention="einsum", dtype="float32", precision="highest")
  texts = starts(data, config.tokens, config.texts)
  final, maps = {}, {}
  for done, (form, front) in enumerate(forms(run, data).items(), 1):
    rows = headed(texts, front)
    found, norms = measure(config, cfg, params, rows, front=len(front))
    final[form] = {**found, "loss": trained["final"][form]["loss"]}
    maps[form] = norms.tolist()
    advance(done)
  return {"final": final, "maps": maps}


def measure(
  config: Config, cfg, params, rows: np.ndarray, *, front: int
) -> tuple[dict[str, float | None], np.ndarray]:
  """Means over texts [P, T], whose first `front` tokens are no text.

  Returns:
    Scalars, and [T, T] the mean of the exact norms from embed to resid_post:
    `first_mass`, attention on token 0, see `sink_score`; `mixing`, the share
    of the squared Jacobian that is between tokens, and `mixing_rest` with
    token 0 left out as source and target; `reach`, the effective reach among
    those; of the first text each valid bound's mean log10 `bound_FORM`, over
    pairs of different tokens but 0, `loose`, the decades of the full one
    above the exact spectral norm, and `violated`, how many pairs exceed it
    (`None` where the bounds do not cover the model); `cosine`, `residual`,
    `rank`, `gap` of the last layer, see `collapse_measures`; `spread`, the
    relative change of later tokens at the last layer after a swap, and
    `reached`, the share of them above the threshold.
  """
  fn, texts = forward(cfg), jnp.asarray(rows)
  found: dict[str, float | None] = dict(_passes(cfg, params, rows))
  squares = jacobian_norms(fn, params, texts, budget_bytes=config.budget_bytes)
  found["mixing"] = _mean(spread.total_mixing(jnp.asarray(squares)))
  rest = jnp.asarray(squares[:, 1:, 1:])
  found["mixing_rest"] = _mean(spread.total_mixing(rest))
  found["reach"] = _mean(spread.effective_reach(rest))
  found |= _bounds(fn, params, texts[0], config.budget_bytes)
  found |= _swapped(config, cfg, params, rows, front)
  return found, squares.mean(axis=0)


def _mean(x) -> float:
  return float(np.mean(np.asarray(x, np.float64)))


def _passes(cfg, params, rows) -> dict[str, float]:
  """Sinks and collapse."""
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


def _bounds(fn, params, tokens, budget) -> dict[str, float | None]:
  """The bounds on one text, the full one beside what it must dominate."""
  try:
    gains = layer_gains(fn, params, tokens)
  except ValueError:  # neither a softmax nor free of gates
    names = [f"bound_{form}" for form in FORMS] + ["loose", "violated"]
    return dict.fromkeys(names)
  logs, _ = paths(gains)
  true = jacobian_norms(
    fn, params, tokens, norm="spectral", budget_bytes=budget
  )
  seen = np.tri(len(tokens), k=-1, dtype=bool)
  seen[:, 0] = False
  decades = {form: logs[form][seen] / np.log(10) for form in FORMS}
  above = decades["full"] - np.log10(np.maximum(true[seen], 1e-30))
  over = bounds.violations(jnp.asarray(logs["full"]), jnp.asarray(true))
  return {
    **{f"bound_{form}": _mean(found) for form, found in decades.items()},
    "loose": _mean(above),
    "violated": float(over),
  }


def _swapped(config, cfg, params, rows, front: int) -> dict[str, float]:
  """What a replaced token changes in the tokens after it, at the last layer.

  It is replaced by the first other token that comes after it in the text,
  from the start again where there is none.
  """
  length = rows.shape[1]
  watched = jax.jit(capture(forward(cfg), {"x": ("resid_post", lambda x: x)}))
  before = watched(params, jnp.asarray(rows)).trace["x"][-1]
  places = np.linspace(front + 1, length // 2, config.swaps).round().astype(int)
  changes, reached = [], []
  for at in places:
    changed = rows.copy()
    for new, row in zip(changed, rows, strict=True):
      following = np.roll(row, -at)
      new[at] = following[np.argmax(following != row[at])]
    after = watched(params, jnp.asarray(changed)).trace["x"][-1]
    gap = np.asarray(spread.spread(before, after, relative=True), np.float64)
    if gap[:, :at].any():
      raise ArithmeticError("a change is seen before its place")
    later = gap[:, at + 1 :]
    changes.append(later.mean(axis=1))
    reached.append((later > config.threshold).mean(axis=1))
  return {
    "spread": _mean(np.concatenate(changes)),
    "reached": _mean(np.concatenate(reached)),
  }


def run(
  config: Config,
  *,
  folder: Any,
  progress: Callable[[int, int], Any] = lambda done, total: None,
) -> Result:
  """Looks at what is left of the models, and says what came of it.

  Args:
    config: what is looked at.
    folder: where looks are kept; the experiments stand beside it.
    progress: called with (looks done, looks in all).

  Raises:
    ValueError: as `jobs.run_jobs` and `jobs`.

  Cost: an exact map a text and a way of reading, and one with the bounds.
  """
  found = run_jobs(
    jobs(config, pathlib.Path(folder)), folder, progress=progress
  )
  return result_of(config, found)


def result_of(config: Config, found: list[dict[str, Any]]) -> Result:
  """The `Result` of all looks."""
  rows: dict[tuple[str, str, str], list[dict[str, Any]]] = {}
  for one in found:
    of = one["request"]
    for form in one["final"]:
      rows.setdefault((of["experiment"], of["variant"], form), []).append(one)
  names = list(next(iter(found[0]["final"].values())))
  table = [
    [
      *key,
      one["request"]["run"]["seed"],
      *(one["final"][key[2]][name] for name in names),
    ]
    for key, some in rows.items()
    for one in some
  ]
  shown = [
    {
      "experiment": key[0],
      "variant": key[1],
      "form": key[2],
      "seeds": [one["request"]["run"]["seed"] for one in some],
      **{name: [one["final"][key[2]][name] for one in some] for name in names},
    }
    for key, some in rows.items()
  ]
  maps = {
    "map_" + "-".join(key): np.mean([one["maps"][key[2]] for one in some], 0)
    for key, some in rows.items()
  }
  return Result(
    name=NAME,
    title=TITLE,
    claims=claims(shown),
    numbers={
      "rows": shown,
      "tokens": config.tokens,
      "texts": config.texts,
      "threshold": config.threshold,
    },
    tables={
      "models.csv": (["experiment", "variant", "form", "seed", *names], table)
    },
    arrays=maps,
  )
