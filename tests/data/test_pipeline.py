"""Tests of sinkjax.data.pipeline."""

import json
import subprocess
import sys

import numpy as np
import pytest

from sinkjax.data.packing import Packing, Windows
from sinkjax.data.pipeline import Batches, StateError
from sinkjax.data.tokens import TokenCorpus


def _windows(documents=7, **packing):
  ids = np.arange(10 * documents).reshape(documents, 10)
  corpus = TokenCorpus.of(ids, vocab_size=1000)
  return Windows(corpus, Packing(5, **packing))


def _take(batches, count):
  return [next(batches)["tokens"] for _ in range(count)]


@pytest.mark.parametrize("threads", [0, 2])
def test_an_epoch_has_every_window_once_in_another_order(threads):
  windows = _windows()
  batches = Batches(windows, batch=2, threads=threads)
  assert batches.epoch_batches == 7
  rows = [row.tolist() for b in _take(batches, 14) for row in b]
  every = sorted(windows[i]["tokens"].tolist() for i in range(14))
  assert sorted(rows[:14]) == every and sorted(rows[14:]) == every
  assert rows[:14] != rows[14:] and rows[:14] != every


def test_the_seed_is_the_order():
  windows = _windows()
  a, b, c = (_take(Batches(windows, batch=2, seed=s), 3) for s in (0, 0, 1))
  assert np.array_equal(a, b) and not np.array_equal(a, c)


@pytest.mark.parametrize("processes", [1, 2, 4])
def test_processes_share_the_same_batches(processes):
  windows = _windows()
  whole = _take(Batches(windows, batch=4), 5)
  shares = [
    _take(Batches(windows, batch=4, process=i, processes=processes), 5)
    for i in range(processes)
  ]
  for step, batch in enumerate(whole):
    joined = np.concatenate([share[step] for share in shares])
    assert np.array_equal(joined, batch)


def test_resume_with_another_number_of_processes():
  windows = _windows()
  whole = _take(Batches(windows, batch=4), 9)
  four = [Batches(windows, batch=4, process=i, processes=4) for i in range(4)]
  for share in four:
    _take(share, 4)
  one = Batches(windows, batch=4)
  one.restore(json.loads(json.dumps(four[2].state())))
  assert np.array_equal(_take(one, 5), whole[4:])


@pytest.mark.thorough
def test_resume_in_a_new_process(tmp_path):
  batches = Batches(_windows(), batch=2)
  _take(batches, 11)
  (tmp_path / "state.json").write_text(json.dumps(batches.state()))
  code = f"""
import json, sys
sys.path[:0] = {sys.path!r}
from tests.data.test_pipeline import Batches, _take, _windows
batches = Batches(_windows(), batch=2)
batches.restore(json.load(open({str(tmp_path / "state.json")!r})))
print(json.dumps([b.tolist() for b in _take(batches, 4)]))
"""
  out = subprocess.run(
    [sys.executable, "-c", code], capture_output=True, text=True, check=True
  )
  wanted = [b.tolist() for b in _take(batches, 4)]
  assert json.loads(out.stdout) == wanted


@pytest.mark.parametrize(
  ("other", "word"),
  [
    (Batches(_windows(documents=8), batch=2), "corpus"),
    (Batches(_windows(mask="document"), batch=2), "packing"),
    (Batches(_windows(), batch=4), "batch"),
    (Batches(_windows(), batch=2, seed=1), "seed"),
  ],
)
def test_a_state_of_other_data_is_refused(other, word):
  batches = Batches(_windows(), batch=2)
  with pytest.raises(StateError, match=f"data state has {word}"):
    batches.restore(other.state())
  assert batches.fingerprint() != other.fingerprint()


def test_what_is_wrong_is_said():
  with pytest.raises(ValueError, match="shared by 3 processes"):
    Batches(_windows(), batch=4, processes=3)
  with pytest.raises(ValueError, match="more than the 14"):
    Batches(_windows(), batch=15)
