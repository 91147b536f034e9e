"""What lenses read in the residual stream, as logits."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike
from jaxtyping import Array, Float

from sinkjax.config import ModelConfig
from sinkjax.models.layerwise import apply_final_norm, final_norm_of
from sinkjax.models.transformer import logits_of
from sinkjax.taps import Tapper, Taps
from sinkjax.transforms.lens import Lens
from sinkjax.transforms.residual import taken_apart


def lens_logits(
  fn: Callable,
  params: Any,
  lens: Lens | None,
  hidden: ArrayLike,
  *,
  centred: bool = False,
) -> Float[Array, "N B T V"]:
  """What a lens reads in the residual streams of its layers, as logits.

      unembed(final_norm(J_l h))                                as it is
      unembed(final_norm(final_mean + J_l (h - mean_l)))        centred

  Args:
    fn: `forward(cfg)` or an `intervene` of it: its edits at "final" act.
    params: its parameters, in memory.
    lens: from `fit_lens`; `None` for the logit lens, which reads h itself.
    hidden: of each of the lens's layers, what `capture` sees at "resid_post".
    centred: add the means of the fit.

  Raises:
    ValueError: for other layers or another width than the lens's.
  """
  cfg, edits = taken_apart(fn)
  x = jnp.asarray(hidden)
  if x.ndim != 4 or x.shape[-1] != cfg.d_model:
    raise ValueError(
      f"hidden must be [N, B, T, {cfg.d_model}], got {list(x.shape)}"
    )
  if lens is not None:
    if lens.maps.shape != (len(x), cfg.d_model, cfg.d_model):
      raise ValueError(
        f"a lens of {len(lens.maps)} layers and width {lens.maps.shape[-1]} "
        f"does not read {len(x)} layers of width {cfg.d_model}"
      )
    maps = (lens.maps, lens.means, lens.final_mean)
    x = applied(*map(jnp.asarray, maps), x, centred=centred)
  placed = Taps(dict(edits)).placed(cfg, x.shape[2])
  return jnp.stack([read_out(cfg, params, one, placed) for one in x])


def applied(
  maps: Float[Array, "N D D"],
  means: Float[Array, "N D"],
  final_mean: Float[Array, "D"],
  hidden: Float[Array, "N B T D"],
  *,
  centred: bool,
) -> Float[Array, "N B T D"]:
  """J_l h, or that of deviations from the means."""
  if centred:
    hidden = hidden - means[:, None, None]
  read = jnp.einsum("nij,nbtj->nbti", maps, hidden, precision="highest")
  return read + final_mean[None, None, None] if centred else read


def read_out(
  cfg: ModelConfig, params: Any, x: Float[Array, "B T D"], taps: Taps
) -> Float[Array, "B T V"]:
  """Logits of a residual stream after the last block."""
  with jax.default_matmul_precision(cfg.precision):
    x = apply_final_norm(cfg, final_norm_of(params), x)
    x = Tapper(taps, cfg.n_layers - 1)("final", x)
    return logits_of(cfg, x, params)
