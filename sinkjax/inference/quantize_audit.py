"""What makes tensors hard to round, and which of them costs how much.

A step is shared by all numbers of a tensor, or by a row of it: a token of an
input, an output channel of a kernel. Where rows differ in size, one step for
all of them is as coarse as the largest row asks for, and small numbers of small
rows become 0. Both are measured here, on the symmetric grids of
`quantize_linear`; that these are what audits of quantisation report is our
reading.
"""

from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from sinkjax.inference.quantize import quantize
from sinkjax.metrics.norms import median
from sinkjax.metrics.precision import divide, wide

BROKEN = 10.0
"""Of the reference's perplexity: a model above this predicts nothing, and what
leaving a tensor out gives back says nothing of the tensor."""


def is_broken(added: Float[np.ndarray, "P"]) -> bool:
  """Whether the perplexity is more than `BROKEN` times the reference's.

  Args:
    added: nats a token by which the loss of each text has risen.

  >>> is_broken(np.array([2.0, 2.5])), is_broken(np.array([2.0, 2.7]))
  (False, True)
  """
  return bool(np.mean(added) > np.log(BROKEN))


def row_dispersion(x: Float[Array, "*B R C"]) -> Float[Array, "*B"]:
  """How far the largest row stands above the usual one.

      max_r m_r / median_r m_r,   m_r = max_c |x_rc|

  1 where all rows have one range; the number of levels of a usual row is that
  of the largest divided by this. Our reading.

  Args:
    x: rows that would have a step each.

  Returns:
    At least 1; 0 where the usual row is 0.

  Cost: O(R C + R log R).

  >>> row_dispersion(jnp.array([[1.0, -2.0], [8.0, 0.0], [2.0, 1.0]])).item()
  4.0
  """
  sizes = jnp.max(jnp.abs(wide(x)), axis=-1)
  return divide(jnp.max(sizes, axis=-1), median(sizes))


def underflow(
  x: Float[Array, "B R C"], bits: Any, *, per: str
) -> Float[Array, "B"]:
  """The share of the numbers other than 0 that become 0 when they are rounded.

      #{x != 0, |x| <= step / 2} / #{x != 0}

  with the step of a symmetric grid of `quantize`. Our reading.

  Args:
    x: rows, in the place of tokens.
    bits: of a level; may be traced.
    per: "token", a step a row, or "tensor", one for all.

  Returns:
    A share; 0 where all are 0.

  >>> x = jnp.array([[[7.0, 1.0], [0.4, 0.0]]])
  >>> round(underflow(x, 4, per="tensor").item(), 2)
  0.33
  >>> underflow(x, 4, per="token").item()
  0.0
  """
  some = x != 0
  gone = some & (quantize(x, bits, per=per, symmetric=True) == 0)
  count, lost = (
    jnp.sum(y, axis=(1, 2), dtype=jnp.float32) for y in (some, gone)
  )
  return divide(lost, count)


def kernels_of(params: Any) -> dict[str, Array]:
  """The kernels that `quantize_weights` rounds, as "attn.q" and so on.

  Args:
    params: as `init_params` gives them.

  >>> import jax, sinkjax
  >>> params = sinkjax.init_params(sinkjax.TINY, jax.random.key(0))
  >>> list(kernels_of(params))
  ['attn.k', 'attn.o', 'attn.q', 'attn.v', 'mlp.down', 'mlp.gate', 'mlp.up']
  """
  found = {}

  def walk(tree: Any, path: tuple[str, ...]) -> None:
    for key in sorted(tree):
      if key == "kernel":
        found[".".join(path)] = tree[key]
      elif isinstance(tree[key], Mapping):
        walk(tree[key], (*path, key))

  walk(params["blocks"], ())
  return found


def with_kernel(params: Any, name: str, kernel: Array) -> Any:
  """Parameters with another kernel.

  Args:
    params: as `init_params` gives them.
    name: of `kernels_of`.
    kernel: in its place, of the same shape.

  Raises:
    ValueError: for a name that is not there.
  """
  if name not in kernels_of(params):
    raise ValueError(f"no kernel {name!r}; {', '.join(kernels_of(params))} are")

  def walk(tree: Any, path: list[str]) -> Any:
    if not path:
      return {**tree, "kernel": kernel}
    return {**tree, path[0]: walk(tree[path[0]], path[1:])}

  return {**params, "blocks": walk(params["blocks"], name.split("."))}


def rows_of_kernel(name: str, kernel: Array) -> Float[Array, "L R C"]:
  """A kernel's output channels as rows, of its inputs.

  Args:
    name: of `kernels_of`.
    kernel: [L, inputs, outputs]; the output projection has two axes of inputs,
      the others may have several of outputs.
  """
  inner = 2 if name.split(".")[-1] == "o" else 1
  inputs = int(np.prod(kernel.shape[1 : 1 + inner]))
  flat = kernel.reshape(kernel.shape[0], inputs, -1)
  return jnp.swapaxes(flat, 1, 2)
