"""launch.capture: activations on disk are those of the model."""

import json

import grain
import jax.numpy as jnp
import numpy as np
import pytest
from launcher import run

import sinkjax
from sinkjax.analysis.activations import chosen_layers
from sinkjax.data import activations as files
from sinkjax.data.activations import Activations
from sinkjax.data.tokens import CorpusError
from sinkjax.experiments.shared.swap_texts import SWAP_TEXTS

FLAGS = (
  "--model=glassllm-en",
  "--length=16",
  "--windows=5",
  "--batch=2",
  "--sites=resid_post@1,v,final",
  "--positions=1:",
  "--store=bfloat16",
  # A window has 15 x (128 + 4 x 2 x 32 + 128) numbers of 2 bytes, and its ids.
  "--part_mb=0.035",
)


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
  folder = tmp_path_factory.mktemp("corpus")
  texts = [text for text in SWAP_TEXTS.split("\n\n") if len(text) > 200][:3]
  for i, text in enumerate(texts):
    (folder / f"{i}.txt").write_text(text, "utf-8")
  return folder


@pytest.fixture(scope="module")
def captured(corpus, tmp_path_factory, glassllm_path):
  out = tmp_path_factory.mktemp("out") / "acts"
  done = run("capture", *FLAGS, f"--corpus={corpus}", f"--out={out}")
  assert done.returncode == 0, done.stderr
  assert "5 windows in 3 parts" in done.stdout
  return out


def test_they_are_the_model_s(captured, corpus):
  data = Activations(captured, verify=True)
  params, cfg, tokenizer = sinkjax.load("glassllm-en")
  assert len(data) == 5
  assert set(data.names) == {
    "resid_post.1",
    "v.0",
    "v.1",
    "v.2",
    "v.3",
    "final.0",
  }
  rows = [data[i] for i in range(5)]
  tokens = np.stack([row["tokens"] for row in rows])
  ids = tokenizer.encode((corpus / "0.txt").read_text("utf-8"))
  prefix = [tokenizer.bos_id] if tokenizer.add_bos else []
  assert tokens[0].tolist() == [*prefix, *ids][:16]
  f = sinkjax.capture(
    sinkjax.forward(cfg),
    {site: (site, lambda x: x) for site in ("resid_post", "v", "final")},
  )
  trace = f(params, tokens).trace
  for name in data.names:
    site, layer = name.split(".")
    want = trace[site] if site == "final" else trace[site][int(layer)]
    got = np.stack([row[name] for row in rows])
    # What is on disk is rounded to bfloat16, once.
    np.testing.assert_allclose(got, want[:, 1:], rtol=2**-8, atol=1e-5)
    assert np.array_equal(got, jnp.asarray(got).astype(jnp.bfloat16))


def test_grain_reads_them(captured):
  source = Activations(captured, ["resid_post.1"])
  (batch,) = grain.MapDataset.source(source).shuffle(0).batch(5)
  assert batch["resid_post.1"].shape == (5, 15, 128)
  assert source[-1]["tokens"].tolist() == source[4]["tokens"].tolist()
  with pytest.raises(IndexError):
    source[5]
  with pytest.raises(CorpusError, match=r"has no \['z.0'\]; it has"):
    Activations(captured, ["z.0"])


def test_a_rerun_goes_on_and_another_command_is_refused(captured, corpus):
  second = captured / "part-00001.safetensors"
  before = second.read_bytes()
  kept = (captured / "part-00000.safetensors").stat().st_mtime_ns
  for name in second.name, "summary.json", "capture.json":
    (captured / name).unlink()
  with pytest.raises(CorpusError, match="no complete capture"):
    Activations(captured)
  flags = (f"--corpus={corpus}", f"--out={captured}")
  # Another number of windows at a time is no other request.
  done = run("capture", *FLAGS, "--batch=1", *flags)
  assert done.returncode == 0, done.stderr
  summary = json.loads((captured / "summary.json").read_text())
  assert summary["resumed_parts"] == 2 and summary["complete"] is True
  assert (captured / "part-00000.safetensors").stat().st_mtime_ns == kept
  assert len(second.read_bytes()) == len(before)
  (captured / "summary.json").unlink()
  other = run("capture", *FLAGS, "--positions=0", *flags)
  assert other.returncode == 1
  assert "captured by another command" in other.stderr


def test_a_changed_part_is_refused(captured, tmp_path):
  for path in captured.iterdir():
    (tmp_path / path.name).write_bytes(path.read_bytes())
  part = tmp_path / "part-00002.safetensors"
  data = bytearray(part.read_bytes())
  data[-1] ^= 1
  part.write_bytes(data)
  with pytest.raises(CorpusError, match="part-00002.safetensors was changed"):
    Activations(tmp_path, verify=True)


def test_a_plan_writes_nothing(corpus, tmp_path, glassllm_path):
  done = run(
    "capture",
    *FLAGS,
    f"--corpus={corpus}",
    f"--out={tmp_path / 'x'}",
    "--dry_run",
  )
  assert done.returncode == 0, done.stderr
  assert "5 of 16 tokens" in done.stdout and "in 3 parts" in done.stdout
  assert not (tmp_path / "x").exists()


@pytest.mark.parametrize(
  ("flags", "message"),
  [
    (["--sites=pattern"], "'pattern' has no value at each token"),
    (["--sites=resid_post@9"], "the model has 4"),
    (["--sites=v,v@0"], "is named twice"),
    (["--positions=16"], "names no token of a window of 16"),
    (["--positions=x"], "names no token"),
    (["--length=4096"], "beyond the model's context"),
    (["--corpus="], "--corpus= is empty"),
  ],
)
def test_mistakes_are_one_line(flags, message, corpus, tmp_path, glassllm_path):
  out = tmp_path / "never"
  done = run("capture", *FLAGS, f"--corpus={corpus}", f"--out={out}", *flags)
  errors = [x for x in done.stderr.splitlines() if x.startswith("error: ")]
  assert done.returncode == 1 and len(errors) == 1, done.stderr
  assert message in errors[0]
  assert not out.exists()


def test_windows():
  cut = files.cut([[1, 2, 3], [4], [5, 6, 7, 8]], length=3, prefix=[0])
  assert cut.tokens.tolist() == [[0, 1, 2], [0, 5, 6], [0, 7, 8]]
  assert cut.document.tolist() == [0, 2, 2]
  assert cut.start.tolist() == [0, 0, 2]
  assert cut.left_out == 2
  assert len(files.cut([[1, 2, 3, 4]] * 9, length=2, most=3).tokens) == 3
  with pytest.raises(ValueError, match="no document has 4 tokens"):
    files.cut([[1, 2, 3]], length=4)
  begun = files.cut([[1], [2, 3, 4, 5, 6]], length=2, whole=False)
  assert begun.tokens.tolist() == [[2, 3]] and begun.left_out == 4


def test_layers_of_sites():
  cfg = sinkjax.TINY
  assert chosen_layers(cfg, ["resid_mid"]) == {"resid_mid": [0, 1, 2]}
  assert chosen_layers(cfg, [("q", 2), ("q", 0)]) == {"q": [0, 2]}
