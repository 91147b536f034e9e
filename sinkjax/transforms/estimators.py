"""Estimates of Jacobian norms where the exact map costs too much.

Hutchinson (1990): for a vector v of independent entries of mean 0 and
variance 1, E |J v|^2 = |J|_F^2. One probe a source token gives its column of
the map, one probe a target token its row. Power iteration gives the largest
singular value of single blocks. Both go through the whole model, mixing
included.
"""

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from sinkjax import sharding
from sinkjax.config import ModelConfig
from sinkjax.models.transformer import forward
from sinkjax.transforms.intervene import intervene
from sinkjax.transforms.jacobian import (
  check_model,
  engine_of,
  one_text,
  token_pairs,
)
from sinkjax.transforms.jacobian_engine import Engine
from sinkjax.transforms.jacobian_plan import (
  Block,
  Costs,
  check_samples,
  default_budget,
  make_plan,
  source_columns,
)
from sinkjax.transforms.residual import (
  Point,
  parse_pair,
  residual_map,
  taken_apart,
)

Progress = Callable[[int, int], Any]


class Estimate(NamedTuple):
  """Frobenius norms and how sure they are.

  Attributes:
    norms: [R, C], square root of the mean of |J v|^2.
    stderr: [R, C], its standard error (delta method).
    samples: probes of each entry.
  """

  norms: Float[np.ndarray, "R C"]
  stderr: Float[np.ndarray, "R C"]
  samples: int

  def interval(self, level: float = 0.95) -> Float[np.ndarray, "2 R C"]:
    """Lower and upper ends of confidence intervals.

    Student's t on the logarithm, where |J v|^2 is least skewed:
    norms exp(+- t stderr / norms).
    """
    from scipy import stats

    if not 0 < level < 1:
      raise ValueError(f"level must be between 0 and 1, got {level}")
    # One degree of freedom less: the spread is measured about the estimated
    # mean.
    width = stats.t.ppf(0.5 + level / 2, self.samples - 1)
    relative = self.stderr / np.where(self.norms > 0, self.norms, 1)
    ends = np.exp(np.multiply.outer([-width, width], relative))
    return self.norms * ends


def estimate_norms(
  fn: Callable,
  params: Any,
  tokens: Int[Array, "T"],
  *,
  samples: int = 64,
  by: str = "cols",
  source: Any = "embed",
  target: Any = "resid_post",
  rows: Sequence[int] | None = None,
  cols: Sequence[int] | None = None,
  key: Array | None = None,
  budget_bytes: int | None = None,
  positions: Array | None = None,
  progress: Progress = lambda done, total: None,
) -> Estimate:
  """Estimates `||d y_t / d x_s||_F` with a standard error beside each.

  Args:
    fn: as for `jacobian_norms`.
    params: likewise; layer-by-layer weights only with `by="cols"`.
    tokens: one text.
    samples: probes of each source (or target) token, at least 2.
    by: "cols" pushes probes forward from source tokens, best for few
      columns; "rows" pulls probes back from target tokens, best for few rows.
    source: as for `jacobian_norms`.
    target: likewise.
    rows: target tokens, all by default.
    cols: source tokens, all by default.
    key: `jax.random.key(0)` by default. Entries of one column (row) share
      probes, different columns (rows) are independent.
    budget_bytes: memory beside the weights.
    positions: as for `forward`.
    progress: called with (steps done, steps in all).

  Raises:
    ValueError: as `jacobian_norms`, and for fewer than 2 samples.
    SelfCheckError: as `jacobian_norms`.

  Cost: `samples` / D of the exact columns; rows cost one backward pass each.

  >>> import jax, sinkjax
  >>> cfg = sinkjax.TINY
  >>> params = sinkjax.init_params(cfg, jax.random.key(0))
  >>> text = jax.numpy.array([1, 2, 3])
  >>> estimate = estimate_norms(sinkjax.forward(cfg), params, text, samples=8)
  >>> estimate.norms.shape, bool((estimate.stderr[2] > 0).all())
  ((3, 3), True)
  """
  cfg, edits = taken_apart(fn, tokens)
  check_model(cfg)
  check_samples(samples)
  if by not in ("cols", "rows"):
    raise ValueError(f'by must be "cols" or "rows", got {by!r}')
  tokens = one_text(tokens)
  length = tokens.shape[0]
  columns, chosen = source_columns(length, cols), source_columns(length, rows)
  a, b = parse_pair(cfg, source, target)
  key = jax.random.key(0) if key is None else key
  budget = budget_bytes or default_budget()
  points, signs = (a, b), _Signs(cfg, samples, key)
  if by == "rows":
    model = (cfg, dict(edits), params, tokens[None], positions)
    squares = _row_squares(model, points, chosen, signs, budget, progress)
    fn.taps.require_numbers(squares, "the norms")
  else:
    engine = engine_of(fn, params, tokens, points, positions)
    squares = _column_squares(engine, columns, signs, budget, progress)
  return _estimate(squares[np.ix_(chosen, columns)])


