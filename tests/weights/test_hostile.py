"""Hundreds of hostile files for every reader: read, or refused in one line.

Values of odd kind and size stand in place of those of a small valid file. Each
case ends within ten seconds and takes less than a gigabyte.
"""

import copy
import functools
import json
import pathlib
import resource
import shutil
import tempfile
import time
import warnings

import hypothesis
import jax
import numpy as np
import pytest
from golden_models import FAMILIES
from hypothesis import strategies

import sinkjax
from launch import app, config_flags, prompts, resume
from sinkjax.data.activations import Activations
from sinkjax.data.corpus import gather, train_tokenizer
from sinkjax.data.tokens import TokenCorpus
from sinkjax.experiments.shared.swap_texts import SWAP_TEXTS
from sinkjax.train.checkpoint import RunCheckpoints
from sinkjax.train.run_config import TrainConfig
from sinkjax.weights import registry
from sinkjax.weights.chat import render_chat
from sinkjax.weights.tokenizer_files import tokenizer_from_folder

QUICK, SLOW = 12, 500
SECONDS, KILOBYTES = 10, 1 << 20

HOSTILE = (
  None, True, False, -1, 0, 1, 2**31, 2**63, 2**64, 10**30, 10**400, 0.5, -0.0,
  1e39, 1e308, float("nan"), float("inf"), "", "a", "nan", "\x1b[31m", "a\nb",
  "\ud800", "é" * 3000, "../x", "/dev/zero", "\u202e", [], {}, [0], [[]],
  [1] * 50, ["a", 1, None], {"a": 1}, {"content": "x"}, {"String": ""},
)  # fmt: skip
"""Values that take the place of others."""


def nested(depth):
  value = []
  for _ in range(depth):
    value = [value]
  return value


def mutate(value, draw):
  """Other values, keys and lengths at one to three places."""
  value = copy.deepcopy(value)
  for _ in range(draw(strategies.integers(1, 3))):
    places = []
    left = [value]
    while left:
      parent = left.pop()
      keys = parent if isinstance(parent, dict) else range(len(parent))
      for key in keys:
        places.append((parent, key))
        if isinstance(parent[key], dict | list):
          left.append(parent[key])
    if not places:
      break
    parent, key = places[draw(strategies.integers(0, len(places) - 1))]
    kind = draw(strategies.integers(0, 5))
    if kind == 0:
      del parent[key]
    elif kind == 1 and isinstance(parent, dict):
      parent[draw(strategies.sampled_from(("", "a", "type", "\x1b")))] = (
        parent.pop(key)
      )
    elif kind == 2:
      parent[key] = nested(draw(strategies.sampled_from((3, 200, 900))))
    else:
      parent[key] = copy.deepcopy(draw(strategies.sampled_from(HOSTILE)))
  return value


def write(path, value, draw):
  """As JSON, which may be cut."""
  text = json.dumps(value)
  if draw(strategies.integers(0, 9)) == 0:
    text = text[: draw(strategies.integers(0, len(text)))]
  path.write_text(text, "utf-8")


def rewrite(path, draw):
  write(path, mutate(json.loads(path.read_text("utf-8")), draw), draw)


@functools.cache
def tokenizer():
  return train_tokenizer([SWAP_TEXTS], 300)


def use(found):
  if found is not None:
    ids = found.encode("The king sat 12 down.")
    found.decode(ids)
    found.token_to_id("x")


def config(folder, draw):
  model = draw(strategies.sampled_from(("llama3", "gemma3", "mixtral", "gpt2")))
  shutil.copytree(FAMILIES / model, folder, dirs_exist_ok=True)
  rewrite(folder / "config.json", draw)
  return lambda: registry.peek(str(folder))


def tokenizer_json(folder, draw):
  tokenizer().save(folder)
  rewrite(folder / "tokenizer.json", draw)
  return lambda: use(tokenizer_from_folder(folder))


