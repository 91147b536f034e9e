"""Exact token-to-token Jacobians of the residual stream.

    J[t, s] = d y_t / d x_s            a [D, D] block for every pair t >= s

between any two residual sites of any edited model. `jacobian_norms` gives a
norm of every block, `token_jacobian` the blocks themselves. The definition is
`jax.jacfwd` of `residual_map` with respect to one source token; it stays as
`method="reference"`, and the engine is tested against it.
"""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding
from jax.typing import ArrayLike
from jaxtyping import Array, Float, Int

from sinkjax import sharding
from sinkjax.config import ModelConfig
from sinkjax.models.layerwise import as_layers
from sinkjax.transforms.block_norms import NORMS, NormMap
from sinkjax.transforms.jacobian_engine import Engine
from sinkjax.transforms.jacobian_plan import (
  Block,
  default_budget,
  make_plan,
  source_columns,
)
from sinkjax.transforms.jacobian_reference import reference_norms
from sinkjax.transforms.residual import Point, parse_pair, taken_apart

METHODS = ("exact", "reference")


def _texts(tokens: ArrayLike) -> Array:
  tokens = jnp.asarray(tokens)
  if tokens.ndim not in (1, 2) or not jnp.issubdtype(tokens.dtype, jnp.integer):
    raise ValueError(
      f"tokens must be integers of shape [T] or [B, T], got {tokens.dtype} "
      f"{tokens.shape}"
    )
  return tokens


def one_text(tokens: ArrayLike) -> Array:
  """[T] integers.

  Raises:
    ValueError: for anything else.
  """
  tokens = _texts(tokens)
  if tokens.ndim != 1:
    raise ValueError(f"tokens must be one text [T], got {tokens.shape}")
  return tokens


def check_model(cfg: ModelConfig) -> None:
  """Refuses a model whose precision spoils derivatives.

  Raises:
    ValueError: unless it is float32 or float64.
  """
  if cfg.dtype not in ("float32", "float64"):
    raise ValueError(
      f"Jacobians need a float32 or float64 model, got {cfg.dtype}: use "
      'cfg.replace(dtype="float32"), which casts weights a layer at a time'
    )


