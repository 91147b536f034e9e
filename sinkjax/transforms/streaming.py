"""Attention statistics at long context, without a [T, T] array.

A layer's queries are taken a block of rows at a time: scores of the block
against all the keys that it can see, the exact rows of the pattern, row
statistics, z. Memory is O(block T) for the attention and O(T D) for the rest.
Layers come one by one through `sinkjax.models.layerwise`, so their weights
may stay on disk.

A `RowStatistic` says what to gather from the rows. `dense` turns it into a
reducer for `capture`, so that one object serves short and long contexts.
"""

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from sinkjax.config import ModelConfig
from sinkjax.metrics.norms import token_norms
from sinkjax.models.attention import Context
from sinkjax.models.blocks import Block
from sinkjax.models.layerwise import apply_final_norm, as_layers, embed
from sinkjax.models.normalizers import MASKED
from sinkjax.models.positions import rotary_tables
from sinkjax.models.transformer import _check_ids, _check_tokens, _like_tokens
from sinkjax.taps import Tapper, Taps, Trace
from sinkjax.transforms.edits import rows_of

ROW_SITES = ("scores", "pattern")
"""Sites that exist only a block of rows at a time."""

SEGMENTS = 6
"""Groups of blocks; a group sees the keys up to its end, not up to T."""

BLOCK_BYTES = {"cpu": 1 << 23}
"""Size of a block of scores by backend, which sets the default number of rows:
on a CPU it should fit the cache, elsewhere fill the device."""

CHUNK = 1024
"""Tokens that the MLP or the unembedding sees at a time."""


class RowStatistic(NamedTuple):
  """What to gather from the rows of a pattern; states add over rows.

  Attributes:
    init: `init(batch, heads, length) -> state`, all zeros.
    update: `update(state, rows, *, start, values, logs) -> state` for rows
      [B, H, b, S] that are the queries start, start + 1, ... and the keys
      from 0 on; keys beyond S are 0 there. `values` [B, S, N, K] are at the
      same keys. `logs` are the rows' logarithms where they are not 0, which
      cost nothing from the scores, or `None` where there are no scores.
    finalize: `finalize(state, length) -> result`, with axes [B, ...].
  """

  init: Callable[[int, int, int], Any]
  update: Callable[..., Any]
  finalize: Callable[[Any, int], Any]


@dataclasses.dataclass(frozen=True)
class Dense:
  """The reducer that `dense` makes."""

  statistic: RowStatistic

  def __call__(
    self,
    pattern: Float[Array, "B H T S"],
    values: Float[Array, "B S N K"] | None = None,
  ) -> Any:
    """The statistic of a whole pattern."""
    batch, heads, length, _ = pattern.shape
    state = self.statistic.init(batch, heads, length)
    state = self.statistic.update(state, pattern, start=0, values=values)
    return self.statistic.finalize(state, length)


def dense(statistic: RowStatistic) -> Dense:
  """A row statistic as a reducer of whole patterns.

  For `capture(f, {name: ("pattern", dense(statistic))})`, or `(("pattern",
  "v"), ...)` for a statistic that reads the values. `stream_statistics` knows
  such an observer and streams it.

  >>> half = jnp.array([[1.0, 0.0], [0.5, 0.5]])[None, None]
  >>> dense(sink_score())(half).tolist()
  [[0.75]]
  """
  return Dense(statistic)


@functools.cache
def sink_score(*, key: int = 0) -> RowStatistic:
  """`sinkjax.sink_score`: mean attention on a key where it is seen, [B, H].

  Raises:
    ValueError: (by init) for a key that no query sees.
  """

  def init(batch, heads, length):
    if not 0 <= key < length:
      raise ValueError(f"key must be in [0, {length}), got {key}")
    return _zeros(batch, heads)

  def update(state, rows, *, start, values=None, logs=None):
    if key >= rows.shape[-1]:
      return state
    sees = _queries(rows, start) >= key
    return state + _sum(jnp.where(sees[None, None], rows[..., key], 0), -1)

  return RowStatistic(init, update, lambda x, length: x / (length - key))


