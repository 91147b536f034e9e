"""Times of one layer's attention: whole, fused, and with blocks skipped."""

import functools
from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from sinkjax.experiments.applications.sink_compute.config import Config
from sinkjax.experiments.harness.api import Subject
from sinkjax.experiments.harness.timing import interleaved
from sinkjax.inference.block_bounds import choose_blocks, near_weight, span_of
from sinkjax.inference.key_codes import Codec
from sinkjax.inference.sparse_blocks import (
  attend_blocks,
  sparse_block_attention,
)
from sinkjax.models.fused import fused_attention
from sinkjax.models.normalizers import MASKED
from sinkjax.models.online import online_attention

EINSUM, FUSED, ROWS = "einsum", "dot_product_attention", "rows"
ONLINE = "online"
LOOP, KNOWN = "blocks, all", "blocks, known"
PROVEN, SCORED = "blocks, proven", "blocks, by all scores"
"""Ways to compute attention, as the recorded files name them.

`ROWS` was ours before `ONLINE` and has the whole pattern of a block of rows.
"""


def times_of(
  subject: Subject,
  config: Config,
  inputs: dict[str, np.ndarray],
  codecs: list[Codec],
  layer: int,
  length: int,
) -> tuple[dict[str, np.ndarray], dict[str, float]]:
  """({way: [R] seconds}, {way: share of blocks skipped}) at `config.at`.

  "blocks, all" skips nothing; "blocks, known" what the scores allow, found
  beforehand and not timed; "blocks, by all scores" the same, found within its
  time; "blocks, proven" what keys in `config.best` bits prove, within its
  time. Codes are simulated: their bounds are computed on float32 keys, which
  takes no less than all scores do.

  Args:
    subject: the model.
    config: what is run.
    inputs: of `skipped_blocks.inputs_of`, one text.
    codecs: of each layer.
    layer: whose queries, keys and values.
    length: that many first tokens.
  """
  scale, codec = subject.cfg.score_scale, codecs[layer]
  q, k, v = (jnp.asarray(inputs[x][layer, :, :length]) for x in "qkv")
  how = {"scale": scale, "block": config.block, "window": config.window}
  # Outside of what is timed: "known" is what a perfect oracle would save.
  kept = _kept(q, k, config.at, **how)
  every = jnp.broadcast_to(jnp.tri(kept.shape[-1], dtype=bool), kept.shape)
  over = jax.jit(functools.partial(attend_blocks, scale=scale))
  sparse = functools.partial(sparse_block_attention, tolerance=config.at, **how)
  scored, proven = (
    jax.jit(functools.partial(sparse, bits=bits))
    for bits in (None, config.best)
  )
  works = _all_keys(q, k, v, scale) | {
    LOOP: lambda: over(q, k, v, every),
    KNOWN: lambda: over(q, k, v, kept),
    SCORED: lambda: scored(q, k, v).z,
    PROVEN: lambda: proven(q, k, v, codec).z,
  }
  count = kept.shape[-1]
  pairs = kept.shape[1] * count * (count + 1) / 2
  # Shares are of the blocks below the diagonal; the future costs nothing.
  skipped = dict.fromkeys(works, 0.0)
  for name, some in (
    (KNOWN, kept),
    (SCORED, scored(q, k, v).kept),
    (PROVEN, proven(q, k, v, codec).kept),
  ):
    skipped[name] = 1 - float(some.sum()) / pairs
  return interleaved(works, config.rounds), skipped


def _all_keys(
  q: Array, k: Array, v: Array, scale: float
) -> dict[str, Callable[[], Array]]:
  """The ways that read every key."""
  plain = jax.jit(functools.partial(_einsum, scale=scale))
  found = {EINSUM: functools.partial(plain, q, k, v)}
  library = functools.partial(fused_attention, implementation="xla")
  for name, which in ((FUSED, library), (ONLINE, _online)):
    fused = jax.jit(functools.partial(which, scale=scale))
    found[name] = functools.partial(fused, q, k, v)
  return found


def _online(q: Array, k: Array, v: Array, *, scale: float) -> Array:
  return online_attention(q, k, v, scale=scale)[0]


def faster_fused(seconds: Mapping[str, np.ndarray]) -> str:
  """The fused way with the lower median."""
  ways = [name for name in (FUSED, ROWS, ONLINE) if name in seconds]
  return min(ways, key=lambda name: float(np.median(seconds[name])))


@functools.partial(jax.jit, static_argnames=("scale", "block", "window"))
def _kept(
  q: Array, k: Array, tolerance: float, *, scale: float, block: int, window: int
) -> Array:
  """[1, H, C, C] blocks that the scores themselves keep."""
  keys = jnp.repeat(k[0], q.shape[2] // k.shape[2], axis=1)

  def one(args: tuple[Array, Array]) -> Array:
    q, k = args
    span = span_of(q, k, None, scale=scale, block=block, bits=None)
    near = near_weight(q, k, scale=scale, block=block, window=window)
    return choose_blocks(span, near, tolerance, block=block, window=window).kept

  return jax.lax.map(one, (jnp.swapaxes(q[0], 0, 1), jnp.swapaxes(keys, 0, 1)))[
    None
  ]


def _einsum(q: Array, k: Array, v: Array, *, scale: float) -> Array:
  """Attention as the analysis path writes it."""
  batch, length, heads, width = q.shape
  q = q.reshape(batch, length, k.shape[2], -1, width)
  scores = scale * jnp.einsum("btngk,bsnk->bngts", q, k)
  seen = jnp.tri(length, dtype=bool)[None, None, None]
  pattern = jax.nn.softmax(jnp.where(seen, scores, MASKED), axis=-1)
  z = jnp.einsum("bngts,bsnk->btngk", pattern, v)
  return z.reshape(batch, length, heads, width)
