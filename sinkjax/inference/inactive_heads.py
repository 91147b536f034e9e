"""Twelve scores of how inactive a head is, in one registry.

The fourth version of arXiv 2504.03889 thresholds twelve scores of a head's
weights, values and output, some divided by their mean over the layer. Its
formulas were not at hand: the families are the source's, each formula is our
reading. Eight are those of `head_scores`; position 0, which sees only itself,
is left out everywhere.
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from sinkjax import sharding
from sinkjax.inference import head_scores
from sinkjax.inference.head_scores import Seen, seen_of
from sinkjax.metrics.norms import value_norm_ratio
from sinkjax.metrics.precision import wide
from sinkjax.metrics.sinks import attention_entropy

QUERIES = 8
"""Queries that must see a key before it can be any sink: each of a text's last
tokens is seen by a few alone, itself first of all."""


class Looked(NamedTuple):
  """Means over texts and queries.

  Attributes:
    seen: those of `head_scores`.
    any_sink: [L, H] the largest mean weight on a single key.
    entropy: [L, H] of the rows, a share of its maximum.
    first_value: [L, H] `||v_0||` over the mean of the others.
    written: [L, H] `sqrt(mean ||z_t U||^2)`.
  """

  seen: Seen
  any_sink: np.ndarray
  entropy: np.ndarray
  first_value: np.ndarray
  written: np.ndarray


class Score(NamedTuple):
  """One score.

  Attributes:
    family: "weights", "values" or "output".
    formula: in words.
    of: [L, H] of what was looked at.
    inactive: "high" or "low", the end at which a head is inactive.
  """

  family: str
  formula: str
  of: Callable[[Looked], np.ndarray]
  inactive: str


def by_layer(values: Float[np.ndarray, "L H"]) -> Float[np.ndarray, "L H"]:
  """Values over their mean over the layer's heads.

  >>> by_layer(np.array([[1.0, 3.0], [4.0, 4.0]])).tolist()
  [[0.5, 1.5], [1.0, 1.0]]
  """
  return values / values.mean(axis=1, keepdims=True)


def _size(looked: Looked) -> np.ndarray:
  """[L, 1] mean norm of a layer's values."""
  return looked.seen.size.mean(axis=1, keepdims=True)


def _z_norm(looked: Looked) -> np.ndarray:
  return np.sqrt(np.einsum("lhkk->lh", looked.seen.second))


SCORES: Mapping[str, Score] = {
  "first_weight": Score(
    "weights", "mean p_t0", lambda x: 1 - x.seen.off_sink, "high"
  ),
  "first_weight_by_layer": Score(
    "weights",
    "mean p_t0, over its layer's mean",
    lambda x: by_layer(1 - x.seen.off_sink),
    "high",
  ),
  "any_sink": Score(
    "weights", "max_s of the mean p_ts", lambda x: x.any_sink, "high"
  ),
  "entropy": Score(
    "weights", "mean entropy over log(t + 1)", lambda x: x.entropy, "low"
  ),
  "entropy_by_layer": Score(
    "weights",
    "mean entropy, over its layer's mean",
    lambda x: by_layer(x.entropy),
    "low",
  ),
  "first_value": Score(
    "values", "||v_0|| over the mean ||v_s||", lambda x: x.first_value, "low"
  ),
  "value_mass": Score(
    "values",
    "mean sum_s p_ts ||v_s||, over its layer's mean ||v_s||",
    lambda x: x.seen.mass / _size(x),
    "low",
  ),
  "beside_sink": Score(
    "values",
    "mean sum_{s>0} p_ts ||v_s||, over its layer's mean ||v_s||",
    lambda x: x.seen.nonsink / _size(x),
    "low",
  ),
  "output_norm": Score("output", "root mean ||z_t||^2", _z_norm, "low"),
  "output_norm_by_layer": Score(
    "output",
    "root mean ||z_t||^2, over its layer's mean",
    lambda x: by_layer(_z_norm(x)),
    "low",
  ),
  "written_norm": Score(
    "output", "root mean ||z_t U||^2", lambda x: x.written, "low"
  ),
  "written_share": Score(
    "output",
    "root mean ||z_t U||^2, over that of the residual stream",
    lambda x: x.written / np.sqrt(x.seen.square)[:, None],
    "low",
  ),
}
"""The twelve, by name."""


