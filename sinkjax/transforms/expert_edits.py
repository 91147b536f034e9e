"""An edit of experts: what some of them add, taken away."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from sinkjax.config import ModelConfig
from sinkjax.taps import Layer
from sinkjax.transforms.edits import pytree_dataclass


@pytree_dataclass
class AblateExperts:
  """Some experts add nothing. For site "expert_out".

  The mask is a leaf: one compiled program serves every choice of experts, and a
  mask of nothing is the identity.

  Attributes:
    off: [L, E] bool, a shared expert last.
  """

  off: Any

  def placed(self, cfg: ModelConfig, length: int, site: str) -> Any:
    """The same with its mask checked against the model's experts.

    Raises:
      ValueError: for a mask of another shape or dtype.
    """
    off = self.off
    if not isinstance(off, jax.Array):
      off = np.asarray(off)
    experts = cfg.n_experts + bool(cfg.shared_d_ff)
    shape = (cfg.n_layers, experts)
    if off.dtype != bool or off.shape != shape:
      raise ValueError(
        f"a mask of experts by layer must be bool [L, E] = {list(shape)}, a "
        f"shared expert counted, got {off.dtype} {list(off.shape)}"
      )
    return dataclasses.replace(self, off=off)

  def __call__(
    self, out: Float[Array, "B T E D"], layer: Layer
  ) -> Float[Array, "B T E D"]:
    """What experts add, 0 for those that are off."""
    off = jnp.asarray(self.off)[layer]
    # Selected and not multiplied by 0, which would keep a NaN or infinity.
    return jnp.where(off[:, None], jnp.zeros((), out.dtype), out)


def ablate_experts(
  experts: Sequence[tuple[int, int]], cfg: ModelConfig
) -> AblateExperts:
  """Takes away what some experts add, at every token.

      y = sum_e w_e MLP_e(x),   the sum without these e

  The routing stays: other weights do not change, and no other expert takes
  their place. For site "expert_out". Su et al. (2025, arXiv 2507.23279) prune
  "super experts" in this way; that the others' weights stay is our reading.

  Args:
    experts: (layer, expert) of each. Negative ones count from the end, where a
      shared expert stands.
    cfg: the model.

  Raises:
    ValueError: for one that the model does not have.

  >>> from sinkjax import TINY
  >>> cfg = TINY.replace(n_layers=2, n_experts=3)
  >>> edit = ablate_experts([(1, 0), (1, 2)], cfg)
  >>> edit(jnp.ones((1, 1, 3, 1)), 1)[0, 0, :, 0].tolist()
  [0.0, 1.0, 0.0]
  """
  off = np.zeros((cfg.n_layers, cfg.n_experts + bool(cfg.shared_d_ff)), bool)
  for layer, expert in experts:
    sizes = zip((layer, expert), off.shape, strict=True)
    if not all(-size <= at < size for at, size in sizes):
      raise ValueError(
        f"expert {layer}.{expert} is not there: this model has {len(off)} "
        f"layers of {off.shape[1]} experts, a shared one counted"
      )
    off[layer, expert] = True
  return AblateExperts(off)
