"""How well a lens says, layer by layer, what the model will predict."""

import functools
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Array

from sinkjax import sharding
from sinkjax.config import ModelConfig
from sinkjax.metrics.precision import wide
from sinkjax.models.transformer import check_tokens, forward
from sinkjax.taps import Taps
from sinkjax.transforms.capture import capture
from sinkjax.transforms.intervene import intervene
from sinkjax.transforms.lens import Lens, check_in_memory, chosen_layers
from sinkjax.transforms.lens_readout import applied, read_out
from sinkjax.transforms.residual import taken_apart

TOP = 10
"""Predictions whose overlap is counted."""


class LensQuality(NamedTuple):
  """Of a lens against the model's own final predictions.

  Attributes:
    agree: [N, B, T] whether both have the same most likely token.
    overlap: [N, B, T] share of the model's `TOP` likeliest tokens that are
      among the lens's.
    kl: [N, B, T] KL(model || lens), nats.
  """

  agree: np.ndarray
  overlap: np.ndarray
  kl: np.ndarray


def lens_quality(
  fn: Callable,
  params: Any,
  lens: Lens | None,
  tokens: ArrayLike,
  *,
  layers: tuple[int, ...] | None = None,
  centred: bool = False,
) -> LensQuality:
  """Compares what a lens reads with what the model predicts in the end.

  Args:
    fn: `forward(cfg)` or an `intervene` of it, of which both are asked.
    params: its parameters, in memory.
    lens: from `fit_lens`; `None` for the logit lens.
    tokens: texts of one length, best those that are not of the fit.
    layers: of the logit lens, all by default; a lens has its own.
    centred: see `lens_logits`.

  Raises:
    ValueError: for a lens of another width, or with `layers` besides.

  Cost: one forward pass, and the unembedding once a layer.

  >>> import jax, sinkjax
  >>> cfg = sinkjax.TINY
  >>> params = sinkjax.init_params(cfg, jax.random.key(0))
  >>> text = jax.numpy.array([[1, 2, 3, 4]])
  >>> found = lens_quality(sinkjax.forward(cfg), params, None, text)
  >>> found.agree[-1].tolist()  # after the last layer there is nothing to miss
  [[1.0, 1.0, 1.0, 1.0]]
  """
  cfg, edits = taken_apart(fn, tokens)
  check_in_memory(params)
  tokens = check_tokens(cfg, tokens)
  if lens is not None:
    if layers is not None:
      raise ValueError("layers are the lens's own; leave them out")
    if lens.maps.shape[-1] != cfg.d_model:
      raise ValueError(
        f"a lens of width {lens.maps.shape[-1]} does not read a model of width "
        f"{cfg.d_model}"
      )
  chosen = chosen_layers(cfg, lens.layers if lens is not None else layers)
  maps = None
  if lens is not None:
    arrays = (lens.maps, lens.means, lens.final_mean)
    maps = tuple(map(jnp.asarray, arrays))
  found = _quality(
    cfg, params, tokens, edits, maps, layers=chosen, centred=centred
  )
  fn.taps.require_numbers(found[2], "the logits")
  return LensQuality(*(sharding.to_host(x, np.float64) for x in found))


@functools.partial(jax.jit, static_argnames=("cfg", "layers", "centred"))
def _quality(
  cfg: ModelConfig,
  params: Any,
  tokens: Array,
  edits: Mapping[str, Any],
  maps: tuple[Array, Array, Array] | None,
  *,
  layers: tuple[int, ...],
  centred: bool,
) -> tuple[Array, Array, Array]:
  seen = {"h": ("resid_post", lambda x: x)}
  out = capture(intervene(forward(cfg), edits), seen)(params, tokens)
  hidden = out.trace["h"][np.array(layers)]
  if maps is not None:
    hidden = applied(*maps, hidden, centred=centred)
  taps = Taps(dict(edits)).placed(cfg, tokens.shape[1])
  want = jax.nn.log_softmax(wide(out.logits))
  best = jax.lax.top_k(want, min(TOP, cfg.vocab_size))[1]

  def compare(x: Array) -> tuple[Array, Array, Array]:
    got = jax.nn.log_softmax(wide(read_out(cfg, params, x, taps)))
    mine = jax.lax.top_k(got, best.shape[-1])[1]
    shared = (best[..., :, None] == mine[..., None, :]).any(axis=-1)
    kl = jnp.sum(jnp.exp(want) * (want - got), axis=-1)
    return best[..., 0] == mine[..., 0], shared.mean(axis=-1), kl

  return jax.lax.map(compare, hidden)