def _estimate(squares: Float[np.ndarray, "R C P"]) -> Estimate:
  samples = squares.shape[-1]
  norms = np.sqrt(squares.mean(axis=-1))
  error = squares.std(axis=-1, ddof=1) / np.sqrt(samples)
  # Delta method: d sqrt(m) = dm / (2 sqrt(m)); an exact zero has no error.
  stderr = error / (2 * np.where(norms > 0, norms, 1))
  return Estimate(norms, stderr, samples)


class _Signs(NamedTuple):
  """Random +-1 directions, the same for a token wherever it is asked for."""

  cfg: ModelConfig
  samples: int
  key: Array

  def of(self, token: int) -> Float[Array, "D P"]:
    """All directions at one token."""
    # By token and not by order, so that chosen columns get the probes that they
    # have in the whole map, however it is cut.
    mine = jax.random.fold_in(self.key, token)
    shape = (self.cfg.d_model, self.samples)
    return jax.random.rademacher(mine, shape, self.cfg.dtype)


@jax.jit
def _squares(tangents: Float[Array, "W D S M"]) -> Float[Array, "W S M"]:
  return jnp.sum(tangents * tangents, axis=1)


def _chunk(cfg: ModelConfig, length: int, layers: int, budget: int) -> int:
  """How many vectors go forward and back together within the budget."""
  # Twice a push: the backward pass keeps what the forward pass computed.
  column = 2 * Costs(cfg, length, layers).column(folded=False)
  return max(1, int(budget // column))


def _column_squares(
  engine: Engine,
  columns: list[int],
  signs: _Signs,
  budget: int,
  progress: Progress,
) -> Float[np.ndarray, "T S P"]:
  """|J v|^2 at every target token, of probes pushed from source tokens."""
  length, samples = engine.length, signs.samples
  squares = np.zeros((length, length, samples))
  plan = make_plan(
    signs.cfg,
    length,
    columns=columns,
    many=samples,
    layers=len(engine.steps),
    budget=budget,
  )

  def consume(block: Block, layer: int | None, tangents: Array) -> None:
    piece = sharding.to_host(_squares(tangents))
    stop = block.start + plan.directions
    for at, s in enumerate(block.sources[: block.real]):
      squares[block.first :, s, block.start : stop] = piece[:, at]

  def probes(sources: Sequence[int], start: int, stop: int) -> Array:
    return jnp.stack([signs.of(s)[:, start:stop] for s in sources])

  engine.run(plan, columns, probes, consume, many=samples, progress=progress)
  return squares


def _row_squares(
  model: tuple,
  points: tuple[Point, Point],
  rows: list[int],
  signs: _Signs,
  budget: int,
  progress: Progress,
) -> Float[np.ndarray, "T S P"]:
  """|J^T u|^2 at every source token, of probes pulled from target tokens."""
  cfg, length, samples = signs.cfg, model[3].shape[1], signs.samples
  chunk = min(samples, _chunk(cfg, length, cfg.n_layers, budget))
  squares = np.zeros((length, length, samples))
  for done, row in enumerate(rows):
    probes = signs.of(row).T
    for start in range(0, samples, chunk):
      some = probes[start : start + chunk]
      piece = _pull_squares(*model, row, some, points=points)
      squares[row, :, start : start + chunk] = sharding.to_host(piece).T
    progress(done + 1, len(rows))
  return squares


def _shifted(
  cfg: ModelConfig,
  edits: Mapping[str, Any],
  params: Any,
  tokens: Int[Array, "1 T"],
  positions: Array | None,
  points: tuple[Point, Point],
) -> tuple[Callable, Float[Array, "1 T D"]]:
  """The map between two points, and no shift at all."""
  fn = intervene(forward(cfg), edits)
  y = residual_map(
    fn, params, tokens, source=points[0], target=points[1], positions=positions
  )
  return y, jnp.zeros((*tokens.shape, cfg.d_model), cfg.dtype)


@functools.partial(jax.jit, static_argnames=("cfg", "points"))
def _pull_squares(
  cfg: ModelConfig,
  edits: Mapping[str, Any],
  params: Any,
  tokens: Int[Array, "1 T"],
  positions: Array | None,
  row: Array | int,
  probes: Float[Array, "M D"],
  *,
  points: tuple[Point, Point],
) -> Float[Array, "M T"]:
  """|J^T u|^2 of every source token, for probes at one target token."""
  y, zeros = _shifted(cfg, edits, params, tokens, positions, points)
  _, pull = jax.vjp(y, zeros)
  by_source = jax.vmap(lambda u: pull(zeros.at[0, row].set(u))[0])(probes)
  return jnp.sum(by_source[:, 0] ** 2, axis=-1)


class TopSingular(NamedTuple):
  """Largest singular values by power iteration.

  Attributes:
    norms: [P]; never above the true value.
    residual: [P], |J^T J v - norms^2 v| / norms^2: some singular value of the
      block lies within this share (of its square) of the one found.
  """

  norms: Float[np.ndarray, "P"]
  residual: Float[np.ndarray, "P"]


def power_norms(
  fn: Callable,
  params: Any,
  tokens: Int[Array, "T"],
  pairs: Sequence[tuple[int, int]],
  *,
  iterations: int = 50,
  source: Any = "embed",
  target: Any = "resid_post",
  key: Array | None = None,
  budget_bytes: int | None = None,
  positions: Array | None = None,
) -> TopSingular:
  """Spectral norms `||d y_t / d x_s||_2` of chosen pairs, iteratively.

      v <- J^T J v / |J^T J v|

  Args:
    fn: as for `jacobian_norms`.
    params: likewise, in memory.
    tokens: one text.
    pairs: (target token, source token) each.
    iterations: a forward and a backward push each.
    source: as for `jacobian_norms`.
    target: likewise.
    key: of the first vectors, `jax.random.key(0)` by default.
    budget_bytes: memory beside the weights.
    positions: as for `forward`.

  Raises:
    ValueError: as `token_jacobian`, and for fewer than 1 iteration.

  Cost: P `iterations` forward and backward passes of tangents.
  """
  cfg, edits = taken_apart(fn, tokens)
  check_model(cfg)
  if iterations < 1:
    raise ValueError(f"iterations must be 1 or more, got {iterations}")
  tokens = one_text(tokens)
  wanted = token_pairs(tokens.shape[0], pairs)
  key = jax.random.key(0) if key is None else key
  budget = budget_bytes or default_budget()
  most = _chunk(cfg, tokens.shape[0], cfg.n_layers, budget)
  vectors = jax.random.normal(key, (len(wanted), cfg.d_model), cfg.dtype)
  vectors /= jnp.linalg.norm(vectors, axis=-1, keepdims=True)
  square, residual = _iterate(
    cfg,
    dict(edits),
    params,
    tokens[None],
    positions,
    jnp.asarray(wanted),
    vectors,
    points=parse_pair(cfg, source, target),
    iterations=iterations,
    chunk=min(len(wanted), most),
  )
  fn.taps.require_numbers(square, "the norms")
  # Rounding may make the square of a zero block slightly negative.
  norms = np.sqrt(np.maximum(sharding.to_host(square, np.float64), 0))
  return TopSingular(norms, sharding.to_host(residual, np.float64))


@functools.partial(
  jax.jit, static_argnames=("cfg", "points", "iterations", "chunk")
)
def _iterate(
  cfg: ModelConfig,
  edits: Mapping[str, Any],
  params: Any,
  tokens: Int[Array, "1 T"],
  positions: Array | None,
  pairs: Int[Array, "P 2"],
  vectors: Float[Array, "P D"],
  *,
  points: tuple[Point, Point],
  iterations: int,
  chunk: int,
) -> tuple[Float[Array, "P"], Float[Array, "P"]]:
  """(sigma^2, |J^T J v - sigma^2 v| / sigma^2) of every pair."""
  y, zeros = _shifted(cfg, edits, params, tokens, positions, points)
  _, push = jax.linearize(y, zeros)
  pull = jax.linear_transpose(push, zeros)

  def one(pair: Array, v: Array) -> tuple[Array, Array]:
    t, s = pair

    def back_and_forth(v: Array) -> Array:
      u = push(zeros.at[0, s].set(v))[0, t]
      return pull(zeros.at[0, t].set(u))[0][0, s]

    def step(_: Array, v: Array) -> Array:
      w = back_and_forth(v)
      norm = jnp.linalg.norm(w)
      return jnp.where(norm > 0, w / jnp.where(norm > 0, norm, 1), v)

    # The last iteration is left for the value and its residual.
    v = jax.lax.fori_loop(0, iterations - 1, step, v)
    w = back_and_forth(v)
    square = jnp.vdot(v, w)
    gap = jnp.linalg.norm(w - square * v)
    return square, gap / jnp.where(square > 0, square, 1)

  return jax.lax.map(lambda x: one(*x), (pairs, vectors), batch_size=chunk)
