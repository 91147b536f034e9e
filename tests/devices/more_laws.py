"""Edits, experts, and what processes read, on 8 fake devices; see laws.py."""

import json
import pathlib
import re
import sys

import described
import jax
import jax.numpy as jnp

import sinkjax
from launch import edit_flag
from sinkjax import mesh_context, sharding
from sinkjax.analysis.sink_profile import sink_profile
from sinkjax.metrics import rows
from sinkjax.transforms.edit_grammar import parse_edits
from sinkjax.transforms.written_edits import WORDS

# pytest, which looks for doctests here, has no folder of scripts in its path.
sys.path.insert(0, str(pathlib.Path(__file__).parent))
import laws

EDITS = (
  "knockout key=0 from=1; knockout key=2 head=0.3",
  "scale head=1.2 by=0.5; scale site=attn_out layers=0 by=2",
  "graded key=0 by=2 head=0.5",
  "ablate neurons=1:7,0:60 to=mean",
  "ablate head=1.6 to=mean; ablate head=0.1 to=zero",
  "hold site=pattern",
)


def edits():
  """The report of `launch.analyze --edit`, of each word of the grammar."""
  written = [parse_edits(text) for text in EDITS]
  words = {str(one).split()[0] for some in written for one in some}
  assert words == set(WORDS)
  texts, found = [list(map(int, row)) for row in laws.TOKENS], {}
  plain = sink_profile(laws.weights(), laws.CFG, texts).nll

  def run(params, some):
    cfg, _ = edit_flag.of_model(some, params, laws.CFG, texts)
    seen = sink_profile(params, cfg, texts)
    return seen.values, seen.nll, seen.maps

  for text, some in zip(EDITS, written, strict=True):
    # Of the derivatives alone "hold" makes others.
    changed = laws.error(run(laws.weights(), some)[1], plain)
    assert (changed > 10 * laws.SAME) == (not text.startswith("hold")), text
    found |= laws.on_every_mesh(
      text, lambda params, some=some: run(params, some)
    )
  return found


MOVES = re.compile(r" (all-gather|collective-permute|all-to-all)(-start)?\(")
KERNELS = re.compile(r"expert_(up|gate|down)/")


def moved(mesh, program):
  """How often a kernel of the experts goes to other devices along `expert`.

  Along fsdp it is gathered, as all weights are. The router's
  logits and what is no expert's may move.
  """
  lines = [x for x in program.splitlines() if MOVES.search(x)]
  assert any("metadata" in x for x in program.splitlines())
  return sum(
    bool(KERNELS.search(x)) and "expert" in described.axes_of(mesh, x)
    for x in lines
  )


def experts():
  """Experts on devices of their own: what is seen, and what is exchanged."""
  found = {}
  few = {"n_experts": 8, "experts_per_token": 2}
  for name, more in {
    "experts": few | {"mlp_bias": True},
    "shared": few | {"shared_d_ff": 16, "dense_layers": 1, "dense_d_ff": 32},
  }.items():
    cfg = laws.CFG.replace(d_ff=16, d_model=64, **more)
    whole = sinkjax.init_params(cfg, jax.random.key(0))
    f = sinkjax.forward(cfg)
    sites = {
      "sink": ("pattern", sinkjax.sink_score),
      "router": ("router_logits", lambda x: x),
      "written": ("expert_out", lambda x: jnp.linalg.norm(x, axis=-1)),
    }
    runs = {"forward": f, "capture": sinkjax.capture(f, sites)}
    for text in laws.MESHES:
      config = sharding.MeshConfig.parse(text)
      mesh = sharding.make_mesh(config)
      split = sharding.place(sharding.state_shardings(mesh, whole), whole)
      for path, leaf in jax.tree_util.tree_flatten_with_path(split)[0]:
        if "expert_up" in str(path) and leaf.ndim == 4:
          held = leaf.addressable_shards[0].data.size * mesh.size / config.data
          found[f"{name} {text} held"] = [held / leaf.size, 1]
      for kind, run in runs.items():
        want = jax.jit(run)(whole, laws.TOKENS)
        with jax.set_mesh(mesh):
          jitted = jax.jit(run)
          got = jitted(split, laws.TOKENS)
          text_of = jitted.lower(split, laws.TOKENS).compile().as_text()
        found[f"{name} {text} {kind}"] = [laws.error(got, want), laws.SAME]
        found[f"{name} {text} {kind}: moved"] = [moved(mesh, text_of), 0]
  return found


def copied():
  """How many results are not whole on each device, where all read them."""
  sites = {"sink": ("pattern", sinkjax.sink_score), "z": ("z", lambda x: x)}
  seen = sinkjax.capture(sinkjax.forward(laws.CFG), sites)
  means = {"alpha": rows.sink_score()}
  stream = sinkjax.stream_statistics(sinkjax.forward(laws.CFG), means)
  found = {}
  for text, mesh, params in laws.meshes():

    def split(run, params=params, mesh=mesh):
      with jax.set_mesh(mesh):
        leaves = jax.tree.leaves(run(params, laws.TOKENS))
      return sum(not leaf.is_fully_replicated for leaf in leaves)

    for name, run in {
      "op by op": seen,
      "jit": jax.jit(seen),
      "stream": stream,
    }.items():
      with mesh_context.copied_outputs():
        found[f"{name} {text}"] = [split(run), 0]
    # Without it there is something to copy: the heads of `tensor`, or texts.
    assert split(jax.jit(lambda *args: seen(*args))) > 0
  return found


PARTS = {part.__name__: part for part in (edits, experts, copied)}

if __name__ == "__main__":
  laws.MESHES = sys.argv[1].split(";")
  result = {}
  for part in sys.argv[2:]:
    result |= PARTS[part]()
  print(json.dumps(result))
