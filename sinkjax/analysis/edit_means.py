"""The means that `ablate ... to=mean` puts in a neuron's or a head's place."""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from sinkjax import sharding
from sinkjax.analysis.sink_profile import batches
from sinkjax.config import ModelConfig
from sinkjax.models.layerwise import Layers
from sinkjax.models.transformer import forward
from sinkjax.transforms.capture import capture
from sinkjax.transforms.edit_values import Means
from sinkjax.transforms.streaming import stream_statistics
from sinkjax.transforms.written_edits import MEAN


def with_means(
  params: Any,
  cfg: ModelConfig,
  edits: Sequence[Any],
  prompts: Sequence[Sequence[int]],
) -> tuple[Any, ...]:
  """The edits with numbers in place of `to=mean`.

  The mean is over all tokens of all texts, the first of each included, of the
  model without any edit.

  Args:
    params: the model's parameters, or weights read layer by layer.
    cfg: its config, without edits.
    edits: of `parse_edits`.
    prompts: token ids of each text.

  Raises:
    ValueError: for what the model does not have.

  Cost: one forward pass of the texts, where an edit says `to=mean`.

  >>> import jax, sinkjax
  >>> cfg = sinkjax.TINY
  >>> params = sinkjax.init_params(cfg, jax.random.key(0))
  >>> edits = sinkjax.parse_edits("ablate neurons=1:7 to=mean")
  >>> (edit,) = with_means(params, cfg, edits, [[1, 2, 3], [4, 5, 6]])
  >>> sinkjax.edited(cfg, (edit,)).written == (edit,), len(edit.to)
  (True, 1)
  """
  wanted = [edit for edit in edits if getattr(edit, "to", None) == MEAN]
  if not wanted:
    return tuple(edits)
  for edit in wanted:
    edit.edits(cfg)  # it raises for what is not there
  index = sorted({i for edit in wanted for _, i in edit.neurons})
  sums: dict[str, Any] = {"tokens": 0, "mlp_act": 0.0, "z": 0.0}
  run = _sums(cfg, tuple(index), streamed=isinstance(params, Layers))
  for batch in batches(prompts):
    tokens = jnp.asarray([prompts[i] for i in batch], jnp.int32)
    for site, one in sharding.tree_to_host(run(params, tokens)).items():
      sums[site] = sums[site] + np.asarray(one, np.float64)
    sums["tokens"] += tokens.size
  means = {site: sums[site] / sums["tokens"] for site in ("mlp_act", "z")}
  of_heads = Means.of(means["z"])

  def resolved(edit: Any) -> Any:
    if edit not in wanted:
      return edit
    if edit.head:
      return edit.becoming(of_heads)
    at = [means["mlp_act"][layer, index.index(i)] for layer, i in edit.neurons]
    return edit.becoming(tuple(map(float, at)))

  return tuple(map(resolved, edits))


def _sums(cfg: ModelConfig, index: tuple[int, ...], *, streamed: bool) -> Any:
  """`f(params, tokens)`: sums over tokens of neurons [L, N] and z [L, H, W]."""

  def of_neurons(hidden: jax.Array) -> jax.Array:
    some = jnp.take(hidden, jnp.asarray(index, jnp.int32), axis=-1)
    return jnp.sum(some, axis=(0, 1), dtype=jnp.promote_types(some.dtype, "f4"))

  def of_heads(z: jax.Array) -> jax.Array:
    return jnp.sum(z, axis=(0, 1), dtype=jnp.promote_types(z.dtype, "f4"))

  watch = {"mlp_act": ("mlp_act", of_neurons), "z": ("z", of_heads)}
  f = capture(forward(cfg), watch)
  if streamed:
    stream = stream_statistics(f, {}, nll=False)
    return lambda params, tokens: stream(params, tokens).trace
  return jax.jit(lambda params, tokens: f(params, tokens).trace)
