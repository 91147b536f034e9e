"""Multiple choice: formats, scores against one pass an ending, the archive."""

import hashlib
import io
import json
import tarfile

import jax
import numpy as np
import pytest

import sinkjax
from sinkjax.experiments.shared import benchmark_tasks as module
from sinkjax.experiments.shared.benchmark_tasks import (
  Item,
  fetch_tasks,
  grade,
  read_task,
)
from sinkjax.weights import packages
from sinkjax.weights.validate import WeightsError


def one_by_one(subject, item, prefix, edits):
  """The answer, from a pass for each ending."""
  f = sinkjax.forward(subject.cfg)
  if edits:
    f = sinkjax.intervene(f, edits)
  f = jax.jit(f)
  best = []
  encode = subject.tokenizer.encode
  for ending in item.endings:
    start = [*prefix, *encode(item.context)]
    tokens = start + encode(ending)
    row = np.zeros((1, 64), int)  # one program: what follows changes nothing
    row[0, : len(tokens)] = tokens
    logits = np.asarray(jax.nn.log_softmax(f(subject.params, row).logits[0]))
    nats = sum(
      float(logits[i - 1, tokens[i]]) for i in range(len(start), len(tokens))
    )
    best.append(nats / len(ending.strip()))
  return item.right[int(np.argmax(best))]


@pytest.mark.slow
@pytest.mark.parametrize(
  ("prefix", "edits"),
  [
    pytest.param([], {}, marks=pytest.mark.slow),
    ([1], {"scores": sinkjax.knockout(0, from_layer=1)}),
    ([1], {"z": sinkjax.scale(1.5)}),
  ],
)
def test_grades_are_those_of_a_pass_for_each_ending(
  subject, items, prefix, edits, monkeypatch
):
  items = items()
  want = [one_by_one(subject, item, prefix, edits) for item in items]
  assert 0 < sum(want) < len(want)
  counted = []
  for size in (1, 100, 1024):  # of a batch
    monkeypatch.setattr(module, "ROW_TOKENS", size)
    got = grade(subject, items, prefix, edits, progress=counted.append)
    assert got.tolist() == want
  assert sum(counted) == 3 * len(items)


def test_reading_a_task():
  task = {
    "task_prefix": "Do it.",
    "example_input_prefix": "\nIn: ",
    "example_output_prefix": "\nOut: ",
    "examples": [
      {"input": "one ", "target_scores": {"yes": 1, " no ": 0}},
      {"input": "all right", "target_scores": {"a": 1, "b": 1}},
      {"input": "two", "target_scores": {"a": 0, "b": 1, "c": 1}},
    ],
  }
  first, second = read_task(task)
  assert first == Item("Do it.\nIn: one\nOut:", (" yes", " no"), (True, False))
  assert second.chance() == pytest.approx(2 / 3)


@pytest.fixture
def archive(tmp_path, monkeypatch):
  """A source archive of two tasks in place of the real one."""
  files, path = {}, tmp_path / "x.tar.gz"
  with tarfile.open(path, "w:gz") as tar:
    for name in ("a", "b/c"):
      examples = [
        {"input": f"{name}{i}", "target_scores": {"x": 1, "y": 0}}
        for i in range(9)
      ]
      data = json.dumps({"examples": examples}).encode()
      file = module._PATH.format(name)
      files[file] = hashlib.sha256(data).hexdigest()
      for member in (f"bigbench-1.0.0/{file}", f"bigbench-1.0.0/other/{name}"):
        info = tarfile.TarInfo(member)
        info.size = len(data)
        tar.addfile(info, io.BytesIO(data))
  package = module.BIGBENCH._replace(files=files)
  monkeypatch.setenv("SINKJAX_CACHE", str(tmp_path / "cache"))
  monkeypatch.setattr(module, "BIGBENCH", package)
  monkeypatch.setattr(module, "TASKS", ("a", "b/c"))
  monkeypatch.setattr(packages, "_source_download", lambda *_: path)
  return tmp_path / "cache"


def test_tasks_come_from_the_archive_once(archive, monkeypatch):
  first = fetch_tasks(["a", "b/c"], 4, seed=0)
  assert {name: len(items) for name, items in first.items()} == {
    "a": 4,
    "b/c": 4,
  }
  assert all("b/c" in item.context for item in first["b/c"])
  monkeypatch.delattr(packages, "_source_download")  # not asked again
  assert fetch_tasks(["a", "b/c"], 4, seed=0) == first
  assert fetch_tasks(["a"], 4, seed=1)["a"] != first["a"]
  assert len(fetch_tasks(["a"], 99, seed=1)["a"]) == 9
  left = [
    str(p.relative_to(archive)) for p in archive.rglob("*") if p.is_file()
  ]
  assert not any("other" in path for path in left)


def test_damage_and_absence_are_refused(archive, monkeypatch):
  with pytest.raises(ValueError, match="tasks must be among"):
    fetch_tasks(["z"], 4, seed=0)
  package = module.BIGBENCH
  wrong = dict.fromkeys(package.files, "0" * 64)
  monkeypatch.setattr(module, "BIGBENCH", package._replace(files=wrong))
  with pytest.raises(WeightsError, match="not what it should be"):
    fetch_tasks(["a"], 4, seed=0)
  missing = {**package.files, "bigbench/none.json": "0"}
  monkeypatch.setattr(module, "BIGBENCH", package._replace(files=missing))
  with pytest.raises(WeightsError, match=r"no bigbench/none\.json"):
    fetch_tasks(["a"], 4, seed=0)
  monkeypatch.undo()


def test_no_network_is_said(tmp_path, monkeypatch):
  monkeypatch.setenv("SINKJAX_CACHE", str(tmp_path))
  monkeypatch.setenv("PIP_INDEX_URL", "http://127.0.0.1:9/simple")
  package = module.BIGBENCH._replace(project="sinkjax-no-such-package")
  with pytest.raises(WeightsError, match=r"could not be fetched.*unpack it"):
    packages.fetch_package("tasks", package)
