"""Losses of one small run on each of some meshes; a script of test_sharding.

python on_devices.py MESH [MESH...]    prints {mesh: losses} as JSON
"""

import json
import shutil
import sys
import tempfile

import jax

import sinkjax
from sinkjax import sharding
from sinkjax.data.corpus import Documents, tokenize, train_tokenizer
from sinkjax.data.packing import Packing
from sinkjax.data.prepare import Prepared
from sinkjax.experiments.shared.swap_texts import SWAP_TEXTS
from sinkjax.train.checkpoint import RunCheckpoints
from sinkjax.train.loop import run
from sinkjax.train.optimizer import OptimizerConfig
from sinkjax.train.run_config import TrainConfig

CONFIG = TrainConfig(
  model=sinkjax.TINY.replace(
    vocab_size=304, n_layers=2, n_heads=8, n_kv_heads=8, head_dim=4
  ),
  packing=Packing(32, mask="document", bos="pinned", reset_positions=True),
  optimizer=OptimizerConfig(peak=1e-2, warmup=2, schedule="constant"),
  steps=6,
  batch=16,
  accumulate=2,
  log_every=1,
  eval_every=6,
  eval_windows=8,
  probe_every=6,
  probe_texts=2,
  probe_tokens=16,
  save_every=3,
)


def losses(mesh, data, folder):
  """Training losses of all steps, and held-out loss and first-token mass."""
  checkpoints = RunCheckpoints(folder, keep=3)
  for _, records, state in run(CONFIG, data, checkpoints, mesh=mesh):  # noqa: B007
    pass
  checkpoints.close()
  kernel = state.params["blocks"]["mlp"]["up"]["kernel"]
  wanted = sharding.state_shardings(mesh, state.params)
  assert kernel.sharding == wanted["blocks"]["mlp"]["up"]["kernel"]
  moments = [
    x for x in jax.tree.leaves(state.opt_state) if x.shape == kernel.shape
  ]
  assert moments and all(x.sharding == kernel.sharding for x in moments[:1])
  found = [r["loss"] for r in records if r["kind"] in ("train", "eval")]
  return found + [r["first_mass"] for r in records if r["kind"] == "probe"]


def main():
  texts = [text for text in SWAP_TEXTS.split("\n\n") if len(text) > 200]
  tokenizer = train_tokenizer(texts, 300)
  corpus = tokenize(Documents("swaps", texts, {}), tokenizer)
  data = Prepared(*corpus.split(0.2), tokenizer)
  found = {}
  with tempfile.TemporaryDirectory() as work:
    one = sharding.make_mesh(sharding.MeshConfig(), jax.devices()[:1])
    found["one"] = losses(one, data, f"{work}/one")
    for text in sys.argv[1:]:
      mesh = sharding.make_mesh(sharding.MeshConfig.parse(text))
      found[text] = losses(mesh, data, f"{work}/{text}")
    for name in ("one", sys.argv[1]):
      # The second half of another mesh's run, on this one.
      shutil.copytree(f"{work}/{name}", f"{work}/again-{name}")
      shutil.rmtree(f"{work}/again-{name}/6")
      mesh = sharding.make_mesh(sharding.MeshConfig.parse("data:2,fsdp:4"))
      found[f"resumed {name}"] = losses(mesh, data, f"{work}/again-{name}")
  print(json.dumps(found))


if __name__ == "__main__":
  main()
