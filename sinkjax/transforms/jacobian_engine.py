"""The exact Jacobian in blocks of source tokens, bounded by a byte budget.

For every block of (source token, direction) columns, tangents go through the
layers from the first token of the block on: what comes before is constant.
They are reduced to what the caller wants before the next block starts, so the
dense [T, D, T, D] array never exists.
"""

import dataclasses
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from sinkjax.config import ModelConfig
from sinkjax.models.layerwise import Layers
from sinkjax.transforms.layer_jacobian import (
  MID,
  POST,
  PRE,
  Fold,
  Segment,
  fold_layer,
  push_directly,
  push_final,
  push_folded,
  run_layer,
  token_errors,
)
from sinkjax.transforms.residual import Point, context_of, enter

WINDOWS = (1, 2, 4, 8, 16)
"""Into how many starting points a sequence may be cut; each is compiled."""

COMPILATION = 5e10
"""Operations that one more compilation is worth."""

EFFICIENCY = 0.6
"""Share of a large matrix product's rate that estimates of time assume."""

CHECK_EVERY = 30.0
"""Seconds after which finished columns are checked and handed over."""

_FOLDED = {"float32": 1e-5, "float64": 1e-11}
_CHECKED = {"float32": 1e-3, "float64": 1e-8}


class SelfCheckError(ArithmeticError):
  """The engine's result contradicts the model's own derivative."""


class Plan(NamedTuple):
  """How an exact Jacobian will be computed.

  Attributes:
    directions: columns of one source token in a block; a divisor of M.
    sources: source tokens of a block.
    window: source tokens are grouped by windows of this many.
    folded: whether layers are folded into token-local matrices.
    kept: layers whose folded matrices are kept between blocks.
    bytes: what this needs beside the weights.
    flops: floating-point operations.
  """

  directions: int
  sources: int
  window: int
  folded: bool
  kept: int
  bytes: int
  flops: float

  def seconds(self, rate: float) -> float:
    """About how long it takes at `rate` flop/s of large matrix products."""
    return self.flops / (rate * EFFICIENCY)


def _divisors(number: int) -> list[int]:
  return [d for d in range(1, number + 1) if number % d == 0]


@dataclasses.dataclass(frozen=True)
class Costs:
  """Bytes and operations of the parts, for a model and a length."""

  cfg: ModelConfig
  length: int
  layers: int

  @property
  def _size(self) -> int:
    return jnp.dtype(self.cfg.dtype).itemsize

  @property
  def _heads(self) -> int:
    return self.cfg.n_heads * self.cfg.head_dim

  @property
  def _keys(self) -> int:
    return 2 * self.cfg.n_kv_heads * self.cfg.head_dim

  def column(self, folded: bool) -> int:
    """Bytes of one column of tangents at its widest."""
    cfg, scores = self.cfg, self.cfg.n_heads * self.length
    if folded:
      wide = 2 * cfg.d_model + self._keys + self._heads + scores
    else:
      wide = 6 * cfg.d_model + 3 * (self._heads + self._keys)
      wide += 4 * scores + 4 * cfg.d_ff
    return self._size * self.length * wide

  def fold(self) -> int:
    """Bytes of one layer's folded matrices."""
    cfg = self.cfg
    matrices = cfg.d_model * (cfg.d_model + self._heads + self._keys)
    mixing = cfg.n_heads * self.length * (cfg.head_dim + 1)
    return self._size * self.length * (matrices + mixing)

  def forming(self) -> int:
    """Bytes in use while one layer is folded, beside the result."""
    cfg = self.cfg
    rows = 4 * cfg.d_model * (cfg.d_model + self._heads + self._keys)
    return self._size * (self.length * rows + 5 * cfg.d_model * cfg.d_ff)

  def fold_flops(self) -> float:
    """Operations of folding one layer."""
    cfg, square = self.cfg, self.cfg.d_model**2
    token = square * (cfg.d_ff + 2 * self._heads + cfg.d_model)
    shared = square * (self._heads + self._keys + 2 * cfg.d_ff)
    mixing = 4 * self.length**2 * self._heads * cfg.d_model
    return 2.0 * (self.length * token + shared + mixing)

  def push_flops(self, folded: bool, tokens: int) -> float:
    """Operations of one column through one layer, over `tokens` tokens."""
    cfg = self.cfg
    if folded:
      token = cfg.d_model * (cfg.d_model + self._heads + self._keys)
      return 2.0 * tokens * (token + 3 * self._heads * tokens)
    mlp = (3 if cfg.gated_mlp else 2) * cfg.d_ff
    token = cfg.d_model * (2 * self._heads + self._keys + mlp)
    return 2.0 * self.length * (token + 4 * self._heads * self.length)


