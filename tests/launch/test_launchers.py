"""The launchers as a person meets them.

What depends on how a process starts is run by a Python of its own, the rest by
`launcher.run`: most of the time of a short command is the import of JAX.
"""

import json
import os
import pathlib
import shutil
import signal
import subprocess
import sys

import numpy as np
import pytest
import tokenizers
from launcher import run
from quick import quick

import sinkjax

ROOT = pathlib.Path(__file__).parents[2]
CONTRACT = (
  "schema",
  "complete",
  "model",
  "config",
  "token_ids",
  "first_token",
  "sink_rate",
  "sink_rate_mean_first",
  "alpha_first",
  "entropy",
  "value_norm_first",
  "value_norm_rest",
  "hidden_norm_first",
  "hidden_norm_median",
  "massive",
  "nll",
  "versions",
  "device",
  "seconds",
)


def python(launcher, *flags, **env):
  return subprocess.run(
    [sys.executable, "-m", f"launch.{launcher}", *flags],
    cwd=ROOT,
    capture_output=True,
    text=True,
    env={**os.environ, **env},
    check=False,
    timeout=300,
  )


@pytest.fixture(scope="module")
def analyzed(tmp_path_factory, glassllm_path):
  out = tmp_path_factory.mktemp("out") / "en"
  done = python("analyze", "--model=glassllm-en", f"--out={out}")
  assert done.returncode == 0, done.stderr
  return out, done


@pytest.mark.thorough
def test_contract(analyzed):
  out, _ = analyzed
  data = json.loads((out / "summary.json").read_text())
  assert set(CONTRACT) <= set(data)
  assert data["complete"] is True
  assert list(data)[-1] == "complete"
  assert set(data["sink_rate"]) == {"0.3", "0.5", "0.8"}
  assert np.shape(data["alpha_first"]) == (4, 4)
  assert np.shape(data["entropy"]) == (4, 4)
  assert np.shape(data["value_norm_first"]) == (4, 2)
  assert np.shape(data["hidden_norm_first"]) == (4,)
  assert {"layer", "position", "dimension", "value", "ratio"} <= set(
    data["massive"]
  )
  assert data["first_token"]["id"] == data["token_ids"][0]
  files = {path.name for path in out.iterdir()}
  assert files == {
    "summary.json",
    "heads.csv",
    "report.html",
    "sink_map.png",
    "norms.png",
    "attention.png",
    "entropy.png",
  }
  rows = (out / "heads.csv").read_text().splitlines()
  assert rows[0].startswith("layer,head,alpha")
  assert len(rows) == 17


@pytest.mark.thorough
def test_numbers_are_the_library_s(analyzed):
  out, _ = analyzed
  data = json.loads((out / "summary.json").read_text())
  params, cfg, _ = sinkjax.load("glassllm-en")
  h = sinkjax.capture(
    sinkjax.forward(cfg), {"a": ("pattern", sinkjax.sink_score)}
  )
  alpha = h(params, np.array([data["token_ids"]])).trace["a"]
  np.testing.assert_allclose(data["alpha_first"], alpha[:, 0], rtol=1e-5)
  for eps, rate in data["sink_rate"].items():
    assert rate == pytest.approx(float((alpha > float(eps)).mean()))


def test_names_the_first_token(analyzed):
  out, done = analyzed
  token = json.loads((out / "summary.json").read_text())["first_token"]
  assert f"{token['text']!r} (id {token['id']})" in done.stdout
  assert f"id {token['id']}" in (out / "report.html").read_text()


def test_again_says_done_and_another_is_refused(analyzed):
  out, _ = analyzed
  before = (out / "summary.json").stat().st_mtime_ns
  again = run("analyze", "--model=glassllm-en", f"--out={out}")
  assert again.returncode == 0
  assert "Already done" in again.stdout
  other = run("analyze", "--model=glassllm-pt", f"--out={out}")
  assert other.returncode == 1
  assert "another command" in other.stderr
  assert (out / "summary.json").stat().st_mtime_ns == before


