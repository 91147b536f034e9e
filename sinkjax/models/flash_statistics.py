"""Attention and sums over its pattern by an accelerator's own kernels.

On a GPU and on a TPU the two walks of `models.online` and `models.online_sums`
are kernels (`models.flash_kernels`): the first gives z, the log-sum-exp and
what each row knows of itself, the second the sums over columns and over
diagonals. What they do not cover, and every derivative, is computed by those
two in plain JAX: masks of any shape, weights that are no softmax, float64,
float32 under a precision that is less, widths that do not fit, coarse maps,
texts shorter than `SHORTEST`; and everything where the device fails the check
of `models.flash_check`. On a CPU nothing is taken from here.
"""

import functools
from collections.abc import Callable, Collection, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from sinkjax.models.flash_arrays import BLOCKS, rows, squares
from sinkjax.models.flash_check import agrees
from sinkjax.models.online_blocks import Form, Inputs

SHORTEST = 128
"""Queries from which on a kernel is taken: the least that fills a TPU's block.
"""

WIDEST = {("gpu", 4): 128, ("gpu", 2): 256, ("tpu", 4): 256, ("tpu", 2): 512}
"""Entries of a key or value by device and bytes; wider ones leave registers or
fast memory no room."""

DTYPES = {
  "gpu": (jnp.float32, jnp.bfloat16, jnp.float16),
  "tpu": (jnp.float32, jnp.bfloat16),
}

TRUE_FLOAT32 = (None, "float32", "highest")
"""Settings of `jax.default_matmul_precision` under which the kernels' products
of float32, which are true ones, take the place of a device's."""

OF_ROWS = frozenset(("entropy", "written"))
"""The first kernel's, of `online_sums.SUMS`."""

OF_SQUARES = frozenset(("columns", "diagonals"))
"""The second's."""


def device() -> str | None:
  """The kind of device that has kernels here, "gpu" or "tpu"."""
  backend = jax.default_backend()
  if backend not in BLOCKS or not _supported(backend):
    return None
  return backend if agrees(backend) else None


@functools.cache
def _supported(backend: str) -> bool:
  try:  # both modules are experimental, and Triton's is to go
    from jax.experimental import pallas  # noqa: F401

    if backend == "gpu":
      from jax.experimental.pallas import triton  # noqa: F401
  except ImportError:
    return False
  # "8.0"; of a device that is only described nothing is known here. Triton
  # wants Ampere.
  capability = getattr(jax.local_devices()[0], "compute_capability", "8.0")
  digits = str(capability).partition(".")[0]
  return backend == "tpu" or (digits.isdecimal() and int(digits) >= 8)


def covers(
  where: str | None,
  arrays: Sequence[Any],
  *,
  length: int,
  mask: Array | None,
  weights: Callable | None,
) -> bool:
  """Whether a device's kernels serve.

  Args:
    where: of `device`.
    arrays: queries, keys and values, or the first two.
    length: of their tokens.
    mask: of any shape.
    weights: of scores without a softmax.
  """
  if where is None or mask is not None or weights is not None:
    return False
  q, k, *_ = arrays
  if q.dtype == jnp.float32:
    # Who asks for faster products than true ones shall have them.
    asked = jax.config.jax_default_matmul_precision
    if asked not in TRUE_FLOAT32:
      return False
  return (
    length >= SHORTEST
    and q.dtype == k.dtype
    and all(
      x.dtype in DTYPES[where]
      and x.shape[-1] <= WIDEST[where, x.dtype.itemsize]
      for x in arrays
    )
  )


def attended(
  plain: Callable, form: Form, inputs: Inputs, q: Array, k: Array, v: Array
) -> tuple[Array, Array]:
  """What `models.online` walks over by blocks, by a kernel where one serves.

  Args:
    plain: the walk in plain JAX, of (q, k, v, inputs).
    form: how weights are made.
    inputs: what else a call has.
    q: [B, N, T G, K] queries.
    k: [B, N, T, K] keys.
    v: [B, N, T, W] values.

  Returns:
    z [B, N, T G, W] and the log-sum-exp [B, N, T, G].
  """
  where, (batch, kv_heads, length, _) = device(), k.shape
  if not covers(
    where, (q, k, v), length=length, mask=inputs.mask, weights=form.weights
  ):
    return plain(q, k, v, inputs)

  def kernel(q: Array, k: Array, v: Array, inputs: Inputs) -> tuple:
    split = batch, kv_heads, length, form.group, -1
    q = jnp.swapaxes(q.reshape(split), 2, 3)
    sinks = inputs.sinks
    if sinks is not None:  # [1 or B, N, 1 or T, G]
      sinks = jnp.swapaxes(sinks, 2, 3)
      sinks = sinks.reshape(-1, q.shape[1] * form.group, sinks.shape[3])
    window = form.window if inputs.window is None else inputs.window
    found = rows(
      where,
      form.scale,
      form.scores,
      q.reshape(batch, -1, length, q.shape[-1]),
      k,
      v,
      sinks=sinks,
      window=window,
      valid=inputs.valid,
    )
    z = found["z"].reshape(batch, kv_heads, form.group, length, -1)
    lse = found["lse"].reshape(batch, kv_heads, form.group, length)
    z = jnp.swapaxes(z, 2, 3).reshape(batch, kv_heads, length * form.group, -1)
    return z, jnp.swapaxes(lse, 2, 3)

  return _either(where, kernel, plain)(q, k, v, inputs)


