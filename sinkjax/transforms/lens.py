"""The Jacobian lens: a linear map from a layer's residual to the last one's.

With h_l,t the residual stream after block l at token t (site "resid_post"), and
h_final that after the last block, before the final norm,

    J_l = mean over texts and t >= skip of sum over t' >= t of
            d h_final,t' / d h_l,t

is a [D, D] matrix for every layer. Read through the final norm and the
unembedding, J_l h says in words of the vocabulary what h is on its way to
become, where the logit lens reads h itself. The definition is our reading of
what is used elsewhere, as is what a lens adds to J_l h: nothing, or the means
(`sinkjax.lens_logits`).

The sum over t' for all t at once is one backward pass with the same cotangent
at every t': D of them give all rows of all layers, and no [T, T, D, D] exists.
"""

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Array, Float, Int

from sinkjax import sharding
from sinkjax.config import ModelConfig
from sinkjax.models.context import Context
from sinkjax.models.layerwise import apply_block, as_layers
from sinkjax.models.transformer import check_tokens
from sinkjax.taps import Taps
from sinkjax.transforms.jacobian import check_model
from sinkjax.transforms.residual import context_of, enter, taken_apart

TOGETHER = 1024
"""Rows of the residual stream, tokens times cotangents, that go back together:
its products run at the full rate, and memory is that of so many tokens."""


@dataclasses.dataclass(frozen=True, eq=False)
class Lens:
  """A fitted lens.

  Attributes:
    maps: [N, D, D] J_l of each layer: rows of h_final, columns of h_l.
    means: [N, D] mean of h_l over the texts and tokens of the fit.
    final_mean: [D] likewise of h_final.
    layers: whose residual stream after the block is read.
    skip: first tokens of each text that are no sources.
    texts: of the fit.
    tokens: of each text.
  """

  maps: Float[np.ndarray, "N D D"]
  means: Float[np.ndarray, "N D"]
  final_mean: Float[np.ndarray, "D"]
  layers: tuple[int, ...]
  skip: int
  texts: int
  tokens: int


def fit_lens(
  fn: Callable,
  params: Any,
  tokens: ArrayLike,
  *,
  skip: int = 0,
  layers: Sequence[int] | None = None,
  progress: Callable[[int, int], Any] = lambda done, total: None,
) -> Lens:
  """The Jacobian lens of a model, exactly, over texts.

  Args:
    fn: `forward(cfg)`, or an `intervene` of it, in float32 or float64. Edits
      are part of the map: with `knockout` the lens is that without the sink.
    params: its parameters, in memory.
    tokens: [P, T], texts of one length.
    skip: so many first tokens of each text are no sources. Later ones are, with
      all that they do to tokens behind them.
    layers: all by default; negative ones count from the last.
    progress: called with (texts done, texts in all).

  Raises:
    ValueError: for tokens that leave no source, or layers that the model has
      not.

  Cost: D backward passes for each text, and of memory the activations of some
  texts at once and N D D numbers.

  >>> import jax, sinkjax
  >>> cfg = sinkjax.TINY
  >>> params = sinkjax.init_params(cfg, jax.random.key(0))
  >>> text = jax.numpy.array([[1, 2, 3, 4]])
  >>> lens = sinkjax.fit_lens(sinkjax.forward(cfg), params, text, skip=1)
  >>> lens.maps.shape == (cfg.n_layers, cfg.d_model, cfg.d_model)
  True
  >>> bool((lens.maps[-1] == jax.numpy.eye(cfg.d_model)).all())  # h_final
  True
  """
  return fit_lenses(
    fn, params, tokens, skips=(skip,), layers=layers, progress=progress
  )[0]


def fit_lenses(
  fn: Callable,
  params: Any,
  tokens: ArrayLike,
  *,
  skips: Sequence[int],
  layers: Sequence[int] | None = None,
  progress: Callable[[int, int], Any] = lambda done, total: None,
) -> tuple[Lens, ...]:
  """`fit_lens` for several numbers of skipped tokens, at the cost of one."""
  cfg, edits = taken_apart(fn, tokens)
  check_model(cfg)
  check_in_memory(params)
  chosen = chosen_layers(cfg, layers)
  tokens = check_tokens(cfg, tokens)
  weights = source_weights(tokens.shape[1], skips)
  ctx, _ = context_of(cfg, tokens[:1])
  # Sums over texts in float64, so that they hardly round.
  total: list[Any] = [0.0, 0.0, 0.0]
  for done, row in enumerate(tokens):
    found = _fit_one(
      cfg, params, row[None], ctx, edits, jnp.asarray(weights), layers=chosen
    )
    fn.taps.require_numbers(found[0], "the derivatives")
    total = [
      a + sharding.to_host(b, np.float64)
      for a, b in zip(total, found, strict=True)
    ]
    progress(done + 1, len(tokens))
  maps, means, final = (x / len(tokens) for x in total)
  return tuple(
    Lens(
      maps=maps[:, i].astype(cfg.dtype),
      means=means[:, i].astype(cfg.dtype),
      final_mean=final[i].astype(cfg.dtype),
      layers=chosen,
      skip=int(skip),
      texts=len(tokens),
      tokens=tokens.shape[1],
    )
    for i, skip in enumerate(skips)
  )


