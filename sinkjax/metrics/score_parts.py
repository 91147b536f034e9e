"""Where the attention on a key comes from: biases, content, position.

With rotations R_t of queries and keys, x what the layer reads, and biases b,

    s_ts = c (R_t (W_q x_t + b_q)) . (R_s (W_k x_s + b_k)).

At distance 0 the rotations fall away and the product is a sum of four. What
rotation changes beyond that is called the part of the position, so that

    s_ts = c [ W_q x_t . W_k x_s + b_q . W_k x_s + W_q x_t . b_k + b_q . b_k ]
           + position

holds exactly. Rotary embeddings are no sum, so this part is our reading; where
positions are added to the embedding instead, they belong to the content.

A softmax sees scores only up to a number for each row. What decides is by how
much a key's score exceeds that of the row's other keys: of this excess the two
parts without W_k x_s are 0 for every key, and exp(excess) is the attention on
the key over the geometric mean of that on the others.
"""

from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Float

from sinkjax.metrics.precision import wide


class ScoreParts(NamedTuple):
  """Parts of the excess of a key's score, [B, H, T]; 0 in rows without another.

  Attributes:
    content: from `W_q x_t . W_k x_s`.
    query_bias: from `b_q . W_k x_s`.
    position: what rotation adds, key biases included.
    total: their sum, the excess itself.
  """

  content: Array
  query_bias: Array
  position: Array
  total: Array


def excess_of_key(
  scores: Float[Array, "*B T S"], key: int = 0
) -> Float[Array, "*B T"]:
  """A key's score less the mean over the row's other visible keys.

      e_t = s_tk - 1 / t sum_{s <= t, s != k} s_ts     for t > 0 that see key k

  Args:
    scores: before the mask; what stands behind the diagonal is not read.
    key: k.

  Returns:
    e, 0 in rows that see nothing else or not the key.

  Raises:
    ValueError: for a key that is not there.

  >>> excess_of_key(jnp.array([[5.0, 9.0], [3.0, 1.0]])).tolist()
  [0.0, 2.0]
  """
  scores = wide(scores)
  length, keys = scores.shape[-2:]
  if not 0 <= key < keys:
    raise ValueError(f"key must be in [0, {keys}), got {key}")
  t, s = jnp.arange(length)[:, None], jnp.arange(keys)[None]
  others = jnp.broadcast_to((s <= t) & (s != key), scores.shape)
  count = jnp.maximum(t[:, 0], 1).astype(scores.dtype)
  mean = jnp.sum(jnp.where(others, scores, 0), -1)
  mean = mean / jnp.broadcast_to(count, mean.shape)
  sees = jnp.broadcast_to((t[:, 0] > 0) & (t[:, 0] >= key), mean.shape)
  return jnp.where(sees, scores[..., key] - mean, 0)


def score_parts(
  q: Float[Array, "B T H K"],
  k: Float[Array, "B S N K"],
  q_bias: Float[Array, "H K"],
  scores: Float[Array, "B H T S"],
  scale: float,
  key: int = 0,
) -> ScoreParts:
  """The parts of a key's excess, see the module.

  Args:
    q: `W_q x`, not rotated and without its bias.
    k: `W_k x`, likewise, of N KV heads.
    q_bias: b_q, zeros where there is none.
    scores: those of the model, scaled and rotated.
    scale: c.
    key: whose attention it is.

  Cost: O(B H T S K) time and two arrays of the scores' size.

  >>> one = jnp.ones((1, 2, 1, 1))
  >>> k = jnp.array([3.0, 1.0]).reshape(1, 2, 1, 1)
  >>> s = jnp.array([[[[9.0, 0.0], [7.0, 1.0]]]])
  >>> [x[0, 0, 1].item() for x in score_parts(one, k, jnp.ones((1, 1)), s, 1.0)]
  [2.0, 2.0, 2.0, 6.0]
  """
  q, k = wide(q), wide(k)
  k = jnp.repeat(k, q.shape[2] // k.shape[2], axis=2)
  content = excess_of_key(scale * jnp.einsum("bthk,bshk->bhts", q, k), key)
  by_bias = scale * jnp.einsum("hk,bshk->bhs", wide(q_bias), k)
  by_bias = jnp.broadcast_to(by_bias[:, :, None], scores.shape)
  bias = excess_of_key(by_bias, key)
  total = excess_of_key(scores, key)
  return ScoreParts(content, bias, total - content - bias, total)


def leaves_range(
  norms: Float[Array, "B T"], deviations: float = 2.0
) -> Float[Array, "B"]:
  """The first token's norm over the end of the others' ordinary range.

      n_b0 / (mean + deviations sd of n over the positions t > 0 of all texts)

  Above 1 the first token's is out of range (arXiv 2503.08908 as we read it).

  Args:
    norms: [B, T] of some layer's MLP output.
    deviations: standard deviations above the mean.

  >>> norms = jnp.array([[10.0, 1.0, 3.0], [2.0, 1.0, 3.0]])
  >>> leaves_range(norms).tolist()
  [2.5, 0.5]
  """
  norms = wide(norms)
  others = norms[:, 1:]
  return norms[:, 0] / (jnp.mean(others) + deviations * jnp.std(others))
