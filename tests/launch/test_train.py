"""Tests of launch.train, each with real processes."""

import contextlib
import csv
import json
import random
import signal
import subprocess
import time

import jax
import launcher
import numpy as np
import pytest

import sinkjax
from sinkjax.data.corpus import gather, tokenize, train_tokenizer
from sinkjax.data.prepare import save

pytestmark = pytest.mark.thorough


def parameters(workdir):
  params, *_ = sinkjax.load(workdir)
  return [np.asarray(x).tobytes() for x in jax.tree.leaves(params)]


@pytest.fixture(scope="module")
def whole(train, tmp_path_factory):
  """A run from start to end."""
  workdir = tmp_path_factory.mktemp("whole") / "run"
  code, out, err = train.ended(train.start(workdir, "--config.steps=40"))
  assert code == 0, err
  assert "held-out loss" in out
  return workdir


def test_what_a_run_leaves(whole):
  summary = json.loads((whole / "summary.json").read_text())
  assert summary["complete"] is True and summary["skipped"] == 0
  assert summary["tokens"] == 40 * 4 * 32 and "commit" in summary
  records = [
    json.loads(line)
    for line in (whole / "metrics.jsonl").read_text().splitlines()
  ]
  assert [r["step"] for r in records if r["kind"] == "probe"] == [
    0,
    10,
    20,
    30,
    40,
  ]
  for name in (
    "loss.png",
    "sinks.png",
    "inside.png",
    "formation.png",
    "sink_map.png",
    "train.csv",
    "eval.csv",
    "probe.csv",
    "report.html",
  ):
    assert (whole / name).stat().st_size > 30
  with open(whole / "sinks.csv", newline="") as stream:
    scores = list(csv.DictReader(stream))
  probes = [r for r in records if r["kind"] == "probe"]
  assert [float(row["sink_score"]) for row in scores] == pytest.approx(
    np.ravel([r["alpha"] for r in probes])
  )
  assert [int(scores[-1][name]) for name in ("step", "layer", "head")] == [
    40,
    1,
    1,
  ]
  assert list((whole / "tensorboard").iterdir())
  _, cfg, tokenizer = sinkjax.load(whole)
  assert cfg.bos_id == tokenizer.bos_id == 0 and tokenizer.add_bos
  assert tokenizer.decode(tokenizer.encode("Two men.")) == "Two men."


def test_a_finished_run_is_left_alone(whole, train):
  code, out, _ = train.ended(train.start(whole, "--config.steps=40"))
  assert code == 0 and "Already done" in out


@pytest.mark.slow
def test_sigterm_saves_and_the_same_command_goes_on(whole, train, tmp_path):
  workdir = tmp_path / "run"
  process = train.start(workdir, "--config.steps=40")
  train.wait_for(workdir, 12, process)
  process.send_signal(signal.SIGTERM)
  sent = time.monotonic()
  code, out, err = train.ended(process)
  assert code == 143, err
  assert "stopped at step" in out and time.monotonic() - sent < 20
  assert not (workdir / "model").exists()
  code, out, err = train.ended(train.start(workdir, "--config.steps=40"))
  assert code == 0, err
  assert "resuming from step" in err + out
  assert parameters(workdir) == parameters(whole)


def records(workdir):
  lines = (workdir / "metrics.jsonl").read_text().splitlines()
  return [(r["kind"], r["step"]) for r in map(json.loads, lines)]


@pytest.mark.slow
def test_killed_before_the_first_checkpoint(whole, train, tmp_path):
  """No record is there twice, and another config may take the place."""
  workdir = tmp_path / "run"
  flags = ("--config.log_every=1", "--config.save_every=40")
  process = train.start(workdir, "--config.steps=40", *flags)
  train.wait_for(workdir, 2, process)
  process.kill()
  process.communicate()
  assert ("eval", 0) in records(workdir)
  code, _, err = train.ended(train.start(workdir, "--config.steps=40"))
  assert code == 0, err
  assert records(workdir) == records(whole)
  assert len(list((workdir / "tensorboard").iterdir())) == 1
  assert parameters(workdir) == parameters(whole)