def mean_lens(lenses: Sequence[Lens]) -> Lens:
  """The lens of all texts from lenses of some of them each.

  Raises:
    ValueError: for lenses that differ in their layers, length or skip.
  """
  kinds = {(lens.layers, lens.skip, lens.tokens) for lens in lenses}
  if len(kinds) != 1:
    raise ValueError(
      "lenses of the same layers, skip and tokens are needed, got "
      f"{sorted(kinds)}"
    )
  counts = [lens.texts for lens in lenses]

  def mean(name: str) -> np.ndarray:
    parts = [getattr(lens, name) for lens in lenses]
    wide = np.stack(parts).astype(np.float64)
    total = np.tensordot(counts, wide, axes=1)
    return (total / sum(counts)).astype(parts[0].dtype)

  return dataclasses.replace(
    lenses[0],
    maps=mean("maps"),
    means=mean("means"),
    final_mean=mean("final_mean"),
    texts=sum(counts),
  )


def check_in_memory(params: Any) -> None:
  """Refuses weights that are read layer by layer.

  Raises:
    ValueError: for them.
  """
  if not (isinstance(params, dict) and "blocks" in params):
    raise ValueError(
      "a Jacobian lens needs parameters in memory: use sinkjax.load"
    )


def chosen_layers(
  cfg: ModelConfig, layers: Sequence[int] | None
) -> tuple[int, ...]:
  """Layers in order, counted from 0.

  Raises:
    ValueError: for none, or one that the model has not.
  """
  n = cfg.n_layers
  given = range(n) if layers is None else layers
  wrong = [layer for layer in given if not -n <= layer < n]
  if wrong or not len(given):
    raise ValueError(f"layers must be some of -{n}..{n - 1}, got {list(given)}")
  return tuple(sorted({int(layer) % n for layer in given}))


def source_weights(
  length: int, skips: Sequence[int]
) -> Float[np.ndarray, "S T"]:
  """For each skip the weights of sources in the mean over them.

  Raises:
    ValueError: for a skip that leaves no token.
  """
  for skip in skips:
    if not 0 <= skip < length:
      raise ValueError(
        f"skip must be 0 to {length - 1} for texts of {length} tokens, got "
        f"{skip}"
      )
  if not len(skips):
    raise ValueError("skips must have one number at least")
  later = np.arange(length) >= np.asarray(skips)[:, None]
  return later / later.sum(axis=1, keepdims=True)


def backward(
  cfg: ModelConfig,
  params: Any,
  tokens: Int[Array, "1 T"],
  ctx: Context,
  edits: Mapping[str, Any],
) -> tuple[Callable, Float[Array, "N T D"]]:
  """Pulls cotangents back from h_final to the residual after every block.

  Args:
    cfg: the model, without edits.
    params: its parameters.
    tokens: one text.
    ctx: of `context_of`.
    edits: `{site: edit}`.

  Returns:
    `pull([T, D]) -> [L, T, D]`, and h_l with h_final behind it.
  """
  layers, taps = as_layers(cfg, params), Taps(dict(edits))
  positions = jnp.arange(tokens.shape[1])[None]
  x = enter(layers, tokens, positions, edits)

  def run(shifts: Array) -> tuple[Array, Array]:
    def body(x: Array, inputs: tuple) -> tuple[Array, Array]:
      block, layer, shift = inputs
      # Behind the site's own edit, which may replace what comes before.
      x = apply_block(cfg, block, x, layer, ctx, taps)[0] + shift
      return x, x

    inputs = (params["blocks"], jnp.arange(cfg.n_layers), shifts)
    return jax.lax.scan(body, x, inputs)

  zeros = jnp.zeros((cfg.n_layers, *x.shape), x.dtype)
  final, vjp, seen = jax.vjp(run, zeros, has_aux=True)
  states = jnp.concatenate([seen, final[None]])[:, 0]
  return lambda cotangent: vjp(cotangent[None])[0][:, 0], states


@functools.partial(jax.jit, static_argnames=("cfg", "layers"))
def _fit_one(
  cfg: ModelConfig,
  params: Any,
  tokens: Int[Array, "1 T"],
  ctx: Context,
  edits: Mapping[str, Any],
  weights: Float[Array, "S T"],
  *,
  layers: tuple[int, ...],
) -> tuple[Array, Array, Array]:
  """Of one text (J [N, S, D, D], means [N, S, D], final mean [S, D])."""
  with jax.default_matmul_precision(cfg.precision):
    pull, states = backward(cfg, params, tokens, ctx, edits)
    weights = weights.astype(states.dtype)
    which = np.array(layers)

    def row(unit: Array) -> Array:
      grads = pull(jnp.broadcast_to(unit, states.shape[1:]))
      return jnp.einsum("st,ntd->nsd", weights, grads[which])

    units = jnp.eye(cfg.d_model, dtype=states.dtype)
    rows = jax.lax.map(row, units, batch_size=together(tokens.shape[1]))
    means = jnp.einsum("st,ntd->nsd", weights, states)
  return jnp.moveaxis(rows, 0, 2), means[which], means[-1]


def together(length: int) -> int:
  """Cotangents of a text that go back in one batch."""
  return max(1, TOGETHER // length)
