"""What a cache keeps of the past, and where it is seen: one file of policies.

Positions are those within the cache, as in StreamingLLM (Xiao et al. 2023,
arXiv 2309.17453): what is kept is numbered 0, 1, 2, ... by age, and so a text
of any length stays within the positions that the model knows. Keys are kept
as they are before the rotation and rotated where they are read, by the layer's
own frequencies; only the full cache, whose positions never change, keeps them
rotated.

By position (`full`, `window`, `sinks`): with n the tokens before it, token t
sees the first S tokens and the last W, itself included. All C = S + W kept,
it stands at C - 1, the first tokens at 0 to S - 1, and between it and a
token of the window lie as many as in the text. So its distance is

    t - s             to a token s of the window,
    min(t, C - 1) - i to one of the first, i,

which needs no walk through the tokens: a chunk of queries is rotated twice,
once for each kind of key. Slots beyond C keep what the first query of a chunk
may still see.

By score (`heavy_hitters`, `random_eviction`): each layer and KV head keeps its
own C tokens and their order of age; for a new one the one with the lowest
score goes that is not among the most recent. Tokens of a chunk follow each
other in a loop inside the layer, exactly as if they came one by one.

By head (`by_head`): some KV heads keep everything, the others the first S
tokens and the last W, all of them at their positions in the text.

Local layers see those within their window of positions in the cache.
"""

from collections.abc import Sequence

from sinkjax.inference.kv_by_head import ByHead, full_heads
from sinkjax.inference.kv_by_position import ByPosition
from sinkjax.inference.kv_by_score import ByScore
from sinkjax.models.cache import CHUNK


def full(capacity: int, *, chunk: int = CHUNK) -> ByPosition:
  """Keeps everything, up to `capacity` tokens; then the cache is full.

  Equal to the forward pass. Positions beyond the model's context are used as
  they are, as in a forward pass.
  """
  return ByPosition(0, capacity, chunk, evicts=False)


def window(size: int, *, chunk: int = CHUNK) -> ByPosition:
  """Keeps the last `size` tokens."""
  return ByPosition(0, size, chunk)


def sinks(count: int, window: int, *, chunk: int = CHUNK) -> ByPosition:
  """Keeps the first `count` tokens and the last `window` (StreamingLLM)."""
  return ByPosition(count, window, chunk)


def heavy_hitters(
  capacity: int, recent: int | None = None, *, chunk: int = CHUNK
) -> ByScore:
  """Keeps the `recent` last tokens, and the others most attended to.

  H2O (Zhang et al. 2023, arXiv 2306.14048): the score of a token is the
  attention that it has received from all later queries, summed over the query
  heads of its KV head. In their version tokens keep their positions in the
  text.

  Args:
    capacity: tokens kept, the new one included.
    recent: how many of these are the last ones; half if `None`.
    chunk: tokens at a time.
  """
  return ByScore("heavy", capacity, _half(capacity, recent), chunk)


def random_eviction(
  capacity: int, recent: int | None = None, *, seed: int = 0, chunk: int = CHUNK
) -> ByScore:
  """As `heavy_hitters`, but with random scores: a control.

  A token's score is drawn once, when it enters, so that the tokens kept beside
  the recent ones are a uniform sample of the past. The draw depends only on
  seed, layer, row, head and position in the text.
  """
  return ByScore("random", capacity, _half(capacity, recent), chunk, seed)


def _half(capacity: int, recent: int | None) -> int:
  return max(1, capacity // 2) if recent is None else recent


def by_head(
  gates: Sequence[Sequence[float]],
  *,
  sinks: int,
  window: int,
  capacity: int,
  chunk: int = CHUNK,
) -> ByHead:
  """Keeps everything in KV heads of gates above 1/2, up to `capacity` tokens.

  The other heads keep the first `sinks` tokens and the last `window`, as in
  DuoAttention (Xiao et al. 2024, arXiv 2410.10819). All keys stay rotated to
  their positions in the text, our reading of the source: for gates of 0 and 1
  it is the forward pass with the edit `MixStreaming`. So a text can be no
  longer than `capacity`, whatever the gates.

  In slots for a key and a value each, with F of the M KV heads of all layers
  full, the cache holds

      F capacity + (M - F) (sinks + window + chunk - 1)

  the last term for the queries of a chunk, which do not see the same window.

  Args:
    gates: [L, N], learned by `streaming_heads`.
    sinks: S.
    window: W, the new token included.
    capacity: tokens that there is room for.
    chunk: tokens at a time.
  """
  return ByHead(full_heads(gates), sinks, window, capacity, chunk)


POLICIES = ("full", "window", "sinks", "heavy", "random")
"""What `make` knows: those that are one policy for all heads."""


def make(
  name: str, *, sink_count: int, size: int, seed: int = 0, chunk: int = CHUNK
) -> ByPosition | ByScore:
  """A policy by name; all but full keep `sink_count + size` tokens or `size`.

  Args:
    name: one of `POLICIES`.
    sink_count: first tokens kept, for "sinks".
    size: tokens kept beside them.
    seed: for "random".
    chunk: tokens at a time.

  Raises:
    ValueError: for another name.
  """
  makers = {
    "full": lambda: full(size, chunk=chunk),
    "window": lambda: window(size, chunk=chunk),
    "sinks": lambda: sinks(sink_count, size, chunk=chunk),
    "heavy": lambda: heavy_hitters(size, chunk=chunk),
    "random": lambda: random_eviction(size, seed=seed, chunk=chunk),
  }
  if name not in makers:
    raise ValueError(f"policy must be one of {list(POLICIES)}, got {name!r}")
  return makers[name]()