def kills(train, workdir, whole, times, seed):
  """Kills a run at random moments, lets it end, compares the bits."""
  rng = random.Random(seed)
  for _ in range(times):
    process = train.start(workdir, "--config.steps=40")
    time.sleep(rng.uniform(2, 12))
    process.kill()
    process.communicate()
  code, _, err = train.ended(train.start(workdir, "--config.steps=40"))
  assert code == 0, err
  assert parameters(workdir) == parameters(whole)


@pytest.mark.slow
def test_killed_at_a_random_moment(whole, train, tmp_path):
  kills(train, tmp_path / "run", whole, 1, 0)


@pytest.mark.slow
def test_killed_twenty_times(whole, train, tmp_path):
  kills(train, tmp_path / "run", whole, 20, 1)


@pytest.mark.slow
def test_two_runs_in_one_folder(train, tmp_path):
  workdir = tmp_path / "run"
  first = train.start(
    workdir, "--config.steps=100000", "--config.eval_every=100000"
  )
  train.wait_for(workdir, 12, first)  # a step is saved
  code, _, err = train.ended(
    train.start(workdir, "--config.steps=100000", "--config.eval_every=100000")
  )
  first.kill()
  first.communicate()
  assert code == 1 and "another process is writing to" in err
  code, _, err = train.ended(train.start(workdir, "--config.steps=50"))
  assert code == 1 and "holds a run of another config: " in err


@pytest.mark.parametrize(
  ("flags", "words"),
  [
    (["--config.packing.mask=full"], "packing.mask must be one of"),
    (["--config.packing.colour=red"], "colour"),
    (["--config.corpus=('/nowhere',)"], "neither a file, a folder"),
    (["--config.model.n_kv_heads=3"], "n_kv_heads must divide"),
  ],
)
def test_mistakes_are_one_line(train, tmp_path, flags, words):
  code, _, err = train.ended(train.start(tmp_path / "run", *flags))
  assert code == 1 and words in err and "Traceback" not in err


def test_the_plan():
  """Also of fields that are none by default."""
  flags = ["--config.sink_target=0.3", "--config.optimizer.spike=6"]
  ran = launcher.run("train", "--dry_run", *flags)
  assert ran.returncode == 0, ran.stderr
  assert "parameters, 4 layers" in ran.stdout and "Gflop/s" in ran.stdout


@pytest.fixture
def small_disk(tmp_path):
  """A file system of 24 MB; needs the right to mount one."""
  folder = tmp_path / "disk"
  folder.mkdir()
  made = subprocess.run(
    ["mount", "-t", "tmpfs", "-o", "size=24m", "tmpfs", folder],
    capture_output=True,
    check=False,
  )
  if made.returncode:
    pytest.skip("not allowed to mount a small tmpfs")
  yield folder
  subprocess.run(["umount", "-l", folder], check=True)


@pytest.mark.slow
def test_a_full_disk(whole, train, small_disk):
  workdir, filler = small_disk / "run", small_disk / "filler"
  process = train.start(workdir, "--config.steps=40")
  train.wait_for(workdir, 20, process)
  with open(filler, "wb", buffering=0) as stream, contextlib.suppress(OSError):
    while stream.write(bytes(4096)):
      pass
  code, _, err = train.ended(process)
  assert code == 1
  full = "error: the disk is full: the last complete checkpoint is intact"
  assert any(line.startswith(full) for line in err.splitlines())
  filler.unlink()
  code, _, err = train.ended(train.start(workdir, "--config.steps=40"))
  assert code == 0, err
  assert parameters(workdir) == parameters(whole)


def test_a_report_on_demand(whole, train, tmp_path):
  """Of a run that goes on, and of none."""
  workdir = tmp_path / "run"
  code, _, err = train.ended(train.start(workdir, "--report"))
  assert code == 1 and "no run yet" in err
  workdir.mkdir()
  lines = (whole / "metrics.jsonl").read_text().splitlines()
  (workdir / "metrics.jsonl").write_text("\n".join(lines[:-2]) + '\n{"ki')
  flags = ("--config.steps=40", "--report")
  code, out, err = train.ended(train.start(workdir, *flags))
  assert code == 0, err
  assert "40 of 40 steps" in out and (workdir / "report.html").exists()
  assert not (workdir / "summary.json").exists()


