"""The exact Jacobian in blocks of source tokens, bounded by a byte budget.

For every block of (source token, direction) columns, tangents go through the
layers from the first token of the block on: what comes before is constant.
They are reduced to what the caller wants before the next block starts, so the
dense [T, D, T, D] array never exists.
"""

import functools
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Array

from sinkjax import sharding
from sinkjax.config import ModelConfig
from sinkjax.models.layerwise import Layers
from sinkjax.transforms.jacobian_plan import Block, Plan, blocks_of
from sinkjax.transforms.layer_jacobian import (
  Fold,
  fold_layer,
  push_folded,
  token_errors,
)
from sinkjax.transforms.layer_steps import (
  MID,
  POST,
  PRE,
  Segment,
  push_directly,
  push_final,
  run_layer,
)
from sinkjax.transforms.residual import Point, context_of, enter

CHECK_EVERY = 30.0
"""Seconds after which finished columns are checked and handed over.

A check costs a pass of one tangent through all layers, and an interruption
costs at most what was not handed over.
"""

# Of a layer, relative. Its products round by about 1e-6 (1e-15 in float64); a
# layer whose edits the folding does not allow is off by far more, and is then
# pushed directly: a strict limit costs time, never an answer.
_FOLDED = {"float32": 1e-5, "float64": 1e-11}

# Of the whole map, relative. Deep models amplify the rounding of each layer,
# so the limit is looser; what it must catch, an edit that sends information
# backwards or an overflow, is off by the size of the map.
_CHECKED = {"float32": 1e-3, "float64": 1e-8}


class SelfCheckError(ArithmeticError):
  """The engine's result contradicts the model's own derivative."""


