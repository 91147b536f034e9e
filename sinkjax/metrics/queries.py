"""Kinds of query, and how much attention each kind gives the sink.

A kind is a bool array [P, T] over the tokens of P texts, made from ids, losses
or the tokens' own text. What a kind gives to the first token is told in two
ways that do not depend on the length of a text: as a ratio to what even
attention would give, and against other queries at about the same position.

Source of the question: arXiv 2609.08574. Its definitions were not at hand, so
those of the kinds, and both ratios, are our reading.
"""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Bool, Float, Int


def copyable(tokens: Int[np.ndarray, "P T"]) -> Bool[np.ndarray, "P T"]:
  """Queries that an induction head could answer.

      True at t if some 1 <= s < t has (x_{s-1}, x_s) = (x_{t-1}, x_t)

  so that x_{s+1} could be copied. Our reading. O(P T) time.

  Args:
    tokens: [P, T] ids.

  >>> copyable(np.array([[5, 6, 7, 5, 6, 6]]))[0].tolist()
  [False, False, False, False, True, False]
  """
  tokens = np.asarray(tokens)
  found = np.zeros(tokens.shape, bool)
  for row, out in zip(tokens.tolist(), found, strict=True):
    seen = set()
    for t in range(1, len(row)):
      pair = row[t - 1], row[t]
      out[t] = pair in seen
      seen.add(pair)
  return found


def first_seen(tokens: Int[np.ndarray, "P T"]) -> Bool[np.ndarray, "P T"]:
  """Tokens that occur for the first time in their text.

      True at t if no s < t has x_s = x_t

  O(P T) time.

  Args:
    tokens: [P, T] ids.

  >>> first_seen(np.array([[5, 6, 5, 7]]))[0].tolist()
  [True, True, False, True]
  """
  tokens = np.asarray(tokens)
  found = np.zeros(tokens.shape, bool)
  for row, out in zip(tokens, found, strict=True):
    out[np.unique(row, return_index=True)[1]] = True
  return found


def line_break(pieces: Sequence[str]) -> Bool[np.ndarray, "T"]:
  """Tokens with a line break in them, whatever else they hold.

  Args:
    pieces: the text of each token, with its spaces.

  >>> line_break(["The", "\\n", ".\\n\\n", " "]).tolist()
  [False, True, True, False]
  """
  return np.array(["\n" in piece or "\r" in piece for piece in pieces], bool)


def surprising(
  nats: Float[np.ndarray, "P T"], share: float = 0.25
) -> Bool[np.ndarray, "P T"]:
  """The tokens of each text that the model expected least.

  True at the `share` of a text's tokens of the greatest loss; of equal losses
  the earlier come first. Our reading.

  Args:
    nats: [P, T] `-log p(x_t | x_<t)`; NaN, as at t = 0, is never surprising.
    share: of the tokens that have a loss, rounded.

  Raises:
    ValueError: for a share that is not between 0 and 1.

  >>> surprising(np.array([[np.nan, 0.1, 3.0, 2.0, 0.2]]), 0.5)[0].tolist()
  [False, False, True, True, False]
  """
  if not 0 < share < 1:
    raise ValueError(f"share must be between 0 and 1, got {share}")
  nats = np.asarray(nats, float)
  known = ~np.isnan(nats)
  order = np.argsort(np.where(known, -nats, np.inf), axis=-1, kind="stable")
  rank = np.argsort(order, axis=-1, kind="stable")
  return known & (rank < np.round(share * known.sum(-1, keepdims=True)))


def first_of_word(pieces: Sequence[str]) -> Bool[np.ndarray, "T"]:
  """Tokens with which a word or number begins.

  The first character that is no space is a letter or a digit, and the character
  before it, which may be the last of an earlier token, is neither. Our reading.

  Args:
    pieces: the text of each token, with its spaces.

  >>> first_of_word(["The", " k", "ing", ",", "who", "\\n", "2"]).tolist()
  [True, True, False, False, True, False, True]
  """
  found, inside = [], False
  for piece in pieces:
    word = piece.lstrip()
    begins = word[:1].isalnum()
    found.append(begins and not (inside and word == piece))
    # A token without any character leaves what stands before it as it is.
    inside = piece[-1].isalnum() if piece else inside
  return np.array(found, bool)


def punctuation(pieces: Sequence[str]) -> Bool[np.ndarray, "T"]:
  """Tokens of signs alone: some character is no space, none letter or digit.

  Our reading.

  Args:
    pieces: the text of each token.

  >>> punctuation([" (", "in", ").", "\\n", "'s", ""]).tolist()
  [True, False, True, False, False, False]
  """
  return np.array(
    [
      bool(piece.strip()) and not any(map(str.isalnum, piece))
      for piece in pieces
    ],
    bool,
  )


def over_even(
  mass: Float[np.ndarray, "*N T"], queries: Bool[np.ndarray, "*#N T"]
) -> Float[np.ndarray, "*N"]:
  """Attention on the first token, over what even attention would give it.

      sum_{t in Q} A[t, 0]  /  sum_{t in Q} 1 / (t + 1)

  1 where every query of the set Q spreads its attention evenly over the keys
  that it sees, whatever their number. Our reading.

  Args:
    mass: [..., T] of `first_token_mass`, from position 0 on.
    queries: [..., T] the set.

  Returns:
    The ratio; NaN for an empty set.

  >>> over_even(np.array([1.0, 0.5, 0.0]), np.arange(3) < 2).item()
  1.0
  """
  mass = np.asarray(mass, float)
  queries = np.broadcast_to(queries, mass.shape)
  even = np.sum(queries / np.arange(1, mass.shape[-1] + 1), axis=-1)
  given = np.sum(np.where(queries, mass, 0), axis=-1)
  return np.where(even > 0, given / np.where(even > 0, even, 1), np.nan)


def log_ratio_at_equal_positions(
  mass: Float[np.ndarray, "T"],
  queries: Bool[np.ndarray, "T"],
  others: Bool[np.ndarray, "T"],
  width: int = 8,
) -> float:
  """The logarithm of what some queries give over what others there give.

  Attention on the first token changes along a text, and kinds of query are not
  spread evenly over it. With blocks b of `width` positions, n_b queries of the
  set Q in it, and means over the queries of Q and of the others O in it,

      log( sum_b n_b mean_{t in Q, b} A[t, 0]
           / sum_b n_b mean_{t in O, b} A[t, 0] )

  over blocks that have both. A text in which every query gives the same has 0,
  wherever its queries stand. Our reading.

  Args:
    mass: [T] of `first_token_mass`.
    queries: [T] the set Q.
    others: [T] the set O.
    width: positions in a block.

  Returns:
    The logarithm; NaN where no block has both, or one of the sums is 0.

  Raises:
    ValueError: for a width below 1.

  >>> q = np.array([True, False, True, False])
  >>> round(log_ratio_at_equal_positions(np.array([4., 2, 1, 1]), q, ~q, 2), 4)
  0.5108
  """
  if width < 1:
    raise ValueError(f"width must be at least 1, got {width}")
  mass, block = np.asarray(mass, float), np.arange(len(mass)) // width
  sums = [
    (
      np.bincount(block, weights=which, minlength=1),
      np.bincount(block, weights=np.where(which, mass, 0), minlength=1),
    )
    for which in (np.asarray(queries, bool), np.asarray(others, bool))
  ]
  (count, given), (rest, theirs) = sums
  both = (count > 0) & (rest > 0)
  given = given[both].sum()
  theirs = (count[both] * theirs[both] / rest[both]).sum()
  return float(np.log(given / theirs)) if given > 0 and theirs > 0 else np.nan
