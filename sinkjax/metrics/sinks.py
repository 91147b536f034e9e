"""How much attention goes to the first token, and how spread the rest is.

Patterns are attention probabilities [..., H, T, S] with rows that sum to one
over the keys up to the diagonal. Positions count from 0 here; papers count
from 1.

In a model with a learned sink (`ModelConfig.learned_sink`) a row sums to less:
the sink has the rest. What is said here of the first token is its own weight,
as a share of all, the sink's included. `rows.learned_sink_mass` is the weight
on the learned sink, and with `with_first` the weight on both.

Half precision is widened to float32 before anything is added up.

Sources: Gu et al. (2025, arXiv 2410.10781) for alpha and the rate; Barbero et
al. (2025, arXiv 2504.02732) for the same at k = first token.
"""

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from sinkjax.metrics import rows
from sinkjax.metrics.precision import wide

ORDERS = ("threshold_first", "mean_first")


def sink_score(
  pattern: Float[Array, "*B T S"], *, key: int = 0
) -> Float[Array, "*B"]:
  """Mean attention on one key position over the queries that can see it.

      alpha_k = 1 / (T - k) * sum_{i = k}^{T - 1} A[i, k]

  Gu et al., section 3. For k = 0 this is the mean over all queries and equals
  Barbero et al.'s inner sum; the first row, which has no choice, counts as 1,
  so alpha_0 is between 1 / T and 1.

  Args:
    pattern: attention probabilities.
    key: k, from 0.

  Returns:
    alpha in [0, 1], the two last axes reduced.

  Raises:
    ValueError: for a key that no query sees.

  >>> import jax.numpy as jnp
  >>> sink_score(jnp.array([[1.0, 0.0], [0.5, 0.5]])).tolist()
  0.75
  """
  return rows.of_pattern(rows.sink_score(key=key), pattern)


def sink_rate(
  alpha: Float[Array, "..."] | Float[np.ndarray, "..."],
  *,
  eps: float = 0.3,
  order: str = "threshold_first",
) -> Float[Array, ""]:
  """Share of heads whose sink score exceeds `eps`.

      threshold_first:  mean over prompts, layers, heads of 1[alpha > eps]
      mean_first:       mean over layers, heads of 1[mean_p alpha > eps]

  Gu et al.'s code thresholds each prompt and then averages, our default. That
  Barbero et al. do the same is our reading: the table's percentages are no
  multiples of one head.

  Args:
    alpha: [P, L, H] sink scores, prompts on the first axis.
    eps: threshold; the papers use 0.3, and 0.8 for the table of model sizes.
    order: "threshold_first" or "mean_first".

  Returns:
    A share in [0, 1]; NaN if any score is NaN, which is above no threshold
    and would count as a head without a sink.

  Raises:
    ValueError: for another order, or alpha that is not [P, L, H].

  >>> import jax.numpy as jnp
  >>> alpha = jnp.array([[[0.9, 0.1]], [[0.1, 0.1]]])
  >>> sink_rate(alpha).tolist(), sink_rate(alpha, order="mean_first").tolist()
  (0.25, 0.5)
  """
  if order not in ORDERS:
    raise ValueError(f"order must be one of {list(ORDERS)}, got {order!r}")
  alpha = wide(jnp.asarray(alpha))
  if alpha.ndim != 3:
    raise ValueError(f"alpha must be [prompts, L, H], got {alpha.shape}")
  if order == "mean_first":
    alpha = jnp.mean(alpha, axis=0)
  above = (alpha > eps).astype(jnp.float32)
  return jnp.mean(jnp.where(jnp.isnan(alpha), jnp.nan, above))


def sink_rate_stderr(
  alpha: Float[np.ndarray, "P L H"], *, eps: float
) -> float | None:
  """Standard error over prompts of the sink rate; `None` for one prompt.

      std_p(share of heads of prompt p with alpha > eps) / sqrt(P)

  Args:
    alpha: sink scores, prompts on the first axis.
    eps: threshold.

  >>> sink_rate_stderr(np.array([[[0.9, 0.1]], [[0.1, 0.1]]]), eps=0.3)
  0.25
  """
  # One prompt tells nothing of the spread between prompts: the formula would
  # give NaN.
  if len(alpha) < 2:
    return None
  above = np.where(np.isnan(alpha), np.nan, alpha > eps)
  rates = above.mean(axis=(1, 2))
  # One less in the divisor: the prompts are a sample, whose mean is estimated.
  return float(rates.std(ddof=1) / np.sqrt(len(rates)))


def first_token_mass(pattern: Float[Array, "*B T S"]) -> Float[Array, "*B T"]:
  """Each query's attention on the first token, `A[i, 0]`.

  Averaged over queries this is `sink_score` at key 0; averaged over heads and
  layers too it is the "first-token attention" of Qiu et al. (2025, arXiv
  2505.06708).

  >>> import jax.numpy as jnp
  >>> first_token_mass(jnp.array([[1.0, 0.0], [0.25, 0.75]])).tolist()
  [1.0, 0.25]
  """
  return pattern[..., :, 0]


def uniform_mass(length: int) -> float:
  """Mean attention on the first token if every row were uniform.

      1/T sum_i 1/i

  >>> round(uniform_mass(64), 3)
  0.074
  """
  return sum(1 / i for i in range(1, length + 1)) / length


def attention_share(pattern: Float[Array, "*B T S"]) -> Float[Array, "*B T S"]:
  """Each query's attention as shares of what it gives in all.

      |A[i, j]| / sum_k |A[i, k]|

  The proxy of Gu et al. (section 7) for normalisers whose rows do not sum to
  one; what it is for a softmax is the softmax. A row of zeros stays one.

  >>> import jax.numpy as jnp
  >>> attention_share(jnp.array([[0.2, 0.6], [0.0, 0.0]])).tolist()
  [[0.25, 0.75], [0.0, 0.0]]
  """
  size = jnp.abs(wide(pattern))
  total = jnp.sum(size, axis=-1, keepdims=True)
  return jnp.where(total > 0, size / jnp.where(total > 0, total, 1), 0)


def attention_entropy(
  pattern: Float[Array, "*B T S"], *, normalize: bool = False
) -> Float[Array, "*B"]:
  """Mean entropy of the rows, in nats, or as a share of its maximum.

      H_i = -sum_j A[i, j] log A[i, j];   normalised: H_i / log(i + 1)

  Rows are averaged from i = 1 on: row 0 sees one key and has no entropy. The
  normalised form is 0 for one-hot rows and 1 for uniform ones at any i.

  Args:
    pattern: attention probabilities, queries and keys from position 0.
    normalize: divide each row by the log of the keys that it sees.

  Returns:
    Entropy with the two last axes reduced; 0 where T = 1.

  >>> import jax.numpy as jnp
  >>> half = jnp.array([[1.0, 0.0], [0.5, 0.5]])
  >>> round(float(attention_entropy(half)), 4)
  0.6931
  >>> round(float(attention_entropy(half, normalize=True)), 4)
  1.0
  """
  statistic = rows.attention_entropy(normalize=normalize)
  return rows.of_pattern(statistic, pattern)
