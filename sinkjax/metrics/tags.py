"""What a key writes into the tokens that attend to it, and its share in them.

A head with output kernel W_h writes p_ts w_h into query t for key s, with

    w_h = v_s W_h,

one vector whoever reads it. Over the heads of a layer and a set Q of queries
the key's tag is the mean of what it writes,

    u = 1 / |Q| sum_{t in Q} sum_h p_ts,h w_h.

arXiv 2502.00919 says that sinks catch tokens, tag them with a common direction
and release them into the residual stream. Its formulas were not at hand: this
direction, the shares and the coefficient along it are our reading.
"""

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from sinkjax.metrics.precision import divide, root, wide


def written_by(
  v: Float[Array, "B N K"], kernel: Float[Array, "H K D"]
) -> Float[Array, "B H D"]:
  """`v W_h` of one key: what a head adds to a query that sees it alone.

  Args:
    v: the key's values of N KV heads, of which H is a multiple.
    kernel: W, the output projection of each head.

  Cost: O(B H K D).

  >>> v, kernel = jnp.array([[[2.0]]]), jnp.array([[[1.0, 0.0]], [[0.0, 3.0]]])
  >>> written_by(v, kernel).tolist()
  [[[2.0, 0.0], [0.0, 6.0]]]
  """
  v = jnp.repeat(wide(v), kernel.shape[0] // v.shape[1], axis=1)
  return jnp.einsum("bhk,hkd->bhd", v, wide(kernel))


def tag(
  weights: Float[Array, "B H T"],
  written: Float[Array, "B H D"],
  queries: Bool[Array, "B T"],
) -> Float[Array, "B D"]:
  """u of the module: the mean of what a key writes into the queries.

  Args:
    weights: the attention that every query gives the key.
    written: of `written_by`.
    queries: the set Q.

  Returns:
    The direction with its length; 0 where there are no queries.

  Cost: O(B H (T + D)).

  >>> p, w = jnp.array([[[1.0, 0.5]]]), jnp.array([[[2.0, 4.0]]])
  >>> tag(p, w, jnp.array([[True, True]])).tolist()
  [[1.5, 3.0]]
  """
  weights = jnp.where(queries[:, None], wide(weights), 0)
  count = jnp.sum(queries, axis=-1).astype(weights.dtype)
  mean = divide(jnp.sum(weights, axis=-1), count[:, None])
  return jnp.einsum("bh,bhd->bd", mean, wide(written))


def coefficient(
  x: Float[Array, "*#B T D"], direction: Float[Array, "*#B D"]
) -> Float[Array, "*B T"]:
  """`<x_t, u> / ||u||`, 0 for a direction of no length.

  >>> x = jnp.array([[3.0, 4.0], [1.0, 1.0]])
  >>> coefficient(x, jnp.array([0.0, 2.0])).tolist()
  [4.0, 1.0]
  """
  u = wide(direction)
  length = root(jnp.sum(u * u, axis=-1, keepdims=True))
  return jnp.einsum("...td,...d->...t", wide(x), divide(u, length))


def share_along(
  x: Float[Array, "*B T D"],
  direction: Float[Array, "*#B D"],
  queries: Bool[Array, "*#B T"],
  *,
  centred: bool = True,
) -> Float[Array, "*B"]:
  """The part of what tokens are that lies along one direction.

      sum_{t in Q} <x_t - m, u>^2 / (||u||^2 sum_{t in Q} ||x_t - m||^2)

  with m the mean over Q: the share of the variance, between tokens, or with
  m = 0 that of the squared norm, to which what all tokens have in common adds.
  A direction at random of D has 1 / D on average. Our reading.

  Args:
    x: [..., T, D] attention outputs, or the residual stream.
    direction: [..., D] u.
    queries: [..., T] the set Q.
    centred: whether m is taken away.

  Returns:
    A share from 0 to 1; 0 where nothing varies.

  Cost: O(B T D).

  >>> x, every = jnp.array([[1.0, 2.0], [3.0, 2.0]]), jnp.ones(2, bool)
  >>> share_along(x, jnp.array([5.0, 0.0]), every).item()
  1.0
  >>> round(share_along(x, jnp.eye(2)[0], every, centred=False).item(), 4)
  0.5556
  """
  x, some = wide(x), queries[..., None]
  if centred:
    count = jnp.maximum(jnp.sum(some, axis=-2, keepdims=True), 1)
    mean = jnp.sum(jnp.where(some, x, 0), axis=-2, keepdims=True)
    x = x - mean / count.astype(x.dtype)
  x = jnp.where(some, x, 0)
  along = jnp.sum(jnp.square(coefficient(x, direction)), axis=-1)
  return divide(along, jnp.sum(x * x, axis=(-2, -1)))
