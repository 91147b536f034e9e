"""One text with some of its tokens changed, many times over.

Noise is a random direction at a share of each token's own embedding's norm,
so it is as large for every model, edit and place; a swap puts a random token
in another's place. The same rows are run under every condition, so that what
differs between conditions is theirs.
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

NOISE, SWAP = "noise", "swap"


class Rows(NamedTuple):
  """R changed copies of a text; row 0 is the text as it stands.

  Attributes:
    ids: [1 + R, T] tokens.
    shift: [1 + R, T, D] what is added to their embeddings.
    names: (kind, place) of each of the R.
  """

  ids: np.ndarray
  shift: np.ndarray
  names: list[tuple[str, str]]


def noise(
  embed: np.ndarray, spots: Sequence[int], share: float, rng
) -> np.ndarray:
  """[T, D] zeros but at some tokens, there a random direction.

      |noise_t| = share |embed_t|

  Args:
    embed: [T, D] embeddings.
    spots: the tokens.
    share: of their norms.
    rng: of the directions.
  """
  way = rng.normal(size=embed.shape)
  way /= np.linalg.norm(way, axis=1, keepdims=True)
  size = np.zeros((len(embed), 1))
  size[list(spots), 0] = share * np.linalg.norm(embed[list(spots)], axis=1)
  return way * size


def rows_with(
  ids: np.ndarray,
  embed: np.ndarray,
  spots: Mapping[str, Sequence[int]],
  swapped: Mapping[str, int],
  *,
  share: float,
  draws: int,
  candidates: Sequence[int],
  rng,
) -> Rows:
  """Every disturbance of one text.

  Args:
    ids: [T].
    embed: [T, D] its embeddings.
    spots: tokens by name of the place that get noise, all at once.
    swapped: a token by name of the place that is swapped.
    share: see `noise`.
    draws: of noise, for each place.
    candidates: that are put in the place of a swapped token.
    rng: of the noise.
  """
  kept, still = [ids], [np.zeros(embed.shape)]
  names = []
  for name, some in spots.items():
    for _ in range(draws):
      kept.append(ids)
      still.append(noise(embed, some, share, rng))
      names.append((NOISE, name))
  for name, at in swapped.items():
    for candidate in candidates:
      row = ids.copy()
      row[at] = candidate
      kept.append(row)
      still.append(np.zeros(embed.shape))
      names.append((SWAP, name))
  return Rows(np.stack(kept), np.stack(still), names)


def by_name(values: np.ndarray, names: Sequence[tuple[str, str]]):
  """{(kind, place): [..., draws, M]} from values [..., R, M]."""
  return {
    name: values[..., [i for i, x in enumerate(names) if x == name], :]
    for name in dict.fromkeys(names)
  }
