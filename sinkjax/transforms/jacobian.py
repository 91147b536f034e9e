"""Exact token-to-token Jacobians of the residual stream.

    J[t, s] = d y_t / d x_s            a [D, D] block for every pair t >= s

between any two residual sites of any edited model. `jacobian_norms` gives a
norm of every block, `token_jacobian` the blocks themselves. The definition is
`jax.jacfwd` of `residual_map` with respect to one source token; it stays here
as `method="reference"`, and the engine is tested against it.
"""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from sinkjax.config import ModelConfig
from sinkjax.models.layerwise import as_layers
from sinkjax.transforms.jacobian_engine import Engine
from sinkjax.transforms.jacobian_plan import (
  default_budget,
  make_plan,
  source_columns,
)
from sinkjax.transforms.residual import parse_pair, residual_map, taken_apart

NORMS = ("fro", "spectral", "max")
METHODS = ("exact", "reference")


def _texts(tokens) -> Array:
  tokens = jnp.asarray(tokens)
  if tokens.ndim not in (1, 2) or not jnp.issubdtype(tokens.dtype, jnp.integer):
    raise ValueError(
      f"tokens must be integers of shape [T] or [B, T], got {tokens.dtype} "
      f"{tokens.shape}"
    )
  return tokens


def one_text(tokens) -> Array:
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
      'cfg.replace(dtype="float32")'
    )


class _Norms:
  """Reduces blocks of tangents to norms, whatever the blocks' order.

  A spectral norm needs all directions of a source at once; where a block has
  only some, J J^T is summed and its largest eigenvalue taken at the end.
  """

  def __init__(self, norm: str, length: int, many: int):
    self.norm, self.many = norm, many
    self._values = np.zeros((length, length))
    self._gram: dict[int, Array] = {}

  def add(self, block, tangents) -> None:
    if self.norm == "spectral":
      self._add_gram(block, tangents)
      return
    found = np.asarray(_REDUCERS[self.norm](tangents), np.float64)
    for at, source in enumerate(block.sources[: block.real]):
      column = self._values[block.first :, source]
      if self.norm == "fro":
        column += found[:, at]
      else:
        np.maximum(column, found[:, at], out=column)

  def _add_gram(self, block, tangents) -> None:
    last = block.start + tangents.shape[-1] == self.many
    for at, source in enumerate(block.sources[: block.real]):
      gram = _gram(tangents[source - block.first :, :, at])
      if source in self._gram:
        gram = gram + self._gram.pop(source)
      if last:
        self._values[source:, source] = np.asarray(_tops(gram))
      else:
        self._gram[source] = gram

  def values(self, rows, columns) -> np.ndarray:
    found = self._values[np.ix_(rows, columns)]
    return found if self.norm == "max" else np.sqrt(found)


@jax.jit
def _gram(tangents):
  return jnp.einsum("tdm,tem->tde", tangents, tangents)


@jax.jit
def _tops(gram):
  """The largest eigenvalue of each, at least 0."""
  top = jax.lax.map(lambda g: jnp.linalg.eigvalsh(g)[-1], gram)
  return jnp.maximum(top, 0)


_REDUCERS = {
  "fro": jax.jit(lambda x: jnp.sum(x * x, axis=(1, 3))),
  "max": jax.jit(lambda x: jnp.max(jnp.abs(x), axis=(1, 3))),
}


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
    devices: spread source tokens over these.
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
  cfg, edits = taken_apart(fn)
  check_model(cfg)
  if norm not in NORMS:
    raise ValueError(f"norm must be one of {list(NORMS)}, got {norm!r}")
  if method not in METHODS:
    raise ValueError(f"method must be one of {list(METHODS)}, got {method!r}")
  tokens = _texts(tokens)
  a, b = parse_pair(cfg, source, target)
  if per_layer and (method != "exact" or b.site != "resid_post" or a == b):
    raise ValueError(
      'per_layer needs method="exact" and a later target at "resid_post", '
      f"got {method!r}, {tuple(a)} and {tuple(b)}"
    )
  if tokens.ndim == 2:
    kept = dict(locals())
    for name in ("fn", "params", "tokens", "cfg", "edits", "a", "b"):
      del kept[name]
    return np.stack([jacobian_norms(fn, params, t, **kept) for t in tokens])
  length = tokens.shape[0]
  columns = source_columns(length, cols)
  chosen = source_columns(length, rows)
  if method == "reference":
    values = _reference(
      fn,
      params,
      tokens,
      a,
      b,
      norm,
      columns,
      budget_bytes,
      positions,
      lambda done, values: finished(done, values[chosen]),
      progress,
    )
    return values[np.ix_(chosen, columns)]
  layers, many = as_layers(cfg, params), cfg.d_model
  engine = Engine(
    cfg,
    layers,
    tokens[None],
    edits,
    source=a,
    target=b,
    positions=positions,
    devices=devices,
  )
  plan = make_plan(
    cfg,
    length,
    columns=columns,
    many=many,
    layers=len(engine.steps),
    budget=budget_bytes or default_budget(),
    devices=len(devices or [0]),
  )
  report({"plan": plan})
  places = [layer for layer, _ in engine.steps] if per_layer else [None]
  found = {place: _Norms(norm, length, many) for place in places}

  def consume(block, layer, tangents):
    if layer in found:
      found[layer].add(block, tangents)

  def values(some):
    every = np.stack([found[place].values(chosen, some) for place in places])
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


