"""GGUF models in parts, as llama.cpp's own writer splits them."""

import gguf
import jax
import numpy as np
import pytest
from golden_models import write_gguf
from hub_server import Hub, serving
from test_hub import ask

import sinkjax
from sinkjax.weights import identity
from sinkjax.weights.formats.gguf import open_gguf
from sinkjax.weights.formats.gguf_parts import parts
from sinkjax.weights.validate import WeightsError


@pytest.fixture
def split(tmp_path):
  """A model in three parts or more, and the same in one file."""
  write_gguf(tmp_path / "whole.gguf", "llama3")
  write_gguf(tmp_path / "in", "llama3", split_max_tensors=8)
  files = sorted(tmp_path.glob("in-*.gguf"))
  assert len(files) > 2
  return tmp_path / "whole.gguf", files


def test_any_part_is_the_whole_model(split):
  whole, files = split
  one = open_gguf(whole)
  for file in files:
    many = open_gguf(file)
    assert many.tensors.keys() == one.tensors.keys()
    assert many.metadata.keys() > one.metadata.keys()
  wanted, found = sinkjax.load(whole), sinkjax.load(files[1])
  assert wanted.cfg == found.cfg
  jax.tree.map(np.testing.assert_array_equal, wanted.params, found.params)


def test_a_part_that_is_missing_is_named(split):
  _, files = split
  files[2].unlink()
  with pytest.raises(WeightsError, match=f"'{files[2].name}' is not beside it"):
    open_gguf(files[0])


def test_a_part_under_another_name_says_so(split, tmp_path):
  _, files = split
  renamed = files[0].rename(tmp_path / "model.gguf")
  with pytest.raises(WeightsError, match="names must end in -00001-of-0000"):
    open_gguf(renamed)


def test_parts_of_another_place_or_model_are_refused(split):
  _, files = split
  raw = [file.read_bytes() for file in files]
  files[0].write_bytes(raw[1])
  files[1].write_bytes(raw[0])
  with pytest.raises(WeightsError, match="expected part 0 of"):
    open_gguf(files[0])


def test_the_announced_tensors_are_all_there(tmp_path, split):
  _, files = split
  reader = gguf.GGUFReader(files[0], "r+")
  reader.fields["split.tensors.count"].parts[-1][0] += 1
  reader.data.flush()
  with pytest.raises(WeightsError, match="tensors, .* are announced"):
    open_gguf(files[1])


def test_a_result_belongs_to_the_bytes_of_all_parts(split):
  _, files = split
  found = identity.of(str(files[0]))
  assert [row[0] for row in found["files"]] == [file.name for file in files]
  assert identity.unchanged(found, str(files[0]))
  raw = bytearray(files[-1].read_bytes())
  raw[-1] ^= 1
  files[-1].write_bytes(raw)
  assert not identity.unchanged(found, str(files[0]))


@pytest.mark.thorough
def test_a_repositorys_parts_are_fetched_together(split, tmp_path):
  _, files = split
  there = {file.name: file.read_bytes() for file in files}
  with serving(Hub({"main": ("a" * 40, there)})) as url:
    name = f"hf:org/tiny:{files[0].name}"
    (loaded,) = ask(url, tmp_path / "home", ("load", name))
  assert not isinstance(loaded, str), loaded


@pytest.mark.parametrize(
  "name",
  [
    "m.gguf",
    "m-00003-of-00002.gguf",
    "m-00000-of-00002.gguf",
    "m-1-of-2.gguf",
    "m-00001-of-99999.gguf",
  ],
)
def test_other_names_are_one_file(name):
  assert parts(name) == [name]
