"""A model one layer at a time: for analyses that cannot hold it all at once.

`Layers` is what such an analysis needs of the weights; `InMemory` gives it
from a parameter tree, `sinkjax.weights.offload` from files on disk. The
functions here run the very modules that `forward` runs.
"""

from collections.abc import Callable, Iterator
from typing import Any, Protocol, runtime_checkable

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from sinkjax.config import ModelConfig
from sinkjax.models.blocks import Block, Norm
from sinkjax.models.context import Context
from sinkjax.models.depth import without_share
from sinkjax.models.transformer import Columns
from sinkjax.taps import Layer, Taps, Trace

Params = dict[str, Any]

UNEMBED_COLUMNS = 4096
"""Vocabulary entries that one piece of the unembedding holds.

A piece is then as large as a layer's MLP, or smaller, in models of the usual
shapes: it does not set the peak of memory.
"""


@runtime_checkable
class Layers(Protocol):
  """Weights that can be had one layer at a time."""

  cfg: ModelConfig

  def embedding(self, tokens: Int[Array, "..."]) -> Float[Array, "... D"]:
    """Rows of the embedding table."""
    ...

  def position_embedding(
    self, positions: Int[Array, "..."]
  ) -> Float[Array, "... D"]:
    """Rows of the table of learned positions."""
    ...

  def embedding_norm(self) -> Params:
    """The parameters of the norm behind the embedding; empty without one."""
    ...

  def layer(self, index: int) -> Params:
    """One block's parameters, without the layer axis."""
    ...

  def final_norm(self) -> Params:
    """The parameters of the norm before the logits."""
    ...

  def unembedding(self) -> Iterator[Columns]:
    """The unembedding, some columns after the other."""
    ...


class InMemory:
  """`Layers` from a whole parameter tree.

  Args:
    cfg: the model.
    params: its parameters, blocks stacked.
  """

  def __init__(self, cfg: ModelConfig, params: Params):
    self.cfg, self._params = cfg, params

  def embedding(self, tokens: Array) -> Array:
    """See `Layers`."""
    return self._params["embed"][tokens]

  def position_embedding(self, positions: Array) -> Array:
    """See `Layers`."""
    return self._params["positions"][positions]

  def embedding_norm(self) -> Params:
    """See `Layers`."""
    return self._params.get("embed_norm", {})

  def layer(self, index: int) -> Params:
    """See `Layers`."""
    return _pick(self._params["blocks"], index)

  def final_norm(self) -> Params:
    """See `Layers`."""
    return final_norm_of(self._params)

  def unembedding(self) -> Iterator[Columns]:
    """See `Layers`."""
    tied = self.cfg.tie_embeddings
    table = self._params["embed" if tied else "unembed"]
    for start in range(0, self.cfg.vocab_size, UNEMBED_COLUMNS):
      part = slice(start, start + UNEMBED_COLUMNS)
      kernel = table[part].T if tied else table[:, part]
      bias = self._params.get("unembed_bias")
      yield Columns(kernel, None if bias is None else bias[part])


# The index is traced: one program serves every layer, and every `InMemory`.
@jax.jit
def _pick(blocks: Params, index: Layer) -> Params:
  return jax.tree.map(
    lambda x: jax.lax.dynamic_index_in_dim(x, index, 0, keepdims=False), blocks
  )


def as_layers(cfg: ModelConfig, weights: Params | Layers) -> Layers:
  """`weights` itself if it is read layer by layer, else wrapped.

  Raises:
    TypeError: for anything that is neither.
  """
  if isinstance(weights, Layers):
    return weights
  if isinstance(weights, dict) and "blocks" in weights:
    return InMemory(cfg, weights)
  raise TypeError(
    "params must be a parameter tree or weights read layer by layer, got "
    f"{type(weights).__name__}"
  )


def embed(
  layers: Layers, tokens: Int[Array, "B T"], positions: Int[Array, "B T"]
) -> Float[Array, "B T D"]:
  """The residual stream before the first block and before any tap."""
  cfg = layers.cfg
  x = jnp.asarray(layers.embedding(tokens), cfg.dtype)
  # In the compute dtype, as in `Transformer`, so that both round alike.
  x = x * jnp.asarray(cfg.embed_scale, x.dtype)
  if cfg.positions == "learned":
    x = x + jnp.asarray(layers.position_embedding(positions), x.dtype)
  if cfg.embed_norm:
    x = Norm(cfg).apply({"params": layers.embedding_norm()}, x)
  return without_share(cfg, x)


def methods_of(module: nn.Module, params: Params) -> Callable:
  """`apply(method, *args, **kwargs)`: the module's methods on its parameters.

  Args:
    module: a module of `sinkjax.models`.
    params: its own parameters, without a layer axis.
  """

  def apply(method: Callable, *args: Any, **kwargs: Any) -> Any:
    return module.apply({"params": params}, *args, method=method, **kwargs)

  return apply


def apply_block(
  cfg: ModelConfig,
  params: Params,
  x: Float[Array, "B T D"],
  layer: Layer,
  ctx: Context,
  taps: Taps,
) -> tuple[Float[Array, "B T D"], Trace]:
  """One block: the residual stream and the observers' results."""
  return Block(cfg).apply({"params": params}, x, layer, ctx, taps)


def final_norm_of(params: Params) -> Params:
  """The parameters of the norm before the logits; it may have none."""
  return params.get("final_norm", {})


def apply_final_norm(
  cfg: ModelConfig, params: Params, x: Float[Array, "B T D"]
) -> Float[Array, "B T D"]:
  """The norm before the logits, where the model has one."""
  return x if cfg.stream_norms else Norm(cfg).apply({"params": params}, x)
