"""A device's part of a parameter, read from the file for itself."""

import pathlib
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import sinkjax
from sinkjax.weights import gguf_model, hub, huggingface
from sinkjax.weights.formats import rawfile, tiles
from sinkjax.weights.validate import WeightsError

sys.path.insert(0, str(pathlib.Path(__file__).parent))
from golden_models import FAMILIES, GGUF, NAMES, write_gguf
from parts import check_parts, cuts


@pytest.mark.thorough
@pytest.mark.parametrize("name", NAMES)
def test_parts_of_safetensors(name):
  unread = huggingface.open_model(FAMILIES / name)
  check_parts(unread, huggingface.load(FAMILIES / name)[0])


@pytest.mark.thorough
@pytest.mark.parametrize("name", GGUF)
def test_parts_of_gguf(name, tmp_path):
  write_gguf(tmp_path / "m.gguf", name)
  unread, _ = gguf_model.open_model(tmp_path / "m.gguf")
  check_parts(unread, gguf_model.load_gguf(tmp_path / "m.gguf")[0])


def test_parts_of_blocks_of_quantised_numbers(smollm2_path):
  """Rows of 576 are 18 blocks of 32; a part need not begin with a block."""
  unread, _ = gguf_model.open_model(smollm2_path)
  whole = unread.source.read("blk.3.attn_q.weight")
  for columns in slice(0, 288), slice(72, 144), slice(570, 576):
    part = (slice(64, 128), columns)
    got = unread.source.read_part("blk.3.attn_q.weight", part)
    np.testing.assert_array_equal(got, whole[part])


def test_no_other_bytes_are_read(monkeypatch):
  unread = huggingface.open_model(FAMILIES / "llama3")
  leaf = next(x for x in unread.leaves if x.path == "blocks/mlp/up/kernel")
  shape, read, counted = (unread.cfg.d_model, unread.cfg.d_ff), [], []
  read = rawfile.read_exact

  def counting(file, view, path):
    counted.append(len(view))
    read(file, view, path)

  monkeypatch.setattr(tiles.rawfile, "read_exact", counting)
  for index in cuts(leaf.path, shape):
    out = np.empty([at.stop - at.start for at in index], np.float32)
    counted.clear()
    leaf.read_part(unread.source, leaf.name.format(i=0), shape, index, out)
    assert sum(counted) == 4 * out.size


def test_a_dtype_and_a_revision():
  whole = sinkjax.load(FAMILIES / "llama3")
  half = sinkjax.load(FAMILIES / "llama3", dtype="bfloat16")
  assert (whole.cfg.dtype, half.cfg.dtype) == ("float32", "bfloat16")
  jax.tree.map(
    lambda a, b: np.testing.assert_array_equal(a.astype(jnp.bfloat16), b),
    whole.params,
    half.params,
  )
  with pytest.raises(ValueError, match=r"one of \['float32', 'bfloat16'\]"):
    sinkjax.load(FAMILIES / "llama3", dtype="float16")
  with pytest.raises(WeightsError, match="goes with a name of the Hub"):
    sinkjax.load(FAMILIES / "llama3", revision="v2")
  with pytest.raises(WeightsError, match="is another"):
    hub.with_revision("hf:org/name@v1", "v2")
  assert hub.with_revision("hf:org/name", "v2") == "hf:org/name@v2"


def test_a_dtype_of_an_orbax_folder(tiny, tmp_path):
  params, cfg = tiny
  sinkjax.save(tmp_path / "m", params, cfg, form="orbax")
  half = sinkjax.load(tmp_path / "m", dtype="bfloat16").params
  jax.tree.map(
    lambda a, b: np.testing.assert_array_equal(a.astype(jnp.bfloat16), b),
    params,
    half,
  )