def tokenizer_config(folder, draw):
  tokenizer().save(folder)
  about = {"eos_token_id": [1, 2], "bos_token_id": 0}
  (folder / "generation_config.json").write_text(json.dumps(about))
  names = ("tokenizer_config.json", "generation_config.json")
  rewrite(folder / draw(strategies.sampled_from(names)), draw)
  return lambda: use(tokenizer_from_folder(folder))


def legacy(folder, draw):
  tokenizer().save(folder)
  model = json.loads((folder / "tokenizer.json").read_text())["model"]
  (folder / "tokenizer.json").unlink()
  merges = "\n".join(" ".join(pair) for pair in model["merges"])
  (folder / "merges.txt").write_text(f"#version: 0.2\n{merges}\n", "utf-8")
  (folder / "vocab.json").write_text(json.dumps(model["vocab"]))
  (folder / "added_tokens.json").write_text(json.dumps({"<x>": 300}))
  about = {"tokenizer_class": "GPT2Tokenizer"}
  (folder / "tokenizer_config.json").write_text(json.dumps(about))
  names = ("vocab.json", "added_tokens.json", "tokenizer_config.json")
  rewrite(folder / draw(strategies.sampled_from(names)), draw)
  return lambda: use(tokenizer_from_folder(folder))


PIECES = (
  "{{ messages }}", "{{ 1 / 0 }}", "{% for m in messages %}", "{% endfor %}",
  "{{ m.content * 10**9 }}", "{{ bos_token.__class__ }}", "{{ x.y.z }}", "{%",
  "{{ raise_exception('\x1b[31m') }}", "{{ 10**10**7 }}", "\x1b", "text",
  "{{ messages[0].content }}", "{% macro f() %}{{ f() }}{% endmacro %}",
  "{{ f() }}", "{{ cycler.__init__.__globals__ }}", "{{ '%999999999d' % 1 }}",
)  # fmt: skip


def template(folder, draw):
  pieces = draw(strategies.lists(strategies.sampled_from(PIECES), max_size=4))
  found = copy.copy(tokenizer())
  found.chat_template = "".join(pieces)
  return lambda: render_chat(found, [{"role": "user", "content": "hi"}])


def jsonl(folder, draw):
  chat = [{"role": "user", "content": "hi"}]
  lines = [{"text": "The king sat."}, {"messages": chat}]
  lines = [mutate(one, draw) for one in lines]
  text = "\n".join(map(json.dumps, lines))
  ends = draw(strategies.sampled_from(("", "\n", "\x00", "\n[" * 5000)))
  path = folder / "p.jsonl"
  path.write_text(text + ends, "utf-8")
  if draw(strategies.booleans()):
    return lambda: prompts.read_texts(None, str(path))
  return lambda: gather([str(path)])


@functools.cache
def orbax_folder():
  folder = pathlib.Path(tempfile.mkdtemp()) / "model"
  params = sinkjax.init_params(sinkjax.TINY, jax.random.key(0))
  sinkjax.save(folder, params, sinkjax.TINY, form="orbax")
  return folder


def manifest(folder, draw):
  path = folder / "model"
  path.mkdir()
  shutil.copy(orbax_folder() / "sinkjax.json", path)
  shutil.copytree(orbax_folder() / "params", path / "params")
  rewrite(path / "sinkjax.json", draw)
  return lambda: sinkjax.load(path)


STATE = {"a": np.arange(6, dtype=np.float32), "step": np.int32(3)}


@functools.cache
def steps():
  folder = pathlib.Path(tempfile.mkdtemp())
  checkpoints = RunCheckpoints(folder)
  checkpoints.save(3, STATE, {"records": []}, loss=1.0)
  checkpoints.close()
  return folder


def checkpoint(folder, draw):
  shutil.copytree(steps(), folder, dirs_exist_ok=True)
  files = [p for p in (folder / "3").rglob("*") if p.is_file()]
  path = draw(strategies.sampled_from(sorted(files)))
  try:
    rewrite(path, draw)
  except ValueError:
    raw = bytearray(path.read_bytes())
    at = draw(strategies.integers(0, max(0, len(raw) - 1)))
    raw[at : at + 1] = draw(strategies.binary(max_size=9))
    path.write_bytes(raw)

  def read():
    found = RunCheckpoints(folder)
    try:
      found.restore(STATE)
    finally:
      found.close()

  return read


