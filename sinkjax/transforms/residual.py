"""Points on the residual stream, and the map from one of them to another."""

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike
from jaxtyping import Array, Float, Int

from sinkjax.config import ModelConfig
from sinkjax.models.context import Context, make_context
from sinkjax.models.layerwise import (
  Layers,
  Params,
  apply_block,
  apply_final_norm,
  as_layers,
  embed,
)
from sinkjax.models.transformer import check_ids, check_tokens
from sinkjax.taps import Tapper, Taps
from sinkjax.transforms.edits import add, chain

Residual = Float[Array, "B T D"]

RESIDUAL_SITES = ("embed", "resid_pre", "resid_mid", "resid_post", "final")


class Point(NamedTuple):
  """A place on the residual stream; `layer` is 0 for "embed" and "final"."""

  site: str
  layer: int

  def order(self, n_layers: int) -> int:
    """Points in the order in which a forward pass meets them."""
    if self.site == "embed":
      return 0
    if self.site == "final":
      return 3 * n_layers + 1
    within = ("resid_pre", "resid_mid", "resid_post").index(self.site)
    return 1 + 3 * self.layer + within


def parse_point(cfg: ModelConfig, point: Any, default_layer: int) -> Point:
  """A `Point` from "resid_post" or ("resid_post", 3); layers may be negative.

  Raises:
    ValueError: for another site or a layer that the model has not.
  """
  site, layer = (point, default_layer) if isinstance(point, str) else point
  if site not in RESIDUAL_SITES:
    raise ValueError(
      f"{site!r} is no residual site; valid: {list(RESIDUAL_SITES)}"
    )
  if not -cfg.n_layers <= layer < cfg.n_layers:
    raise ValueError(
      f"layer {layer} of {site!r} is outside a model of {cfg.n_layers} layers"
    )
  if site in ("embed", "final"):
    return Point(site, 0)
  return Point(site, layer % cfg.n_layers)


def parse_pair(
  cfg: ModelConfig, source: Any, target: Any
) -> tuple[Point, Point]:
  """Source and target, checked to be in this order.

  A bare site name means the first layer for a source, the last for a target.

  Raises:
    ValueError: if the target comes before the source.
  """
  a, b = parse_point(cfg, source, 0), parse_point(cfg, target, -1)
  if a.order(cfg.n_layers) > b.order(cfg.n_layers):
    raise ValueError(
      f"the target {tuple(b)} comes before the source {tuple(a)}"
    )
  return a, b


def taken_apart(
  fn: Callable, tokens: ArrayLike | Sequence[Any] | None = None
) -> tuple[ModelConfig, Mapping[str, Any]]:
  """The config and the edits of a function.

  With tokens, they and the indices in the edits are checked as `forward` does.

  Plain functions among the edits become pytrees, so that all can be given to
  compiled code.

  Raises:
    TypeError: for a function that is not `forward(cfg)`, edited or watched.
    ValueError: for tokens that the model cannot have, or an edit's index that
      is out of range.
  """
  if not hasattr(fn, "cfg") or not hasattr(fn, "taps"):
    raise TypeError(
      "a function made by sinkjax.forward, intervene or capture is needed, "
      f"got {getattr(fn, '__name__', type(fn).__name__)}"
    )

  def as_pytree(edit: Any) -> Any:
    return jax.tree_util.Partial(edit) if callable(edit) else edit

  taps = fn.taps
  if tokens is not None:
    taps = taps.placed(fn.cfg, check_tokens(fn.cfg, tokens).shape[1])
  return fn.cfg, jax.tree.map(as_pytree, dict(taps.edits))


def context_of(
  cfg: ModelConfig,
  tokens: Int[Array, "B T"],
  positions: ArrayLike | None = None,
) -> tuple[Context, Int[Array, "B T"]]:
  """Rotary tables and masks for unpadded tokens, and their positions."""
  if positions is None:
    positions = jnp.arange(tokens.shape[1])[None]
  positions = jnp.broadcast_to(positions, tokens.shape)
  check_ids("position", positions, cfg.max_len, "the model's context")
  return _context(cfg, positions, None), positions