def activity(name: str, looked: Looked) -> Float[np.ndarray, "L H"]:
  """A score turned so that the least is the most inactive, as `lowest` takes.

  Args:
    name: one of `SCORES`.
    looked: of `look_of`.

  Raises:
    ValueError: for another name.
  """
  if name not in SCORES:
    raise ValueError(f"score must be one of {list(SCORES)}, got {name!r}")
  one = SCORES[name]
  return one.of(looked) * (-1.0 if one.inactive == "high" else 1.0)


def observers() -> dict[str, tuple[Any, Callable]]:
  """For `capture`: those of `head_scores`, and what they lack, [L, B, H]."""
  more = {
    "shape": ("pattern", _shape),
    "first_value": (("pattern", "v"), _first_value),
  }
  return head_scores.observers() | more


def _shape(pattern: Float[Array, "B H T S"]) -> tuple[Array, Array]:
  """(largest mean weight on a key, normalised entropy), [B, H] each."""
  rows = wide(pattern[:, :, 1:])
  queries, keys = rows.shape[-2:]
  # Key s is seen by the queries s, ..., T - 1, of which the first is left out.
  seen = jnp.minimum(queries, keys - jnp.arange(keys))[None, None]
  received = jnp.sum(rows, axis=-2) / seen
  enough = seen >= min(QUERIES, queries)
  largest = jnp.max(jnp.where(enough, received, 0), axis=-1)
  return largest, attention_entropy(pattern, normalize=True)


def _first_value(
  pattern: Float[Array, "B H T S"], v: Float[Array, "B S N K"]
) -> Float[Array, "B H"]:
  # The pattern says how many query heads share a value.
  ratio = value_norm_ratio(v)
  return jnp.repeat(ratio, pattern.shape[1] // ratio.shape[1], axis=1)


def output_gram(params: Any) -> Float[np.ndarray, "L H K K"]:
  """U U^T of every head: `||z U||^2` needs no more than second moments of z."""
  out = sharding.to_host(params["blocks"]["attn"]["o"]["kernel"], np.float64)
  return np.einsum("lhkd,lhjd->lhkj", out, out, optimize=True)


def look_of(
  trace: Mapping[str, Any], gram: Float[np.ndarray, "L H K K"]
) -> Looked:
  """Means over texts of what the observers found.

  Args:
    trace: of `observers`, [L, B, ...]; a slice of B for some of the texts.
    gram: of `output_gram`.

  Raises:
    ValueError: where the two are of different models.
  """
  seen = seen_of(dict(trace))
  if gram.shape != seen.second.shape:
    raise ValueError(
      f"the trace has heads [L, H, K, K] = {seen.second.shape}, the output "
      f"weights {gram.shape}"
    )
  more = *trace["shape"], trace["first_value"]
  largest, entropy, value = (
    sharding.to_host(x, np.float64).mean(axis=1) for x in more
  )
  written = np.sqrt(np.einsum("lhkj,lhkj->lh", gram, seen.second))
  return Looked(seen, largest, entropy, value, written)


def overlap(
  one: Bool[np.ndarray, "L H"], other: Bool[np.ndarray, "L H"]
) -> float:
  """Heads that both masks choose, over those that either does; NaN for none.

  >>> a, b = np.array([[True, True, False]]), np.array([[False, True, True]])
  >>> round(overlap(a, b), 4)
  0.3333
  """
  either = np.sum(one | other)
  return float(np.sum(one & other) / either) if either else float("nan")