def make_plan(
  cfg: ModelConfig,
  length: int,
  *,
  columns: Sequence[int],
  many: int,
  layers: int,
  budget: int,
  devices: int = 1,
) -> Plan:
  """The fastest way, by count of operations, that fits the budget.

  Args:
    cfg: the model.
    length: T.
    columns: source tokens.
    many: directions of each source token.
    layers: how many layers are crossed.
    budget: bytes, on each device.
    devices: over which sources are spread.

  Raises:
    ValueError: if not even one direction at a time fits.
  """
  costs = Costs(cfg, length, layers)
  best, least = None, math.inf
  for window in sorted({-(-length // n) for n in WINDOWS}):
    for plan in _candidates(costs, columns, many, window, budget, devices):
      starts = len({column // window for column in columns})
      price = plan.flops + COMPILATION * starts
      if price < least:
        best, least = plan, price
  if best is None:
    raise ValueError(
      f"a budget of {budget / 1e9:.3g} GB is too small: one direction at "
      f"{length} tokens needs {costs.column(False) / 1e9:.3g} GB"
    )
  return best


def _candidates(costs, columns, many, window, budget, devices):
  for folded in (True, False):
    fixed = costs.fold() + costs.forming() if folded else 0
    for kept in range(costs.layers + 1) if folded else (0,):
      room = budget - fixed - kept * costs.fold()
      most = max(0, room) // costs.column(folded)
      if not most:
        break
      for sources, directions in _shapes(window, many, devices, most):
        plan = Plan(directions, sources, window, folded, kept, 0, 0.0)
        yield _cost(costs, columns, many, plan, devices)


def _shapes(window, many, devices, most) -> Iterator[tuple[int, int]]:
  """(sources, directions) of blocks that fit, the largest of each kind."""
  whole = [n * devices for n in _divisors(window) if n * many <= most]
  if whole:
    yield max(whole), many
  parts = [n for n in _divisors(many) if n <= most]
  if parts:
    yield devices, max(parts)


def _cost(costs: Costs, columns, many, plan: Plan, devices: int) -> Plan:
  blocks = list(_blocks(columns, many, plan))
  flops = 0.0
  for block in blocks:
    tokens = costs.length - block.first
    width = len(block.sources) * plan.directions
    flops += costs.layers * width * costs.push_flops(plan.folded, tokens)
  if plan.folded:
    formed = plan.kept + (costs.layers - plan.kept) * len(blocks)
    flops += formed * costs.fold_flops()
  width = plan.sources * plan.directions // devices
  held = width * costs.column(plan.folded)
  if plan.folded:
    held += (plan.kept + 1) * costs.fold() + costs.forming()
  return plan._replace(bytes=held, flops=flops / devices)


class Block(NamedTuple):
  """Columns that go through the layers together.

  Attributes:
    first: the first token with tangents.
    sources: source tokens, the last ones repeated to fill the block.
    real: how many of them count.
    start: the first direction.
  """

  first: int
  sources: tuple[int, ...]
  real: int
  start: int


def _blocks(columns: Sequence[int], many: int, plan: Plan) -> Iterator[Block]:
  groups: dict[int, list[int]] = {}
  for source in sorted(columns):
    first = source // plan.window * plan.window
    groups.setdefault(first, []).append(source)
  for first, members in groups.items():
    for at in range(0, len(members), plan.sources):
      part = members[at : at + plan.sources]
      full = part + [part[-1]] * (plan.sources - len(part))
      for start in range(0, many, plan.directions):
        yield Block(first, tuple(full), len(part), start)


def _steps(cfg: ModelConfig, source: Point, target: Point):
  """[(layer, segment)] from source to target, and whether the norm follows."""
  n = cfg.n_layers
  if source.order(n) == target.order(n):
    return [], False
  starts = {"embed": (0, "in"), PRE: (source.layer, PRE),
            MID: (source.layer, MID), POST: (source.layer + 1, "in"),
            "final": (n, "in")}  # fmt: skip
  first, start = starts[source.site]
  final = target.site == "final"
  last, stop = (n - 1, POST) if final else (target.layer, target.site)
  steps = []
  for layer in range(first, last + 1):
    begin = start if layer == first else "in"
    steps.append((layer, Segment(begin, stop if layer == last else POST)))
  return steps, final


class Engine:
  """Pushes blocks of tangents from one point to another, for one text.

  Args:
    cfg: the model; float32 or float64.
    layers: its weights.
    tokens: [1, T].
    edits: `{site: edit}`.
    source: where tangents start.
    target: where they end.
    positions: as for `forward`.
    devices: over which columns are spread, or `None`.
  """

  def __init__(
    self,
    cfg: ModelConfig,
    layers: Layers,
    tokens: Array,
    edits: Mapping[str, Any],
    *,
    source: Point,
    target: Point,
    positions: Array | None = None,
    devices: Sequence[jax.Device] | None = None,
  ):
    self.cfg, self.layers, self.edits = cfg, layers, dict(edits)
    self.source, self.target = source, target
    self.steps, self.final = _steps(cfg, source, target)
    self.length = tokens.shape[1]
    self.ctx, positions = context_of(cfg, tokens, positions)
    x = enter(layers, tokens, positions, self.edits)
    self.entering: dict[int, Array] = {}
    last = self.steps[-1][0] if self.steps else -1
    stop = cfg.n_layers if self.final else last
    for layer in range(stop):
      self.entering[layer] = x
      params = layers.layer(layer)
      x = run_layer(cfg, params, x, layer, self.ctx, self.edits)
    self.entering[stop] = x
    self._kept: dict[int, Fold | None] = {}
    self._split = _spread_over(devices)

  def run(
    self,
    plan: Plan,
    columns: Sequence[int],
    probes: Callable[[Sequence[int], int, int], Array],
    consume: Callable[[Block, int | None, Array], None],
    *,
    many: int,
    every_layer: bool = False,
    finished: Callable[[list[int]], Any] = lambda columns: None,
    progress: Callable[[int, int], Any] = lambda done, total: None,
  ) -> float:
    """Pushes every block, and checks their sum in a random direction.

    Args:
      plan: from `make_plan`.
      columns: source tokens.
      probes: `f(sources, start, stop) -> [sources, D, stop - start]`, the
        directions at each source token.
      consume: called with (block, layer, tangents [W, D, sources, M]) at the
        target (layer None) and, on request, after every layer.
      many: directions in all.
      every_layer: whether `consume` also sees resid_post of each layer.
      finished: called with source tokens all of whose directions have gone
        through and been checked, every `CHECK_EVERY` seconds and at the end.
      progress: called with (steps done, steps in all).

    Returns:
      The largest relative error of a check.

    Raises:
      SelfCheckError: if the model's own derivative says otherwise.
    """
    blocks = list(_blocks(columns, many, plan))
    total, done = max(1, len(blocks) * len(self.steps)), 0
    check, error, since = _Check(self), 0.0, time.monotonic()
    pending: list[int] = []
    for block in blocks:
      stop = block.start + plan.directions
      directions = probes(block.sources, block.start, stop)
      d_x = self._split(
        _place(directions, _rows(block), self.length - block.first)
      )
      for layer, segment in self.steps:
        d_x = self._push(plan, layer, segment, block.first, d_x)
        if every_layer and segment.stop == POST:
          consume(block, layer, _by_source(d_x, plan))
        done += 1
        progress(done, total)
      if self.final:
        x = self.entering[self.cfg.n_layers]
        norm = self.layers.final_norm()
        d_x = push_final(self.cfg, norm, x, self.edits, d_x, first=block.first)
      tangents = _by_source(d_x, plan)
      consume(block, None, tangents)
      check.add(block, directions, tangents)
      if stop < many:
        continue
      pending += block.sources[: block.real]
      if block is blocks[-1] or time.monotonic() - since > CHECK_EVERY:
        error = max(error, check.error())
        finished(pending)
        check, pending, since = _Check(self), [], time.monotonic()
    return error

  def _push(self, plan, layer, segment, first, d_x):
    x, params = self.entering[layer], self.layers.layer(layer)
    args = (self.cfg, params, x, layer, self.ctx, self.edits)
    fold = self._fold(plan, layer, segment, args) if plan.folded else None
    if fold is not None:
      return push_folded(self.cfg, fold, d_x, first=first)
    full = jnp.pad(d_x, [(first, 0), (0, 0), (0, 0)])
    return push_directly(*args, full, segment=segment)[first:]

  def _fold(self, plan, layer, segment, args) -> Fold | None:
    """A layer's folded matrices; `None` where its edits do not allow them."""
    if layer in self._kept:
      return self._kept[layer]
    fold = fold_layer(*args, segment=segment)
    if not float(fold.error) < _FOLDED[self.cfg.dtype]:
      fold = None
    if fold is None or len(self._kept) < plan.kept:
      self._kept[layer] = fold
    return fold

  def derivative(self, given: Array) -> np.ndarray:
    """The model's own derivative in the direction `given` [T, D]."""
    d_x = given[..., None]
    for layer, segment in self.steps:
      x, params = self.entering[layer], self.layers.layer(layer)
      d_x = push_directly(
        self.cfg, params, x, layer, self.ctx, self.edits, d_x,
        segment=segment,
      )  # fmt: skip
    if self.final:
      x = self.entering[self.cfg.n_layers]
      norm = self.layers.final_norm()
      d_x = push_final(self.cfg, norm, x, self.edits, d_x, first=0)
    return np.asarray(d_x[..., 0], np.float64)


class _Check:
  """A random combination of columns, pushed at once and one by one."""

  def __init__(self, engine: Engine):
    self.engine = engine
    shape = (engine.length, engine.cfg.d_model)
    self.given = np.zeros(shape, engine.cfg.dtype)
    self.got = np.zeros(shape, np.float64)
    self.rng = np.random.default_rng(0)

  def add(self, block: Block, directions, tangents) -> None:
    """Joins a block, [sources, D, M] before and [W, D, sources, M] after."""
    weights = self.rng.standard_normal(directions.shape[::2])
    weights[block.real :] = 0
    weights = jnp.asarray(weights, directions.dtype)
    given, got = _combine(directions, tangents, weights)
    np.add.at(self.given, list(block.sources), np.asarray(given))
    self.got[block.first :] += np.asarray(got)

  def error(self) -> float:
    """The largest error at a token, relative.

    Raises:
      SelfCheckError: if it is too large.
    """
    want = self.engine.derivative(jnp.asarray(self.given))
    error = float(np.max(token_errors(jnp.asarray(self.got), want)))
    if not error < _CHECKED[self.engine.cfg.dtype]:
      raise SelfCheckError(
        f"the Jacobian differs from the model's derivative by {error:.1e} "
        "(relative): an edit sends information backwards, or the model "
        'overflows; method="reference" assumes nothing'
      )
    return error


def _rows(block: Block) -> Array:
  return jnp.asarray(block.sources) - block.first


@jax.jit
def _combine(directions, tangents, weights):
  given = jnp.einsum("sdm,sm->sd", directions, weights)
  return given, jnp.einsum("tdsm,sm->td", tangents, weights)


def _place(directions, rows, window: int):
  """[W, D, X] with the directions of each source at its own row."""
  sources, width, many = directions.shape
  d_x = jnp.zeros((window, width, sources, many), directions.dtype)
  d_x = d_x.at[rows, :, jnp.arange(sources)].set(directions)
  return d_x.reshape(window, width, sources * many)


def _by_source(d_x, plan: Plan):
  window, width, _ = d_x.shape
  return d_x.reshape(window, width, plan.sources, plan.directions)


def _spread_over(devices):
  """A function that spreads tangents over devices by column."""
  if devices is None or len(devices) < 2:
    return lambda d_x: d_x
  mesh = jax.make_mesh(
    (len(devices),), ("source",),
    axis_types=(jax.sharding.AxisType.Auto,), devices=devices,
  )  # fmt: skip
  spec = jax.sharding.PartitionSpec(None, None, "source")
  sharding = jax.sharding.NamedSharding(mesh, spec)
  return lambda d_x: jax.device_put(d_x, sharding)


def default_budget() -> int:
  """A quarter of the memory that the device has free, in bytes."""
  stats = jax.devices()[0].memory_stats() or {}
  if "bytes_limit" in stats:
    free = stats["bytes_limit"] - stats.get("bytes_in_use", 0)
    return int(free // 4)
  try:
    with open("/proc/meminfo") as stream:
      fields = dict(line.split(":", 1) for line in stream)
    return int(fields["MemAvailable"].split()[0]) * 1024 // 4
  except (OSError, KeyError, ValueError):
    return 1 << 30


def matmul_rate(size: int = 2048) -> float:
  """Flop/s of a large float32 matrix product here, the best of three."""
  a = jnp.ones((size, size), jnp.float32)
  product = jax.jit(jnp.dot)
  jax.block_until_ready(product(a, a))
  seconds = []
  for _ in range(3):
    start = time.perf_counter()
    jax.block_until_ready(product(a, a))
    seconds.append(time.perf_counter() - start)
  return 2 * size**3 / min(seconds)


def source_columns(length: int, columns: Sequence[int] | None) -> list[int]:
  """Source tokens, all by default; negative ones count from the end.

  Raises:
    ValueError: for none, one outside the text, or one named twice.
  """
  if columns is None:
    return list(range(length))
  found = [int(c) for c in np.atleast_1d(np.asarray(columns))]
  if not found:
    raise ValueError("no tokens were chosen")
  for column in found:
    if not -length <= column < length:
      raise ValueError(f"token {column} is outside a text of {length} tokens")
  found = [column % length for column in found]
  if len(set(found)) != len(found):
    raise ValueError(f"a token is named twice: {list(columns)}")
  return found


def block_count(columns: Sequence[int], many: int, plan: Plan) -> int:
  """How many blocks a plan has."""
  return math.ceil(len(list(_blocks(columns, many, plan))))
