"""Small training runs in processes of their own."""

import json
import time
import types

import pytest
from launcher import Launched

from sinkjax.experiments.shared.swap_texts import SWAP_TEXTS

SMALL = (
  "--config.model.d_model=32",
  "--config.model.n_layers=2",
  "--config.model.n_heads=2",
  "--config.model.n_kv_heads=2",
  "--config.model.head_dim=16",
  "--config.model.d_ff=48",
  "--config.model.vocab_size=300",
  "--config.model.max_len=32",
  "--config.packing.length=32",
  "--config.optimizer.warmup=5",
  "--config.batch=4",
  "--config.eval_every=20",
  "--config.eval_windows=8",
  "--config.probe_every=10",
  "--config.probe_texts=2",
  "--config.probe_tokens=16",
  "--config.save_every=10",
  "--config.held_out=0.2",
)


@pytest.fixture(scope="session")
def corpus(tmp_path_factory):
  folder = tmp_path_factory.mktemp("corpus")
  for i, text in enumerate(t for t in SWAP_TEXTS.split("\n\n") if len(t) > 200):
    (folder / f"{i:02}.txt").write_text(text, "utf-8")
  return folder


def start(corpus, workdir, *flags):
  return Launched(
    "train",
    *SMALL,
    f"--workdir={workdir}",
    f"--config.corpus=('{corpus}',)",
    *flags,
  )


def ended(process, timeout=240):
  out, err = process.communicate(timeout=timeout)
  return process.returncode, out, err


def wait_for(workdir, step, process):
  """Until a record of this step is on the disk."""
  path = workdir / "metrics.jsonl"
  while process.poll() is None:
    lines = path.read_text().splitlines() if path.exists() else []
    if lines and json.loads(lines[-1])["step"] >= step:
      return
    time.sleep(0.01)


@pytest.fixture(scope="session")
def train(corpus):
  """`start`, `ended` and `wait_for` as above, and the flags of `small` runs."""

  def begin(workdir, *flags):
    return start(corpus, workdir, *flags)

  return types.SimpleNamespace(
    start=begin, ended=ended, wait_for=wait_for, small=SMALL
  )
