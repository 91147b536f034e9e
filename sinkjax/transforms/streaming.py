"""Attention statistics at long context, without a [T, T] array.

What is gathered is said by `sinkjax.metrics.rows`. Where every statistic can be
made of sums over the pattern, none of its rows is formed: attention is kept on
line, and a second walk over the scores gives the sums (`models.online_sums`).
Elsewhere a layer's queries are taken a block of rows at a time: scores against
all the keys that it can see, the exact rows, row statistics, z. Memory is
O(block T) for the attention and O(T D) for the rest. Layers come one by one
through `sinkjax.models.layerwise`, so their weights may stay on disk.
"""

import functools
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike
from jaxtyping import Array, Bool, Float, Int

from sinkjax import mesh_context
from sinkjax.config import ModelConfig
from sinkjax.metrics.rows import Dense, RowBlock, RowStatistic
from sinkjax.models.attention import Attention
from sinkjax.models.attention_form import has_sums, needs_no_pattern
from sinkjax.models.blocks import Block
from sinkjax.models.context import Context, place_context
from sinkjax.models.layerwise import (
  Params,
  apply_final_norm,
  as_layers,
  embed,
  methods_of,
)
from sinkjax.models.normalizers import log_softmax
from sinkjax.models.positions import distances
from sinkjax.models.transformer import check_ids, check_tokens, like_tokens
from sinkjax.taps import MLP_SITES, Layer, Tapper, Taps, Trace
from sinkjax.transforms.chunks import in_chunks, streamed_nll
from sinkjax.transforms.edits import rows_of

Statistics = tuple[tuple[str, RowStatistic], ...]

ROW_SITES = ("scores", "pattern")
"""Sites that exist only a block of rows at a time."""

SEGMENTS = 6
"""Groups of blocks; a group sees the keys up to its end, not up to T.

Six groups do 7/12 of the full square, and each of them is compiled: twice as
many would save another 1/24.
"""

BLOCK_BYTES = {"cpu": 1 << 23}
"""Size of a block of scores by backend, which sets the default number of rows:
on a CPU it should fit the cache, elsewhere fill the device."""


def rows_mask(
  cfg: ModelConfig, start: Any, rows: int, keys: int, layer: Any
) -> Bool[Array, "1 1 T S"]:
  """The causal, and in local layers windowed, mask of a block of rows.

  Args:
    cfg: the model.
    start: the first query.
    rows: how many queries.
    keys: how many keys, from 0 on.
    layer: the layer's index, traced or not.
  """
  t, s = start + jnp.arange(rows)[:, None], jnp.arange(keys)[None]
  mask = s <= t
  if any(cfg.local_layers):
    is_global = ~jnp.asarray(cfg.local_layers)[layer]
    mask &= is_global | (t - s < cfg.window)
  return mask[None, None]


