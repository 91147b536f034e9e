"""Layers read one by one: one ahead, and far less memory than the model."""

import os
import pathlib
import subprocess
import sys
import threading
import time

import jax
import jax.numpy as jnp
import pytest

from sinkjax.weights import offload
from sinkjax.weights.offload import open_layers

sys.path.insert(0, str(pathlib.Path(__file__).parent))
from golden_models import FAMILIES, reading_ahead

ROOT = pathlib.Path(__file__).parents[2]


def test_reads_one_layer_ahead_and_ends(monkeypatch):
  read, names = offload._read_layer, []

  def spy(unread, index):
    names.append((index, threading.current_thread().name))
    return read(unread, index)

  monkeypatch.setattr(offload, "_read_layer", spy)
  opened = open_layers(FAMILIES / "llama3")
  for i in range(3):
    opened.layer(i)
  assert [index for index, _ in names] == [0, 1, 2]
  assert ["sinkjax" in name for _, name in names] == [False, True, True]
  assert not reading_ahead()
  opened.layer(0)
  opened.close()
  assert not reading_ahead()
  opened.layer(0)
  del opened  # in the middle, without closing
  assert not reading_ahead()
  names.clear()
  plain = open_layers(FAMILIES / "llama3", prefetch=False)
  plain.layer(0)
  assert [index for index, _ in names] == [0]


def test_the_next_layer_is_read_while_one_is_in_use(monkeypatch):
  read, begun, go = offload._read_layer, threading.Event(), threading.Event()

  def slow(unread, index):
    if index:
      begun.set()
      assert go.wait(10)
    return read(unread, index)

  monkeypatch.setattr(offload, "_read_layer", slow)
  with open_layers(FAMILIES / "llama3") as opened:
    opened.layer(0)
    assert begun.wait(10)
    go.set()
    opened.layer(1)


@pytest.mark.thorough
def test_waits_for_computations_with_dropped_layers():
  """JAX runs behind the caller: layers would pile up."""

  @jax.jit
  def work(layer, x):
    return jax.lax.fori_loop(0, 300, lambda _, x: jnp.tanh(x @ x), x) + sum(
      leaf.sum() for leaf in jax.tree.leaves(layer)
    )

  opened = open_layers(FAMILIES / "llama3", prefetch=False)
  x = jnp.eye(300)
  work(opened.layer(0), x).block_until_ready()
  results = [work(opened.layer(i), x) for i in (0, 1, 2)]
  assert all(x.is_ready() for x in results[:2])
  held = [opened.layer(i) for i in (0, 1, 2, 0, 1)]  # these never wait
  assert len(held) == 5


def test_gives_up_waiting_for_layers_that_others_hold(monkeypatch):
  monkeypatch.setattr(offload, "_PATIENCE_S", 0.05)
  opened = open_layers(FAMILIES / "llama3", prefetch=False)
  read, kept = offload._read_layer, []

  def keep(unread, index):
    kept.append(read(unread, index))
    return kept[-1]

  opened._ahead._read = lambda index: keep(opened._unread, index)
  opened.layer(0)
  opened.layer(1)
  begin = time.monotonic()
  held = opened.layer(2)
  assert time.monotonic() - begin < 10 and held


WALK = """
import sys
import jax, jax.numpy as jnp, numpy as np
import sinkjax
from sinkjax.weights.offload import open_layers

def high():
  lines = open("/proc/self/status").read().splitlines()
  return 1024 * next(int(x.split()[1]) for x in lines if x[:5] == "VmHWM")

jax.block_until_ready(jnp.ones((8, 8)) @ jnp.ones((8, 8)))
with open("/proc/self/clear_refs", "w") as file:
  file.write("5")  # VmHWM starts again from here
before = high()
model = open_layers("smollm2-135m", prefetch=sys.argv[1] == "ahead")
opened = high()
total = float(np.asarray(model.embedding(jnp.arange(64) * 700)).sum())
for i in range(model.cfg.n_layers):
  for leaf in jax.tree.leaves(model.layer(i)):
    total += float(np.asarray(leaf).sum())
for piece in model.unembedding():
  total += float(np.asarray(piece.kernel).sum())
print(opened - before, high() - before, total)
"""


@pytest.mark.slow
@pytest.mark.skipif(
  not os.access("/proc/self/clear_refs", os.W_OK), reason="needs Linux' /proc"
)
@pytest.mark.parametrize("prefetch", ["ahead", "plain"])
def test_memory_stays_far_below_the_model(prefetch, smollm2_path):
  done = subprocess.run(
    [sys.executable, "-c", WALK, prefetch],
    cwd=ROOT,
    env={**os.environ, "JAX_PLATFORMS": "cpu", "PYTHONPATH": str(ROOT)},
    capture_output=True,
    text=True,
    check=False,
  )
  assert done.returncode == 0, done.stderr
  opened, peak, _ = (float(word) for word in done.stdout.split())
  whole = 4 * 134_515_008
  print(f"opened {opened / 1e6:.0f} MB, peak {peak / 1e6:.0f} MB")
  assert peak < 0.25 * whole, (opened, peak)


JACOBIAN = (
  WALK[: WALK.index("model = open")]
  + """
from sinkjax.analysis.loss_sensitivity import loss_gradient
with open_layers("smollm2-135m", prefetch=False) as layers:
  fn, ids = sinkjax.forward(layers.cfg), jnp.arange(4)
  loss_gradient(fn, layers, ids)
  sinkjax.jacobian_norms(
    fn, layers, ids, source=("resid_pre", 25), target="resid_post",
    budget_bytes=30_000_000,
  )
print(high() - before)
"""
)


@pytest.mark.skipif(
  not os.access("/proc/self/clear_refs", os.W_OK), reason="needs Linux' /proc"
)
@pytest.mark.slow
def test_a_jacobian_stays_far_below_the_model(smollm2_path):
  done = subprocess.run(
    [sys.executable, "-c", JACOBIAN, "plain"],
    cwd=ROOT,
    env={**os.environ, "JAX_PLATFORMS": "cpu", "PYTHONPATH": str(ROOT)},
    capture_output=True,
    text=True,
    check=False,
  )
  assert done.returncode == 0, done.stderr
  peak, whole = int(done.stdout), 4 * 134_515_008
  print(f"peak {peak / 1e6:.0f} MB")
  assert peak < 0.35 * whole, peak