@pytest.mark.slow
def test_offload_gives_the_same_numbers(tmp_path, glassllm_path):
  """One layer at a time from an exported folder; glassllm's has none."""
  model = tmp_path / "model"
  done = run("convert", "--model=glassllm-en", "--to=hf", f"--out={model}")
  assert done.returncode == 0, done.stderr
  found = []
  for flags in ([], ["--offload"]):
    out = tmp_path / f"out{len(found)}"
    done = run("analyze", f"--model={model}", f"--out={out}", *flags)
    assert done.returncode == 0, done.stderr
    found.append(json.loads((out / "summary.json").read_text()))
  whole, layers = found
  assert layers["offload"] and not whole["offload"]
  assert layers["request"] == whole["request"]
  for name in ("sink_rate", "first_token", "token_ids"):
    assert layers[name] == whole[name]
  for name in (
    "alpha_first",
    "entropy",
    "entropy_share",
    "value_norm_first",
    "value_norm_rest",
    "key_norm_first",
    "key_norm_rest",
    "hidden_norm_first",
    "hidden_norm_median",
    "nll",
  ):
    np.testing.assert_allclose(
      layers[name], whole[name], rtol=1e-4, err_msg=name
    )
  planned = run("analyze", f"--model={model}", "--dry_run", "--offload")
  assert "weights, one layer at a time" in planned.stdout
  refused = run("analyze", "--model=glassllm-en", "--dry_run", "--offload")
  assert refused.returncode == 1
  assert "launch.convert" in refused.stderr


@pytest.mark.thorough
def test_what_a_folder_says_of_itself_is_one_line(tmp_path):
  """A warning of BOS ids that differ, a refusal of quantised weights."""
  source = ROOT / "tests" / "golden" / "families" / "llama3"
  shutil.copytree(source, tmp_path, dirs_exist_ok=True)
  vocab = {f"t{i}": i for i in range(96)}
  backend = tokenizers.Tokenizer(tokenizers.models.WordLevel(vocab, "t0"))
  backend.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
  backend.save(str(tmp_path / "tokenizer.json"))
  file = tmp_path / "tokenizer_config.json"
  file.write_text(json.dumps({"bos_token": "t5"}))
  done = run("analyze", f"--model={tmp_path}", "--dry_run")
  assert done.returncode == 0, done.stderr
  assert done.stderr.count("\n") == 1
  assert done.stderr.startswith("warning: ")
  assert "BOS is 5 in the tokenizer, 1 in the config" in done.stderr

  file = tmp_path / "config.json"
  stated = {"quant_method": "gptq", "bits": 4}
  values = json.loads(file.read_text()) | {"quantization_config": stated}
  file.write_text(json.dumps(values))
  done = run("analyze", f"--model={tmp_path}", "--dry_run")
  assert done.returncode == 1
  assert done.stderr.count("\n") == 1
  assert "quantised (GPTQ, 4 bits)" in done.stderr


@pytest.mark.thorough
def test_prefix_and_prompts_file(tmp_path, glassllm_path):
  file = tmp_path / "p.jsonl"
  lines = [
    {"text": "The king sat down."},
    {"text": "A fox ran by the old mill"},
  ]
  file.write_text("\n".join(map(json.dumps, lines)))
  out = tmp_path / "out"
  done = run(
    "analyze",
    "--model=glassllm-en",
    f"--out={out}",
    f"--prompts_file={file}",
    "--prefix=<bos>",
    "--eps=0.2",
    "--max_tokens=6",
  )
  assert done.returncode == 0, done.stderr
  data = json.loads((out / "summary.json").read_text())
  assert data["first_token"] == {
    "id": 2,
    "text": "<bos>",
    "is_bos": True,
    "prefix": "bos",
    "same_in_all_prompts": True,
  }
  assert [len(p) for p in data["prompts"]] == [6, 6]
  assert data["sink_rate_stderr"]["0.2"] is not None


@pytest.mark.slow
def test_different_first_tokens_are_said(tmp_path, glassllm_path):
  file, out = tmp_path / "p.jsonl", tmp_path / "out"
  file.write_text('{"text": "The king sat."}\n{"text": "A fox ran by it."}\n')
  done = run(
    "analyze", "--model=glassllm-en", f"--out={out}", f"--prompts_file={file}"
  )
  assert done.returncode == 0, done.stderr
  assert "other prompts differ" in done.stdout
  assert "different tokens" in (out / "report.html").read_text()
  assert (out / "heads.csv").read_text().splitlines()[1].endswith(",")


def into(folder, flags):
  """With a folder of the test's own: tests beside it share the root."""
  return [flag.replace("=never", f"={folder}/never") for flag in flags]


@pytest.mark.thorough
@pytest.mark.parametrize(
  "flags",
  [
    ("--model=glassllm-en", "--dry_run"),
    ("--model=glassllm-en", "--dry_run", "--out=never"),
  ],
)
def test_dry_run_writes_nothing(flags, tmp_path, glassllm_path):
  done = run("analyze", *into(tmp_path, flags))
  assert done.returncode == 0, done.stderr
  for word in ("parameters", "memory", "time", "position 0"):
    assert word in done.stdout
  assert not (tmp_path / "never").exists()


