"""How models learn which tokens take a layer: `ModelConfig.depth`.

In training the choice is made otherwise than in use. With "halting" every token
takes every layer, and what it would be predicted from after each of them is
weighed by the probability to stop there. With "routed" the tokens with the
largest weights take a layer, and a predictor learns to say which they are.
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float

from sinkjax.config import ModelConfig
from sinkjax.metrics.precision import wide
from sinkjax.models.depth import is_routed
from sinkjax.models.layerwise import apply_final_norm, final_norm_of
from sinkjax.models.transformer import Params, logits_of
from sinkjax.taps import Layer
from sinkjax.transforms.capture import capture
from sinkjax.transforms.intervene import intervene

LEAST = 1e-20
"""Of probabilities in a logarithm: below it p log p is nothing in float32, and
its slope would be no number."""


class HaltTerm(NamedTuple):
  """What PonderNet adds to the loss (arXiv 2107.05407, equation 3).

      weight * KL(p || geometric(prior)),  in nats a token,

  with p the distribution of the layer behind which a token stops. The prior
  stops behind each layer with the same probability, `prior (1 - prior)^l`, and
  behind the last one, as p does, with all that is left.

  Attributes:
    weight: beta.
    prior: lambda_p. Half of it is behind the first
      `-log 2 / log(1 - prior)` layers.
  """

  weight: float = 0.01
  prior: float = 0.25

  def check(self) -> None:
    """Raises ValueError for numbers that cannot be."""
    if not (self.weight >= 0 and 0 < self.prior < 1):
      raise ValueError(
        "halt_weight must not be negative and halt_prior in (0, 1), got "
        f"{self.weight} and {self.prior}"
      )


@dataclasses.dataclass(frozen=True)
class TopTokens:
  """An edit: the tokens of a row with the largest weights take routed layers.

  Attributes:
    share: of the row, those tokens; one at least.
  """

  share: float
  reads: ClassVar[tuple[str, ...]] = ("depth_router",)

  def __call__(
    self, taken: Float[Array, "B T"], layer: Layer, router: Float[Array, "B T"]
  ) -> Float[Array, "B T"]:
    """1 for these tokens and else 0; other layers are taken as they are."""
    count = max(1, round(self.share * taken.shape[1]))
    # By rank: of equal logits, as there are many in bfloat16, the first ones.
    rank = jnp.argsort(jnp.argsort(-router, axis=1), axis=1)
    top = (rank < count).astype(taken.dtype)
    return jnp.where(is_routed(layer), top, taken)


def _everywhere(taken: Array, layer: Layer) -> Array:
  """An edit: every token takes every layer."""
  return jnp.ones_like(taken)


def _same(value: Array) -> Array:
  return value


def in_training(fn: Callable) -> Callable:
  """The model with the layers that tokens take in training, and observers.

  What they see is for `expected` and `predicted`.
  """
  if fn.cfg.depth == "halting":
    fn = intervene(fn, {"depth_open": _everywhere})
    sites = ("halt_share", "resid_post")
  else:
    fn = intervene(fn, {"depth_open": TopTokens(fn.cfg.depth_share)})
    sites = ("depth_open", "depth_predictor")
  return capture(fn, {site: (site, _same) for site in sites})


def stopping(share: Float[Array, "L *rest"]) -> Float[Array, "L *rest"]:
  """The probability to stop behind each layer, from "halt_share".

  p_l = h_l prod_{j < l} (1 - h_j),  and the rest behind the last layer
  """
  going = jnp.cumprod(1 - wide(share), axis=0)
  before = jnp.concatenate([jnp.ones_like(going[:1]), going[:-1]])
  # What is left stops at the last layer, whatever its own share is.
  return jnp.concatenate([(wide(share) * before)[:-1], before[-1:]])


def divergence(p: Float[Array, "L *rest"], prior: float) -> Float[Array, "..."]:
  """KL(p || the prior of `HaltTerm`), in nats."""
  logs = jnp.log(stopping(jnp.full(len(p), prior, p.dtype)))
  logs = logs.reshape(-1, *(1,) * (p.ndim - 1))
  return jnp.sum(p * (jnp.log(jnp.maximum(p, LEAST)) - logs), axis=0)


def expected(
  cfg: ModelConfig,
  params: Params,
  trace: Mapping[str, Any],
  term: HaltTerm,
  nats_of: Callable,
) -> tuple[Array, Array]:
  """([B, T] expected nats of every token, [B, T] what PonderNet adds).

  Args:
    cfg: the model, with `depth="halting"`.
    params: its parameters.
    trace: of the observers of `in_training`.
    term: see there.
    nats_of: [B, T] nats of logits [B, T, V].

  Cost: the logits of every layer, those of one at a time.
  """
  p = stopping(trace["halt_share"])

  # Kept for the backward pass, the logits of all layers would set the memory.
  @jax.checkpoint
  def after(state: Float[Array, "B T D"]) -> Float[Array, "B T"]:
    normed = apply_final_norm(cfg, final_norm_of(params), state)
    return nats_of(logits_of(cfg, normed, params))

  nats = jax.lax.map(after, trace["resid_post"])
  return jnp.sum(p * nats, axis=0), term.weight * divergence(p, term.prior)


def predicted(trace: Mapping[str, Any]) -> Float[Array, ""]:
  """Cross entropy of the predictor of routed layers, mean over its tokens.

  Args:
    trace: of the observers of `in_training`.
  """
  logits, top = (
    wide(trace[site][1::2]) for site in ("depth_predictor", "depth_open")
  )
  return jnp.mean(optax.sigmoid_binary_cross_entropy(logits, top))
