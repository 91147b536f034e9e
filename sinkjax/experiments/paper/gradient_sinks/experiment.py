"""Gradients at the sink and elsewhere: what is run and measured.

Axes: P texts, L layers, T tokens.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from sinkjax.analysis.gradient_norms import gradient_norms
from sinkjax.experiments.harness.api import Result, Subject
from sinkjax.experiments.harness.stats import mean_over
from sinkjax.experiments.shared.jacobian_runs import CONTROL_KEY
from sinkjax.experiments.shared.layer_plots import layer_table
from sinkjax.experiments.shared.sink_removal import texts_of
from sinkjax.experiments.shared.swap_texts import SWAP_TEXTS
from sinkjax.metrics.sinks import sink_score
from sinkjax.models.transformer import forward
from sinkjax.transforms.capture import capture

MEASURED = ("stream", "attn_in", "attn_through", "attn_factor")
"""What is kept of `GradientNorms`: that of the attention, by token."""

FEWEST = 4
"""Tokens of a text beside the control: the first one, and two others of which
the last has no gradient."""


@dataclasses.dataclass(frozen=True)
class Config:
  """What is measured.

  Attributes:
    texts: as `swap_texts.parse_swaps` takes them; the swaps are not used.
    tokens: T of each text.
  """

  texts: str = SWAP_TEXTS
  tokens: int = 46


def measure(
  subject: Subject,
  config: Config,
  *,
  progress: Callable[[int, int], Any] = lambda done, total: None,
) -> Result:
  """The gradient's norms on every text.

  Args:
    subject: the model; its weights in memory.
    config: what is measured.
    progress: called with (texts done, texts in all).

  Raises:
    ValueError: for texts that are too short or too few.

  Cost: one forward and one backward pass of each text.
  """
  control = CONTROL_KEY + len(subject.prefix)
  if config.tokens < control + FEWEST - 1:
    raise ValueError(
      f"tokens must be at least {control + FEWEST - 1}, got {config.tokens}"
    )
  ids, fn = texts_of(subject, config.texts, config.tokens), forward(subject.cfg)
  found: dict[str, list[np.ndarray]] = {name: [] for name in MEASURED}
  for done, row in enumerate(ids):
    norms = gradient_norms(fn, subject.params, jnp.asarray(row))
    for name in MEASURED:
      found[name].append(getattr(norms, name))
    progress(done + 1, len(ids))
  watched = capture(fn, {"alpha": ("pattern", sink_score)})
  trace = jax.jit(watched)(subject.params, jnp.asarray(ids)).trace
  arrays = {name: np.stack(values) for name, values in found.items()}
  arrays["alpha"] = np.asarray(trace["alpha"]).mean(axis=2).T
  ratios = np.stack(
    [first_over_rest(arrays[name], control) for name in MEASURED[1:]]
  )
  by_layer = np.array(
    [
      [mean_over(column, range(len(ids)))[:3] for column in part.T]
      for part in ratios
    ]
  )
  return Result(
    numbers={
      "texts": len(ids),
      "tokens": config.tokens,
      "control_position": control,
    },
    tables={"layers.csv": layer_table(MEASURED[1:], by_layer)},
    arrays=arrays | {"by_layer": by_layer},
  )


def first_over_rest(
  norms: np.ndarray, control: int, token: int = 0
) -> np.ndarray:
  """Natural log of a token's norm over the geometric mean of the rest.

  Args:
    norms: [..., T]; the last token has no gradient and does not count.
    control: does not count among the rest, nor does the first.
    token: which is compared.
  """
  logs = np.log(norms[..., :-1])
  rest = np.delete(logs, [0, control], axis=-1)
  return logs[..., token] - rest.mean(axis=-1)