@functools.cache
def first_token_mass() -> RowStatistic:
  """`sinkjax.first_token_mass`: each query's attention on key 0, [B, H, T]."""

  def update(state, rows, *, start, values=None, logs=None):
    mass = rows[..., 0].astype(state.dtype)
    return jax.lax.dynamic_update_slice_in_dim(state, mass, start, 2)

  return RowStatistic(_zeros, update, lambda x, length: x)


@functools.cache
def attention_entropy(*, normalize: bool = False) -> RowStatistic:
  """`sinkjax.attention_entropy`: mean row entropy in nats, [B, H].

  Args:
    normalize: divide each row by the log of the keys that it sees.
  """

  def update(state, rows, *, start, values=None, logs=None):
    at = _queries(rows, start)
    if logs is None:
      logs = jnp.log(jnp.where(rows > 0, rows, 1))
    entropy = -_sum(jnp.where(rows > 0, rows * logs, 0), -1)
    most = jnp.log(jnp.maximum(at + 1, 2).astype(state.dtype))
    weight = (at > 0) / most if normalize else (at > 0).astype(state.dtype)
    return state + jnp.sum(entropy * weight[None, None], axis=-1)

  return RowStatistic(
    lambda batch, heads, length: _zeros(batch, heads), update,
    lambda x, length: x / max(length - 1, 1),
  )  # fmt: skip


@functools.cache
def received_mass() -> RowStatistic:
  """How much attention each key gets where it is seen, [B, H, S].

      received_s = 1 / (T - s) * sum_{t = s}^{T - 1} A[t, s]

  At s = 0 this is the sink score. Source: Gu et al. (2025, arXiv 2410.10781),
  alpha of every k.
  """

  def update(state, rows, *, start, values=None, logs=None):
    keys = jnp.arange(rows.shape[-1])[None]
    seen = keys <= _queries(rows, start)[:, None]
    mass = _sum(jnp.where(seen[None, None], rows, 0), -2)
    return state.at[..., : rows.shape[-1]].add(mass)

  def finalize(state, length):
    return state / (length - jnp.arange(length))[None, None]

  return RowStatistic(_zeros, update, finalize)


@functools.cache
def mass_by_distance() -> RowStatistic:
  """Mean attention at each distance back, [B, H, T]; 0 is the token itself.

      mass_d = 1 / (T - d) * sum_{t = d}^{T - 1} A[t, t - d]

  Our definition; `spread.distance_profile` is the same of a Jacobian.

  Cost: a copy of the block, whose rows are shifted into line.
  """

  def init(batch, heads, length):
    return _zeros(batch, heads, 2 * length - 1)  # distances from 1 - T on

  def update(state, rows, *, start, values=None, logs=None):
    batch, heads, count, keys = rows.shape
    length = (state.shape[-1] + 1) // 2
    # Keys turned round, and each row one entry later than the one before:
    # the columns are the distances from start - keys + 1 on.
    lined = jnp.pad(rows[..., ::-1], [(0, 0)] * 3 + [(0, count)])
    lined = lined.reshape(batch, heads, -1)[..., :-count]
    mass = _sum(lined.reshape(batch, heads, count, keys + count - 1), -2)
    at = (0, 0, start - keys + length)
    old = jax.lax.dynamic_slice(state, at, mass.shape)
    return jax.lax.dynamic_update_slice(state, old + mass, at)

  def finalize(state, length):
    seen = length - jnp.arange(length)
    return state[..., length - 1 :] / seen[None, None]

  return RowStatistic(init, update, finalize)


@functools.cache
def mass_within(windows: tuple[int, ...]) -> RowStatistic:
  """Mean share of a row's attention at most w - 1 tokens back, [B, H, W].

      within_w = 1 / T * sum_t sum_{t - w < s <= t} A[t, s]

  Our definition. A row with fewer than w keys counts 1.

  Args:
    windows: each w, the token itself included as in `ModelConfig.window`.
  """

  def init(batch, heads, length):
    return _zeros(batch, heads, len(windows))

  def update(state, rows, *, start, values=None, logs=None):
    keys = jnp.arange(rows.shape[-1])[None]
    back = (_queries(rows, start)[:, None] - keys)[None, None]
    shares = [
      _sum(jnp.where((back >= 0) & (back < w), rows, 0), (-2, -1))
      for w in windows
    ]
    return state + jnp.stack(shares, axis=-1)

  return RowStatistic(init, update, lambda x, length: x / length)


