"""Norms of hidden states, keys and values, massive activations, kurtosis.

Positions count from 0. Sources: Barbero et al. (2025, arXiv 2504.02732), Gu
et al. (2025, arXiv 2410.10781), Sun et al. (2024, arXiv 2402.17762).
"""

from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from sinkjax.metrics.precision import root, wide


def token_norms(x: Float[Array, "*B D"]) -> Float[Array, "*B"]:
  """`||x||_2` over the last axis: hidden, query, key or value norms.

  >>> import jax.numpy as jnp
  >>> token_norms(jnp.array([[3.0, 4.0]])).tolist()
  [5.0]
  """
  x = wide(x)
  return root(jnp.sum(x * x, axis=-1))


def first_and_rest(
  norms: Float[Array, "B T *N"],
) -> tuple[Float[Array, "B *N"], Float[Array, "B *N"]]:
  """The first token's norm, and the mean of the other tokens'.

  Args:
    norms: tokens on axis 1.

  Returns:
    (first, rest); for T = 1 the rest is NaN: there is none.
  """
  length = norms.shape[1]
  if length == 1:
    return norms[:, 0], jnp.full_like(norms[:, 0], jnp.nan)
  return norms[:, 0], jnp.mean(norms[:, 1:], axis=1)


def value_norm_ratio(values: Float[Array, "B T N K"]) -> Float[Array, "B N"]:
  """How small the sink's value is: `||v_0|| / mean_{j > 0} ||v_j||`.

  About 0 where attending to the first token writes nothing, 1 for a token
  like any other. Our reading of Barbero et al., section 3.2.

  Args:
    values: of every KV head.

  Returns:
    The ratio for each row and KV head; NaN for T = 1.

  >>> import jax.numpy as jnp
  >>> v = jnp.array([1.0, 2.0, 6.0]).reshape(1, 3, 1, 1)
  >>> value_norm_ratio(v).tolist()
  [[0.25]]
  """
  first, rest = first_and_rest(token_norms(values))
  return first / rest