# One program: a dozen small ones take 30 MB.
_context = jax.jit(make_context, static_argnames="cfg")


def enter(
  layers: Layers,
  tokens: Int[Array, "B T"],
  positions: Int[Array, "B T"],
  edits: Mapping[str, Any],
) -> Residual:
  """The residual stream at "embed", its edit included."""
  x = embed(layers, tokens, positions)
  return Tapper(Taps(dict(edits)), 0)("embed", x)


def residual_map(
  fn: Callable,
  params: dict[str, Any],
  tokens: Int[Array, "B T"],
  *,
  source: Point,
  target: Point,
  positions: Int[Array, "B T"] | None = None,
) -> Callable[[Residual], Residual]:
  """`y(shift)`: the target when `shift` is added at the source.

  Derivatives of this function at zero are the Jacobians of this package: of
  what the model has at the target, edits included, with respect to what it
  has at the source after that site's edit. Layers before the source are
  constants, layers after the target are not run.

  Args:
    fn: the model, edited or not.
    params: its parameters.
    tokens: one or more rows, unpadded.
    source: where the shift is added.
    target: what is returned.
    positions: as for `forward`.
  """
  cfg, edits = taken_apart(fn, tokens)
  layers = as_layers(cfg, params)
  ctx, positions = context_of(cfg, tokens, positions)
  last = cfg.n_layers - 1 if target.site == "final" else target.layer
  run = functools.partial(_run_blocks, cfg, params["blocks"], ctx)

  def y(shift: Residual) -> Residual:
    mine = with_shift(edits, source, shift)
    if source.site == "embed":
      x = enter(layers, tokens, positions, mine)
    else:
      x = enter(layers, tokens, positions, edits)
      # Constants to every derivative, so that none goes through them.
      x = jax.lax.stop_gradient(run(x, edits, 0, source.layer))
    if target.site == "embed":
      return x
    first = 0 if source.site in ("embed", "final") else source.layer
    if target.site == "final":
      x = run(x, mine, first, cfg.n_layers)
      x = apply_final_norm(cfg, layers.final_norm(), x)
      return Tapper(Taps(mine), last)("final", x)
    x = run(x, mine, first, last)
    watch = Taps(mine, {"y": (target.site, lambda value: value)})
    block = jax.tree.map(lambda p: p[last], params["blocks"])
    last_layer = jnp.asarray(last)
    return apply_block(cfg, block, x, last_layer, ctx, watch)[1]["y"]

  def with_precision(shift: Residual) -> Residual:
    with jax.default_matmul_precision(cfg.precision):
      out = y(shift)
    Taps(dict(edits)).require_numbers(out, "the residual stream")
    return out

  return with_precision


def _run_blocks(
  cfg: ModelConfig,
  blocks: Params,
  ctx: Context,
  x: Residual,
  edits: Mapping[str, Any],
  first: int,
  stop: int,
) -> Residual:
  """The residual stream through the layers from `first` to before `stop`."""
  if stop <= first:
    return x
  some = jax.tree.map(lambda p: p[first:stop], blocks)
  taps = Taps(dict(edits))

  def body(x: Residual, inputs: tuple[Params, Array]) -> tuple[Residual, None]:
    block, layer = inputs
    return apply_block(cfg, block, x, layer, ctx, taps)[0], None

  return jax.lax.scan(body, x, (some, jnp.arange(first, stop)))[0]


def with_shift(
  edits: Mapping[str, Any], point: Point, shift: Residual
) -> dict[str, Any]:
  """The edits, with `shift` added at a point after its own edit."""
  once = point.site in ("embed", "final")
  added = add(shift) if once else add(shift, layers=[point.layer])
  # After its own edit: the derivative is with respect to what the model has at
  # the point, which a replacing edit would otherwise make 0.
  if point.site in edits:
    added = chain(edits[point.site], added)
  return {**edits, point.site: added}
