"""Analyses of sharded models on 8 fake devices; a script of test_laws.

python laws.py [PART ...]    prints {case: [error, tolerance]} as JSON

A part is a function of this file. An error is the largest difference from one
device's numbers, relative to the array's largest entry.
"""

import json
import sys

import jax
import jax.numpy as jnp
import numpy as np

import sinkjax
from sinkjax import sharding
from sinkjax.analysis.sink_profile import sink_profile
from sinkjax.inference import kv_policy
from sinkjax.inference.generate import generate
from sinkjax.metrics import rows
from sinkjax.models.cache import split_layers

MESHES = ["data:2,fsdp:2,tensor:2", "tensor:4,fsdp:2", "fsdp:8"]
CFG = sinkjax.TINY.replace(
  n_layers=2, n_heads=8, n_kv_heads=4, head_dim=8, d_ff=64, vocab_size=64
)
# One device and eight add in another order; each sum of a few hundred float32
# products rounds by 1e-7 of its terms, and a model of two layers chains ten.
SAME = 1e-5


def weights():
  """A model that attends unevenly."""
  params = sinkjax.init_params(CFG, jax.random.key(0))
  return jax.tree.map(lambda x: x * 1.5, params)


TOKENS = np.array(jax.random.randint(jax.random.key(1), (8, 12), 0, 64))


def meshes():
  """(name, mesh, parameters in their shards) of each mesh."""
  whole = weights()
  for text in MESHES:
    mesh = sharding.make_mesh(sharding.MeshConfig.parse(text))
    yield (
      text,
      mesh,
      sharding.place(sharding.state_shardings(mesh, whole), whole),
    )


def error(got, want):
  """The largest over the arrays of a pytree."""

  def one(a, b):
    a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
    assert a.shape == b.shape
    return np.abs(a - b).max() / max(np.abs(b).max(), 1e-9)

  return float(max(jax.tree.leaves(jax.tree.map(one, got, want))))


def on_every_mesh(name, run):
  """{case: [error, SAME]} of `run(params)`, with the mesh in context."""
  want, found = run(weights()), {}
  for text, mesh, params in meshes():
    with jax.set_mesh(mesh):
      found[f"{name} {text}"] = [error(run(params), want), SAME]
  return found


def forward():
  f = jax.jit(sinkjax.forward(CFG))
  return on_every_mesh("forward", lambda p: f(p, TOKENS).logits)


def profile():
  """Every metric, of texts of two lengths of which some are left over."""
  texts = [list(map(int, row)) for row in TOKENS]
  texts += [text[:8] for text in texts[:3]]

  def run(params):
    seen = sink_profile(params, CFG, texts)
    return seen.values, seen.nll, seen.maps

  return on_every_mesh("profile", run)


def jacobian():
  f = sinkjax.forward(CFG)
  pairs = [(3, 1), (5, 0), (5, 5)]

  def run(params):
    text = jnp.asarray(TOKENS[0, :6])
    return (
      sinkjax.token_jacobian(f, params, text, pairs),
      sinkjax.jacobian_norms(f, params, text),
    )

  return on_every_mesh("jacobian", run)


def stream():
  run = sinkjax.stream_statistics(
    sinkjax.forward(CFG),
    {"alpha": rows.sink_score(), "entropy": rows.attention_entropy()},
    block=5,
  )

  def values(params):
    out = run(params, jnp.asarray(TOKENS))
    return out.trace, out.nll

  return on_every_mesh("stream", values)


def text():
  """Greedy tokens, which must be the same ones."""
  policy = kv_policy.sinks(2, 8, chunk=4)

  def run(params):
    return list(
      generate(
        CFG,
        split_layers(params),
        [int(t) for t in TOKENS[0]],
        policy=policy,
        max_tokens=6,
      )
    )

  return on_every_mesh("text", lambda params: np.array(run(params)))


PARTS = forward, profile, jacobian, stream, text


def main():
  wanted = sys.argv[1:] or [part.__name__ for part in PARTS]
  found = {}
  for part in PARTS:
    if part.__name__ in wanted:
      found |= part()
  print(json.dumps(found))


if __name__ == "__main__":
  main()