@pytest.mark.parametrize(
  ("launcher", "flags", "message"),
  [
    ("analyze", ["--model=nope", "--out=never"], "known:"),
    ("analyze", [], "--out is missing"),
    ("analyze", ["--out=never", "--eps=2"], "--eps must be numbers in"),
    ("analyze", ["--out=never", "--max_tokens=1"], "at least 2"),
    ("analyze", ["--out=never", "--max_tokens=x"], "max_tokens"),
    ("analyze", ["--out=never", "--nope=1"], "nope"),
    ("analyze", ["--out=never", "more"], "unexpected argument 'more'"),
    ("analyze", ["--out=never", "--text_file=/no/file"], "no such file"),
    (
      "analyze",
      ["--out=never", "--model=glassllm-en", "--max_tokens=500"],
      "context of 128: take at most --max_tokens=128",
    ),
    (
      "analyze",
      ["--dry_run", "--model=glassllm-en", "--max_tokens=129"],
      "context of 128: take at most --max_tokens=128",
    ),
    (
      "analyze",
      ["--out=never", "--model=glassllm-en", "--prefix=zebra"],
      "no such token",
    ),
    ("analyze", ["--out=README.md"], "is a file"),
    ("convert", ["--out=never"], "--model is missing"),
    ("convert", ["--model=glassllm-en", "--out=tests"], "not an empty folder"),
    (
      "convert",
      ["--out=never", "--model=glassllm-en", "--to=orbax", "--dtype=bfloat16"],
      "--dtype=bfloat16 goes with --to=hf",
    ),
    ("convert", ["--model=glassllm-en", "--to=xyz", "--out=never"], "to"),
  ],
)
def test_errors_are_one_line(launcher, flags, message, tmp_path, glassllm_path):
  done = run(launcher, *into(tmp_path, flags))
  assert done.returncode == 1
  lines = [line for line in done.stderr.splitlines() if "step/s" not in line]
  errors = [line for line in lines if line.startswith("error: ")]
  assert len(errors) == 1, done.stderr
  assert message in errors[0]
  assert "Traceback" not in done.stderr
  assert not (tmp_path / "never").exists()


@pytest.mark.parametrize(
  "launcher", ["analyze", "convert", "bench", "reproduce"]
)
def test_help_teaches(launcher):
  done = python(launcher, "--help")
  assert done.returncode == 0
  assert f"python -m launch.{launcher}" in done.stdout
  assert "--out" in done.stdout
  assert "--[no]dry_run" in done.stdout


@pytest.mark.thorough
@pytest.mark.parametrize("to", quick(["hf", "orbax"], "orbax"))
def test_convert_round_trip(tmp_path, to, glassllm_path):
  out = tmp_path / "model"
  done = run("convert", "--model=glassllm-en", f"--to={to}", f"--out={out}")
  assert done.returncode == 0, done.stderr
  assert "bit for bit" in done.stdout
  old, new = sinkjax.load("glassllm-en"), sinkjax.load(out)
  text = "The king sat by the window; it was a cold night."
  assert new.tokenizer.encode(text) == old.tokenizer.encode(text)
  tokens = np.array([old.tokenizer.encode(text)])
  np.testing.assert_array_equal(
    sinkjax.forward(old.cfg)(old.params, tokens).logits,
    sinkjax.forward(new.cfg)(new.params, tokens).logits,
  )


def test_interrupt_leaves_nothing_half_written(tmp_path, glassllm_path):
  out = tmp_path / "out"
  # A background shell hands down that Ctrl-C is ignored; a handler is not.
  ours = signal.signal(signal.SIGINT, signal.default_int_handler)
  process = subprocess.Popen(
    [
      sys.executable,
      "-m",
      "launch.analyze",
      "--model=glassllm-en",
      f"--out={out}",
    ],
    cwd=ROOT,
    stdout=subprocess.PIPE,
    stderr=subprocess.PIPE,
    text=True,
  )
  signal.signal(signal.SIGINT, ours)
  stderr = ""
  while "drawing" not in stderr and process.poll() is None:
    stderr += process.stderr.read(1)
  process.send_signal(signal.SIGINT)
  stderr += process.communicate(timeout=60)[1]
  assert process.returncode == 130, stderr
  assert "stopped" in stderr
  assert "Traceback" not in stderr
  left = list(out.iterdir()) if out.exists() else []
  assert not any(path.name.startswith(".") for path in left)
  assert not (out / "summary.json").exists()


def test_what_can_be_read_is_listed():
  """Every name of the table, and nothing is fetched or written for it."""
  done = python("analyze", "--list_models", SINKJAX_CACHE="/nonexistent")
  assert done.returncode == 0, done.stderr
  first = {line.split()[0] for line in done.stdout.splitlines()}
  assert {known.name for known in sinkjax.models()} <= first
  assert sinkjax.models() == sinkjax.supported_models()
