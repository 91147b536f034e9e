"""A measurement that was stopped goes on, and ends as if it had not been."""

import dataclasses
import json
from typing import NamedTuple

import numpy as np
import pytest

from sinkjax.experiments import BY_NAME
from sinkjax.experiments.harness import kept, runner
from sinkjax.experiments.paper.perturbation.experiment import Config

REQUEST = {"model": "a", "config": {"tokens": 5}}
WEIGHTS = {"a": "1234"}


class Pair(NamedTuple):
  first: np.ndarray
  second: float


@dataclasses.dataclass
class Whole:
  pair: Pair
  by_name: dict


NEST = Whole(
  Pair(np.array([1.5, np.nan], np.float32), 2.0),
  {"a/b": np.arange(3), "c": (np.array(True), np.array("ä"))},
)


def never():
  raise AssertionError("a part that was kept is measured again")


@pytest.mark.parametrize(
  "value", [np.eye(2), (np.arange(2), 1.0), NEST], ids=["one", "tuple", "nest"]
)
def test_a_part_is_read_as_it_was_made(tmp_path, value):
  """Dtypes, shapes and bits; and as a run without a folder has it."""
  made = kept.Kept(tmp_path, REQUEST, WEIGHTS)("part", lambda: value)
  read = kept.Kept(tmp_path, REQUEST, WEIGHTS)("part", never)
  plain = kept.plainly("part", lambda: value)
  for one in (made, read):
    np.testing.assert_equal(one, plain)
  leaves = kept.flat(plain)
  assert all(
    leaves[name].dtype == value.dtype and leaves[name].shape == value.shape
    for name, value in kept.flat(read).items()
  )


def test_a_nest_is_dicts_and_tuples():
  found = kept.plainly("part", lambda: NEST)
  assert found["pair"][1] == 2 and found["by_name"]["c"][1] == "ä"
  np.testing.assert_array_equal(found["by_name"]["a/b"], [0, 1, 2])


def test_it_goes_on_after_the_parts_that_are_there(tmp_path, capsys):
  first = kept.Kept(tmp_path, REQUEST, WEIGHTS)
  first("text", np.array, 1.0)
  first("text", np.array, 2.0)
  then = kept.Kept(tmp_path, REQUEST, WEIGHTS)
  assert "goes on after 2 parts" in capsys.readouterr().out
  assert [then("text", never), then("text", never)] == [1.0, 2.0]
  assert then("text", np.array, 3.0) == 3.0


def test_parts_of_another_request_are_not_touched(tmp_path):
  kept.Kept(tmp_path, REQUEST, WEIGHTS)("text", np.array, 1.0)
  with pytest.raises(ValueError, match="unfinished .* --overwrite"):
    kept.Kept(tmp_path, REQUEST | {"model": "b"}, WEIGHTS)
  assert kept.Kept(tmp_path, REQUEST, WEIGHTS)("text", never) == 1.0
  anew = kept.Kept(tmp_path, REQUEST, WEIGHTS, overwrite=True)
  assert anew("text", np.array, 2.0) == 2.0


@pytest.mark.parametrize("changed", ["weights", "code"])
def test_parts_of_other_bytes_are_measured_again(
  tmp_path, monkeypatch, capsys, changed
):
  kept.Kept(tmp_path, REQUEST, WEIGHTS)("text", np.array, 1.0)
  weights = WEIGHTS
  if changed == "weights":
    weights = {"a": "5678"}
  else:
    here = kept._here()
    monkeypatch.setattr(kept, "_here", lambda: here | {"code": "other"})
  anew = kept.Kept(tmp_path, REQUEST, weights)
  assert "have changed" in capsys.readouterr().out
  assert anew("text", np.array, 2.0) == 2.0


class Stopped(Exception):
  pass


@pytest.mark.thorough
def test_a_stopped_experiment_ends_as_one_that_was_not(
  tmp_path, monkeypatch, subject, text
):
  """Stopped between its two parts: the files hold the same numbers."""
  entry = BY_NAME["perturbation"]
  config = Config(texts=text, batch=1, from_layer=1)
  request = runner.Request(entry, config, {"model": "tiny", "prefix": "auto"})
  monkeypatch.setattr(runner.identity, "of", lambda *a, **kw: {"bytes": "1"})

  def run(folder):
    runner.run(folder, request, lambda: subject, overwrite=False)

  run(tmp_path / "whole")
  call, limit = kept.Kept.__call__, 1

  def stopping(self, *args, **kwargs):
    if self._count == limit:
      raise Stopped
    return call(self, *args, **kwargs)

  monkeypatch.setattr(kept.Kept, "__call__", stopping)
  stops = 0
  while not (tmp_path / "parts" / "result.json").exists():
    try:
      run(tmp_path / "parts")
    except Stopped:
      stops, limit = stops + 1, limit + 1
  assert stops == 1
  names = [
    {p.name for p in (tmp_path / x).iterdir()} for x in ("whole", "parts")
  ]
  assert names[0] == names[1] and kept.FOLDER not in names[1]
  whole, parts = (
    json.loads((tmp_path / x / "result.json").read_text())
    for x in ("whole", "parts")
  )
  assert whole["numbers"] == parts["numbers"]
  assert whole["claims"] == parts["claims"]
  for array in np.load(tmp_path / "whole" / "arrays.npz").items():
    np.testing.assert_array_equal(
      np.load(tmp_path / "parts" / "arrays.npz")[array[0]], array[1]
    )


def test_nothing_is_left_where_no_part_was_done(tmp_path, monkeypatch, subject):
  entry = BY_NAME["perturbation"]
  request = runner.Request(entry, Config(texts="none"), {"model": "tiny"})
  monkeypatch.setattr(runner.identity, "of", lambda *a, **kw: {"bytes": "1"})
  with pytest.raises(ValueError):
    runner.run(tmp_path / "out", request, lambda: subject, overwrite=False)
  assert not (tmp_path / "out").exists()
