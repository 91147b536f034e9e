"""The ways to quantise that the experiment `kv_quantisation` compares."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from sinkjax.experiments.applications.kv_quantisation.config import (
  Config,
  Kept,
  Layout,
)
from sinkjax.experiments.harness.api import Subject
from sinkjax.experiments.shared.edited_cost import Setting
from sinkjax.inference.quantize import Quantize, before_rotation, quantize_kv
from sinkjax.inference.quantize_linear import (
  RANGES,
  inputs_of,
  quantize_inputs,
  quantize_weights,
)

STATIC, _, TOKEN = RANGES
"""Ranges of activations: found on other texts, and a token's own."""

Limits = Mapping[Kept, Mapping[str, Array]]
"""[L, 2] static ranges by site, by the token that does not count in them."""


class Kv(NamedTuple):
  """Keys and values rounded in every layer."""

  layout: Layout
  bits: int
  kept: Kept


class Linear(NamedTuple):
  """Weights and activations rounded; 0 activation bits: weights alone."""

  ranges: str
  weight_bits: int
  activation_bits: int
  kept: Kept


class Layer(NamedTuple):
  """Keys and values of one layer rounded."""

  layer: int
  kept: Kept


class Site(NamedTuple):
  """Activations at one site of every layer rounded to 8 bits, static."""

  site: str
  kept: Kept


def kept_masks(config: Config) -> dict[Kept, np.ndarray]:
  """[T] the kept token; of one shape, so that one program serves all."""
  at = np.arange(config.tokens)
  return {
    Kept.NOTHING: at < 0,
    Kept.SINK: at == 0,
    Kept.CONTROL: at == config.control,
  }


def kv_edits(
  subject: Subject,
  config: Config,
  layout: Layout,
  bits: int,
  keep: np.ndarray,
  layers: np.ndarray,
) -> dict[str, Any]:
  """Edits that round keys and values."""
  # Arrays, not numbers: one compiled model serves all bits, tokens, layers.
  bits = jnp.asarray(bits, jnp.float32)
  where = {"keep": jnp.asarray(keep), "layers": jnp.asarray(layers)}
  if layout in (Layout.TOKEN, Layout.TENSOR):
    return quantize_kv(bits, **where, per=str(layout))
  value = Quantize(bits, **where, per="token")
  group = config.group if layout == Layout.CHANNEL else None
  key = Quantize(bits, **where, per="channel", group=group)
  # Without rotation, keys before it are the keys themselves.
  if layout == Layout.UNROTATED and subject.cfg.positions == "rope":
    key = before_rotation(subject.cfg, key, np.arange(config.tokens))
  return {"k": key, "v": value}


def kv_settings(subject: Subject, config: Config) -> dict[Kv, Setting]:
  """Every layout, number of bits and kept token."""
  layers, params = np.arange(subject.cfg.n_layers), subject.params
  found = {}
  for layout in Layout:
    for bits in config.bits:
      for kept, keep in kept_masks(config).items():
        edits = kv_edits(subject, config, layout, bits, keep, layers)
        found[Kv(layout, bits, kept)] = Setting(params, edits)
  return found


def _input_edits(
  subject: Subject,
  limits: Any,
  ranges: str,
  bits: int,
  keep: np.ndarray,
  layers: Any,
) -> dict[str, Any]:
  return quantize_inputs(
    subject.cfg,
    jnp.asarray(bits, jnp.float32),
    ranges=ranges,
    keep=jnp.asarray(keep),
    layers=layers,
    # Dynamic ranges are of the text at hand, and take no limits.
    limits=limits if ranges == STATIC else None,
  )


def linear_settings(
  subject: Subject, config: Config, limits: Limits
) -> dict[Linear, Setting]:
  """Weights alone, then every range, pair of widths and kept token."""
  layers = np.ones(subject.cfg.n_layers, bool)
  # Rounded once for each width, not for each setting that uses it.
  rounded = {
    bits: jax.jit(quantize_weights)(subject.params, float(bits))
    for bits in sorted({weights for weights, _ in config.widths})
  }
  found = {
    Linear("none", bits, 0, Kept.NOTHING): Setting(params, {})
    for bits, params in rounded.items()
  }
  for ranges in RANGES:
    for weights, bits in config.widths:
      for kept, keep in kept_masks(config).items():
        edits = _input_edits(subject, limits[kept], ranges, bits, keep, layers)
        key = Linear(ranges, weights, bits, kept)
        found[key] = Setting(rounded[weights], edits)
  return found


def layer_settings(
  subject: Subject, config: Config, layout: Layout, bits: int
) -> dict[Layer, Setting]:
  """Keys and values of single layers, with nothing and with the sink kept."""
  layers, keep = subject.cfg.n_layers, kept_masks(config)
  found = {}
  for layer in range(layers):
    for kept in (Kept.NOTHING, Kept.SINK):
      only = np.full(layers, layer)  # as many as there are: one compilation
      edits = kv_edits(subject, config, layout, bits, keep[kept], only)
      found[Layer(layer, kept)] = Setting(subject.params, edits)
  return found


def site_settings(
  subject: Subject, config: Config, limits: Limits
) -> dict[Site, Setting]:
  """Activations at single sites, with nothing and with the sink kept."""
  layers = np.ones(subject.cfg.n_layers, bool)
  # The other sites round in no layer: one structure of edits, one program.
  none, keep = ~layers, kept_masks(config)
  found = {}
  sites = inputs_of(subject.cfg)
  for site in sites:
    for kept in (Kept.NOTHING, Kept.SINK):
      where = {one: layers if one == site else none for one in sites}
      edits = _input_edits(subject, limits[kept], STATIC, 8, keep[kept], where)
      found[Site(site, kept)] = Setting(subject.params, edits)
  return found
