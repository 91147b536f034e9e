"""Carriers of the exact map to the last token: what is run and measured.

Axes: P texts, C conditions (with the sink, sink hidden, control), L layers, H
heads. Of the pairs of the last token with those before it, those with the sink
and the control do not count: hiding a token changes its own pairs anyway.
"""

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
  kept_positions,
  paired,
)
from sinkjax.experiments.shared.layer_plots import layer_table
from sinkjax.experiments.shared.sink_removal import EPS
from sinkjax.metrics.sinks import sink_score
from sinkjax.models.transformer import forward
from sinkjax.transforms.capture import capture
from sinkjax.transforms.paths import Carried, carriers

PARTS = ("residual", "mlp", "attention", "mlp_of_attention")
"""What every layer's map is the sum of."""

OF_HEADS = ("head", "values", "scores")


@dataclasses.dataclass(frozen=True)
class Config(JacobianConfig):
  """What is computed.

  Attributes:
    long_tokens: T of the texts on which sink scores are measured: of a few
      tokens, each gets much attention.
    eps: a head has a sink where its score, the mean over texts, exceeds this.
  """

  count: int = 6
  tokens: int = 8
  long_tokens: int = 46
  eps: float = EPS


def measure(
  subject: Subject,
  config: Config,
  *,
  progress: Callable[[int, int], Any] = lambda done, total: None,
) -> Result:
  """Splits the map to the last token of every text, three times.

  Args:
    subject: the model.
    config: what is computed.
    progress: called with (maps done, maps in all).

  Raises:
    ValueError: as `paired` and `carriers`, or for texts in which no token
      stands between the control and the last one.

  Cost: three times `carriers` with one target a text.
  """
  control = CONTROL_KEY + len(subject.prefix)
  fewest = control + 3
  if config.tokens < fewest:
    raise ValueError(
      f"tokens must be at least {fewest}, or no token stands between the "
      f"control, position {control}, and the last one; got {config.tokens}"
    )
  longest = max(config.tokens, config.long_tokens)
  config, ids, functions = paired(subject, config, longest)
  alpha = _sink_scores(subject, ids[:, : config.long_tokens])
  kept = kept_positions(config.tokens - 1, control).tolist()
  found: dict[str, list[np.ndarray]] = {}
  runs = [(row, fn) for row in ids for fn in functions]
  for done, (row, fn) in enumerate(runs):
    got = subject.kept(
      "map",
      _map,
      fn,
      subject.params,
      jnp.asarray(row[: config.tokens]),
      rows=[-1],
      cols=kept,
      budget_bytes=config.budget_bytes,
    )
    for name, value in got.items():
      found.setdefault(name, []).append(value)
    progress(done + 1, len(runs))
  shape = len(ids), len(functions)
  arrays = {
    name: np.stack(values).reshape(*shape, *values[0].shape)
    for name, values in found.items()
  }
  return _result(config, arrays | {"alpha": alpha}, control)


def _sink_scores(subject: Subject, ids: np.ndarray) -> np.ndarray:
  """[P, L, H] of the unchanged model."""
  watched = capture(forward(subject.cfg), {"alpha": ("pattern", sink_score)})
  trace = jax.jit(watched)(subject.params, jnp.asarray(ids)).trace
  return np.swapaxes(np.asarray(trace["alpha"]), 0, 1)


def _map(*args: Any, **kwargs: Any) -> dict[str, np.ndarray]:
  """Of one map: root mean squares and mean shares over its pairs."""
  got: Carried = carriers(*args, **kwargs)

  def root_mean(norms: np.ndarray) -> np.ndarray:
    return np.sqrt((norms**2).mean(axis=(-2, -1)))

  relative = {name: root_mean(got.norms[name] / got.whole) for name in OF_HEADS}
  return relative | {
    "size": root_mean(got.norms["head"]),
    "whole": root_mean(got.whole),
    "norms": np.stack(
      [root_mean(got.norms[name] / got.whole) for name in PARTS], axis=-1
    ),
    "shares": np.stack(
      [got.shares[name].mean(axis=(-2, -1)) for name in PARTS], axis=-1
    ),
  }


def _result(
  config: Config, arrays: dict[str, np.ndarray], control: int
) -> Result:
  alpha = arrays["alpha"].mean(axis=0)
  head = np.sqrt((arrays["head"] ** 2).mean(axis=0))
  texts = range(len(arrays["head"]))
  header = ["layer", "head", "sink score", "sink head", "relative norm"]
  header += ["by values", "by scores", "with the sink hidden"]
  values, scores = (
    np.sqrt((arrays[name][:, 0] ** 2).mean(axis=0))
    for name in ("values", "scores")
  )
  rows = [
    [
      layer,
      number,
      float(alpha[layer, number]),
      int(alpha[layer, number] > config.eps),
      float(head[0, layer, number]),
      float(values[layer, number]),
      float(scores[layer, number]),
      float(head[1, layer, number]),
    ]
    for layer, number in np.ndindex(*alpha.shape)
  ]
  shares = np.array(
    [
      [mean_over(column, texts)[:3] for column in part.T]
      for part in np.moveaxis(arrays["shares"][:, 0], -1, 0)
    ]
  )
  return Result(
    numbers={
      "texts": len(texts),
      "tokens": config.tokens,
      "long_tokens": config.long_tokens,
      "from_layer": config.from_layer,
      "control_position": control,
      "sink_heads": int((alpha > config.eps).sum()),
      "heads": alpha.size,
    },
    tables={
      "heads.csv": (header, rows),
      "shares.csv": layer_table(PARTS, shares),
    },
    arrays=arrays | {"shares_by_layer": shares},
  )