def _steps(
  cfg: ModelConfig, source: Point, target: Point
) -> tuple[list[tuple[int, Segment]], bool]:
  """[(layer, segment)] from source to target, and whether the norm follows."""
  n = cfg.n_layers
  if source.order(n) == target.order(n):
    return [], False
  starts = {
    "embed": (0, "in"),
    PRE: (source.layer, PRE),
    MID: (source.layer, MID),
    POST: (source.layer + 1, "in"),
    "final": (n, "in"),
  }
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
    # [1, T, D] before each layer: small beside the tangents, and every block
    # of them needs it.
    self.entering: dict[int, Array] = {}
    last = self.steps[-1][0] if self.steps else -1
    stop = cfg.n_layers if self.final else last
    for layer in range(stop):
      self.entering[layer] = x
      params = layers.layer(layer)
      x = run_layer(cfg, params, x, layer, self.ctx, self.edits)
    self.entering[stop] = x
    self._kept: dict[int, Fold | None] = {}
    self._shard_columns = _spread_over(devices)

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
    blocks = list(blocks_of(columns, many, plan))
    total, done = max(1, len(blocks) * len(self.steps)), 0
    check, error, since = _Check(self), 0.0, time.monotonic()
    pending: list[int] = []
    for block in blocks:
      stop = block.start + plan.directions
      directions = probes(block.sources, block.start, stop)
      d_x = self._shard_columns(
        _place(directions, _rows(block), window=self.length - block.first)
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
      if stop < many:  # a source is complete with its last directions only
        continue
      pending += block.sources[: block.real]
      if block is blocks[-1] or time.monotonic() - since > CHECK_EVERY:
        error = max(error, check.error())
        finished(pending)
        check, pending, since = _Check(self), [], time.monotonic()
    return error

  def _push(
    self, plan: Plan, layer: int, segment: Segment, first: int, d_x: Array
  ) -> Array:
    x, params = self.entering[layer], self.layers.layer(layer)
    args = (self.cfg, params, x, layer, self.ctx, self.edits)
    fold = self._fold(plan, layer, segment, args) if plan.folded else None
    if fold is not None:
      return push_folded(self.cfg, fold, d_x, first=first)
    # The layer itself acts on all tokens; tokens before `first` are constant.
    full = jnp.pad(d_x, [(first, 0), (0, 0), (0, 0)])
    return push_directly(*args, full, segment=segment)[first:]

  def _fold(
    self, plan: Plan, layer: int, segment: Segment, args: tuple
  ) -> Fold | None:
    """A layer's folded matrices; `None` where its edits do not allow them."""
    if layer in self._kept:
      return self._kept[layer]
    fold = fold_layer(*args, segment=segment)
    if not float(fold.error) < _FOLDED[self.cfg.dtype]:
      fold = None
    # That a layer cannot be folded is remembered even where nothing is kept.
    if fold is None or len(self._kept) < plan.kept:
      self._kept[layer] = fold
    return fold

  def derivative(self, given: Array) -> np.ndarray:
    """The model's own derivative in the direction `given` [T, D]."""
    d_x = given[..., None]
    for layer, segment in self.steps:
      x, params = self.entering[layer], self.layers.layer(layer)
      d_x = push_directly(
        self.cfg, params, x, layer, self.ctx, self.edits, d_x, segment=segment
      )
    if self.final:
      x = self.entering[self.cfg.n_layers]
      norm = self.layers.final_norm()
      d_x = push_final(self.cfg, norm, x, self.edits, d_x, first=0)
    return sharding.to_host(d_x[..., 0], np.float64)


class _Check:
  """A random combination of columns, pushed at once and one by one."""

  def __init__(self, engine: Engine):
    self.engine = engine
    shape = (engine.length, engine.cfg.d_model)
    self.given = np.zeros(shape, engine.cfg.dtype)
    self.got = np.zeros(shape, np.float64)
    self.rng = np.random.default_rng(0)  # a check that can be repeated

  def add(self, block: Block, directions: ArrayLike, tangents: Array) -> None:
    """Joins a block, [sources, D, M] before and [W, D, sources, M] after."""
    weights = self.rng.standard_normal(directions.shape[::2])
    weights[block.real :] = 0  # repeated sources that fill the block
    weights = weights.astype(directions.dtype)
    given, got = _combine(directions, tangents, weights)
    np.add.at(self.given, list(block.sources), sharding.to_host(given))
    self.got[block.first :] += sharding.to_host(got)

  def error(self) -> float:
    """The largest error at a token, relative.

    Raises:
      SelfCheckError: if it is too large.
    """
    want = self.engine.derivative(jnp.asarray(self.given))
    error = float(np.max(sharding.to_host(token_errors(self.got, want))))
    if not error < _CHECKED[self.engine.cfg.dtype]:
      raise SelfCheckError(
        f"the Jacobian differs from the model's derivative by {error:.1e} "
        "(relative): an edit sends information backwards or leaves a row of "
        'scores -inf, or the model overflows; method="reference" assumes '
        "nothing"
      )
    return error


def _rows(block: Block) -> np.ndarray:
  return np.asarray(block.sources) - block.first


@jax.jit
def _combine(
  directions: ArrayLike, tangents: Array, weights: ArrayLike
) -> tuple[Array, Array]:
  given = jnp.einsum("sdm,sm->sd", directions, weights)
  return given, jnp.einsum("tdsm,sm->td", tangents, weights)


@functools.partial(jax.jit, static_argnames="window")
def _place(directions: ArrayLike, rows: ArrayLike, *, window: int) -> Array:
  """[W, D, X] with the directions of each source at its own row."""
  sources, width, many = directions.shape
  d_x = jnp.zeros((window, width, sources, many), directions.dtype)
  d_x = d_x.at[rows, :, jnp.arange(sources)].set(directions)
  return d_x.reshape(window, width, sources * many)


def _by_source(d_x: Array, plan: Plan) -> Array:
  window, width, _ = d_x.shape
  return d_x.reshape(window, width, plan.sources, plan.directions)


def _spread_over(
  devices: Sequence[jax.Device] | None,
) -> Callable[[Array], Array]:
  """A function that spreads tangents over devices by column."""
  if devices is None or len(devices) < 2:
    return lambda d_x: d_x
  mesh = jax.make_mesh(
    (len(devices),),
    ("source",),
    axis_types=(jax.sharding.AxisType.Auto,),
    devices=devices,
  )
  spec = jax.sharding.PartitionSpec(None, None, "source")
  sharding = jax.sharding.NamedSharding(mesh, spec)
  return lambda d_x: jax.device_put(d_x, sharding)
