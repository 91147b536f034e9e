"""A launcher that fails, at any stage, leaves what was there before it."""

import errno
import functools
import json
import os
import random
import re
import resource
import shutil
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
  "bench": ["--suite=train", "--quick", "--peers=ours"],
  "analyze-sinks": ["--max_tokens=8", "--find_sinks"],
  "jacobian": ["--max_tokens=4"],
  "jacobian-part": ["--max_tokens=4", "--part=1/2"],
  "capture": ["--length=8", "--windows=4"],
  "convert": ["--to=hf"],
  "convert-orbax": ["--to=orbax"],
  "corpus": ["--vocab_size=270"],
  "explore": ["--max_tokens=4"],
  "gallery": [],
  "reproduce": ["--experiment=smoothing"],
  "reproduce-report": ["--report", "--experiment=smoothing"],
  "reproduce-compact": ["--report", "--compact"],
  "train": ["--config.steps=10", "--config.held_out=0.3"],
  "train-report": ["--report"],
}
DONE = {"reproduce-report": "reproduce", "reproduce-compact": "reproduce"}
DONE |= {"train-report": "train"}
"""Which command's result they are given."""
WHOLE = ("convert", "convert-orbax", "corpus")
"""What writes a folder that appears at once, and refuses one that is there."""
WRITES_NO_FILE = "generate"
STAYS = ("partial.npz", "part-", "smoothing")
"""What the next start goes on from."""


def short_gallery():
  """A row of the gallery takes a minute: one that is recorded in its place."""
  from sinkjax.experiments.shared import gallery

  row = (launcher.ROOT / "docs" / "models" / "strong.json").read_text("utf-8")
  gallery.measure = lambda subject, progress: json.loads(row)


def short_bench():
  """Nothing is timed."""
  from launch.suites import measure

  measure.run = lambda *args, **kw: {"seconds": 1.0, "peak_bytes": 7}


SHORT = {"gallery": short_gallery, "bench": short_bench}


def in_turn(*functions):
  for function in functions:
    function()


def first_of(name, *more):
  """What is called in a launcher's process before it starts."""
  return functools.partial(in_turn, *filter(None, (SHORT.get(name),)), *more)


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


@pytest.fixture(scope="module")
def done(model, corpus, train, tmp_path_factory):
  """`done(name)`: the folder that a command has filled, once for all tests."""
  folder = tmp_path_factory.mktemp("done")

  @functools.cache
  def made(name):
    if name in DONE:
      shutil.copytree(made(DONE[name]), folder / name)
    at, flags = _command(name, folder / name, model, corpus, train)
    ran = launcher.run(at, *flags, first=first_of(name))
    assert ran.returncode == 0, ran.stderr
    return folder / name

  return made


def _command(full, out, model, corpus, train):
  """(launcher, its flags)."""
  name, _, _ = full.partition("-")
  where = "--workdir" if name == "train" else "--out"
  of = {
    "bench": [],
    "corpus": [f"--corpus={corpus}"],
    "capture": [f"--corpus={corpus}", f"--model={model}"],
    "train": [*train.small, f"--config.corpus=('{corpus}',)"],
  }
  own = of.get(name, [f"--model={model}"])
  more = LAUNCHERS[full]
  if full in DONE and name == "train":  # the config of the run itself
    more = [*LAUNCHERS[DONE[full]], *more]
  return name, [*own, *more, f"{where}={out}"]


@pytest.fixture
def command(model, corpus, train, done):
  """`command(name, out)`: (launcher, its flags); `out` is made if need be."""

  def made(full, out):
    if full in DONE:
      shutil.copytree(done(DONE[full]), out)
    return _command(full, out, model, corpus, train)

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
  at, flags = command(name, out)
  before = listing(tmp_path)
  first = first_of(name, FAILURES[failure])
  done = launcher.run(at, *flags, env=env, first=first)
  left = [x for x in listing(tmp_path) if not x.startswith("cache")]
  if name not in DONE and out.exists() and kept(out):
    left.remove("out")  # it holds what the next start goes on from
  if done.returncode == 0:  # all that it writes is smaller
    return
  if failure not in ("no byte", "1 KB"):  # which hold no error either
    check_refusal(done)
  assert left == [x for x in before if not x.startswith("cache")]
  done = launcher.run(at, *flags, env=env, first=first_of(name))
  assert done.returncode == 0, done.stderr
  assert not list(tmp_path.rglob(".*.unfinished"))


