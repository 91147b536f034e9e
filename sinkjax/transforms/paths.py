"""Who carries the exact map at each layer: a head, the residual or the MLP.

The map from x to y is a product of layers, and each layer's derivative is a
sum over what carries it there, so at every layer l

    d y / d x = sum over c of J_c,   J_c = J_after B_c J_before

with J_before from x to what enters layer l, J_after from what leaves it to y,
and B_c the derivative of the layer with everything but c held. With R what
stays in the residual stream, A_h what head h writes and M the MLP's derivative
at the token, a layer is

    R + M R + sum over h of (A_h by values + A_h by scores) + M A_h

so that carriers are the residual; the MLP of the residual; each head by its
values, its pattern held; each head by its scores, its values held; and the MLP
of what each head wrote. With a parallel residual the last is zero.

The sum is the product rule, no approximation; but J_c may cancel each other,
and their norms do not add up. What adds up is the signed share

    <J_c, J> / ||J||^2,   sum over c = 1
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from sinkjax import sharding
from sinkjax.config import ModelConfig
from sinkjax.transforms.jacobian import check_model, engine_of, one_text
from sinkjax.transforms.jacobian_engine import Engine, SelfCheckError
from sinkjax.transforms.jacobian_plan import (
  Block,
  default_budget,
  make_plan,
  source_columns,
)
from sinkjax.transforms.path_steps import (
  CARRIERS,
  OF_HEADS,
  WHOLES,
  Parts,
  carry,
  pull_final,
  pull_layer,
)
from sinkjax.transforms.residual import Point, parse_pair, taken_apart

# Of the map, relative, at the pair of tokens where it is worst. The sum and
# the map come by different products, forward and backward, and deep models
# amplify the rounding of each layer: the limits are those of the engine. What
# they must catch, an edit that the carriers do not cover, is off by the size
# of what it does.
SUMMED = {"float32": 1e-3, "float64": 1e-8}
"""How far the sum of the carriers may be from the map, relative."""


class Carried(NamedTuple):
  """What each carrier contributes to the map, at every layer it goes through.

  Axes: L layers crossed, H heads, R target tokens, C source tokens. Entries
  with the target before the source are zero.

  Attributes:
    layers: the layers, in order.
    norms: {carrier: ||J_c||_F}, [L, R, C], of heads [L, H, R, C]; the names
      are `CARRIERS` and `WHOLES`.
    shares: {carrier: <J_c, J> / ||J||^2}, likewise; zero where the map is.
      Those of `CARRIERS` sum to one over carriers and heads.
    whole: [R, C] ||J||_F of the map.
    error: [L] how far the sum of the carriers is from the map, relative, at
      the worst pair.
  """

  layers: list[int]
  norms: dict[str, np.ndarray]
  shares: dict[str, np.ndarray]
  whole: Float[np.ndarray, "R C"]
  error: Float[np.ndarray, "L"]


def carriers(
  fn: Callable,
  params: Any,
  tokens: Int[Array, "T"],
  *,
  source: Any = "embed",
  target: Any = "resid_post",
  rows: Sequence[int] | None = None,
  cols: Sequence[int] | None = None,
  budget_bytes: int | None = None,
  positions: Array | None = None,
  progress: Callable[[int, int], Any] = lambda done, total: None,
) -> Carried:
  """The exact map d y_t / d x_s split by who carries it, at every layer.

  See the module for the formula. Each of `CARRIERS` is what remains of the map
  if at that layer, and at no other, all other ways are constants.

  Args:
    fn: `forward(cfg)`, or an `intervene` or `capture` of it.
    params: its parameters, or weights read layer by layer.
    tokens: one text [T], unpadded.
    source: x: "embed" or ("resid_post", layer), where layers begin.
    target: y: "resid_post" of a later layer, the last by default, or "final".
    rows: target tokens t, all by default; one costs a T-th.
    cols: source tokens s, all by default.
    budget_bytes: memory beside the weights, a quarter of what is free by
      default; at least one source and one target are held at a time. The
      result does not depend on it.
    positions: as for `forward`.
    progress: called with (steps done, steps in all).

  Raises:
    ValueError: for points that are not between layers, a model whose heads'
      outputs have a gate of their own (`gate` "head" or "element") or a rate
      of mixing, one that
      is not float32 or float64, a token that is not there, or a budget too
      small for one direction.
    TypeError: for a function that is none of ours.
    SelfCheckError: if the carriers do not add up to the map.

  Cost: the exact map, and for each layer about 5 R C T D^3 products, half of
    that if R is 1; memory L T D^2 numbers a source and 8 T D^2 a target.

  >>> import jax, sinkjax
  >>> params = sinkjax.init_params(sinkjax.TINY, jax.random.key(0))
  >>> f = sinkjax.forward(sinkjax.TINY)
  >>> got = carriers(f, params, jax.numpy.array([1, 2, 3]), rows=[2])
  >>> got.norms["residual"].shape, got.norms["values"].shape
  ((3, 1, 3), (3, 4, 1, 3))
  >>> shares = [got.shares[name].reshape(3, -1, 3).sum(1) for name in CARRIERS]
  >>> bool(abs(sum(shares) - 1).max() < 1e-3)
  True
  """
  cfg, _ = taken_apart(fn, tokens)
  check_model(cfg)
  if cfg.gates_heads:
    raise ValueError(
      f"carriers know no gate on what heads write, the model has {cfg.gate!r}: "
      "the gate opens by the residual stream, which is neither values nor "
      "scores"
    )
  if cfg.mixing != "none":
    raise ValueError(
      "carriers know no rate of mixing, by which a head keeps its own value: "
      f"the model has mixing={cfg.mixing!r}"
    )
  if cfg.depth != "none":
    raise ValueError(
      "carriers know no tokens that do not take every layer: the model has "
      f"depth={cfg.depth!r}"
    )
  tokens = one_text(tokens)
  points = parse_pair(cfg, source, target)
  _check_between_layers(*points)
  columns = source_columns(len(tokens), cols)
  targets = source_columns(len(tokens), rows)
  engine = engine_of(fn, params, tokens, points, positions)
  if not engine.steps:
    raise ValueError(
      f"no layer lies between {tuple(points[0])} and {tuple(points[1])}"
    )
  layers = [layer for layer, _ in engine.steps]
  sums = Sums(cfg, layers, (len(targets), len(columns)))
  budget = budget_bytes or default_budget()
  matrix = jnp.dtype(cfg.dtype).itemsize * len(tokens) * cfg.d_model**2
  # A quarter for maps that wait, a quarter for rows and what is made of them,
  # and half for the engine, which is done before they are needed.
  some = max(1, budget // 4 // (len(engine.steps) * matrix))
  few = max(1, budget // 4 // (8 * matrix))
  groups, many = _parts(sorted(columns), some), _parts(targets, few)
  total, done = len(groups) * (1 + len(many)) * len(engine.steps), 0
  for group in groups:
    found = _maps_before(engine, group, budget // 2)
    done += len(engine.steps)
    progress(done, total)
    for part in many:
      rows_NxTxD = _start(engine, part)
      for layer, _ in reversed(engine.steps):
        block = engine.layers.layer(layer)
        args = (cfg, block, engine.entering[layer], layer)
        args = (*args, engine.ctx, engine.edits)
        rows_NxTxD, ways = pull_layer(*args, rows_NxTxD)
        for one in found:
          whole, first = one.whole[jnp.asarray(part)], one.block.first
          parts = carry(*args, ways, one.before[layer], whole, first=first)
          sources = one.block.sources[: one.block.real]
          at = [targets.index(t) for t in part]
          of = [columns.index(c) for c in sources]
          sums.add(layer, at, of, parts)
        done += 1
        progress(done, total)
  return sums.result()


def _check_between_layers(source: Point, target: Point) -> None:
  for name, point, valid in (
    ("source", source, ("embed", "resid_post")),
    ("target", target, ("resid_post", "final")),
  ):
    if point.site not in valid:
      raise ValueError(
        f"carriers are of whole layers: the {name} must be at one of "
        f"{list(valid)}, got {point.site!r}"
      )


def _parts(items: list[int], size: int) -> list[list[int]]:
  return [items[at : at + size] for at in range(0, len(items), size)]


class _Found(NamedTuple):
  """The maps of a block of columns.

  Attributes:
    block: its sources and directions.
    before: {layer: [W, D, S, M]} to what enters the layer.
    whole: [T, D, S, M] to the target.
  """

  block: Block
  before: dict[int, Array]
  whole: Array


def _maps_before(
  engine: Engine, columns: list[int], budget: int
) -> list[_Found]:
  """The maps of some source tokens to what enters every layer."""
  width, layers = engine.cfg.d_model, [layer for layer, _ in engine.steps]
  plan = make_plan(
    engine.cfg,
    engine.length,
    columns=columns,
    many=width,
    layers=len(layers),
    budget=budget,
  )
  eye = np.eye(width, dtype=engine.cfg.dtype)
  found: list[_Found] = []
  before: dict[int, Array] = {}

  def probes(sources: Sequence[int], start: int, stop: int) -> np.ndarray:
    return np.broadcast_to(
      eye[:, start:stop], (len(sources), width, stop - start)
    )

  def consume(block: Block, layer: int | None, tangents: Array) -> None:
    if layer is not None:
      # The next layer takes this buffer for its own.
      before[layer + 1] = jnp.array(tangents, copy=True)
      return
    first = np.zeros(tangents.shape, engine.cfg.dtype)
    for at, source in enumerate(block.sources):
      stop = block.start + plan.directions
      first[source - block.first, :, at] = eye[:, block.start : stop]
    maps = {layers[0]: jnp.asarray(first), **before}
    whole = jnp.pad(tangents, [(block.first, 0)] + [(0, 0)] * 3)
    found.append(_Found(block, {at: maps[at] for at in layers}, whole))
    before.clear()

  engine.run(plan, columns, probes, consume, many=width, every_layer=True)
  return found


def _start(engine: Engine, targets: list[int]) -> Float[Array, "N T D"]:
  """Unit rows of the target tokens, by what leaves the last layer."""
  width = engine.cfg.d_model
  rows = np.zeros((len(targets), width, engine.length, width), engine.cfg.dtype)
  for at, target in enumerate(targets):
    rows[at, :, target] = np.eye(width)
  rows = jnp.asarray(rows.reshape(-1, engine.length, width))
  if not engine.final:
    return rows
  x = engine.entering[engine.cfg.n_layers]
  norm = engine.layers.final_norm()
  return pull_final(engine.cfg, norm, x, engine.edits, rows)


class Sums:
  """Adds up what blocks of columns contribute, by layer, row and column."""

  def __init__(self, cfg: ModelConfig, layers: list[int], shape: tuple):
    self.cfg, self.layers = cfg, layers
    one, each = (len(layers), *shape), (len(layers), cfg.n_heads, *shape)

    def zeros() -> dict[str, np.ndarray]:
      return {
        name: np.zeros(each if name in OF_HEADS else one)
        for name in CARRIERS + WHOLES
      }

    self.squares, self.products = zeros(), zeros()
    self.gap, self.whole = np.zeros(one), np.zeros(one)

  def add(
    self, layer: int, rows: list[int], columns: list[int], parts: Parts
  ) -> None:
    """Adds a block's sums at rows and columns, both counted as asked for."""
    at = np.ix_(rows, columns)
    own, number = self.layers.index(layer), len(columns)
    for mine, new in (
      *((self.squares[k], x) for k, x in parts.squares.items()),
      *((self.products[k], x) for k, x in parts.products.items()),
      (self.gap, parts.gap),
      (self.whole, parts.whole),
    ):
      # Sources that fill a block up come last, and are left out.
      mine[own][(..., *at)] += sharding.to_host(new, np.float64)[..., :number]

  def result(self) -> Carried:
    """The norms and shares.

    Raises:
      SelfCheckError: if carriers do not add up to the map.
    """
    whole = self.whole[0]
    safe = np.where(whole > 0, whole, 1)
    gap = np.sqrt(self.gap / safe)
    error = gap.max(axis=(1, 2))
    worst = int(np.argmax(error))
    if not error[worst] < SUMMED[self.cfg.dtype]:
      raise SelfCheckError(
        f"at layer {self.layers[worst]} the carriers differ from the map by "
        f"{error[worst]:.1e} (relative): the model overflows, or an edit lets "
        "tokens mix where carriers do not look for it"
      )
    return Carried(
      layers=self.layers,
      norms={name: np.sqrt(x) for name, x in self.squares.items()},
      shares={name: x / safe for name, x in self.products.items()},
      whole=np.sqrt(whole),
      error=error,
    )
