"""Exact and estimated Jacobians of several texts: what is run and measured."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from sinkjax.experiments.harness.api import Result, Subject
from sinkjax.experiments.harness.stats import mean_over
from sinkjax.experiments.shared.jacobian_runs import (
  CONTROL_KEY,
  JacobianConfig,
  mixing_of,
  paired,
)
from sinkjax.experiments.shared.layer_plots import layer_table
from sinkjax.experiments.shared.sink_removal import Condition
from sinkjax.metrics import spread
from sinkjax.transforms.estimators import estimate_norms
from sinkjax.transforms.jacobian import jacobian_norms


@dataclasses.dataclass(frozen=True)
class Config(JacobianConfig):
  """What is computed.

  Attributes:
    long_tokens: T of the estimated maps.
    samples: random directions a token of an estimate.
  """

  long_tokens: int = 46
  samples: int = 6


def measure(
  subject: Subject,
  config: Config,
  *,
  progress: Callable[[int, int], Any] = lambda done, total: None,
) -> Result:
  """Exact and estimated maps of every text.

  Args:
    subject: the model.
    config: what is computed.
    progress: called with (maps done, maps in all).

  Raises:
    ValueError: as `paired`.

  Cost: three exact maps a text, and three estimates a text.
  """
  config, ids, functions = paired(subject, config, config.long_tokens)
  budget = {"budget_bytes": config.budget_bytes}
  exact, estimated, inside = [], [], []
  for text, row in enumerate(ids):
    # Other probes for each text, but the same under both conditions, so that
    # their difference does not come from the probes.
    key = jax.random.fold_in(jax.random.key(0), text)
    guess = {"samples": config.samples, "key": key, **budget}
    short, long = jnp.asarray(row[: config.tokens]), jnp.asarray(row)
    for fn in functions:
      exact.append(
        subject.kept(
          "exact",
          jacobian_norms,
          fn,
          subject.params,
          short,
          per_layer=True,
          **budget,
        )
      )
      estimated.append(
        subject.kept("estimated", _norms, fn, subject.params, long, **guess)
      )
      if not text:  # one text is enough to check the intervals
        ends = subject.kept(
          "interval", _interval, fn, subject.params, short, **guess
        )
        inside.append(_inside(exact[-1][-1], *ends))
      progress(len(exact), len(functions) * len(ids))
  shape = (len(ids), len(functions))
  exact = np.stack(exact).reshape(*shape, *exact[0].shape)
  estimated = np.stack(estimated).reshape(*shape, *estimated[0].shape)
  control = CONTROL_KEY + len(subject.prefix)
  return _result(config, exact, estimated, control, float(np.mean(inside)))


def _norms(*args: Any, **kwargs: Any) -> Any:
  """The norms of `estimate_norms` alone."""
  return estimate_norms(*args, **kwargs).norms


def _interval(*args: Any, **kwargs: Any) -> tuple[Any, Any]:
  """The ends of the 95 % interval of `estimate_norms`."""
  return estimate_norms(*args, **kwargs).interval(0.95)


def _inside(norms: np.ndarray, low: np.ndarray, high: np.ndarray) -> float:
  """Share of the causal entries within their interval."""
  seen = np.tri(len(norms), dtype=bool)
  held = (np.asarray(low) <= norms) & (norms <= np.asarray(high))
  return float(held[seen].mean())


def _reach(norms: np.ndarray) -> np.ndarray:
  """Mean effective reach over tokens."""
  reach = spread.effective_reach(jnp.asarray(norms, jnp.float32))
  return np.asarray(reach).mean(axis=-1)


def _distance(norms: np.ndarray) -> np.ndarray:
  """The last token's sensitivity by distance, over that to itself."""
  sizes = np.asarray(spread.by_distance(jnp.asarray(norms, jnp.float32)))
  return sizes / sizes[..., :1]


def _result(
  config: Config,
  exact: np.ndarray,
  estimated: np.ndarray,
  control: int,
  inside: float,
) -> Result:
  """Of exact norms [P, 3, L, T, T] and estimated ones [P, 3, U, U].

  The last condition is the control, which is at position `control`.
  """
  texts = range(len(exact))
  controls = {
    "norms_control": exact[:, -1, -1],
    "estimated_control": estimated[:, -1],
  }
  exact, estimated = exact[:, :-1], estimated[:, :-1]
  by_layer = mixing_of(exact)  # [P, 2, L]
  mixing, long = by_layer[..., -1], mixing_of(estimated)
  last = exact[:, :, -1]
  reach = _reach(last)
  means = {
    # As a logarithm a ratio and its inverse are equally far from no change,
    # which the sign-flip test takes for granted.
    "log_mixing": np.log(mixing[:, 1] / mixing[:, 0]),
    "log_mixing_long": np.log(long[:, 1] / long[:, 0]),
    "reach": reach[:, 1] - reach[:, 0],
    **{f"mixing, {name}": mixing[:, i] for i, name in enumerate(Condition)},
  }
  layers = np.array(
    [
      [mean_over(column, texts)[:3] for column in by_layer[:, i].T]
      for i in range(len(Condition))
    ]
  )
  return Result(
    numbers={
      "texts": len(texts),
      "tokens": config.tokens,
      "long_tokens": config.long_tokens,
      "samples": config.samples,
      "from_layer": config.from_layer,
      "control_position": control,
      "inside_interval": inside,
      "total_mixing": mixing,
      "total_mixing_long": long,
      "effective_reach": reach,
      **{name: mean_over(values, texts) for name, values in means.items()},
    },
    tables={
      "layers.csv": layer_table(tuple(Condition), layers),
      "norms.csv": _norm_table(last),
    },
    arrays={
      "norms": exact,
      "estimated": estimated,
      "mixing_by_layer": layers,
      "distance": _distance(last),
      "distance_long": _distance(estimated),
      **controls,
    },
  )


def _norm_table(last: np.ndarray) -> tuple[list[str], list[list[Any]]]:
  header = ["text", "target", "source", *Condition]
  rows = [
    [text + 1, int(t), int(s), *map(float, maps[:, t, s])]
    for text, maps in enumerate(last)
    for t, s in zip(*np.tril_indices(maps.shape[-1]), strict=True)
  ]
  return header, rows
