"""Analyses of sharded models on 8 fake devices; a script of test_laws.

python laws.py MESHES PART...    prints {case: [value, limit]} as JSON

MESHES are joined by ";", and a part is a function of this file. Most values are
errors: the largest difference from one device's numbers, relative to the
array's largest entry.
"""

import collections
import json
import sys
import tempfile
import tracemalloc
import types
from unittest import mock

import described
import jax
import jax.numpy as jnp
import numpy as np

import sinkjax
from sinkjax import sharding
from sinkjax.analysis.sink_profile import sink_profile
from sinkjax.experiments.paper.noop_heads import triggers
from sinkjax.inference import kv_policy
from sinkjax.inference.generate import generate
from sinkjax.metrics import rows
from sinkjax.models import attention_form
from sinkjax.models.cache import split_layers
from sinkjax.train.depth_loss import HaltTerm
from sinkjax.train.loss import loss_of

# Empty where it is only imported, as in the search for examples.
MESHES = sys.argv[1].split(";") if __name__ == "__main__" else []
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


def stream_by_sums():
  """The same without a row of the pattern, as long texts are streamed."""
  run = sinkjax.stream_statistics(
    sinkjax.forward(CFG),
    {
      "alpha": rows.sink_score(),
      "entropy": rows.attention_entropy(),
      "received": rows.received_mass(),
      "distance": rows.mass_by_distance(),
      "written": rows.value_weighted_mass(),
    },
  )

  def values(params):
    out = run(params, jnp.asarray(TOKENS))
    return out.trace, out.nll

  with mock.patch.object(attention_form, "LONG", 1):
    return on_every_mesh("stream by sums", values)


def decompositions():
  """Singular values on every device at once, which share threads."""
  texts = np.tile(TOKENS, (32, 1))

  def run(params):
    subject = types.SimpleNamespace(params=params, cfg=CFG)
    return triggers.observe(subject, texts)._asdict()

  return on_every_mesh("decompositions", run)


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


def odd_heads():
  """9 heads, 3 key heads: on 6 of the devices, by threes."""
  cfg = CFG.replace(n_heads=9, n_kv_heads=3, d_ff=72, d_model=72, vocab_size=66)
  params = sinkjax.init_params(cfg, jax.random.key(0))
  f = jax.jit(sinkjax.forward(cfg))
  want = f(params, TOKENS).logits
  config = sharding.fitting(6, params)[0]
  assert str(config) == "fsdp:2,tensor:3"
  mesh = sharding.make_mesh(config, jax.devices()[:6])
  split = sharding.place(sharding.state_shardings(mesh, params), params)
  with jax.set_mesh(mesh):
    return {f"odd heads {config}": [error(f(split, TOKENS).logits, want), SAME]}


def depth():
  """Tokens that do not take every layer: logits in use, slopes in training."""
  found = {}
  batch = {
    "tokens": TOKENS,
    "weights": np.ones(TOKENS.shape, bool),
    "positions": np.broadcast_to(np.arange(TOKENS.shape[1]), TOKENS.shape),
  }
  for kind in ("halting", "routed"):
    cfg = CFG.replace(depth=kind)
    params = sinkjax.init_params(cfg, jax.random.key(0))
    f = sinkjax.forward(cfg)
    loss = loss_of(f, separated=False, depth=HaltTerm())

    @jax.jit
    def run(params, f=f, loss=loss):
      slopes = jax.grad(lambda p: loss(p, batch).objective)(params)
      return f(params, TOKENS).logits, slopes

    want = run(params)
    for text in MESHES:
      mesh = sharding.make_mesh(sharding.MeshConfig.parse(text))
      split = sharding.place(sharding.state_shardings(mesh, params), params)
      with jax.set_mesh(mesh):
        found[f"{kind} {text}"] = [error(run(split), want), SAME]
  return found


def collectives():
  """Elements of the largest array that is gathered or moved along tensor."""
  cfg = CFG.replace(d_model=128, d_ff=512)
  params = sinkjax.init_params(cfg, jax.random.key(0))
  mesh = sharding.make_mesh(sharding.MeshConfig.parse("data:2,tensor:4"))
  placed = sharding.place(sharding.state_shardings(mesh, params), params)
  run = sinkjax.capture(
    sinkjax.forward(cfg), {"alpha": ("pattern", sinkjax.sink_score)}
  )
  rows = sharding.place(sharding.batch_sharding(mesh, 8), TOKENS)
  with jax.set_mesh(mesh):
    program = described.program(mesh, jax.jit(run), placed, rows)
  described.check(program, gathered=0)
  sums = {k: n for k, n in program.largest.items() if k[0] == "all-reduce"}
  # Sums of the residual stream of a device's texts: 4 x 12 x 128. A layer's
  # smallest kernel has 128 x 4 x 8 elements, all weights 500 times as many.
  assert sums
  return {"collectives": [max(sums.values()), 4 * 12 * 128]}


def weights_in_shards():
  """Bytes on a device and on the host, of a model that is read from a file."""
  cfg = CFG.replace(
    n_layers=6, d_model=256, d_ff=1024, head_dim=32, vocab_size=2048
  )
  params = sinkjax.init_params(cfg, jax.random.key(0))
  whole = sum(x.nbytes for x in jax.tree.leaves(params))
  found = {}
  with tempfile.TemporaryDirectory() as folder:
    sinkjax.save(f"{folder}/hf", params, cfg)
    sinkjax.save(f"{folder}/orbax", params, cfg, form="orbax")
    for text in MESHES:
      for dtype in "float32", "bfloat16":
        found |= _read(f"{folder}/hf", text, dtype, params, whole)
      read = sinkjax.load(f"{folder}/orbax", mesh=text, dtype="bfloat16")
      want = jax.tree.map(lambda x: x.astype("bfloat16"), params)
      found[f"orbax {text}"] = [error(read.params, want), 0]
  return found


def _read(path, text, dtype, params, whole):
  tracemalloc.start()
  read = sinkjax.load(path, mesh=text, dtype=dtype).params
  held, peak = tracemalloc.get_traced_memory()
  tracemalloc.stop()
  each = collections.Counter()
  for leaf in jax.tree.leaves(read):
    assert str(leaf.dtype) == dtype
    for shard in leaf.addressable_shards:
      each[shard.device.id] += shard.data.nbytes
  mesh = sharding.MeshConfig.parse(text)
  size = whole if dtype == "float32" else whole / 2
  want = jax.tree.map(lambda x: x.astype(dtype), params)
  # Fake devices hold what was read in the very buffers that it was read into,
  # so that what the host has beside them is the difference. Two parts of an
  # MLP's matrix and their bytes, for each of at most 8 threads, are 11 %.
  return {
    f"exact {text} {dtype}": [error(read, want), 0],
    f"device {text} {dtype}": [
      max(each.values()) / size,
      1.1 / (mesh.fsdp * mesh.tensor),
    ],
    f"host {text} {dtype}": [(peak - held) / whole, 0.15],
  }


PARTS = {
  part.__name__: part
  for part in (
    forward,
    profile,
    jacobian,
    stream,
    stream_by_sums,
    decompositions,
    text,
    odd_heads,
    collectives,
    depth,
    weights_in_shards,
  )
}


def main():
  found = {}
  for name in sys.argv[2:]:
    found |= PARTS[name]()
  print(json.dumps(found))


if __name__ == "__main__":
  main()
