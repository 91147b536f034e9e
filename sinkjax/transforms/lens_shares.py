"""What the Jacobian lens is made of: own token, other tokens, first tokens.

The sum over t' >= t in J_l (`sinkjax.transforms.lens`) has the token's own
part, t' = t, and the part across tokens, t' > t. Their shares are those of the
squared Frobenius norm,

    <J, J_own> / <J, J> + <J, J_across> / <J, J> = 1,

which may be negative, where a part works against the whole. Both products are
estimated by rows of J in random directions u of entries +-1 (Hutchinson 1990):

    J^T u                 a backward pass of u at every t'
    J_own^T u             a backward pass of s_t' u with random signs s, and the
                          signs once more at the sources: s_t s_t' is 1 at
                          t' = t and 0 in the mean elsewhere

The second is right in the mean, and its product with the first one, too. Exact
own parts would cost T D backward passes of a text.
"""

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Array, Float, Int

from sinkjax.config import ModelConfig
from sinkjax.models.context import Context
from sinkjax.models.transformer import check_tokens
from sinkjax.transforms.jacobian import check_model, one_text
from sinkjax.transforms.lens import (
  backward,
  check_in_memory,
  chosen_layers,
  source_weights,
  together,
)
from sinkjax.transforms.residual import context_of, taken_apart


class Share(NamedTuple):
  """A share for each skip and layer.

  Attributes:
    value: [S, N].
    stderr: [S, N], its standard error over directions (delta method).
  """

  value: Float[np.ndarray, "S N"]
  stderr: Float[np.ndarray, "S N"]


class LensProbes(NamedTuple):
  """Rows of a lens in random directions.

  Those of several texts in the same directions may be averaged: they are then
  the rows of the texts' lens.

  Attributes:
    whole: [S, N, R, D] J_l^T u, of each skip.
    own: [S, N, R, D] likewise of the own part, right in the mean.
    every: [N, R, D] J_l^T u with nothing skipped.
    skipped: [S, N, R, D] the part of `every` that comes of the first tokens
      that each skip leaves out.
  """

  whole: Float[np.ndarray, "S N R D"]
  own: Float[np.ndarray, "S N R D"]
  every: Float[np.ndarray, "N R D"]
  skipped: Float[np.ndarray, "S N R D"]

  def across(self) -> Share:
    """The share of the part across tokens, signed."""
    return _share(self.whole - self.own, self.whole)

  def left_out(self) -> Share:
    """The share of skipped sources in the lens that skips none, signed."""
    every = np.broadcast_to(self.every, self.skipped.shape)
    return _share(self.skipped, every)


def _share(part: np.ndarray, whole: np.ndarray) -> Share:
  """<part, whole> / <whole, whole>, over directions [S, N, R, D]."""
  whole = whole.astype(np.float64)
  products = np.einsum("snrd,snrd->snr", part, whole)
  squares = np.einsum("snrd,snrd->snr", whole, whole)
  size = squares.mean(axis=-1)
  value = products.mean(axis=-1) / size
  count = squares.shape[-1]
  if count < 2:
    return Share(value, np.full_like(value, np.nan))
  spread = (products - value[..., None] * squares).std(axis=-1, ddof=1)
  return Share(value, spread / np.sqrt(count) / size)


def lens_probes(
  fn: Callable,
  params: Any,
  tokens: ArrayLike,
  *,
  skips: Sequence[int] = (0, 1, 16),
  layers: Sequence[int] | None = None,
  samples: int = 16,
  key: Array | None = None,
) -> LensProbes:
  """The parts of one text's Jacobian lens, in random directions.

  Args:
    fn: as for `fit_lens`.
    params: likewise.
    tokens: one text.
    skips: numbers of first tokens that are no sources.
    layers: as for `fit_lens`.
    samples: R, directions.
    key: of directions and signs, `jax.random.key(0)` by default.

  Raises:
    ValueError: as `fit_lens`, or for no samples.

  Cost: two backward passes for each direction.

  >>> import jax, sinkjax
  >>> cfg = sinkjax.TINY
  >>> params = sinkjax.init_params(cfg, jax.random.key(0))
  >>> text = jax.numpy.array([1, 2, 3, 4])
  >>> f = sinkjax.forward(cfg)
  >>> probes = lens_probes(f, params, text, skips=(0, 3), layers=[0])
  >>> probes.across().value.shape  # of the skips, of layer 0
  (2, 1)
  """
  cfg, edits = taken_apart(fn, tokens)
  check_model(cfg)
  check_in_memory(params)
  if samples < 1:
    raise ValueError(f"samples must be at least 1, got {samples}")
  tokens = check_tokens(cfg, one_text(tokens))
  length = tokens.shape[1]
  chosen = chosen_layers(cfg, layers)
  weights = source_weights(length, skips)
  key = jax.random.key(0) if key is None else key
  for_units, for_signs = jax.random.split(key)
  units = jax.random.rademacher(for_units, (samples, cfg.d_model), cfg.dtype)
  signs = jax.random.rademacher(for_signs, (samples, length), cfg.dtype)
  found = signed_rows(
    cfg,
    params,
    tokens,
    context_of(cfg, tokens)[0],
    edits,
    (jnp.asarray(weights, cfg.dtype), units, signs),
    layers=chosen,
  )
  fn.taps.require_numbers(found[0], "the derivatives")
  return LensProbes(*map(np.asarray, found))


@functools.partial(jax.jit, static_argnames=("cfg", "layers"))
def signed_rows(
  cfg: ModelConfig,
  params: Any,
  tokens: Int[Array, "1 T"],
  ctx: Context,
  edits: Mapping[str, Any],
  probes: tuple[Float[Array, "S T"], Float[Array, "R D"], Float[Array, "R T"]],
  *,
  layers: tuple[int, ...],
) -> tuple[Array, Array, Array, Array]:
  """The arrays of `LensProbes`, for given (weights, directions, signs)."""
  weights, units, signs = probes
  with jax.default_matmul_precision(cfg.precision):
    pull, states = backward(cfg, params, tokens, ctx, edits)
    length = tokens.shape[1]
    # Of sources that a skip leaves out, in the mean over all tokens.
    out = jnp.where(weights > 0, 0, 1 / length).astype(states.dtype)
    which = np.array(layers)

    def rows(probe: tuple[Array, Array]) -> tuple[Array, ...]:
      unit, sign = probe
      plain = pull(jnp.broadcast_to(unit, states.shape[1:]))[which]
      own = pull(jnp.outer(sign, unit))[which] * sign[None, :, None]
      return (
        jnp.einsum("st,ntd->snd", weights, plain),
        jnp.einsum("st,ntd->snd", weights, own),
        plain.mean(axis=1),
        jnp.einsum("st,ntd->snd", out, plain),
      )

    batch = max(1, together(length) // 2)
    found = jax.lax.map(rows, (units, signs), batch_size=batch)
  return tuple(jnp.moveaxis(x, 0, -2) for x in found)
