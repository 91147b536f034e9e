"""Whether a device's kernels compute there what they should.

A compiler may take a kernel that its device then runs wrongly, and these have
not run on every device that they compile for. So before a process uses them
they compute one small text, beside NumPy in float64; where that differs, a
warning says so and plain JAX takes their place.
"""

import concurrent.futures
import functools
import warnings

import jax
import jax.numpy as jnp
import numpy as np

from sinkjax.models.flash_arrays import rows, squares

TOLERANCE = 1e-4
"""Of the largest number: rounding in float32 is a hundredth of it here, and a
block that is left out, or masked wrongly, a hundred times it."""

LENGTH, HEADS, GROUP, WIDTH, WINDOW, SCALE = 200, 4, 2, 32, 150, 0.2
"""Blocks of every kind: on the diagonal, below it, beyond the window, and one
that is not full."""


@functools.cache
def agrees(where: str) -> bool:
  """Whether the kernels agree with NumPy on this process's device.

  A device that is only described to a compiler cannot be asked; there it is
  taken for granted, as nothing is computed.

  Args:
    where: "gpu" or "tpu".

  Cost: two small kernels, compiled once in a process.
  """
  if jax.local_devices()[0].platform != where:
    return True
  try:
    error = largest_error(where)
  except Exception as refused:  # whatever a device says: plain JAX is there
    warnings.warn(
      f"this device does not run the kernels of attention ({refused!s:.100}): "
      "plain JAX takes their place, which is slower",
      stacklevel=2,
    )
    return False
  if error > TOLERANCE:
    warnings.warn(
      "on this device the kernels of attention differ from NumPy by "
      f"{error:.1e} of the largest number: plain JAX takes their place, which "
      "is slower",
      stacklevel=2,
    )
  return error <= TOLERANCE


def largest_error(where: str) -> float:
  """The largest difference from NumPy, in units of each result's largest."""
  rng = np.random.default_rng(0)
  kv_heads = HEADS // GROUP
  q, k, v = (
    rng.normal(size=(1, heads, LENGTH, WIDTH))
    for heads in (HEADS, kv_heads, kv_heads)
  )
  sinks = rng.normal(size=(1, HEADS, 1))
  want = _by_numpy(q, k, v, sinks)
  # Whoever uses the kernels may be tracing, which a thread of its own is not.
  with concurrent.futures.ThreadPoolExecutor(1) as pool:
    got = pool.submit(_by_kernels, where, q, k, v, sinks).result()
  errors = [
    np.abs(got[name] - want[name]).max() / np.abs(want[name]).max()
    for name in want
  ]
  # A maximum of Python's own would pass over what is not a number.
  return float(np.max(errors)) if np.isfinite(errors).all() else float("inf")


def _by_kernels(where: str, *arrays: np.ndarray) -> dict[str, np.ndarray]:
  q, k, v, sinks = (jnp.asarray(x, jnp.float32) for x in arrays)
  found = rows(
    *(where, SCALE, None, q, k, v), sinks=sinks, window=WINDOW, valid=None
  )
  got = {name: found[name] for name in ("z", "lse", "entropy")}
  for name in ("columns", "diagonals"):
    got[name] = squares(
      *(where, SCALE, None, q, k, found["lse"]),
      window=WINDOW,
      valid=None,
      diagonals=name == "diagonals",
    )
  return {name: np.asarray(x) for name, x in got.items()}


def _by_numpy(
  q: np.ndarray, k: np.ndarray, v: np.ndarray, sinks: np.ndarray
) -> dict[str, np.ndarray]:
  """z, lse, entropy, columns and diagonals, with the pattern written out."""
  k, v = (np.repeat(x, GROUP, axis=1) for x in (k, v))
  scores = SCALE * np.einsum("bhtk,bhsk->bhts", q, k)
  back = np.subtract.outer(np.arange(LENGTH), np.arange(LENGTH))
  seen = (back >= 0) & (back < WINDOW)
  weights = np.where(seen, np.exp(scores), 0)
  total = weights.sum(axis=-1) + np.exp(sinks)
  pattern = weights / total[..., None]
  logs = np.log(np.where(pattern > 0, pattern, 1))
  return {
    "z": np.einsum("bhts,bhsk->bhtk", pattern, v),
    "lse": np.log(total),
    "entropy": -(pattern * logs).sum(axis=-1),
    "columns": pattern.sum(axis=2),
    "diagonals": np.stack(
      [np.trace(pattern, offset=-d, axis1=2, axis2=3) for d in range(LENGTH)],
      axis=-1,
    ),
  }