def jacobian_norms(
  fn: Callable,
  params: Any,
  tokens: Int[Array, "*B T"],
  *,
  source: Any = "embed",
  target: Any = "resid_post",
  norm: str = "fro",
  rows: Sequence[int] | None = None,
  cols: Sequence[int] | None = None,
  per_layer: bool = False,
  method: str = "exact",
  budget_bytes: int | None = None,
  positions: Array | None = None,
  devices: Sequence[jax.Device] | None = None,
  finished: Callable[[list[int], np.ndarray], Any] = lambda cols, values: None,
  progress: Callable[[int, int], Any] = lambda done, total: None,
  report: Callable[[dict[str, Any]], Any] = lambda what: None,
) -> Float[np.ndarray, "..."]:
  """`||d y_t / d x_s||` for every pair of tokens.

      fro: root of the sum of squares;  spectral: largest singular value;
      max: largest absolute entry

  Args:
    fn: `forward(cfg)`, or an `intervene` or `capture` of it.
    params: its parameters, or weights read layer by layer
      (`sinkjax.weights.offload`).
    tokens: one text [T] or several of one length [B, T], unpadded.
    source: x: a residual site, or (site, layer); see `SITES`. A bare site
      means layer 0.
    target: y, likewise; a bare site means the last layer. "resid_post" is
      the residual stream before the final norm, "final" after it.
    norm: "fro", "spectral" or "max".
    rows: target tokens, all by default.
    cols: source tokens, all by default; fewer cost less.
    per_layer: also the norms at resid_post of every layer from the source to
      the target, in the same pass; the target must be a resid_post.
    method: "exact", the engine, or "reference", plain `jax.jacfwd`.
    budget_bytes: memory beside the weights, a quarter of what is free by
      default. The result does not depend on it.
    positions: as for `forward`.
    devices: spread source tokens over these; by default over those that the
      parameters are split over.
    finished: called now and then with some source tokens and their checked
      columns, [R, n] or [L, R, n]: keep them, and after an interruption ask
      for the other `cols` only.
    progress: called with (steps done, steps in all).
    report: called once a text with `plan`, and after it with `check`, the
      relative error of the result in a random direction.

  Returns:
    [T, T] float64, rows t, columns s, exactly zero for s > t; [R, C] for
    chosen rows and columns; [L, ...] per layer; [B, ...] for several texts.

  Raises:
    ValueError: for an unknown site, norm or method, a layer or token that is
      not there, or a budget too small for one direction.
    TypeError: for a function that is none of ours.
    SelfCheckError: if the result contradicts the model's own derivative.

  Cost: T^2 / 2 D (C + 2 D) products a layer with C = H K + 2 N K, against
    T^2 D (C + D + 3 F) of `jax.jacfwd`; memory as budgeted.

  >>> import jax, sinkjax
  >>> cfg = sinkjax.TINY
  >>> params = sinkjax.init_params(cfg, jax.random.key(0))
  >>> f = sinkjax.forward(cfg)
  >>> norms = jacobian_norms(f, params, jax.numpy.array([1, 2, 3]))
  >>> norms.shape, float(norms[0, 2])
  ((3, 3), 0.0)
  """
  check_model(taken_apart(fn, tokens)[0])
  for name, value, valid in (
    ("norm", norm, NORMS),
    ("method", method, METHODS),
  ):
    if value not in valid:
      raise ValueError(f"{name} must be one of {list(valid)}, got {value!r}")
  tokens = _texts(tokens)
  a, b = parse_pair(fn.cfg, source, target)
  if per_layer and (method != "exact" or b.site != "resid_post" or a == b):
    raise ValueError(
      'per_layer needs method="exact" and a later target at "resid_post", '
      f"got {method!r}, {tuple(a)} and {tuple(b)}"
    )
  columns = source_columns(tokens.shape[-1], cols)
  chosen = source_columns(tokens.shape[-1], rows)
  given = {
    "norm": norm,
    "columns": columns,
    "budget": budget_bytes or default_budget(),
    "positions": positions,
    "progress": progress,
  }

  def of_text(text: Int[Array, "T"]) -> np.ndarray:
    if method == "exact":
      return _exact_norms(
        fn,
        params,
        text,
        (a, b),
        rows=chosen,
        per_layer=per_layer,
        devices=devices,
        finished=finished,
        report=report,
        **given,
      )
    values = reference_norms(
      fn,
      params,
      text,
      (a, b),
      finished=lambda done, values: finished(done, values[chosen]),
      **given,
    )
    return values[np.ix_(chosen, columns)]

  if tokens.ndim == 2:
    # One text at a time: the memory that is budgeted is that of one.
    return np.stack([of_text(text) for text in tokens])
  return of_text(tokens)


def _exact_norms(
  fn: Callable,
  params: Any,
  tokens: Int[Array, "T"],
  points: tuple[Point, Point],
  *,
  norm: str,
  rows: list[int],
  columns: list[int],
  per_layer: bool,
  budget: int,
  positions: Array | None,
  devices: Sequence[jax.Device] | None,
  finished: Callable[[list[int], np.ndarray], Any],
  progress: Callable[[int, int], Any],
  report: Callable[[dict[str, Any]], Any],
) -> np.ndarray:
  """The norms of one text by the engine; arguments as `jacobian_norms`."""
  cfg, many = fn.cfg, fn.cfg.d_model
  devices = devices or holders(params)
  engine = engine_of(fn, params, tokens, points, positions, devices)
  plan = make_plan(
    cfg,
    engine.length,
    columns=columns,
    many=many,
    layers=len(engine.steps),
    budget=budget,
    devices=len(devices),
  )
  report({"plan": plan})
  # None is the target; per layer the target is the last of them.
  places = [layer for layer, _ in engine.steps] if per_layer else [None]
  maps = {place: NormMap(norm, engine.length, many) for place in places}

  def consume(block: Block, layer: int | None, tangents: Array) -> None:
    if layer in maps:
      maps[layer].add(block, tangents)

  def values(some: list[int]) -> np.ndarray:
    every = np.stack([maps[place].values(rows, some) for place in places])
    return every if per_layer else every[0]

  error = engine.run(
    plan,
    columns,
    _units(cfg),
    consume,
    many=many,
    every_layer=per_layer,
    finished=lambda some: finished(some, values(some)),
    progress=progress,
  )
  report({"check": error})
  return values(columns)


def holders(params: Any) -> list[jax.Device]:
  """The devices of the mesh that the parameters are split over, or one."""
  leaves = [x for x in jax.tree.leaves(params) if isinstance(x, jax.Array)]
  if leaves and isinstance(leaves[0].sharding, NamedSharding):
    return list(leaves[0].sharding.mesh.devices.flat)
  # Of several processes each has its own first device.
  return jax.local_devices()[:1]


