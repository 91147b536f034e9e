"""launch.corpus, and a run that trains on what it made."""

import json

import launcher
import numpy as np
import pytest

from sinkjax.data.prepare import prepare
from sinkjax.data.tokens import CorpusError

WORDS = "the cat sat on the mat and looked at the dog that lay by the door"


def launch(*flags):
  return launcher.run("corpus", *flags, timeout=120)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
  folder = tmp_path_factory.mktemp("corpus")
  rng, texts = np.random.default_rng(0), folder / "texts"
  texts.mkdir()
  for i in range(30):
    words = " ".join(rng.choice(WORDS.split(), 60))
    (texts / f"{i}.txt").write_text(words)
  flags = [
    f"--corpus={texts}",
    "--vocab_size=300",
    "--part_mb=0.001",
    f"--out={folder / 'mix'}",
  ]
  return folder / "mix", flags, launch(*flags)


def test_ids_travel(made):
  out, _, done = made
  assert done.returncode == 0, done.stderr
  summary = json.loads((out / "summary.json").read_text())
  assert summary["complete"] and summary["documents"] == 30
  parts = list((out / "ids").glob("tokens-*.npy"))
  assert len(parts) > 1 and all(p.stat().st_size <= 1000 for p in parts)
  moved = out.rename(out.parent / "moved")
  data = prepare([str(moved)], vocab_size=999)
  moved.rename(out)
  kept = len(data.train.tokens) + len(data.held_out.tokens)
  assert kept == summary["tokens"]
  text = data.tokenizer.decode(data.train.tokens.tolist())
  assert set(text.split()) <= {
    a + b for a in ["", *WORDS.split()] for b in WORDS.split()
  }


def test_again_and_refusals(made):
  out, flags, _ = made
  assert "Already done" in launch(*flags).stdout
  other = launch(*flags, "--vocab_size=301")
  assert other.returncode == 1 and "another command" in other.stderr
  with pytest.raises(ValueError, match="holds ids"):
    prepare([str(out), "sotu"], vocab_size=300)
  part = sorted((out / "ids").glob("tokens-*.npy"))[0]
  data = part.read_bytes()
  part.write_bytes(data[:-1] + b"\xff")
  with pytest.raises(CorpusError, match=f"{part.name} is not what"):
    prepare([str(out)], vocab_size=300)
  part.write_bytes(data)
  assert "not empty" in launch(f"--out={out / 'ids'}").stderr
