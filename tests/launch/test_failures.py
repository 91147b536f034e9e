"""A launcher that fails, at any stage, leaves what was there before it."""

import errno
import functools
import os
import random
import resource
import signal
import time

import jax
import launcher
import pytest

import sinkjax
from sinkjax.data.corpus import train_tokenizer
from sinkjax.experiments.shared.swap_texts import SWAP_TEXTS

LAUNCHERS = {
  "analyze": ["--max_tokens=8"],
  "jacobian": ["--max_tokens=4"],
  "capture": ["--length=8", "--windows=4"],
  "convert": ["--to=hf"],
  "convert-orbax": ["--to=orbax"],
  "corpus": ["--vocab_size=270"],
  "explore": ["--max_tokens=4"],
  "reproduce": ["--experiment=smoothing"],
  "train": ["--config.steps=10", "--config.held_out=0.3"],
}
STAYS = ("partial.npz", "part-0", "smoothing")
"""What the next start goes on from."""


@pytest.fixture(scope="module")
def model(tmp_path_factory):
  """A small model with a tokenizer, as a folder."""
  tokenizer = train_tokenizer([SWAP_TEXTS], 300)
  cfg = sinkjax.TINY.replace(vocab_size=300, max_len=96)
  folder = tmp_path_factory.mktemp("model") / "tiny"
  sinkjax.save(
    folder, sinkjax.init_params(cfg, jax.random.key(0)), cfg, tokenizer
  )
  return folder


@pytest.fixture
def command(model, corpus, train):
  """`command(name, out)`: (launcher, its flags)."""

  def made(full, out):
    name, _, _ = full.partition("-")
    where = "--workdir" if name == "train" else "--out"
    of = {
      "corpus": [f"--corpus={corpus}"],
      "capture": [f"--corpus={corpus}", f"--model={model}"],
      "train": [*train.small, f"--config.corpus=('{corpus}',)"],
    }
    own = of.get(name, [f"--model={model}"])
    return name, [*own, *LAUNCHERS[full], f"{where}={out}"]

  return made


def listing(folder):
  found = (str(p.relative_to(folder)) for p in folder.rglob("*"))
  return sorted(p for p in found if not any(word in p for word in STAYS))


def check_refusal(done):
  """One line, short and clean, without a traceback."""
  assert done.returncode == 1, (done.returncode, done.stderr)
  errors = [x for x in done.stderr.splitlines() if x.startswith("error: ")]
  assert len(errors) == 1 and len(errors[0]) <= 307, done.stderr
  assert errors[0].isprintable() and "Traceback" not in done.stderr
  # Bars are of one line each, which they return to.
  said = [x for x in done.stderr.splitlines() if "it/s" not in x]
  assert sum("|" not in x and bool(x.strip()) for x in said) <= 3, done.stderr


WRONG = {
  "analyze": [["--prefix=zebra"], ["--max_tokens=97"], ["--eps=nan"]],
  "jacobian": [["--prefix=zebra"], ["--edit=knockout:77"]],
  "capture": [["--sites=nope"], ["--length=97"], ["--corpus=/dev/null"]],
  "convert": [["--model=/nowhere"]],
  "corpus": [["--vocab_size=9"], ["--part_mb=0"], ["--corpus=/nowhere"]],
  "explore": [["--prefix=zebra"], ["--edit=knockout key=77"]],
  "reproduce": [["--prefix=zebra"], ["--config.smoothing.eps=-1.0"]],
  "train": [
    ["--config.held_out=0.999"],
    ["--config.probe_tokens=33"],
    ["--config.corpus=('/nowhere',)"],
    ["--mesh=data:3"],
  ],
}


@pytest.mark.slow
@pytest.mark.parametrize(
  ("name", "flags"), [(n, f) for n, all_ in WRONG.items() for f in all_]
)
def test_a_mistake_that_any_stage_finds(command, tmp_path, name, flags):
  (tmp_path / "old").mkdir()
  before = listing(tmp_path)
  for out in (tmp_path / "new" / "er", tmp_path / "old"):
    at, given = command(name, out)
    check_refusal(launcher.run(at, *given, *flags))
    assert listing(tmp_path) == before


def small_files(size):
  """No file may grow beyond a size, as on a disk that is full."""
  hard = resource.getrlimit(resource.RLIMIT_FSIZE)[1]
  resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))


def failing_renames(number):
  """The rename of this number, and all after it, fail."""
  real, count = os.replace, 0

  def replace(*args, **kwargs):
    nonlocal count
    count += "compiled" not in str(args[0])
    if count >= number:
      raise OSError(errno.ENOSPC, "No space left on device")
    return real(*args, **kwargs)

  os.replace = replace


FAILURES = {
  "no byte": functools.partial(small_files, 0),
  "1 KB": functools.partial(small_files, 1000),
  "20 KB": functools.partial(small_files, 20_000),
  "first rename": functools.partial(failing_renames, 1),
  "third rename": functools.partial(failing_renames, 3),
}


def fails(command, tmp_path, name, failure):
  """One run that cannot write, then one that can."""
  out, env = tmp_path / "out", {"SINKJAX_CACHE": str(tmp_path / "cache")}
  (tmp_path / "cache").mkdir()
  before = listing(tmp_path)
  at, flags = command(name, out)
  done = launcher.run(at, *flags, env=env, first=FAILURES[failure])
  left = [x for x in listing(tmp_path) if not x.startswith("cache")]
  if out.exists() and any(
    any(w in p.name for w in STAYS) for p in out.iterdir()
  ):
    left.remove("out")  # it holds what the next start goes on from
  if done.returncode == 0:  # all that it writes is smaller
    return
  if failure not in ("no byte", "1 KB"):  # which hold no error either
    check_refusal(done)
  assert left == [x for x in before if not x.startswith("cache")]
  done = launcher.run(at, *flags, env=env)
  assert done.returncode == 0, done.stderr
  assert not list(tmp_path.rglob(".*.unfinished"))


@pytest.mark.thorough
@pytest.mark.parametrize(
  ("name", "failure"), [("analyze", "third rename"), ("corpus", "20 KB")]
)
def test_a_write_that_fails(command, tmp_path, name, failure):
  fails(command, tmp_path, name, failure)


@pytest.mark.slow
@pytest.mark.parametrize("failure", FAILURES)
@pytest.mark.parametrize("name", LAUNCHERS)
def test_a_full_disk_for_every_writer(command, tmp_path, name, failure):
  fails(command, tmp_path, name, failure)


@pytest.mark.slow
@pytest.mark.parametrize("number", ["SIGKILL", "SIGTERM", "SIGINT"])
def test_twenty_kills_over_all_launchers(command, tmp_path, number):
  """The same command then runs, and nothing but its result is there."""
  rng, sent = random.Random(number), getattr(signal, number)
  for i in range(20 if number == "SIGKILL" else 8):
    name = list(LAUNCHERS)[i % len(LAUNCHERS)]
    folder = tmp_path / f"{i}"
    at, flags = command(name, folder / "out")
    process = launcher.Launched(at, *flags)
    time.sleep(rng.uniform(0.2, 6))
    process.send_signal(sent)
    _, err = process.communicate(120)
    assert "Traceback" not in err, err
    if process.returncode not in (0, -9):
      assert process.returncode in (130, 143, -2, -15), (name, err)
      if name != "train":  # a step that is saved stays
        assert not folder.exists() or not listing(folder), name
    again = launcher.run(at, *flags, timeout=900)
    assert again.returncode == 0, (name, again.stderr)
    left = [p.name for p in folder.rglob(".*")]
    assert not left, (name, left)
