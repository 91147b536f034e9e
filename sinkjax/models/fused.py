"""Kernels that a device has for attention: for training, not for analysis.

On a GPU in 16 bits cuDNN's flash attention, by way of
`jax.nn.dot_product_attention`; on a TPU the splash kernel; elsewhere there is
none, and `sinkjax.models.online` takes its place. Equal to the einsum path
within rounding. They have reverse mode only, and no place for a tap.

On several devices each works on its own rows and heads, which needs the mesh in
context: `jax.set_mesh`.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from sinkjax import mesh_context

SPLASH_BLOCK = 128
"""Splash works on blocks of rows; a context must be a multiple of it."""


def fused_attention(
  q: Float[Array, "B T H K"],
  k: Float[Array, "B S N K"],
  v: Float[Array, "B S N K"],
  *,
  scale: float,
  window: int | None = None,
  mask: Bool[Array, "#B 1 T S"] | None = None,
  sinks: Float[Array, "H"] | None = None,
  implementation: str | None = None,
) -> Float[Array, "B T H K"] | None:
  """Causal attention, `z`, or `None` where the device has no kernel for it.

      z_t = sum_s p_ts v_s,  p_ts = exp(s_ts) / (exp(sink) + sum_r exp(s_tr))

  Args:
    q: queries.
    k: keys.
    v: values.
    scale: of the products.
    window: how many positions back a token sees, itself included.
    mask: True where key s may be seen from t, beside causality.
    sinks: a logit for each head that takes weight and has no value.
    implementation: "xla", "cudnn" or "splash"; chosen by device if `None`.

  Raises:
    ValueError: for splash with a mask, or a length of no whole blocks.

  Cost: with "xla" the memory of the pattern; with the others O(T).
  """
  if implementation is None:
    implementation = _chosen(q, mask)
  if implementation is None:
    return None
  if implementation == "splash":
    _check_splash(q.shape[1], mask)
    kernel = functools.partial(_splash, scale=scale, window=window)
  else:
    kernel = _library_attention(scale, window, implementation)
  if implementation != "xla":  # which the compiler splits well by itself
    tokens = "rows", None, "heads", None
    inputs = (tokens,) * 3 + (("rows", None, None, None), ("heads",))
    kernel = mesh_context.per_device(kernel, inputs, output=tokens)
  return kernel(q, k, v, mask, sinks)


def _library_attention(scale, window, implementation):
  """JAX's own, to which a sink logit is added."""
  attend = functools.partial(
    jax.nn.dot_product_attention,
    scale=scale,
    is_causal=True,
    # JAX counts the keys before the query, a config's window the query as well.
    local_window_size=None if window is None else (window - 1, 0),
    implementation=implementation,
  )

  def kernel(q, k, v, mask, sinks):
    if sinks is None:
      return attend(q, k, v, mask=mask)
    return _sunk(attend, scale)(q, k, v, mask, sinks)

  return kernel


def _chosen(q, mask) -> str | None:
  backend = jax.default_backend()
  # cuDNN's flash attention takes 16 bits only.
  if backend == "gpu" and q.dtype in (jnp.bfloat16, jnp.float16):
    return "cudnn"
  if backend == "tpu" and mask is None and q.shape[1] % SPLASH_BLOCK == 0:
    return "splash"
  return None


def _sunk(attend, scale: float):
  """Attention with a sink logit, from attention without one.

      z' = g z,  g = sigmoid(LSE - sink)

  cuDNN's backward pass takes no gradient of the LSE, so ours does: it is
  `dLSE_t / dq_t = scale sum_s p_ts k_s`, attention with keys for values, and
  `dLSE_t / dk_s = scale p_ts q_t`, that attention's gradient of its values.
  """

  def plain(q, k, v, mask):
    return attend(q, k, v, mask=mask, return_residual=True)

  def forward(q, k, v, mask, sinks):
    z, lse = plain(q, k, v, mask)
    lse = lse.astype(jnp.promote_types(lse.dtype, jnp.float32))
    share = jax.nn.sigmoid(lse - sinks[None, None].astype(lse.dtype))
    return (z * share[..., None]).astype(q.dtype), (z, share)

  @jax.custom_vjp
  def sunk(q, k, v, mask, sinks):
    return forward(q, k, v, mask, sinks)[0]

  def fwd(q, k, v, mask, sinks):
    out, (z, share) = forward(q, k, v, mask, sinks)
    return out, (q, k, v, mask, z, share, sinks)

  def bwd(kept, d_out):
    q, k, v, mask, z, share, sinks = kept
    d_z = (d_out * share[..., None]).astype(q.dtype)
    _, pull = jax.vjp(lambda *qkv: attend(*qkv, mask=mask), q, k, v)
    d_q, d_k, d_v = pull(d_z)
    along = jnp.sum((d_out * z).astype(share.dtype), axis=-1)
    d_lse = along * share * (1 - share)
    keys, pull = jax.vjp(lambda x: attend(q, k, x, mask=mask), k)
    d_q += (scale * d_lse[..., None] * keys).astype(q.dtype)
    d_k += pull((scale * d_lse[..., None] * q).astype(q.dtype))[0]
    d_mask = None
    if mask is not None:
      # JAX requires this dtype for the tangent of a boolean.
      d_mask = np.zeros(mask.shape, jax.dtypes.float0)
    return (
      d_q,
      d_k,
      d_v,
      d_mask,
      -jnp.sum(d_lse, axis=(0, 1)).astype(sinks.dtype),
    )

  sunk.defvjp(fwd, bwd)
  return sunk


def _check_splash(length: int, mask) -> None:
  if mask is not None or length % SPLASH_BLOCK:
    raise ValueError(
      f"splash attention takes no mask and whole blocks of {SPLASH_BLOCK} "
      f"tokens, got {length} tokens{' and a mask' if mask is not None else ''}"
    )


def _splash(q, k, v, mask, sinks, *, scale, window):
  """The TPU kernel, one example after the other; interpreted elsewhere."""
  from jax.experimental.pallas.ops.tpu import splash_attention as splash

  length, heads = q.shape[1:3]
  shape = (length, length)
  one = (
    splash.CausalMask(shape)
    if window is None
    else splash.LocalMask(shape, (window - 1, 0), 0)
  )
  kernel = splash.make_splash_mha_single_device(
    splash.MultiHeadMask([one] * heads),
    interpret=jax.default_backend() != "tpu",
  )
  group = heads // k.shape[2]
  # This kernel takes a key head for every query head.
  k, v = (jnp.repeat(x, group, axis=2) for x in (k, v))
  inner = functools.partial(kernel, segment_ids=None, sinks=sinks)
  # The kernel has no scale of its own, so the queries are scaled.
  z = jax.vmap(lambda *qkv: inner(*qkv))(
    *(jnp.swapaxes(x, 1, 2) for x in (q * jnp.asarray(scale, q.dtype), k, v))
  )
  return jnp.swapaxes(z, 1, 2)