def attention_statistics(
  plain: Callable,
  q: Float[Array, "B T H K"],
  k: Float[Array, "B T N K"],
  v: Float[Array, "B T N W"],
  norms: Float[Array, "B T N"] | None = None,
  sinks: Float[Array, "#B H #T"] | None = None,
  window: Any = None,
  mask: Array | None = None,
  valid: Array | None = None,
  *,
  wanted: Collection[Any],
  scale: float,
  scores: Callable[[Array], Array] | None = None,
  weights: Callable[[Array], Array] | None = None,
) -> tuple[Array, Array, dict[str, Float[Array, "B T H"]]] | None:
  """Attention, its log-sum-exp and sums of each row, in one walk.

  The sums are those of `OF_ROWS` that are wanted, defined at `online_sums`.

  Args:
    plain: the same in plain JAX, of the arrays, for derivatives.
    q: queries.
    k: keys.
    v: values.
    norms: of the values, for "written".
    sinks: as `online_attention`, and so the rest.
    window: as there.
    mask: as there.
    valid: as there.
    wanted: of `online_sums.SUMS`.
    scale: as there.
    scores: as there.
    weights: as there.

  Returns:
    (z [B, T, H, W], lse [B, T, H], sums [B, T, H]), or `None` where no kernel
    serves.

  Cost: that of attention, whose products are gone through once; a sum costs an
  operation for each score.
  """
  where = device()
  if not covers(
    where, (q, k, v), length=q.shape[1], mask=mask, weights=weights
  ):
    return None
  names = sorted(OF_ROWS & set(wanted))

  def kernel(q, k, v, norms, sinks, window, valid):
    q, k, v = (jnp.swapaxes(x, 1, 2) for x in (q, k, v))
    of_keys = None
    if "written" in names:
      of_keys = jnp.swapaxes(norms, 1, 2)[:, :, None].astype(jnp.float32)
    found = rows(
      *(where, scale, scores, q, k, v),
      sinks=sinks,
      window=window,
      valid=valid,
      of_keys=of_keys,
    )
    if of_keys is not None:
      found["written"] = found["weighted"][:, :, 0]
    sums = {name: jnp.swapaxes(found[name], 1, 2) for name in names}
    z, lse = (jnp.swapaxes(found[name], 1, 2) for name in ("z", "lse"))
    return z, lse, sums

  return _either(where, kernel, plain)(q, k, v, norms, sinks, window, valid)


def square_sums(
  plain: Callable,
  q: Float[Array, "B T H K"],
  k: Float[Array, "B T N K"],
  lse: Float[Array, "B T H"],
  window: Any = None,
  mask: Array | None = None,
  valid: Array | None = None,
  *,
  wanted: Collection[Any],
  scale: float,
  scores: Callable[[Array], Array] | None = None,
  weights: Callable[[Array], Array] | None = None,
) -> dict[str, Float[Array, "B H T"]]:
  """Sums over columns and over diagonals, where a kernel serves.

  Those of `OF_SQUARES` that are wanted, defined at `online_sums`; arguments as
  in `attention_statistics`. Without a kernel there are none.

  Cost: the products of scores for each of the two; for diagonals B H T numbers
  times the rows of a block.
  """
  where, names = device(), sorted(OF_SQUARES & set(wanted))
  if not names or not covers(
    where, (q, k), length=q.shape[1], mask=mask, weights=weights
  ):
    return {}

  def kernel(q, k, lse, window, valid):
    arrays = tuple(jnp.swapaxes(x, 1, 2) for x in (q, k, lse))
    return {
      name: squares(
        *(where, scale, scores, *arrays),
        window=window,
        valid=valid,
        diagonals=name == "diagonals",
      )
      for name in names
    }

  return _either(where, kernel, plain)(q, k, lse, window, valid)


def _either(where: str, kernel: Callable, plain: Callable) -> Callable:
  """The kernel on its device; elsewhere, and differentiated, `plain`."""

  def chosen(*args: Any) -> Any:
    if jax.default_backend() != where:  # interpreted
      return kernel(*args)
    # What is compiled for the host of an accelerator has no kernel.
    name = {"gpu": "cuda"}.get(where, where)
    return jax.lax.platform_dependent(*args, default=plain, **{name: kernel})

  fn = jax.custom_jvp(chosen)

  @fn.defjvp
  def _(primals: tuple, tangents: tuple) -> tuple:
    return jax.jvp(plain, primals, tangents)

  return fn
