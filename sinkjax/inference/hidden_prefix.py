"""A prefix that takes the largest activations off the text, found greedily.

Son et al. (2024, arXiv 2406.12016) put a few tokens before every text, whose
keys and values stay in the cache unrounded: the first token then has its
massive activations where nothing is rounded. They search the tokens one by one
for the smallest largest activation of the text, and tune the cache after that.
Here is the search alone; the objective, the mean logarithm of the largest
activation of every projection's input, is our reading.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int


class Step(NamedTuple):
  """One step of the search.

  Attributes:
    token: the best candidate, which the prefix gets if it is taken.
    score: of the prefix with it.
    scores: of every candidate, in their order.
    taken: whether it lowered the score by enough.
  """

  token: int
  score: float
  scores: list[float]
  taken: bool


def greedy_prefix(
  score: Callable[[tuple[int, ...]], float],
  candidates: Sequence[int],
  *,
  most: int,
  gain: float,
) -> tuple[list[int], list[Step]]:
  """The prefix that a greedy search finds, and the steps of the search.

  Each step appends the candidate of the least score, and stops where that is
  not below the score before by at least `gain`.

  Args:
    score: of a prefix; the less the better.
    candidates: tokens that are tried at every place.
    most: tokens of the prefix, at most.
    gain: least fall of the score by one more token.

  Returns:
    (prefix, steps); the last step is one that was not taken, unless the prefix
    has `most` tokens. Of equal scores the earlier candidate is taken.

  Raises:
    ValueError: for no candidates, or `most` below 1.

  Cost: at most 1 + most * len(candidates) scores.

  >>> weights = {3: 2.0, 5: 1.0, 7: 0.1}
  >>> def score(prefix):
  ...   return 9.0 - sum(weights[token] for token in set(prefix))
  >>> greedy_prefix(score, [7, 5, 3], most=3, gain=0.5)[0]
  [3, 5]
  """
  if not len(candidates) or most < 1:
    raise ValueError(
      f"at least one candidate and one token are needed, got {len(candidates)} "
      f"and {most}"
    )
  prefix: list[int] = []
  before, steps = score(()), []
  while len(prefix) < most:
    scores = [float(score((*prefix, token))) for token in candidates]
    best = int(np.argmin(scores))
    taken = scores[best] <= before - gain
    steps.append(Step(int(candidates[best]), scores[best], scores, taken))
    if not taken:
      break
    prefix.append(int(candidates[best]))
    before = scores[best]
  return prefix, steps


def behind(
  prefix: Sequence[int], ids: Int[np.ndarray, "P T"], room: int
) -> tuple[Int[np.ndarray, "P N"], np.ndarray]:
  """Texts behind a prefix, filled up so that every prefix has one shape.

  What fills a row stands behind its text, where a causal model does not see it.

  Args:
    prefix: M tokens.
    ids: the texts.
    room: the most tokens that any prefix has, M or more.

  Returns:
    (rows [P, room + T], True at the text's own positions [room + T]).

  Raises:
    ValueError: for a prefix that does not fit.

  >>> behind([9], np.array([[1, 2]]), 2)[0].tolist()
  [[9, 1, 2, 2]]
  """
  if len(prefix) > room:
    raise ValueError(f"a prefix of {len(prefix)} tokens has room for {room}")
  ids = np.asarray(ids, np.int32)
  front = np.broadcast_to(np.array(prefix, np.int32), (len(ids), len(prefix)))
  fill = np.repeat(ids[:, -1:], room - len(prefix), axis=1)
  at = np.arange(room + ids.shape[1])
  own = (at >= len(prefix)) & (at < len(prefix) + ids.shape[1])
  return np.concatenate([front, ids, fill], axis=1), own


def log_range(
  ends: Mapping[str, Float[np.ndarray, "L B 2"]],
) -> Float[np.ndarray, "B"]:
  """The mean logarithm of the largest input of every projection, by text.

      1 / (L sites) sum_l,site log max_t,d |x_ltd|

  over the tokens that `range_observers` was told to count. Our reading of the
  source's largest activation: a mean, since each input has a step of its own
  when it is rounded, and a logarithm, since that step's relative size counts.

  Args:
    ends: {site: least and greatest of each layer and text}.

  >>> log_range({"a": np.array([[[-1.0, np.e]]]), "b": np.ones((1, 1, 2))})
  array([0.5])
  """
  arrays = [np.abs(np.asarray(x)).max(axis=-1) for x in ends.values()]
  largest = np.stack(arrays)
  # An input of zeros is read by nothing, and has no logarithm.
  return np.log(np.maximum(largest, 1e-12)).mean(axis=(0, 1))
