"""Values of odd kind or size end in one line with the file and the key."""

import json
import shutil
import struct

import pytest
from golden_models import FAMILIES

import sinkjax
from sinkjax.weights import registry
from sinkjax.weights.tokenizer import Tokenizer
from sinkjax.weights.validate import WeightsError


def copy(tmp_path, model, **changes):
  """A golden model with other entries in its config.json."""
  folder = tmp_path / model
  shutil.copytree(FAMILIES / model, folder)
  config = json.loads((folder / "config.json").read_text())
  if changes:
    (folder / "config.json").write_text(json.dumps(config | changes))
  return folder


def refused(folder, *words):
  """By `load` and by the dry run alike."""
  for read in (registry.peek, sinkjax.load):
    with pytest.raises(WeightsError) as error:
      read(str(folder))
    message = str(error.value)
    assert "\n" not in message and len(message) < 300
    assert all(word in message for word in words), message


@pytest.mark.parametrize("value", [10**400, 1e39, float("inf"), float("nan")])
@pytest.mark.parametrize("key", ["rms_norm_eps", "query_pre_attn_scalar"])
def test_numbers_beyond_float32(tmp_path, key, value):
  folder = copy(tmp_path, "gemma2", **{key: value})
  refused(folder, "config.json", key)


@pytest.mark.parametrize("value", [1e-39, 1e-320])
@pytest.mark.parametrize("key", ["rms_norm_eps", "final_logit_softcapping"])
def test_numbers_whose_inverse_is_infinite(tmp_path, key, value):
  folder = copy(tmp_path, "gemma2", **{key: value})
  refused(folder, "config.json", "1.18e-38")


@pytest.mark.parametrize("value", [0, -2])
@pytest.mark.parametrize("model", ["gemma2", "gemma3", "cohere2"])
def test_a_period_of_no_layers(tmp_path, model, value):
  changes = {"sliding_window_pattern": value, "layer_types": None}
  refused(
    copy(tmp_path, model, **changes), "config.json", "sliding_window_pattern"
  )


def change_header(folder, change):
  """Rewrites the header of model.safetensors, which keeps its length."""
  path = folder / "model.safetensors"
  raw = path.read_bytes()
  (size,) = struct.unpack("<Q", raw[:8])
  header = change(json.loads(raw[8 : 8 + size]))
  text = json.dumps(header, separators=(",", ":")).encode()
  path.write_bytes(struct.pack("<Q", len(text)) + text + raw[8 + size :])


@pytest.mark.parametrize("model", sorted(p.name for p in FAMILIES.iterdir()))
def test_a_dry_run_of_every_family(model):
  """With the names of all tensors, also where each expert has its own."""
  cfg, _, parameters = registry.peek(str(FAMILIES / model))
  assert cfg.n_layers and parameters


def test_a_dry_run_reads_headers(tmp_path):
  path = copy(tmp_path, "llama3") / "model.safetensors"
  path.write_bytes(b"\xff" * 7 + b"\x0f" + path.read_bytes()[8:])
  refused(path.parent, "model.safetensors", "header")


@pytest.mark.parametrize("what", ["missing", "extra", "shape", "dtype"])
def test_a_dry_run_compares_tensors_with_the_config(tmp_path, what):
  folder, name = copy(tmp_path, "llama3"), "model.norm.weight"

  def change(header):
    entry = header[name]
    if what == "missing":
      header["model.other.weight"] = header.pop(name)
    elif what == "extra":
      header = {"model.layers.9.x": entry, **header}
      header["model.layers.9.x"] = {**entry, "data_offsets": [0, 0]}
      header["model.layers.9.x"]["shape"] = [0]
    elif what == "shape":
      entry["shape"] = [2, entry["shape"][0] // 2]
    else:
      entry["dtype"] = "I32"
    return header

  change_header(folder, change)
  refused(folder, str(folder))


def test_an_orbax_folder_is_compared_too(tmp_path, tiny):
  params, cfg = tiny
  sinkjax.save(tmp_path / "model", params, cfg, form="orbax")
  path = tmp_path / "model" / "sinkjax.json"
  manifest = json.loads(path.read_text())
  manifest["arrays"]["embed"]["shape"] = [1, 1]
  path.write_text(json.dumps(manifest))
  refused(tmp_path / "model", "embed")


def test_rules_on_which_the_library_fails():
  """It panics, which Python does not count among the exceptions."""

  class Panic(BaseException):
    pass

  class Backend:
    encode_special_tokens = True

    def encode(self, text, **options):
      raise Panic("index out of bounds\nmore")

  tokenizer = Tokenizer.__new__(Tokenizer)
  tokenizer._backend = Backend()
  with pytest.raises(
    ValueError, match="fail on this text: index out of bounds$"
  ):
    tokenizer._ids("a")