@functools.cache
def value_weighted_mass(*, key: int = 0) -> RowStatistic:
  """A key's share of what a row writes, with its value's norm, [B, H].

      share = 1 / (T - k) * sum_{t >= k} A[t, k] ||v_k|| / sum_s A[t, s] ||v_s||

  A sink that writes nothing has a large sink score and a share near 0. The
  weighting is Kobayashi et al.'s (2020, arXiv 2004.10102), without the output
  matrix; the mean of shares is our definition. A row that writes nothing
  counts 0.

  Raises:
    ValueError: (by init) for a key that no query sees; (by update) without
      values: observe `("pattern", "v")`.
  """
  score = sink_score(key=key)

  def update(state, rows, *, start, values=None, logs=None):
    if values is None:
      raise ValueError('values are needed: observe the sites ("pattern", "v")')
    norms = jnp.moveaxis(token_norms(values), 1, 2)  # [B, N, S]
    norms = jnp.repeat(norms, rows.shape[1] // norms.shape[1], axis=1)
    written = rows * norms[:, :, None]
    total = jnp.sum(written, axis=-1, keepdims=True)
    shares = jnp.where(total > 0, written / jnp.where(total > 0, total, 1), 0)
    return score.update(state, shares, start=start)

  return RowStatistic(score.init, update, score.finalize)


def _zeros(*shape: int) -> Array:
  return jnp.zeros(shape)


def _queries(rows, start):
  """[b] absolute index of each row."""
  return start + jnp.arange(rows.shape[-2])


def _sum(x, axis):
  """The sum in float32 at least."""
  return jnp.sum(x, axis=axis, dtype=jnp.promote_types(x.dtype, jnp.float32))


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
    block: query rows at a time, `None` for a size that is fast.
    nll: whether to return the likelihood, which costs O(T D V).

  Returns:
    `run(params, tokens, *, positions=None) -> StreamOutput`, tokens [B, T]
    without padding, params a parameter tree or `Layers`. It jits one layer by
    itself and is not to be jitted as a whole.

  Raises:
    ValueError: for an edit or an observer that cannot see a block of rows,
      names used twice, or a block that is no positive integer; (by run) as
      `forward` does.

  Cost: time of a causal forward pass, 7/12 of the full square of scores;
  memory of `block` rows of scores and some [T, D] arrays.

  >>> import jax, sinkjax
  >>> cfg = sinkjax.TINY
  >>> params = sinkjax.init_params(cfg, jax.random.key(0))
  >>> f = sinkjax.forward(cfg)
  >>> run = stream_statistics(f, {"sink": sink_score()})
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

  def run(params, tokens, *, positions=None) -> StreamOutput:
    tokens = _check_tokens(cfg, tokens)
    positions = _like_tokens("positions", positions, tokens)
    _check_ids("position", positions, cfg.max_len, "the model's context")
    if positions is None:
      positions = jnp.broadcast_to(jnp.arange(tokens.shape[1]), tokens.shape)
    with jax.default_matmul_precision(cfg.precision):
      return _run(cfg, taps, rows, block, nll, params, tokens, positions)

  return run


def _streamed(statistics, taps):
  """Observers of rows move among the statistics, the others stay."""
  others = {}
  for name, (sites, reducer) in taps.observers.items():
    if not set(sites) & set(ROW_SITES):
      others[name] = (sites, reducer)
    elif not isinstance(reducer, Dense) or sites[0] != "pattern":
      raise ValueError(
        f"observer {name!r} at {sites} would see whole rows: use a "
        "streaming.dense statistic of the pattern"
      )
    else:
      _once(name, statistics)[name] = reducer.statistic
  for name in others:
    _once(name, statistics)
  return statistics, Taps(taps.edits, others)


def _once(name, statistics):
  if name in statistics:
    raise ValueError(f"duplicate statistic {name!r}")
  return statistics


def _run(cfg, taps, statistics, block, nll, weights, tokens, positions):
  layers, (batch, length) = as_layers(cfg, weights), tokens.shape
  first = Tapper(taps, 0)
  x = first("embed", embed(layers, tokens, positions))
  tables = (None, None)
  if cfg.positions == "rope":
    tables = rotary_tables(cfg, positions)
  if block is None:
    row = batch * cfg.n_heads * length * x.dtype.itemsize
    size = BLOCK_BYTES.get(jax.default_backend(), 1 << 28)
    block = max(32, min(512, size // row))
  outside = first.trace()
  x = jnp.array(x, copy=True)  # the layer reuses it; others may have seen it
  edits, kind = _split(taps)
  traces, params = [], layers.layer(0)
  for i in range(cfg.n_layers):
    x, trace = _layer(
      params, x, jnp.asarray(i), Context(*tables, None, None), edits,
      kind=kind, cfg=cfg, statistics=statistics, block=min(block, length),
    )  # fmt: skip
    traces.append(trace)
    # Read the next layer while this one runs, but no more than that one.
    params = layers.layer(i + 1) if i + 1 < cfg.n_layers else None
    jax.block_until_ready(x)
  trace = jax.tree.map(lambda *leaves: jnp.stack(leaves), *traces)
  last = Tapper(taps, cfg.n_layers - 1)
  x = last("final", apply_final_norm(cfg, layers.final_norm(), x))
  trace = {**outside, **trace, **last.trace()}
  return StreamOutput(trace, _nll(cfg, layers, x, tokens) if nll else None)


def _split(taps):
  """The taps' arrays, and what else they are: plain functions inside edits."""
  leaves, tree = jax.tree.flatten(taps)
  arrays = [None if callable(leaf) else leaf for leaf in leaves]
  return arrays, (tree, tuple(x if callable(x) else None for x in leaves))


def _join(arrays, kind):
  tree, functions = kind
  leaves = zip(arrays, functions, strict=True)
  return jax.tree.unflatten(tree, [x if f is None else f for x, f in leaves])


@functools.partial(
  jax.jit,
  static_argnames=("kind", "cfg", "statistics", "block"),
  donate_argnames=("x",),
)
def _layer(params, x, layer, ctx, edits, *, kind, cfg, statistics, block):
  """One block of the model, its queries and its MLP in pieces."""
  taps = _join(edits, kind)
  tap = Tapper(taps, layer)

  def apply(method, *args):
    return Block(cfg).apply({"params": params}, *args, method=method)

  pre = tap("resid_pre", x)
  q, k, v = apply(Block.qkv, pre, layer, ctx, tap)
  mix = functools.partial(apply, Block.mix)
  z, trace = _attention(cfg, mix, q, k, v, layer, taps, statistics, block)
  mid = apply(Block.attend, pre, tap("z", z), tap)

  def mlp(x):
    inner = apply(Block.mlp_linear, apply(Block.mlp_read, x))
    return apply(Block.mlp_activate, *inner)

  out = _in_chunks(mlp, pre if cfg.parallel_residual else mid)
  return apply(Block.finish, mid, out, tap), {**trace, **tap.trace()}


def _attention(cfg, mix, q, k, v, layer, taps, statistics, block):
  """z of all queries, and the statistics of their rows."""
  batch, length, heads, _ = q.shape
  edits = {s: rows_of(taps.edits[s]) for s in ROW_SITES if s in taps.edits}
  pieces = _pieces(length, block, SEGMENTS)
  if "pattern" in edits:  # the edit may put something on any key
    pieces = [(*piece[:-1], length) for piece in pieces]
  states = tuple(s.init(batch, heads, length) for _, s in statistics)
  carry = jnp.zeros_like(q), states
  for first, count, rows, keys in pieces:

    def body(i, carry, first=first, rows=rows, keys=keys):
      z, states = carry
      start = first + i * rows
      at_rows = {
        site: lambda x, n, edit=edit: edit(x, n, start)
        for site, edit in edits.items()
      }
      seen = {site: (site, lambda x: x) for site in ROW_SITES}
      tap = Tapper(Taps(at_rows, seen), layer)
      some = jax.lax.dynamic_slice_in_dim(q, start, rows, 1)
      values, mask = v[:, :keys], rows_mask(cfg, start, rows, keys, layer)
      new = mix(some, k[:, :keys], values, mask, tap)
      scores, pattern = (tap.trace()[site] for site in ROW_SITES)
      logs = None if "pattern" in edits else _log_softmax(scores, mask)
      states = tuple(
        s.update(state, pattern, start=start, values=values, logs=logs)
        for state, (_, s) in zip(states, statistics, strict=True)
      )
      return jax.lax.dynamic_update_slice_in_dim(z, new, start, 1), states

    carry = jax.lax.fori_loop(0, count, body, carry)
  z, states = carry
  return z, {
    name: s.finalize(state, length)
    for state, (name, s) in zip(states, statistics, strict=True)
  }


def _log_softmax(scores, mask):
  """Logarithms of `normalizers.softmax`; numbers of no meaning at masked keys.

  The maximum and the sum are written as they are there, and XLA takes the two
  for one.
  """
  s = scores.astype(jnp.promote_types(scores.dtype, jnp.float32))
  s = jnp.where(mask, s, MASKED)
  shift = s - jnp.max(s, axis=-1, keepdims=True)
  weights = jnp.where(mask, jnp.exp(shift), 0)
  return shift - jnp.log(jnp.sum(weights, axis=-1, keepdims=True))


def _pieces(length: int, block: int, segments: int):
  """(first row, blocks, rows a block, keys) of each group of equal blocks."""
  whole, rest = divmod(length, block)
  segments = min(segments, whole)
  ends = [whole * (i + 1) // segments for i in range(segments)]
  pieces = [
    (a * block, b - a, block, b * block)
    for a, b in zip([0, *ends], ends, strict=False)
  ]
  return pieces + ([(whole * block, 1, rest, length)] if rest else [])


def _in_chunks(fn, x):
  """`fn` of [B, T, ...] leaves, `CHUNK` tokens at a time."""
  length = jax.tree.leaves(x)[0].shape[1]
  count, rest = divmod(length, CHUNK)
  if not count or length == CHUNK:
    return fn(x)

  def split(x):
    parts = x[:, : count * CHUNK].reshape(
      x.shape[0], count, CHUNK, *x.shape[2:]
    )
    return jnp.moveaxis(parts, 1, 0)

  def join(parts):
    x = jnp.moveaxis(parts, 0, 1)
    return x.reshape(x.shape[0], -1, *x.shape[3:])

  done = jax.tree.map(join, jax.lax.map(fn, jax.tree.map(split, x)))
  if not rest:
    return done
  last = fn(jax.tree.map(lambda x: x[:, count * CHUNK :], x))
  return jax.tree.map(lambda a, b: jnp.concatenate([a, b], 1), done, last)


def _nll(cfg, layers, x, tokens):
  """Mean negative log-likelihood, some logits at a time."""
  if x.shape[1] == 1:
    return jnp.full(x.shape[:1], jnp.nan)
  x, targets, first = x[:, :-1], tokens[:, 1:], 0
  wide = jnp.zeros(targets.shape, jnp.promote_types(x.dtype, jnp.float32))
  state = (wide - jnp.inf, wide, wide)
  for kernel in layers.unembedding():
    state = _add_logits(state, x, targets, kernel, first, cfg=cfg)
    first += kernel.shape[1]
    jax.block_until_ready(state)
  top, total, picked = state
  return jnp.mean(top + jnp.log(total) - picked, axis=-1)


@functools.partial(jax.jit, static_argnames="cfg")
def _add_logits(state, x, targets, kernel, first, *, cfg):
  """The online log-sum-exp with some more columns of the logits."""

  def add(args):
    (top, total, picked), x, targets = args
    logits = jnp.einsum("btd,dv->btv", x, kernel.astype(x.dtype))
    if cfg.logit_softcap is not None:
      logits = cfg.logit_softcap * jnp.tanh(logits / cfg.logit_softcap)
    logits = logits.astype(top.dtype)
    new = jnp.maximum(top, jnp.max(logits, axis=-1))
    more = jnp.sum(jnp.exp(logits - new[..., None]), axis=-1)
    total = total * jnp.exp(top - new) + more
    at = targets - first
    here = (at >= 0) & (at < logits.shape[-1])
    at = jnp.clip(at, 0, logits.shape[-1] - 1)[..., None]
    value = jnp.take_along_axis(logits, at, axis=-1)[..., 0]
    return new, total, jnp.where(here, value, picked)

  return _in_chunks(add, (state, x, targets))