def default_block(cfg: ModelConfig, batch: int, length: int) -> int:
  """Query rows at a time."""
  row = batch * cfg.n_heads * length * jnp.dtype(cfg.dtype).itemsize
  size = BLOCK_BYTES.get(jax.default_backend(), 1 << 28)
  # Below 32 rows the loop costs more than its products; beyond 512 nothing is
  # gained, and short texts would be one block.
  return max(32, min(512, size // row))


class StreamOutput(NamedTuple):
  """What a streamed pass returns.

  Attributes:
    trace: `{name: [L, B, ...]}` of statistics and observers.
    nll: [B] mean negative log-likelihood of tokens 1..T-1 in nats, NaN for
      T = 1; `None` if it was not asked for.
  """

  trace: Trace
  nll: Float[Array, "B"] | None


def stream_statistics(
  fn: Callable,
  statistics: Mapping[str, RowStatistic],
  *,
  block: int | None = None,
  nll: bool = True,
) -> Callable:
  """A model's pass over long texts that keeps only statistics.

  Args:
    fn: what `forward` gives, or `intervene` or `capture` of it. Edits act as
      they do there; those at "scores" and "pattern" must have a method
      `rows`, see `sinkjax.transforms.edits`. Observers of these two sites
      must be `dense` statistics; all others see whole values.
    statistics: row statistics by name; with none this is the fastest plain
      pass over a long text.
    block: query rows at a time where rows are formed, `None` for a size that
      is fast.
    nll: whether to return the likelihood, which costs O(T D V).

  Returns:
    `run(params, tokens, *, positions=None) -> StreamOutput`, tokens [B, T]
    without padding, params a parameter tree or `Layers`. It jits one layer by
    itself and is not to be jitted as a whole.

  Raises:
    ValueError: for an edit or an observer that cannot see a block of rows,
      names used twice, or a block that is no positive integer; (by run) as
      `forward` does.

  Cost: time of a causal forward pass and its scores once more; memory of two
  blocks of scores of all heads and some [T, D] arrays, and of [T, F] where a
  tap stands inside the MLP. Where rows are formed, 7/12 of the full square of
  scores in place of half, several times slower, and `block` rows of memory.

  >>> import jax, sinkjax
  >>> from sinkjax.metrics import rows
  >>> cfg = sinkjax.TINY
  >>> params = sinkjax.init_params(cfg, jax.random.key(0))
  >>> f = sinkjax.forward(cfg)
  >>> run = stream_statistics(f, {"sink": rows.sink_score()})
  >>> run(params, jnp.arange(50)[None]).trace["sink"].shape
  (3, 1, 4)
  """
  cfg, taps = fn.cfg, fn.taps
  if block is not None and (not isinstance(block, int) or block < 1):
    raise ValueError(f"block must be a positive integer, got {block!r}")
  for site in ROW_SITES:
    if site in taps.edits:
      rows_of(taps.edits[site])
  statistics, taps = _streamed(dict(statistics), taps)
  rows = tuple(statistics.items())

  def run(
    params: Any, tokens: ArrayLike, *, positions: ArrayLike | None = None
  ) -> StreamOutput:
    tokens = check_tokens(cfg, tokens)
    positions = like_tokens("positions", positions, tokens)
    check_ids("position", positions, cfg.max_len, "the model's context")
    if positions is None:
      positions = jnp.broadcast_to(jnp.arange(tokens.shape[1]), tokens.shape)
    with jax.default_matmul_precision(cfg.precision):
      mine = taps.placed(cfg, tokens.shape[1])
      return _run(cfg, mine, rows, block, nll, params, tokens, positions)

  return run


def _streamed(
  statistics: dict[str, RowStatistic], taps: Taps
) -> tuple[dict[str, RowStatistic], Taps]:
  """Observers of rows move among the statistics, the others stay."""
  others = {}
  for name, (sites, reducer) in taps.observers.items():
    if not set(sites) & set(ROW_SITES):
      others[name] = (sites, reducer)
    elif not isinstance(reducer, Dense) or sites[0] != "pattern":
      raise ValueError(
        f"observer {name!r} at {sites} would see whole rows: use a "
        "rows.dense statistic of the pattern"
      )
    else:
      _once(name, statistics)[name] = reducer.statistic
  for name in others:
    _once(name, statistics)
  return statistics, Taps(taps.edits, others)


def _once(
  name: str, statistics: dict[str, RowStatistic]
) -> dict[str, RowStatistic]:
  if name in statistics:
    raise ValueError(f"duplicate statistic {name!r}")
  return statistics


def _run(
  cfg: ModelConfig,
  taps: Taps,
  statistics: Statistics,
  block: int | None,
  nll: bool,
  weights: Any,
  tokens: Int[Array, "B T"],
  positions: Int[Array, "B T"],
) -> StreamOutput:
  layers, (batch, length) = as_layers(cfg, weights), tokens.shape
  first = Tapper(taps, 0)
  x = first("embed", embed(layers, tokens, positions))
  ctx = place_context(cfg, positions)
  block = block or default_block(cfg, batch, length)
  outside = first.trace()
  x = jnp.array(x, copy=True)  # the layer reuses it; others may have seen it
  edits, kind = _split(taps)
  traces = []
  for i in range(cfg.n_layers):
    params = layers.layer(i)
    x, trace = _layer(
      params,
      x,
      jnp.asarray(i),
      ctx,
      edits,
      kind=kind,
      cfg=cfg,
      statistics=statistics,
      block=min(block, length),
    )
    # Without waiting, layers would be read faster than they are used.
    jax.block_until_ready(x)
    del params  # before the next is asked for: two at a time, where offloaded
    traces.append(trace)
  taps.require_numbers(x, "the activations")
  trace = jax.tree.map(lambda *leaves: jnp.stack(leaves), *traces)
  last = Tapper(taps, cfg.n_layers - 1)
  x = last("final", apply_final_norm(cfg, layers.final_norm(), x))
  trace = {**outside, **trace, **last.trace()}
  found = streamed_nll(cfg, layers, x, tokens) if nll else None
  return StreamOutput(*mesh_context.returned((trace, found)))


def _split(taps: Taps) -> tuple[list, tuple]:
  """(the taps' arrays, the rest of them): functions cannot be traced."""
  leaves, tree = jax.tree.flatten(taps)
  arrays = [None if callable(leaf) else leaf for leaf in leaves]
  return arrays, (tree, tuple(x if callable(x) else None for x in leaves))


def _join(arrays: list, kind: tuple) -> Taps:
  tree, functions = kind
  leaves = zip(arrays, functions, strict=True)
  return jax.tree.unflatten(tree, [x if f is None else f for x, f in leaves])


@functools.partial(
  jax.jit,
  static_argnames=("kind", "cfg", "statistics", "block"),
  donate_argnames=("x",),
)
def _layer(
  params: Params,
  x: Float[Array, "B T D"],
  layer: Layer,
  ctx: Context,
  edits: list,
  *,
  kind: tuple,
  cfg: ModelConfig,
  statistics: Statistics,
  block: int,
) -> tuple[Array, Trace]:
  """One block of the model, its queries and its MLP in pieces."""
  taps = _join(edits, kind)
  tap = Tapper(taps, layer)

  apply = methods_of(Block(cfg), params)
  pre = tap("resid_pre", x)
  q, k, v = apply(Block.qkv, pre, layer, ctx, tap)
  ctx = apply(Block.seen, pre, ctx, tap)
  length = x.shape[1]
  unseen = not set(ROW_SITES) & set(taps.edits)
  summed = all(s.of_sums is not None for _, s in statistics)
  summed &= ctx.valid is None
  attend = methods_of(Attention(cfg), params["attn"])
  if unseen and not statistics and needs_no_pattern(cfg, length):
    z, trace = attend(Attention.without_pattern, q, k, v, ctx, layer, tap), {}
  else:
    if unseen and summed and has_sums(cfg, length):
      wanted = frozenset(need for _, s in statistics for need in s.needs)
      z, sums = attend(Attention.with_sums, q, k, v, ctx, layer, wanted)
      trace = {name: s.of_sums(sums, length) for name, s in statistics}
    else:
      mix = functools.partial(apply, Block.mix)
      z, trace = _attention(
        cfg, mix, (q, k, v), ctx, layer, taps, statistics, block
      )
  z = apply(Block.heads, pre, z, v, tap)
  mid = apply(Block.add_attention, pre, z, tap)

  def mlp(x: Array) -> Array:
    return apply(Block.mlp_output, x, tap)

  read = pre if cfg.parallel_residual else mid
  whole = tap.meets(*MLP_SITES)  # who looks there sees every token
  out = mlp(read) if whole else in_chunks(mlp, read)
  return apply(Block.finish, pre, mid, out, tap), {**trace, **tap.trace()}


def _attention(
  cfg: ModelConfig,
  mix: Callable,
  qkv: tuple[Array, Array, Array],
  ctx: Context,
  layer: Layer,
  taps: Taps,
  statistics: Statistics,
  block: int,
) -> tuple[Array, Trace]:
  """z of all queries, and the statistics of their rows."""
  q = qkv[0]
  batch, length, heads, _ = q.shape
  edits = {s: rows_of(taps.edits[s]) for s in ROW_SITES if s in taps.edits}
  pieces = _pieces(length, block, SEGMENTS)
  if "pattern" in edits:  # the edit may put weight on any key
    pieces = [(*piece[:-1], length) for piece in pieces]
  states = tuple(s.init(batch, heads, length) for _, s in statistics)
  z = jnp.zeros((batch, length, heads, cfg.value_dim), q.dtype)
  carry = z, states
  for first, count, rows, keys in pieces:

    def body(
      i: Array,
      carry: tuple,
      first: int = first,
      rows: int = rows,
      keys: int = keys,
    ) -> tuple:
      z, states = carry
      start = first + i * rows
      new, block = _mix_rows(
        cfg, mix, qkv, ctx, layer, edits, start, rows, keys
      )
      states = tuple(
        s.update(state, block)
        for state, (_, s) in zip(states, statistics, strict=True)
      )
      return jax.lax.dynamic_update_slice_in_dim(z, new, start, 1), states

    carry = jax.lax.fori_loop(0, count, body, carry)
  z, states = carry
  return z, {
    name: s.finalize(state, length)
    for state, (name, s) in zip(states, statistics, strict=True)
  }


def _mix_rows(
  cfg: ModelConfig,
  mix: Callable,
  qkv: tuple[Array, Array, Array],
  ctx: Context,
  layer: Layer,
  edits: Mapping[str, Callable],
  start: Array | int,
  rows: int,
  keys: int,
) -> tuple[Float[Array, "B T H W"], RowBlock]:
  """z of some rows, and what statistics see of them."""
  q, k, v = qkv
  at_rows = {
    site: lambda x, n, edit=edit: edit(x, n, start)
    for site, edit in edits.items()
  }
  seen = {site: (site, lambda x: x) for site in ROW_SITES}
  tap = Tapper(Taps(at_rows, seen), layer)
  some = jax.lax.dynamic_slice_in_dim(q, start, rows, 1)
  values, mask = v[:, :keys], rows_mask(cfg, start, rows, keys, layer)
  if ctx.valid is not None:
    own = jnp.arange(keys)[None] == start + jnp.arange(rows)[:, None]
    mask &= ctx.valid[:, None, None, :keys] | own[None, None]
  distance = None
  if (places := ctx.positions) is not None:
    own = jax.lax.dynamic_slice_in_dim(places, start, rows, 1)
    distance = distances(own, places[:, :keys])
  z = mix(some, k[:, :keys], values, mask, tap, distance)
  scores, pattern = (tap.trace()[site] for site in ROW_SITES)
  # The scores give the logarithms of the weights only where the weights are
  # the softmax of the scores and of nothing else.
  plain = cfg.normalizer == "softmax" and not cfg.sink_logit
  plain &= cfg.attn_bias not in ("k", "kv") and not cfg.control_heads
  plain &= "pattern" not in edits
  logs = log_softmax(scores, mask) if plain else None
  return z, RowBlock(pattern, start, values, logs)


def _pieces(
  length: int, block: int, segments: int
) -> list[tuple[int, int, int, int]]:
  """(first row, blocks, rows a block, keys) of each group of equal blocks."""
  whole, rest = divmod(length, block)
  segments = min(segments, whole)
  ends = [whole * (i + 1) // segments for i in range(segments)]
  pieces = [
    (a * block, b - a, block, b * block)
    for a, b in zip([0, *ends], ends, strict=False)
  ]
  return pieces + ([(whole * block, 1, rest, length)] if rest else [])
