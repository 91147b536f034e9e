"""Where a token is attacked, how long its vectors are there, and a clip."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from sinkjax.config import ModelConfig
from sinkjax.experiments.harness.api import Subject
from sinkjax.models.transformer import forward
from sinkjax.taps import Layer
from sinkjax.transforms.capture import capture
from sinkjax.transforms.edit_indices import check_leading

SITES = {
  "embed": "embedding",
  "k": "keys",
  "v": "values",
  "resid_post": "residual stream in the middle layer",
}
"""The sites at which a token is attacked, in words."""


def attacked_layers(cfg: ModelConfig, site: str) -> np.ndarray:
  """[L or 1] bool: the layers in which a site is attacked."""
  if site == "embed":
    return np.ones(1, bool)
  if site == "resid_post":
    # One layer alone: a shift in every layer would compound.
    return np.arange(cfg.n_layers) == cfg.n_layers // 2
  return np.ones(cfg.n_layers, bool)


def shift_shape(cfg: ModelConfig, site: str) -> tuple[int, ...]:
  """The shape of one token's vector at a site, in one layer."""
  widths = {"k": cfg.head_dim, "v": cfg.value_dim}
  return (cfg.n_kv_heads, widths[site]) if site in widths else (cfg.d_model,)


def token_norms(
  f: Callable, params: Any, tokens: Array, sites: Sequence[str] = tuple(SITES)
) -> dict[str, Array]:
  """{site: [L or 1, T]} the norm of every token at some sites, of one row."""

  def norm(x: Array) -> Array:
    return jnp.sqrt(jnp.sum(x[0] ** 2, axis=tuple(range(1, x.ndim - 1))))

  watch = {site: (site, norm) for site in sites}
  trace = capture(f, watch)(params, tokens).trace
  return {site: jnp.atleast_2d(trace[site]) for site in sites}


def norms_of_texts(
  subject: Subject, ids: np.ndarray, sites: Sequence[str] = tuple(SITES)
) -> list[dict[str, np.ndarray]]:
  """`token_norms` of every text of [P, T]."""
  f = forward(subject.cfg)
  measure = jax.jit(lambda params, row: token_norms(f, params, row, sites))
  return [
    jax.tree.map(np.asarray, measure(subject.params, row[None])) for row in ids
  ]


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Clip:
  """Shrinks every token's vector to a norm, where it is longer.

  Attributes:
    limit: [L, T] the greatest norm of each token; [1, T] at "embed".
  """

  limit: Any

  def placed(self, cfg: ModelConfig, length: int, site: str) -> Any:
    """The same, its limits checked to be of every layer."""
    layers = 1 if site == "embed" else cfg.n_layers
    check_leading("limit", self.limit, layers)
    return self

  def __call__(self, value: Array, layer: Layer) -> Array:
    """The site with no token longer than its limit."""
    limit = jnp.asarray(self.limit, value.dtype)[layer]
    limit = limit.reshape(1, -1, *[1] * (value.ndim - 2))
    axes = tuple(range(2, value.ndim))
    # Squares, and a root only where it is needed: the norm of zero has no
    # derivative.
    square = jnp.sum(value * value, axis=axes, keepdims=True)
    over = square > limit * limit
    factor = limit * jax.lax.rsqrt(jnp.where(over, square, 1))
    return jnp.where(over, value * factor, value)