def median(x: Float[Array, "*B T"]) -> Float[Array, "*B"]:
  """The median over the last axis, NaN where there is one.

  `jnp.median` gives the same and takes three times as long, and three times
  the memory to compile.

  >>> import jax.numpy as jnp
  >>> median(jnp.array([[4.0, 1.0, 2.0, 9.0], [3.0, 0.0, 0.0, 1.0]])).tolist()
  [3.0, 0.5]
  """
  x = jnp.sort(x, axis=-1)
  last = x.shape[-1] - 1
  middle = (x[..., last // 2] + x[..., (last + 1) // 2]) / 2
  return jnp.where(jnp.isnan(x[..., -1]), x[..., -1], middle)  # NaN sorts last


class Massive(NamedTuple):
  """The largest activation of each row, and whether it is massive.

  Attributes:
    value: [B] signed activation of largest magnitude.
    position: [B] its token.
    dimension: [B] its coordinate.
    ratio: [B] its magnitude over the median magnitude of the row.
    is_massive: [B] whether both conditions of the criterion hold.
  """

  value: Float[Array, "B"]
  position: Int[Array, "B"]
  dimension: Int[Array, "B"]
  ratio: Float[Array, "B"]
  is_massive: Float[Array, "B"]


LEAST, LEAST_RATIO = 100.0, 1000.0
"""The criterion of Sun et al., arXiv 2402.17762: an activation is massive if it
exceeds the first number, and is so many times the median."""


def massive_dimensions(hidden: Float[Array, "B T D"]) -> Bool[Array, "B D"]:
  """Dimensions of a layer's hidden state in which some token is massive.

  By the same rule as `massive_activation`, of each text by itself.

  Args:
    hidden: residual stream after one layer.

  >>> import jax.numpy as jnp
  >>> massive_dimensions(jnp.ones((1, 2, 3)).at[0, 0, 1].set(2e3)).tolist()
  [[False, True, False]]
  """
  size = jnp.abs(wide(hidden))
  middle = median(size.reshape(len(size), -1))[:, None, None]
  return jnp.any((size > LEAST) & (size >= LEAST_RATIO * middle), axis=1)


def massive_activation(
  hidden: Float[Array, "B T D"],
  *,
  least: float = LEAST,
  least_ratio: float = LEAST_RATIO,
) -> Massive:
  """The largest activation of a layer's hidden state.

  Massive by Sun et al.'s rule: |x| > 100 and |x| >= 1000 times the median
  magnitude of that layer's hidden state. The magnitude itself is returned
  too, since some models with clear sinks fail the rule.

  Args:
    hidden: residual stream after one layer.
    least: the absolute threshold, Sun et al.'s by default.
    least_ratio: the threshold relative to the median, likewise.

  Returns:
    One `Massive` with an entry for each row.

  >>> import jax.numpy as jnp
  >>> m = massive_activation(jnp.ones((1, 3, 4)).at[0, 1, 2].set(-2000.0))
  >>> int(m.position[0]), int(m.dimension[0]), bool(m.is_massive[0])
  (1, 2, True)
  """
  width = hidden.shape[-1]
  flat = wide(hidden).reshape(hidden.shape[0], -1)
  size = jnp.abs(flat)
  at = jnp.argmax(size, axis=1)
  top = jnp.take_along_axis(size, at[:, None], 1)[:, 0]
  value = jnp.take_along_axis(flat, at[:, None], 1)[:, 0]
  # A median of 0 makes the ratio huge, not infinite.
  ratio = top / jnp.maximum(median(size), 1e-30)
  is_massive = (top > least) & (ratio >= least_ratio)
  return Massive(value, at // width, at % width, ratio, is_massive)


def largest_of_all(
  massive: dict[str, np.ndarray],
) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
  """The largest activation of all texts and layers, and its text by layer.

  Args:
    massive: [P, L] arrays named as the fields of `Massive`.

  Returns:
    The entry with the largest |value|, with its "prompt" and "layer"; and
    every layer's of that prompt, [L] each.

  >>> found, _ = largest_of_all({"value": np.array([[1.0, -7.0], [3.0, 2.0]])})
  >>> found
  {'prompt': 0, 'layer': 1, 'value': -7.0}
  """
  size = np.abs(massive["value"])
  at = np.unravel_index(int(np.argmax(size)), size.shape)
  prompt, layer = map(int, at)
  entry = {name: values[at].item() for name, values in massive.items()}
  of_prompt = {name: values[prompt] for name, values in massive.items()}
  return {"prompt": prompt, "layer": layer, **entry}, of_prompt


def kurtosis(hidden: Float[Array, "B T D"]) -> Float[Array, "B"]:
  """Fourth moment of a layer's activations over the square of the second.

      m_4 / m_2^2,  m_k = mean over tokens and channels of (x - mean)^k

  3 for normal numbers, T D for a single one that is not 0: how much a few
  activations are all that there is. Bondarenko et al. (2023, arXiv
  2306.12929) and Kaul et al. (2024, arXiv 2410.17174) report it; that all
  entries of a row's [T, D] are one sample is our reading.

  Args:
    hidden: residual stream after one layer.

  Returns:
    One for each row; 0 where all entries are equal.

  >>> import jax.numpy as jnp
  >>> kurtosis(jnp.array([[[1.0, -1.0], [1.0, -1.0]]])).tolist()
  [1.0]
  """
  hidden = wide(hidden)
  off = hidden - jnp.mean(hidden, axis=(1, 2), keepdims=True)
  top = jnp.max(jnp.abs(off), axis=(1, 2), keepdims=True)
  off = off / jnp.where(top > 0, top, 1)  # fourth powers would overflow
  second = jnp.mean(off**2, axis=(1, 2))
  fourth = jnp.mean(off**4, axis=(1, 2))
  return fourth / jnp.where(second > 0, second, 1) ** 2
