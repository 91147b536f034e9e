"""Several continuations of one text in one row, none of which sees another.

A multiple-choice question has one context and many endings. In one row, after
the context, stand all endings; each has the positions that it would have
alone, and sees the context and itself. One pass gives what one pass for each
gave, and the context is paid for once.
"""

from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Array, Bool, Float

from sinkjax.config import ModelConfig
from sinkjax.models.normalizers import MASKED
from sinkjax.taps import Layer
from sinkjax.transforms.edits import chain, pytree_dataclass


class Row(NamedTuple):
  """A context and its endings.

  Attributes:
    tokens: [N] ids: the context, then every ending.
    positions: [N] as if each ending followed the context alone.
    branch: [N] 0 in the context, i + 1 in ending i.
    parent: [N] index of the token before, along the branch; 0 for the first.
  """

  tokens: np.ndarray
  positions: np.ndarray
  branch: np.ndarray
  parent: np.ndarray


def branch_row(context: Sequence[int], endings: Sequence[Sequence[int]]) -> Row:
  """A row of one context and its endings.

  Args:
    context: ids, one at least.
    endings: ids of each, one at least.

  Raises:
    ValueError: if one of them is empty.

  >>> row = branch_row([5, 6], [[7], [8, 9]])
  >>> row.tokens.tolist(), row.positions.tolist()
  ([5, 6, 7, 8, 9], [0, 1, 2, 2, 3])
  >>> row.branch.tolist(), row.parent.tolist()
  ([0, 0, 1, 2, 2], [0, 0, 1, 1, 3])
  """
  if not len(context) or not endings or not all(len(e) for e in endings):
    raise ValueError("a context and every ending need at least one token")
  size = len(context)
  tokens, positions = list(context), list(range(size))
  branch, parent = [0] * size, [0, *range(size - 1)]
  for number, ending in enumerate(endings):
    start = len(tokens)
    tokens += ending
    positions += range(size, size + len(ending))
    branch += [number + 1] * len(ending)
    parent += [size - 1, *range(start, start + len(ending) - 1)]
  return Row(
    *(np.array(x, np.int32) for x in (tokens, positions, branch, parent))
  )


def split_endings(
  encode: Callable[[str], list[int]], context: str, endings: Sequence[str]
) -> tuple[list[int], list[list[int]]]:
  """(ids of the context, ids of each ending), cut where all of them agree.

  A tokenizer may join the end of the context with the start of an ending.
  Everything is encoded whole; what all wholes and the context have in common
  is the context, the rest is scored.

  Raises:
    ValueError: if nothing is left of the context or of an ending.

  >>> split_endings(lambda text: [ord(c) for c in text], "ab", ["c", "de"])
  ([97, 98], [[99], [100, 101]])
  """
  wholes = [encode(context + ending) for ending in endings]
  shared = 0
  # Up to the shortest: a context may end inside the first token of an ending.
  for column in zip(encode(context), *wholes, strict=False):
    if len(set(column)) > 1:
      break
    shared += 1
  # The joined token counts with the ending, as the model would see it.
  rests = [whole[shared:] for whole in wholes]
  if not shared or not all(rests):
    raise ValueError(
      f"{context[-40:]!r} with {list(endings)!r}: the tokenizer leaves no "
      "context, or none of an ending"
    )
  return wholes[0][:shared], rests


@pytree_dataclass
class Separate:
  """Hides every branch from every other. For site "scores".

  Attributes:
    branch: [B, S] as in `Row`.
  """

  branch: Any

  def placed(self, cfg: ModelConfig, length: int, site: str) -> Any:
    """The same, checked to have a branch for each token."""
    shape = jnp.shape(self.branch)
    if shape[-1] != length:
      raise ValueError(f"branch of shape {shape} for rows of {length} tokens")
    return self

  def __call__(
    self, scores: Float[Array, "B H T S"], layer: Layer
  ) -> Float[Array, "B H T S"]:
    """The scores, switched off between branches."""
    return self.rows(scores, layer, 0)

  def rows(
    self, scores: Float[Array, "B H T S"], layer: Layer, start: Any
  ) -> Float[Array, "B H T S"]:
    """The same for query rows from `start` on."""
    visible = self._visible(*scores.shape[-2:], start)
    return jnp.where(visible, scores, jnp.asarray(MASKED, scores.dtype))

  def visible(self, length: int) -> Bool[Array, "B 1 T S"]:
    """The same as a mask: for kernels that never show their scores."""
    return self._visible(length, length, 0)

  def _visible(
    self, queries: int, keys: int, start: Any
  ) -> Bool[Array, "B 1 T S"]:
    branch = jnp.asarray(self.branch)
    # `start` is traced where rows are streamed, so a plain slice is impossible.
    own = jax.lax.dynamic_slice_in_dim(branch, start, queries, 1)[:, :, None]
    seen = branch[:, None, :keys]
    return ((seen == 0) | (seen == own))[:, None]


NO_EDITS: Mapping[str, Any] = MappingProxyType({})


def beside(branch: Array, edits: Mapping[str, Any]) -> dict[str, Any]:
  """Edits `{site: edit}` of rows whose branches do not see each other.

  Args:
    branch: [B, N] of `branch_row`.
    edits: of a model; that of the scores comes behind `separate`.
  """
  scores = separate(branch)
  if "scores" in edits:
    scores = chain(scores, edits["scores"])
  return {**edits, "scores": scores}


def separate(branch: ArrayLike) -> Separate:
  """Keeps the branches of a row apart, together with its `positions`.

  Args:
    branch: [B, S] numbers of the branches, 0 for what all of them see.

  >>> scores = separate(jnp.array([[0, 1, 2]]))(jnp.zeros((1, 1, 3, 3)), 0)
  >>> (scores[0, 0] < -1e29).astype(int).tolist()
  [[0, 1, 1], [0, 0, 1], [0, 1, 0]]
  """
  return Separate(branch)


def check_window(cfg: ModelConfig, length: int) -> None:
  """A sliding window counts tokens of the row, not of a branch.

  Raises:
    ValueError: for a row longer than a model's window.
  """
  if any(cfg.local_layers) and length > cfg.window:
    raise ValueError(
      f"a row of {length} tokens with branches is longer than the model's "
      f"window of {cfg.window}: its endings would lose their context"
    )