def kept(out):
  """Whether a folder has what its next start goes on from."""
  return any(any(word in p.name for word in STAYS) for p in out.iterdir())


@pytest.mark.thorough
@pytest.mark.parametrize(
  ("name", "failure"),
  [
    ("analyze", "third rename"),
    ("bench", "third rename"),
    ("corpus", "20 KB"),
    ("gallery", "first rename"),
  ],
)
def test_a_write_that_fails(command, tmp_path, name, failure):
  fails(command, tmp_path, name, failure)


@pytest.mark.slow
@pytest.mark.parametrize("failure", FAILURES)
@pytest.mark.parametrize("name", LAUNCHERS)
def test_a_full_disk_for_every_writer(command, tmp_path, name, failure):
  fails(command, tmp_path, name, failure)


def whole_disk():
  """The standard output takes no byte."""
  os.dup2(os.open("/dev/full", os.O_WRONLY), 1)


@pytest.mark.thorough
@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="of Linux")
def test_a_text_for_a_full_disk(model):
  """`generate` writes no file: its text may go into one."""
  flags = (f"--model={model}", "--prompt=The", "--max_tokens=3")
  check_refusal(launcher.run("generate", *flags, first=whole_disk))


def test_every_launcher_that_writes_is_here():
  """What defines where to write to is killed, and fills a disk."""
  folder = launcher.ROOT / "launch"
  writes = re.compile(r"flags\.DEFINE_string\(\s*\"(out|workdir)\"")
  names = {p.stem for p in folder.glob("*.py") if writes.search(p.read_text())}
  assert "train" in names and len(names) > 8
  covered = {name.partition("-")[0] for name in LAUNCHERS}
  assert not names - covered and WRITES_NO_FILE not in names


def result(folder):
  """{path: its text, if it is a table of numbers that are always the same}."""
  found = {}
  for path in folder.rglob("*"):
    name = str(path.relative_to(folder))
    # Time and process name the first; a run that is stopped saves a step of
    # its own.
    if "tfevents" not in name and "checkpoints/" not in name:
      same = path.suffix == ".csv" and path.name != "train.csv"  # of speed
      # Orbax draws names of its arrays' files.
      name = re.sub(r"[0-9a-f]{32}", "*", name)
      found[name] = path.read_text() if same else None
  return found


@pytest.mark.slow
@pytest.mark.parametrize("number", ["SIGKILL", "SIGTERM", "SIGINT"])
def test_twenty_kills_over_all_launchers(command, done, tmp_path, number):
  """The same command then ends with what an undisturbed one has written."""
  rng, sent = random.Random(number), getattr(signal, number)
  names = list(LAUNCHERS)
  for i in range(20 if number == "SIGKILL" else len(names)):
    name = names[i % len(names)]
    folder = tmp_path / f"{i}"
    at, flags = command(name, folder / "out")
    before = listing(folder) if folder.exists() else []
    process = launcher.Launched(at, *flags, first=first_of(name))
    time.sleep(rng.uniform(0.2, 6))
    process.send_signal(sent)
    _, err = process.communicate(120)
    assert "Traceback" not in err, err
    if process.returncode not in (0, -9):
      assert process.returncode in (130, 143, -2, -15), (name, err)
      if name != "train":  # a step that is saved stays
        now = listing(folder) if folder.exists() else []
        assert now == before or kept(folder / "out"), name
    # A folder that appears whole was done before the signal came.
    if name not in WHOLE or not (folder / "out").exists():
      again = launcher.run(at, *flags, timeout=900, first=first_of(name))
      assert again.returncode == 0, (name, again.stderr)
    left = [p.name for p in folder.rglob(".*")]
    assert not left, (name, left)
    assert result(folder / "out") == result(done(name)), name
