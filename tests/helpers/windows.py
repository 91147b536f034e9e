"""Small packed windows to train on."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from sinkjax.data.packing import Windows
from sinkjax.data.tokens import TokenCorpus

BOS_ID, EOS_ID = 1, 2


def corpus_of(lengths: Sequence[int], seed: int = 0) -> TokenCorpus:
  """Documents of these lengths, of random ids from 3 to 63."""
  rng = np.random.default_rng(seed)
  return TokenCorpus.of(
    [rng.integers(3, 64, size) for size in lengths], vocab_size=64
  )


def batch_of(windows: Windows) -> dict[str, jax.Array]:
  """All windows as one batch."""
  return jax.tree.map(jnp.asarray, windows.rows(range(len(windows))))
