"""An edit of single hidden numbers of the MLP: `ablate_neurons`."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from sinkjax.config import ModelConfig
from sinkjax.taps import Layer
from sinkjax.transforms.edit_indices import place_index
from sinkjax.transforms.edits import pytree_dataclass


@pytree_dataclass
class AblateNeurons:
  """Fixes some neurons of the MLP. For site "mlp_act".

  Attributes:
    neurons: [N, 2] integers, layer and index of each.
    to: a number, or [N] one for each.
  """

  neurons: Any
  to: Any = 0.0

  def placed(self, cfg: ModelConfig, length: int, site: str) -> Any:
    """The same with its layers and indices checked against the model's.

    Raises:
      ValueError: for one out of range or named twice, or another shape.
    """
    shape, many = jnp.shape(self.neurons), jnp.shape(self.to)
    if len(shape) != 2 or shape[1] != 2 or many not in ((), shape[:1]):
      raise ValueError(
        f"neurons must be [N, 2], layer and index of each, and `to` one number "
        f"or [N], got {list(shape)} and {list(many)}"
      )
    if isinstance(self.neurons, jax.core.Tracer):
      return self
    given = np.asarray(self.neurons)
    layers = place_index("layer", given[:, 0], cfg.n_layers)
    index = place_index("neuron", given[:, 1], cfg.mlp_width)
    dense = (layers < cfg.dense_layers) & (index >= cfg.dense_d_ff)
    if dense.any():
      raise ValueError(
        f"neuron {index[dense][0]} is out of range: layer {layers[dense][0]} "
        f"is one without experts, of {cfg.dense_d_ff} neurons"
      )
    pairs = np.stack([layers, index], axis=1)
    if len(np.unique(pairs, axis=0)) < len(pairs):
      raise ValueError("a neuron is named twice")
    return dataclasses.replace(self, neurons=pairs)

  def __call__(
    self, hidden: Float[Array, "B T F"], layer: Layer
  ) -> Float[Array, "B T F"]:
    """The hidden layer with the chosen neurons fixed."""
    layers, index = jnp.asarray(self.neurons).T
    places = jnp.arange(hidden.shape[-1])[None]
    hit = (index[:, None] == places) & (layers == layer)[:, None]
    to = jnp.broadcast_to(jnp.asarray(self.to, hidden.dtype), layers.shape)
    fixed = jnp.sum(jnp.where(hit, to[:, None], 0), axis=0)
    # Selected and not multiplied by 0, which would keep a NaN or infinity.
    return jnp.where(hit.any(axis=0)[None, None], fixed[None, None], hidden)


def ablate_neurons(neurons: Any, *, to: Any = 0.0) -> AblateNeurons:
  """Fixes neurons, the numbers that the MLP's last projection reads.

      m_i -> to,  m = act(x W_gate) * (x W_up)  or  act(x W_up)

  at every token, for site "mlp_act". Sun et al. (2024, arXiv 2402.17762) set
  massive activations of the residual stream to zero or to their mean in the
  same way. With experts the neurons of all stand side by side, expert e's from
  e `d_ff` on and those of a shared one last; those of an expert that a token
  does not use have no effect on it.

  Args:
    neurons: [N, 2] (layer, index) of each. Negative ones count from the end.
    to: what they become, a number or [N]; for the mean over texts capture
      "mlp_act" first, or see `sinkjax.analysis.edit_means`.

  Raises:
    ValueError: where the model is called, for what it does not have.

  >>> edit = ablate_neurons([(1, 0), (1, 2)], to=[5.0, 7.0])
  >>> edit(jax.numpy.ones((1, 1, 3)), 1).tolist()
  [[[5.0, 1.0, 7.0]]]
  >>> edit(jax.numpy.ones((1, 1, 3)), 0).tolist()
  [[[1.0, 1.0, 1.0]]]
  """
  as_array = not isinstance(neurons, jax.Array)
  return AblateNeurons(
    np.asarray(neurons).reshape(-1, 2) if as_array else neurons,
    np.asarray(to) if isinstance(to, (list, tuple)) else to,
  )
