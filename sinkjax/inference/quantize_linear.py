"""Simulated integer weights and activations: W8A8, W4A8, W4A4 and the like.

Every projection inside the layers multiplies a value at a tap: "attn_in"
(q, k, v, gates of heads), "z" (o; "z_gated" where heads have gates), "mlp_in"
(gate, up), "mlp_act" (down). Weights are rounded
once, with a step for each output channel; activations by edits at these four
sites, with a step for each token, or one for the whole tensor, found from the
text itself (dynamic) or from other texts before (static). All grids are
symmetric, see `sinkjax.inference.quantize`.

PrefixQuant (2410.05265) keeps the few tokens with massive activations in the
cache as a prefix that is never rounded; here these are `keep`. Weights are
rounded for the kept token too, and its keys and values are made with them.

Sharp edges:
  The embedding, the unembedding, norms, biases and the products of queries,
  keys, pattern and values stay in floating point.
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from sinkjax.config import ModelConfig
from sinkjax.inference.quantize import Quantize, kept_tokens
from sinkjax.taps import Layer, placed

INPUTS = ("attn_in", "z", "mlp_in", "mlp_act")
"""Sites that the projections read; see `inputs_of`."""

RANGES = ("tensor, static", "tensor", "token")
"""Which activations share a step; "tensor" and "token" are dynamic."""

_EXPERTS = (
  "rounding the projections of a model with experts is not supported: a router "
  "reads what the experts read, and would be rounded with them"
)
_INNER = {"o": 2}
"""How many axes of a kernel are summed over; 1 where not named: the output
projection [H, K, D] sums over heads and their dimensions."""


def inputs_of(cfg: ModelConfig) -> tuple[str, ...]:
  """The sites that a model's projections read.

  >>> import sinkjax
  >>> inputs_of(sinkjax.TINY.replace(gate="head"))
  ('attn_in', 'z_gated', 'mlp_in', 'mlp_act')
  """
  if not cfg.gates_heads:
    return INPUTS
  return tuple("z_gated" if site == "z" else site for site in INPUTS)


def quantize_weights(params: Any, bits: Any) -> Any:
  """Parameters with every projection's kernel rounded per output channel.

  Args:
    params: as `init_params` gives them; "embed", "unembed", norms and biases
      stay.
    bits: of a level, 2 or more; may be traced.

  Returns:
    The same tree: w' = step round(w / step), step = max |w| / (2^(bits-1) - 1)
    over the inputs of each output and layer.

  Raises:
    ValueError: for fewer than 2 bits, or more than 16, or a model with experts.
  """
  if "router" in params["blocks"]["mlp"]:
    raise ValueError(_EXPERTS)
  if isinstance(bits, (int, float)) and not 2 <= bits <= 16:
    raise ValueError(f"bits must be in [2, 16], got {bits}")

  def walk(tree: Any, name: str) -> Any:
    if not isinstance(tree, Mapping):
      return tree
    inner = _INNER.get(name, 1)
    return {
      key: _round_kernel(x, bits, inner) if key == "kernel" else walk(x, key)
      for key, x in tree.items()
    }

  return {**params, "blocks": walk(params["blocks"], "blocks")}


def _round_kernel(kernel: Array, bits: Any, inner: int) -> Array:
  axes = tuple(range(1, 1 + inner))
  span = jnp.max(jnp.abs(kernel), axis=axes, keepdims=True)
  most = (2.0 ** (jnp.asarray(bits) - 1) - 1).astype(kernel.dtype)
  # A channel of zeros stays zero whatever the step.
  step = jnp.where(span > 0, span / most, 1)
  return jnp.round(kernel / step) * step


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Flat:
  """An edit of each token's numbers in one axis: heads side by side.

  Attributes:
    edit: of [B, T, C].
  """

  edit: Any

  def placed(self, cfg: ModelConfig, length: int, site: str) -> Any:
    """The same with the indices of its edit checked."""
    return Flat(placed(self.edit, cfg, length, site))

  def __call__(self, value: Array, layer: Layer) -> Array:
    """The edited value in its own shape."""
    flat = value.reshape(*value.shape[:2], -1)
    return self.edit(flat, layer).reshape(value.shape)


def quantize_inputs(
  cfg: ModelConfig,
  bits: Any,
  *,
  ranges: str,
  keep: Any = None,
  layers: Any = None,
  limits: Mapping[str, Array] | None = None,
) -> dict[str, Flat]:
  """Edits for `intervene` that round the input of every projection.

  Args:
    cfg: the model.
    bits: of a level.
    ranges: one of `RANGES`.
    keep: see `Quantize`.
    layers: likewise; a mapping by site for another choice at each.
    limits: `{site: [L, 2]}` of `limits_of`, for "tensor, static" alone.

  Raises:
    ValueError: for unknown ranges, limits that are missing or unused, or a
      model with experts.

  >>> import sinkjax
  >>> sorted(quantize_inputs(sinkjax.TINY, 8, ranges="token"))
  ['attn_in', 'mlp_act', 'mlp_in', 'z']
  """
  if ranges not in RANGES:
    raise ValueError(f"ranges must be one of {list(RANGES)}, got {ranges!r}")
  if cfg.n_experts:
    raise ValueError(_EXPERTS)
  if (limits is not None) != (ranges == "tensor, static"):
    raise ValueError(
      f"limits go with ranges 'tensor, static' and nothing else, got {ranges!r}"
    )

  def one(site: str) -> Flat:
    at = layers[site] if isinstance(layers, Mapping) else layers
    return Flat(
      Quantize(
        bits,
        keep,
        at,
        per="token" if ranges == "token" else "tensor",
        symmetric=True,
        limits=None if limits is None else limits[site],
      )
    )

  return {site: one(site) for site in inputs_of(cfg)}


def range_observers(
  keep: Any = None, *, sites: Sequence[str] = INPUTS
) -> dict[str, tuple[str, Callable]]:
  """Observers for `capture`: [B, 2] least and greatest at each input.

  Args:
    keep: position or positions that do not count.
    sites: of `inputs_of`.
  """

  def ends(value: Array) -> Array:
    flat = value.reshape(*value.shape[:2], -1)
    kept = kept_tokens(keep, value.shape[1])
    counts = True if kept is None else ~kept[None, :, None]
    low = jnp.min(jnp.where(counts, flat, jnp.inf), axis=(1, 2))
    high = jnp.max(jnp.where(counts, flat, -jnp.inf), axis=(1, 2))
    return jnp.stack([low, high], axis=-1)

  return {site: (site, ends) for site in sites}


def limits_of(trace: Mapping[str, Float[Array, "L B 2"]]) -> dict[str, Array]:
  """[L, 2] static limits of each input, from all texts of `range_observers`.

  Args:
    trace: of those observers alone.
  """

  def over_texts(ends: Array) -> Array:
    low, high = jnp.min(ends[..., 0], axis=1), jnp.max(ends[..., 1], axis=1)
    return jnp.stack([low, high], axis=-1)

  return {site: over_texts(ends) for site, ends in trace.items()}
