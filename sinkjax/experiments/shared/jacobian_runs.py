"""What experiments on exact Jacobians share: few short texts, run three times.

With the sink, most of the Jacobian is the block of position 0 on itself, which
no edit of the attention can change. Claims are therefore about the blocks of
all positions but the sink and the control.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
import numpy as np

from sinkjax.experiments.harness.api import Subject
from sinkjax.experiments.shared.sink_removal import (
  hide,
  resolve_from_layer,
  texts_of,
)
from sinkjax.experiments.shared.swap_texts import SWAP_TEXTS
from sinkjax.metrics import spread
from sinkjax.models.transformer import forward

CONTROL_KEY = 1
"""The token hidden as a control, counted after the prefix."""


@dataclasses.dataclass(frozen=True)
class JacobianConfig:
  """What is computed.

  Attributes:
    texts: as `swap_texts.parse_swaps` takes them; the swaps are not used.
    count: how many of them.
    tokens: T of the exact maps.
    from_layer: the first layer at which position 0 is hidden; `None` for the
      one that leaves the fewest sinks, see `sink_removal`.
    budget_bytes: of the exact engine, see `jacobian_norms`.
  """

  texts: str = SWAP_TEXTS
  count: int = 4
  tokens: int = 16
  from_layer: int | None = None
  budget_bytes: int | None = None


def paired(
  subject: Subject, config: Any, tokens: int
) -> tuple[Any, np.ndarray, tuple[Callable, Callable, Callable]]:
  """What an experiment with a `JacobianConfig` runs.

  Args:
    subject: the model.
    config: whose `from_layer` may be `None`.
    tokens: of each text.

  Returns:
    The config with its layer, ids [P, tokens], and the model under each
    `Condition`, unchanged and with position 0 hidden, and with the control
    hidden.

  Raises:
    ValueError: for texts that are too short or too few, or a layer that the
      model does not have.
  """
  # An interval over texts needs two, and it is better to say so before the
  # exact Jacobians are computed than after.
  if config.count < 2:
    raise ValueError(f"count must be at least 2, got {config.count}")
  config = resolve_from_layer(subject, config)
  ids = texts_of(subject, config.texts, tokens)[: config.count]
  f, layer = forward(subject.cfg), config.from_layer
  control = CONTROL_KEY + len(subject.prefix)
  return config, ids, (f, hide(f, layer), hide(f, layer, control))


def kept_positions(tokens: int, control: int) -> np.ndarray:
  """All positions but the sink's and the control's."""
  return np.delete(np.arange(tokens), [0, control])


def others(norms: np.ndarray, control: int) -> np.ndarray:
  """Norms [..., T, T] with the rows and columns of sink and control at zero.

  >>> float(others(np.ones((3, 3)), 1).sum())
  1.0
  """
  kept = kept_positions(norms.shape[-1], control)
  found = np.zeros_like(norms)
  found[..., kept[:, None], kept] = norms[..., kept[:, None], kept]
  return found


def mixing_of(norms: np.ndarray) -> np.ndarray:
  """Total mixing of norms [..., T, T]."""
  return np.asarray(spread.total_mixing(jnp.asarray(norms, jnp.float32)))