def _units(cfg):
  """Unit vectors at every source token."""

  def probes(sources, start, stop):
    eye = np.eye(cfg.d_model, dtype=cfg.dtype)[:, start:stop]
    return np.broadcast_to(eye, (len(sources), *eye.shape))

  return probes


def _reference(
  fn, params, tokens, a, b, norm, columns, budget, positions, finished, progress
):
  """Plain `jax.jacfwd` with respect to one source token at a time.

  In pieces of directions that fit the budget; every layer acts on all tokens.
  """
  cfg, length = fn.cfg, tokens.shape[0]
  costs = cfg.d_model + 3 * cfg.d_ff + 3 * cfg.n_heads * length
  column = 4 * jnp.dtype(cfg.dtype).itemsize * length * costs
  most = max(1, (budget or default_budget()) // column)
  piece = max(
    n for n in range(1, cfg.d_model + 1) if cfg.d_model % n == 0 and n <= most
  )
  jacobian = jax.jit(reference_block(fn, tokens, a, b, piece, positions))
  values = np.zeros((length, length))
  pieces = cfg.d_model // piece
  for done, source in enumerate(columns):
    parts = [
      jacobian(params, source, at * piece) for at in range(pieces)
    ]  # each [T, D, piece]
    jac_TxDxD = jnp.concatenate(parts, axis=-1)
    values[:, source] = np.asarray(block_norms(jac_TxDxD, norm))
    finished([source], values[:, [source]])
    progress(done + 1, len(columns))
  return values


def reference_block(fn, tokens, a, b, piece: int, positions=None) -> Callable:
  """`f(params, source, start) -> [T, D, piece]` by plain `jax.jacfwd`."""
  length, width = tokens.shape[0], fn.cfg.d_model

  def block(params, source, start):
    y = residual_map(
      fn, params, tokens[None], source=a, target=b, positions=positions
    )
    unit = jnp.eye(width, dtype=fn.cfg.dtype)
    basis = jax.lax.dynamic_slice_in_dim(unit, start, piece)

    def of_token(amount):
      shift = jnp.zeros((1, length, width), basis.dtype)
      return y(shift.at[0, source].set(amount @ basis))[0]

    return jax.jacfwd(of_token)(jnp.zeros(piece, basis.dtype))

  return block


@jax.jit
def _spectral(jac):
  return jax.lax.map(lambda j: jnp.linalg.svd(j, compute_uv=False)[0], jac)


def block_norms(jac: Float[Array, "T D M"], norm: str) -> Float[Array, "T"]:
  """A norm of each [D, M] block."""
  if norm == "fro":
    return jnp.sqrt(jnp.sum(jac * jac, axis=(1, 2)))
  if norm == "max":
    return jnp.max(jnp.abs(jac), axis=(1, 2))
  return _spectral(jac)


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
  cfg, edits = taken_apart(fn)
  check_model(cfg)
  tokens = one_text(tokens)
  length, many = tokens.shape[0], cfg.d_model
  wanted: list[tuple[int, int]] = []
  for pair in pairs:
    if len(pair) != 2:
      raise ValueError(f"a pair is (target, source), got {pair!r}")
    wanted.append(tuple(source_columns(length, [p])[0] for p in pair))
  if not wanted:
    raise ValueError("no pairs were chosen")
  a, b = parse_pair(cfg, source, target)
  columns = sorted({s for _, s in wanted})
  engine = Engine(
    cfg,
    as_layers(cfg, params),
    tokens[None],
    edits,
    source=a,
    target=b,
    positions=positions,
  )
  plan = make_plan(
    cfg,
    length,
    columns=columns,
    many=many,
    layers=len(engine.steps),
    budget=budget_bytes or default_budget(),
  )
  blocks = np.zeros((len(wanted), many, many), cfg.dtype)

  def consume(block, layer, tangents):
    stop = block.start + plan.directions
    for at, s in enumerate(block.sources[: block.real]):
      for p, (t, column) in enumerate(wanted):
        if column == s and t >= block.first:
          values = tangents[t - block.first, :, at]
          blocks[p, :, block.start : stop] = np.asarray(values)

  engine.run(plan, columns, _units(cfg), consume, many=many, progress=progress)
  return blocks


def singular_values(blocks: Float[np.ndarray, "*P D D"]):
  """Singular values of each block, largest first, [*P, D].

  >>> singular_values(np.diag([1.0, 3.0, 2.0])).tolist()
  [3.0, 2.0, 1.0]
  """
  return np.linalg.svd(blocks, compute_uv=False)