WORDS = ("--config.", "=", "steps", "model.", "optimizer", ".peak", "1e999",
  "none", "(" * 300, "'", "[1,", "--noconfig.", "9" * 5000, "nan", "\x1b",
  "corpus", "-1", "{}", "x" * 3000, "('a',)", "1+2", "__class__")  # fmt: skip


def flags(folder, draw):
  text = st_text(draw)
  words = ["train", f"--config.{text}", st_text(draw)]

  def read():
    _, given = config_flags.split(words)
    TrainConfig.from_dict(config_flags.read(None, given, TrainConfig))

  return read


def st_text(draw):
  names = strategies.sampled_from((*WORDS, *TrainConfig.__dataclass_fields__))
  return "".join(draw(strategies.lists(names, min_size=1, max_size=4)))


def corpus(folder, draw):
  made = TokenCorpus.of([[1, 2], [3]], vocab_size=9)
  made.save(folder / "ids")
  rewrite(folder / "ids" / "corpus.json", draw)
  return lambda: TokenCorpus.read(folder / "ids")


def capture(folder, draw):
  array = {"dtype": "float32", "shape": [None, 2]}
  part = {"file": "part-00000.safetensors", "windows": 1, "sha256": "0"}
  about = {"schema": 1, "parts": [part], "arrays": {"tokens": array}}
  write(folder / "capture.json", mutate(about, draw), draw)
  return lambda: Activations(folder)


def summary(folder, draw):
  about = {"complete": True, "request": {"a": 1}, "weights": {"sha256": "0"}}
  write(folder / "summary.json", mutate(about, draw), draw)
  return lambda: app.finished(folder, {"a": 1}, overwrite=False)


def partial(folder, draw):
  (folder / resume.NAME).write_bytes(draw(strategies.binary(max_size=200)))
  return lambda: resume.Partial(folder, {}, {}, overwrite=False)


READERS = {
  "config": config,
  "tokenizer": tokenizer_json,
  "tokenizer_config": tokenizer_config,
  "legacy": legacy,
  "template": template,
  "jsonl": jsonl,
  "manifest": manifest,
  "checkpoint": checkpoint,
  "flags": flags,
  "corpus": corpus,
  "capture": capture,
  "summary": summary,
  "partial": partial,
}
UNNAMED = ("template", "flags")
"""They read no file."""


def run(name, parent, examples):
  refused = []

  @hypothesis.settings(
    max_examples=examples,
    derandomize=True,
    database=None,
    deadline=None,
    phases=[hypothesis.Phase.generate],  # to shrink a case takes minutes
    suppress_health_check=list(hypothesis.HealthCheck),
  )
  @hypothesis.given(data=strategies.data())
  def case(data):
    with tempfile.TemporaryDirectory(dir=parent) as path:
      folder = pathlib.Path(path)
      read = READERS[name](folder, data.draw)
      begun = time.monotonic()
      before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
      with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
          read()
        except ValueError as error:
          message = app.one_line(str(error))
          refused.append(message)
          assert name in UNNAMED or path in message, message
      assert time.monotonic() - begun < SECONDS
      after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
      assert after - before < KILOBYTES

  case()
  # Orbax reads around many of its own files.
  assert len(refused) > (0 if name == "checkpoint" else examples // 5)


@pytest.mark.thorough
@pytest.mark.parametrize("name", READERS)
def test_hostile_files(tmp_path, name):
  run(name, tmp_path, QUICK)


@pytest.mark.slow
@pytest.mark.parametrize("name", READERS)
def test_five_hundred_hostile_files(tmp_path, name):
  run(name, tmp_path, SLOW if name not in ("template",) else SLOW // 5)
