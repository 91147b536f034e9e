"""What caches are compared with: the plain forward pass, and a slow walk."""

import functools
import pathlib

import jax
import jax.numpy as jnp
import numpy as np

import sinkjax
from sinkjax.models.blocks import Block
from sinkjax.models.cache import advance, init_cache, split_layers
from sinkjax.models.context import make_context
from sinkjax.models.layerwise import (
  apply_block,
  apply_final_norm,
  embed,
  final_norm_of,
)
from sinkjax.models.layerwise import as_layers as layers_of
from sinkjax.models.transformer import logits_of
from sinkjax.taps import NO_TAPS, Tapper, Taps
from sinkjax.weights import huggingface

FAMILIES = pathlib.Path(__file__).parents[1] / "golden" / "families"
NAMES = sorted(path.name for path in FAMILIES.iterdir())
LENGTH = 14
"""Tokens of the text that the tests feed."""


@functools.cache
def family(name):
  params, cfg = huggingface.load(FAMILIES / name)
  return split_layers(params), cfg


def feed(cfg, policy, params, tokens, pieces, **kwargs):
  """Logits of all tokens, fed in pieces of these lengths, and the cache."""
  step = jax.jit(advance(cfg, policy, **kwargs), donate_argnums=2)
  cache, found, at = init_cache(cfg, policy, len(tokens)), [], 0
  for size in pieces:
    part = jnp.asarray(tokens[:, at : at + size])
    logits, cache = step(params, part, cache)
    found.append(logits)
    at += size
  assert at == tokens.shape[1]
  return np.concatenate(found, axis=1), cache


def stacked(params):
  blocks = jax.tree.map(lambda *x: jnp.stack(x), *params["blocks"])
  return {**params, "blocks": blocks}


def plain(cfg, params, tokens):
  f = jax.jit(sinkjax.forward(cfg))
  return np.asarray(f(stacked(params), jnp.asarray(tokens)).logits)


def close(a, b, atol=1e-5):
  np.testing.assert_allclose(a, b, atol=atol * max(1.0, np.abs(b).max()))


def slow(cfg, params, tokens, limit, goes):
  """The policy token by token: logits [T, V] and what each head keeps.

  At every step and for every head the whole block runs densely over the
  residuals of the tokens that are kept, at positions 0, 1, 2, ..., and the
  last row is taken. `goes(kept, got)` says which entry of `kept` leaves.
  """
  dense = jax.jit(functools.partial(apply_block, cfg))
  rest = jax.jit(functools.partial(_rest_of, cfg))
  ctx = make_context(cfg, jnp.arange(limit)[None], None)
  taps = Taps(observers={"z": ("z", _id), "pattern": ("pattern", _id)})
  layers, heads, group = cfg.n_layers, cfg.n_kv_heads, cfg.group_size
  pres = [np.zeros((0, cfg.d_model), np.float32) for _ in range(layers)]
  kept = [[[] for _ in range(heads)] for _ in range(layers)]
  got = np.zeros((layers, heads, len(tokens)))
  rows = []
  for t, token in enumerate(tokens):
    at = jnp.array([[t]])
    x = embed(layers_of(cfg, params), jnp.array([[token]]), at)
    for i, block in enumerate(params["blocks"]):
      pres[i] = np.concatenate([pres[i], x[0]])
      z = []
      for n in range(heads):
        mine = kept[i][n]
        mine.append(t)
        if len(mine) > limit:
          mine.pop(goes(mine, got[i, n]))
        seen = np.zeros((1, limit, cfg.d_model), np.float32)
        seen[0, : len(mine)] = pres[i][mine]
        _, trace = dense(block, seen, i, ctx, taps)
        own, last = slice(n * group, (n + 1) * group), len(mine) - 1
        z.append(np.asarray(trace["z"])[0, last, own])
        pattern = np.asarray(trace["pattern"])[0, own, last, : len(mine)]
        got[i, n, mine] += pattern.sum(axis=0)
      x = rest(block, x, np.concatenate(z)[None, None], i)
    rows.append(x[0, 0])
  norm = final_norm_of(params)  # OLMo 1 has no parameters in it
  x = apply_final_norm(cfg, norm, jnp.stack(rows)[None])
  return np.asarray(logits_of(cfg, x, params)[0]), kept


def _id(x):
  return x


def _rest_of(cfg, block, pre, z, layer):
  def apply(method, *args):
    return Block(cfg).apply({"params": block}, *args, method=method)

  tap = Tapper(NO_TAPS, layer)
  return apply(
    Block.transform, pre, apply(Block.add_attention, pre, z, tap), tap
  )