def engine_of(
  fn: Callable,
  params: Any,
  tokens: Int[Array, "T"],
  points: tuple[Point, Point],
  positions: Array | None = None,
  devices: Sequence[jax.Device] | None = None,
) -> Engine:
  """The engine for a function on one text; arguments as `jacobian_norms`."""
  cfg, edits = taken_apart(fn, tokens)
  return Engine(
    cfg,
    as_layers(cfg, params),
    tokens[None],
    edits,
    source=points[0],
    target=points[1],
    positions=positions,
    devices=devices,
  )


def _units(cfg: ModelConfig) -> Callable[[Sequence[int], int, int], np.ndarray]:
  """Unit vectors at every source token."""

  def probes(sources: Sequence[int], start: int, stop: int) -> np.ndarray:
    eye = np.eye(cfg.d_model, dtype=cfg.dtype)[:, start:stop]
    return np.broadcast_to(eye, (len(sources), *eye.shape))

  return probes


def token_pairs(
  length: int, pairs: Sequence[tuple[int, int]]
) -> list[tuple[int, int]]:
  """(target token, source token) of each pair, counted from the start.

  Raises:
    ValueError: for none, or one that is no pair of tokens of the text.
  """
  for pair in pairs:
    if len(pair) != 2:
      raise ValueError(f"a pair is (target, source), got {pair!r}")
  if not pairs:
    raise ValueError("no pairs were chosen")
  return [tuple(source_columns(length, [p])[0] for p in pair) for pair in pairs]


def token_jacobian(
  fn: Callable,
  params: Any,
  tokens: Int[Array, "T"],
  pairs: Sequence[tuple[int, int]],
  *,
  source: Any = "embed",
  target: Any = "resid_post",
  budget_bytes: int | None = None,
  positions: Array | None = None,
  progress: Callable[[int, int], Any] = lambda done, total: None,
) -> Float[np.ndarray, "P D D"]:
  """The blocks `d y_t / d x_s` themselves, for chosen pairs (t, s).

  Args:
    fn: as for `jacobian_norms`.
    params: likewise.
    tokens: one text.
    pairs: (target token, source token) each; negative ones count from the
      end. A block with t < s is zero.
    source: as for `jacobian_norms`.
    target: likewise.
    budget_bytes: memory beside the weights and the blocks asked for.
    positions: as for `forward`.
    progress: called with (steps done, steps in all).

  Returns:
    [P, D, D]: entry [p, i, j] is d y_t,i / d x_s,j.

  Raises:
    ValueError, TypeError, SelfCheckError: as `jacobian_norms`.

  Cost: that of the columns of the different sources.
  """
  cfg, _ = taken_apart(fn, tokens)
  check_model(cfg)
  tokens = one_text(tokens)
  length, many = tokens.shape[0], cfg.d_model
  wanted = token_pairs(length, pairs)
  # Pairs with the same source share its column, which costs the same for all
  # targets.
  columns = sorted({s for _, s in wanted})
  points = parse_pair(cfg, source, target)
  devices = holders(params)
  engine = engine_of(fn, params, tokens, points, positions, devices)
  plan = make_plan(
    cfg,
    length,
    columns=columns,
    many=many,
    layers=len(engine.steps),
    budget=budget_bytes or default_budget(),
    devices=len(devices),
  )
  blocks = np.zeros((len(wanted), many, many), cfg.dtype)

  def consume(block: Block, layer: int | None, tangents: Array) -> None:
    stop = block.start + plan.directions
    for at, s in enumerate(block.sources[: block.real]):
      for p, (t, column) in enumerate(wanted):
        # Rows before the block's first are in the past of its sources, hence 0.
        if column == s and t >= block.first:
          values = tangents[t - block.first, :, at]
          blocks[p, :, block.start : stop] = sharding.to_host(values)

  engine.run(plan, columns, _units(cfg), consume, many=many, progress=progress)
  return blocks


def singular_values(
  blocks: Float[np.ndarray, "*P D D"],
) -> Float[np.ndarray, "*P D"]:
  """Singular values of each block, largest first, [*P, D].

  >>> singular_values(np.diag([1.0, 3.0, 2.0])).tolist()
  [3.0, 2.0, 1.0]
  """
  return np.linalg.svd(blocks, compute_uv=False)
