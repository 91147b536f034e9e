"""A result belongs to the bytes that it was made from."""

import hashlib
import os
import shutil

import gguf
import jax
import pytest

import sinkjax
from sinkjax.weights import identity
from sinkjax.weights.registry import REGISTRY


@pytest.fixture
def model(tmp_path, tiny):
  params, cfg = tiny
  sinkjax.save(tmp_path / "model", params, cfg.replace(model_type="llama"))
  return tmp_path / "model"


def replace(model, tiny, seed):
  """Other weights of the same names and sizes under the same path."""
  params = sinkjax.init_params(tiny[1], jax.random.key(seed))
  shutil.rmtree(model)
  sinkjax.save(model, params, tiny[1].replace(model_type="llama"))


def test_the_same_bytes_at_another_time_and_place(model, tmp_path):
  found = identity.of(str(model))
  copy = tmp_path / "copy"
  shutil.copytree(model, copy)
  os.utime(copy / "config.json", (0, 0))
  assert identity.unchanged(found, str(model))
  assert identity.unchanged(found, str(copy))


def test_other_weights_under_the_same_name(model, tiny):
  found = identity.of(str(model))
  size = (model / "model.safetensors").stat().st_size
  replace(model, tiny, 7)
  assert (model / "model.safetensors").stat().st_size == size
  assert identity.unchanged(found, str(model)) is False


@pytest.mark.parametrize("change", ["edit", "rename", "add", "remove"])
def test_every_file_counts(model, change):
  found, config = identity.of(str(model)), model / "config.json"
  if change == "edit":
    config.write_text(config.read_text() + "\n")
  elif change == "rename":
    config.rename(model / "other.json")
  elif change == "add":
    (model / "tokenizer.json").write_text("{}")
  else:
    config.unlink()
  assert identity.unchanged(found, str(model)) is False


def test_results_and_hidden_files_in_the_folder_do_not_count(model):
  out = model / "report"
  found = identity.of(str(model), without=out)
  (out / "deep").mkdir(parents=True)
  for path in (out / "summary.json", out / "deep" / "a.csv", model / ".lock"):
    path.write_text("1")
  assert identity.unchanged(found, str(model), without=out)
  assert identity.unchanged(found, str(model)) is False


def test_records_that_do_not_say(model):
  """The bytes of a registered model are pinned by its name."""
  assert identity.unchanged(None, str(model)) is None
  assert all(identity.unchanged(None, name) for name in REGISTRY)


def test_progress_counts_every_byte(model):
  seen = []
  identity.of(str(model), progress=seen.append)
  assert sum(seen) == sum(x.stat().st_size for x in model.iterdir())


def test_each_file_by_its_hash_and_the_licence(model):
  """What others need to know that they have the same bytes."""
  found = identity.of(str(model))
  assert found["licence"] is None
  assert found["contents"] == {
    file.name: hashlib.sha256(file.read_bytes()).hexdigest()
    for file in model.iterdir()
  }
  card = model / "README.md"
  card.write_text("---\nlanguage: en\nlicense: apache-2.0\n---\nlicense: mit\n")
  assert identity.of(str(model))["licence"] == "apache-2.0"
  card.write_text("# A model\n\nlicense: mit\n")
  assert identity.of(str(model))["licence"] is None


def test_a_registered_model_names_its_licence():
  found = identity.of("glassllm-en")
  assert found["licence"] == "MIT"
  assert found["contents"] == REGISTRY["glassllm-en"].files


def test_the_licence_that_a_gguf_file_names(tmp_path):
  for named in "apache-2.0", None:
    path = tmp_path / f"{named}.gguf"
    writer = gguf.GGUFWriter(path, "llama")
    if named:
      writer.add_license(named)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    assert identity.of(str(path))["licence"] == named