@pytest.mark.slow
def test_a_model_goes_on_as_another_run_s_start(whole, train, tmp_path):
  """--start: the loss begins where the other run's ended."""
  workdir = tmp_path / "run"
  code, _, err = train.ended(
    train.start(workdir, "--config.steps=6", f"--start={whole}")
  )
  assert code == 0, err
  first = json.loads((workdir / "metrics.jsonl").read_text().splitlines()[0])
  ended = json.loads((whole / "summary.json").read_text())["loss"]
  assert first["loss"] == pytest.approx(ended, rel=1e-5)
  code, _, err = train.ended(train.start(workdir, "--config.steps=6"))
  assert code == 1 and "this one begins from random parameters" in err
  code, _, err = train.ended(
    train.start(tmp_path / "b", "--config.model.d_ff=64", f"--start={whole}")
  )
  assert code == 1 and "has d_ff=48, the config 64" in err


def convert(model, out):
  ran = launcher.run("convert", f"--model={model}", "--to=hf", f"--out={out}")
  assert ran.returncode == 0, ran.stderr


@pytest.mark.slow
def test_a_trained_model_goes_everywhere(whole, tmp_path):
  """launch.convert to a folder that transformers' format is read from."""
  convert(whole, tmp_path / "hf")
  params, cfg, tokenizer = sinkjax.load(whole)
  other, other_cfg, other_tokenizer = sinkjax.load(tmp_path / "hf")
  tokens = np.array([tokenizer.encode("Two men loaded nets.", add_bos=True)])
  assert other_tokenizer.encode("Two men loaded nets.", add_bos=True) == list(
    tokens[0]
  )
  np.testing.assert_allclose(
    sinkjax.forward(cfg)(params, tokens).logits,
    sinkjax.forward(other_cfg)(other, tokens).logits,
    atol=1e-5,
  )


@pytest.mark.parity
def test_transformers_reads_a_trained_model(whole, tmp_path):
  import torch
  import transformers

  convert(whole, tmp_path / "hf")
  params, cfg, _ = sinkjax.load(whole)
  tokens = np.random.default_rng(0).integers(3, cfg.vocab_size, (2, 30))
  model = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "hf")
  with torch.no_grad():
    theirs = model(torch.tensor(tokens)).logits.numpy()
  ours = np.asarray(sinkjax.forward(cfg)(params, tokens).logits)
  np.testing.assert_allclose(ours, theirs, atol=2e-5)


def test_chats_that_begin_with_bos_get_no_second_one(train, tmp_path):
  tokenizer = train_tokenizer(["Why is the sky blue?"], 280)
  tokenizer.chat_template = (
    "{{ bos_token }}{% for m in messages %}{{ m.content }}{% endfor %}"
  )
  chats = [[{"role": "user", "content": f"Why is {i}?"}] for i in range(9)]
  lines = [json.dumps({"messages": chat}) for chat in chats]
  source = tmp_path / "chats.jsonl"
  source.write_text("\n".join(lines))
  made = tokenize(gather([str(source)], chats=True), tokenizer)
  save(tmp_path / "made", made, tokenizer)
  flags = [
    f"--config.corpus=('{tmp_path / 'made'}',)",
    "--config.packing.bos=document",
  ]
  process = train.start(tmp_path / "run", *flags)
  code, _, err = train.ended(process)
  assert code == 1 and "writes BOS at the start of each chat" in err


@pytest.mark.thorough
@pytest.mark.parametrize(
  ("flag", "said"),
  [
    ("--config.optimizer.warmup=10", "no room for a warm-up"),
    ("--config.corpus=('/dev/null',)", "neither a file, a folder"),
    ("--config.model.vocab_size=257", "must be at least 259"),
    ("--start=nowhere", "neither a file nor a folder"),
  ],
)
def test_a_dry_run_refuses_what_the_run_does(train, corpus, flag, said):
  """Neither reads a text first."""
  flags = (*train.small, f"--config.corpus=('{corpus}',)", "--config.steps=10")
  done = launcher.run("train", *flags, "--dry_run", flag)
  assert done.returncode == 1 and said in done.stderr
