"""Which expert of a layer carries the sink: what each writes, and where.

In models with experts a few of them write the massive activations of the first
token, and without them the sinks collapse: "super experts" of Su et al. (2025,
arXiv 2507.23279), who find them by the largest outputs of each expert's last
map. Here an output is what is added to the residual stream, so weighted by the
router; that is 0 for experts that a token does not use.

E counts the experts, a shared one behind them. In first layers without experts
(`ModelConfig.dense_layers`) they are parts of one MLP.
"""

from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from sinkjax.metrics.norms import token_norms
from sinkjax.metrics.precision import wide


def expert_first_norm(out: Float[Array, "B T E D"]) -> Float[Array, "B E"]:
  """`||o_e||_2` at the first token: how much each expert writes there.

  Args:
    out: o, what every expert adds in one layer: site "expert_out".

  >>> out = jnp.zeros((1, 2, 3, 2)).at[0, 0, 1].set(jnp.array([3.0, 4.0]))
  >>> expert_first_norm(out).tolist()
  [[0.0, 5.0, 0.0]]
  """
  return token_norms(out[:, 0])


def expert_first_share(out: Float[Array, "B T E D"]) -> Float[Array, "B E"]:
  """Each expert's share of what all of them write to the first token.

      <o_e, o> / <o, o>,  o = sum_e o_e

  Shares sum to one; one is negative where an expert writes against the others.
  Ours.

  Args:
    out: what every expert adds in one layer: site "expert_out".

  Returns:
    One for each row and expert; 0 where nothing is written.

  >>> out = jnp.zeros((1, 2, 2, 1)).at[0, 0, :, 0].set(jnp.array([5.0, -1.0]))
  >>> jnp.round(expert_first_share(out), 3).tolist()
  [[1.25, -0.25]]
  """
  first = wide(out[:, 0])
  # Scaled, so that the squares of massive activations do not overflow.
  top = jnp.max(jnp.abs(first), axis=(1, 2), keepdims=True)
  first = first / jnp.where(top > 0, top, 1)
  whole = jnp.sum(first, axis=1)
  along = jnp.einsum("bed,bd->be", first, whole)
  square = jnp.sum(whole * whole, axis=-1, keepdims=True)
  return jnp.where(square > 0, along / jnp.where(square > 0, square, 1), 0)


def expert_peak(out: Float[Array, "B T E D"]) -> Float[Array, "B E"]:
  """The largest magnitude that each expert writes, at any token.

  Args:
    out: what every expert adds in one layer: site "expert_out".

  >>> out = jnp.zeros((1, 2, 2, 2)).at[0, 1, 0, 1].set(-7.0)
  >>> expert_peak(out).tolist()
  [[7.0, 0.0]]
  """
  return jnp.max(jnp.abs(wide(out)), axis=(1, 3))


def strongest_expert(values: Float[np.ndarray, "L E"]) -> dict[str, Any]:
  """Where the largest value of all layers and experts stands.

  >>> strongest_expert(np.array([[1.0, 2.0], [5.0, 3.0]]))
  {'layer': 1, 'expert': 0, 'value': 5.0}
  """
  values = np.asarray(values)
  layer, expert = np.unravel_index(int(np.argmax(values)), values.shape)
  value = float(values[layer, expert])
  return {"layer": int(layer), "expert": int(expert), "value": value}
