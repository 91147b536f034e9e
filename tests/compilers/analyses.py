"""Every program that the analyses jit, by the compiler of described devices.

    python analyses.py PLACE AXES ANALYSIS    prints JSON, a list of programs

`jax.jit` is replaced before sinkjax is imported: the first call of a jitted
function leaves it and the places of its arguments behind. An analysis runs on
fake CPU devices, so that its arrays lie where a user's would; then each of its
programs is compiled for the described devices.
"""

import contextlib
import functools
import json
import os
import sys
from typing import Any, NamedTuple

os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["XLA_FLAGS"] = (
  os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=4"
)

import jax
import numpy as np
from jax.sharding import NamedSharding, SingleDeviceSharding


class Call(NamedTuple):
  """A jitted function and what it was called with, arrays as their shapes."""

  jitted: Any
  args: tuple
  kwargs: dict


CALLS: dict[Any, Call] = {}


def _shape(x):
  if not isinstance(x, jax.Array):
    return x
  place = x.sharding if isinstance(x.sharding, NamedSharding) else None
  return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=place)


class Recorder:
  """A jitted function that remembers each kind of call."""

  def __init__(self, jitted):
    self._jitted = jitted
    functools.update_wrapper(self, jitted)

  def __call__(self, *args, **kwargs):
    leaves = jax.tree.leaves((args, kwargs))
    if not any(isinstance(x, jax.core.Tracer) for x in leaves):
      args_, kwargs_ = jax.tree.map(_shape, (args, kwargs))
      leaves, tree = jax.tree.flatten((args_, kwargs_))
      key = id(self._jitted), tree, tuple(map(str, leaves))
      CALLS.setdefault(key, Call(self._jitted, args_, kwargs_))
    return self._jitted(*args, **kwargs)

  def __getattr__(self, name):
    return getattr(self._jitted, name)


def _recording(jit):
  def wrapped(function=None, **options):
    if function is None:
      return lambda f: Recorder(jit(f, **options))
    return Recorder(jit(function, **options))

  return wrapped


jax.jit = _recording(jax.jit)

import described
import jax.numpy as jnp

import sinkjax
from sinkjax import sharding
from sinkjax.inference import generate, kv_policy
from sinkjax.metrics.collapse import effective_rank
from sinkjax.transforms import rows

CFG = sinkjax.ModelConfig(
  vocab_size=256, d_model=64, n_layers=2, n_heads=4, n_kv_heads=4,
  head_dim=16, d_ff=128, max_len=256, tie_embeddings=True,
)  # fmt: skip
ROWS, LENGTH = 4, 32
F = sinkjax.forward(CFG)
TEXT = np.arange(12) % 256


def forward(params, tokens):
  jax.jit(lambda p, t: F(p, t).logits)(params, tokens)


def capture(params, tokens):
  """Observers of every kind of site, on a model with edits of every kind."""
  observers = {
    "alpha": ("pattern", sinkjax.sink_score),
    "entropy": ("pattern", sinkjax.attention_entropy),
    "first": ("pattern", sinkjax.first_token_mass),
    "values": ("v", sinkjax.value_norm_ratio),
    "norms": ("resid_post", sinkjax.token_norms),
    "massive": ("resid_post", lambda x: sinkjax.massive_activation(x).ratio),
    "rank": ("final", effective_rank),
    "pair": (("q", "k"), lambda q, k: jnp.mean(q, (1, 2, 3)) + jnp.mean(k)),
  }
  heads = [(0, 1), (1, 2)]
  width = jnp.ones(CFG.d_model)
  edited = sinkjax.intervene(
    F,
    {
      "scores": sinkjax.chain(sinkjax.knockout(0, from_layer=1)),
      "z": sinkjax.ablate_heads(heads),
      "resid_pre": sinkjax.add(width),
      "mlp_out": sinkjax.scale(0.5),
    },
  )
  for f in F, edited:
    observed = sinkjax.capture(f, observers)
    jax.jit(lambda p, t, g=observed: g(p, t).trace)(params, tokens)


def streaming(params, tokens):
  statistics = {"sink": rows.sink_score(), "entropy": rows.attention_entropy()}
  long = jnp.tile(tokens, (1, 4))
  sinkjax.stream_statistics(F, statistics)(params, long)


def jacobian(params, tokens):
  del tokens
  hidden = sinkjax.intervene(F, {"scores": sinkjax.knockout(0, from_layer=1)})
  devices = jax.devices() if len(jax.tree.leaves(params)[0].devices()) > 1 else None
  for norm in "fro", "spectral", "max":
    sinkjax.jacobian_norms(F, params, TEXT, norm=norm, devices=devices)
  sinkjax.jacobian_norms(hidden, params, TEXT, devices=devices)


def estimates(params, tokens):
  del tokens
  sinkjax.estimate_norms(F, params, TEXT, samples=4)


def generation(params, tokens):
  del tokens
  for policy in (
    kv_policy.full(64, chunk=8), kv_policy.sinks(2, 14, chunk=8),
    kv_policy.heavy_hitters(16, chunk=8),
  ):  # fmt: skip
    stream = generate.generate(
      CFG, params, list(TEXT), policy=policy, max_tokens=2
    )
    list(stream)


ANALYSES = (forward, capture, streaming, jacobian, estimates, generation)
