"""Checks that parts of parameters are read as the whole has them."""

import jax.numpy as jnp
import numpy as np

from sinkjax import sharding
from sinkjax.weights.assemble import flatten


def cuts(path, shape):
  """The whole, and halves along every axis that a rule splits."""
  whole = tuple(slice(0, size) for size in shape)
  spec = sharding.spec_of(path.split("/"))
  yield whole
  for axis in range(1, len(shape) + 1):
    split = len(spec) >= axis and spec[len(spec) - axis] is not None
    at = len(shape) - axis
    if split and shape[at] % 2 == 0:
      for start in 0, shape[at] // 2:
        part = slice(start, start + shape[at] // 2)
        yield (*whole[:at], part, *whole[at + 1 :])


def check_parts(unread, params):
  flat, count = flatten(params), 0
  for leaf in unread.leaves:
    whole = np.asarray(flat[leaf.path])
    for at, name in leaf.places(whole.shape):
      want = whole[at]
      for index in cuts(leaf.path, want.shape):
        part = want[index]
        for dtype in "float32", "bfloat16":
          got = np.empty(part.shape, jnp.dtype(dtype))
          leaf.read_part(unread.source, name, want.shape, index, got)
          np.testing.assert_array_equal(
            got, part.astype(got.dtype), err_msg=f"{leaf.path} {index}"
          )
        count += index != tuple(slice(0, size) for size in want.shape)
  assert count > 10
