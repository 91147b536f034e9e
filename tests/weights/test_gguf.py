"""GGUF: values equal gguf's own bit for bit, in any view."""

import pathlib
import struct
import sys
import time
import tracemalloc
from concurrent.futures import ThreadPoolExecutor

import gguf as reference
import numpy as np
import pytest
from gguf import GGMLQuantizationType as Type
from gguf import GGUFValueType as Value

from sinkjax.weights.formats import gguf, gguf_header, tiles

sys.path.insert(0, str(pathlib.Path(__file__).parent))
import gguf_files as files
from gguf_files import TYPES, write
from gguf_files import load_gguf as load


def bits(values: np.ndarray) -> np.ndarray:
  assert values.dtype == np.float32
  return np.ascontiguousarray(values).view(np.uint32)


def expected(type_: Type, data: bytes, shape) -> np.ndarray:
  block, size = reference.GGML_QUANT_SIZES[type_]
  raw = np.frombuffer(data, np.uint8)
  raw = raw.reshape(*shape[:-1], shape[-1] // block * size)
  return reference.quants.dequantize(raw, type_).reshape(shape)


def packed(type_: Type, shape) -> bytes:
  """Quantised normal values if gguf can quantise, else random bytes."""
  values = np.random.default_rng(7).normal(size=shape).astype(np.float32)
  try:
    return reference.quants.quantize(values, type_).tobytes()
  except NotImplementedError:
    return files.finite_bytes(type_, shape)


def test_every_type_of_the_table_is_covered():
  assert {"F32", "F16", "BF16", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0"} <= {
    type_.name for type_ in TYPES
  }
  assert len(TYPES) > 20


@pytest.mark.parametrize("source", ["quantised", "random"])
@pytest.mark.parametrize("type_", TYPES, ids=lambda t: t.name)
def test_values_equal_gguf_bit_for_bit(tmp_path, monkeypatch, type_, source):
  monkeypatch.setattr(tiles, "TILE", 4096)  # several tiles, the last smaller
  shape = (37, 512)
  make = packed if source == "quantised" else files.finite_bytes
  data = make(type_, shape)
  path = write(
    tmp_path, files.build_gguf([files.Tensor("w", type_, shape, data)])
  )
  file = gguf.open_gguf(path)
  want = bits(expected(type_, data, shape))
  np.testing.assert_array_equal(bits(gguf.read_tensor(file, "w")), want)
  stacked = np.full((3, 512, 37), np.nan, np.float32)
  out = gguf.read_tensor(file, "w", stacked[1].T)
  np.testing.assert_array_equal(bits(out), want)
  np.testing.assert_array_equal(bits(stacked[1].T), want)
  assert np.isnan(stacked[[0, 2]]).all()


def _views():
  """Destinations of a [48, 256] tensor, by name."""
  heads, half = 6, 4
  return {
    "same": lambda: np.empty((48, 256), np.float32),
    "flat": lambda: np.empty(48 * 256, np.float32),
    "transposed": lambda: np.empty((2, 256, 48), np.float32)[1].T,
    "wide rows": lambda: np.empty((48, 300), np.float32)[:, 7:263],
    "reversed": lambda: np.empty((48, 256), np.float32)[::-1],
    "every other": lambda: np.empty((48, 512), np.float32)[:, ::2],
    "rope": lambda: np.empty((256, heads, 2, half), np.float32).transpose(
      1, 3, 2, 0
    ),
    "rope, rows": lambda: np.empty((heads, 2, half, 256), np.float32).transpose(
      0, 2, 1, 3
    ),
    "split rows": lambda: np.empty((4, 64, 48), np.float32).transpose(2, 0, 1),
    "split rows apart": lambda: np.empty((64, 48, 4), np.float32).transpose(
      1, 2, 0
    ),
    "ones": lambda: np.empty((1, 256, 1, 48, 1), np.float32).T,
    "no row": lambda: np.empty((16, 768), np.float32)[:, ::-1],
    "a column": lambda: np.empty((48 * 256, 2), np.float32)[:, 1],
  }


@pytest.mark.parametrize("tile", [1, 256, 1000, 5000, 1 << 18])
@pytest.mark.parametrize("name", _views())
@pytest.mark.parametrize(
  "type_", [Type.Q4_1, Type.Q6_K, Type.F16, Type.IQ4_XS], ids=lambda t: t.name
)
def test_any_view_gets_the_values(tmp_path, monkeypatch, type_, name, tile):
  monkeypatch.setattr(tiles, "TILE", tile)
  data = files.finite_bytes(type_, (48, 256))
  item = files.Tensor("w", type_, (48, 256), data)
  file = gguf.open_gguf(write(tmp_path, files.build_gguf([item])))
  out = _views()[name]()
  out[...] = np.nan
  assert gguf.read_tensor(file, "w", out) is out
  want = expected(type_, data, (48, 256)).reshape(out.shape)
  np.testing.assert_array_equal(bits(out), bits(want))


def test_header_is_read(tmp_path):
  path = write(tmp_path, files.build_gguf())
  file, values = load(path)
  assert (file.path, file.version) == (str(path), 3)
  meta = file.metadata
  assert meta["general.architecture"] == "llama"
  assert meta["some.flag"] is True and meta["some.long"] == -5
  assert meta["tokenizer.ggml.tokens"] == ["<s>", "a", "é", "", "日本"]
  assert meta["tokenizer.ggml.token_type"].dtype == np.int32
  assert meta["tokenizer.ggml.scores"].tolist() == [0.5] * 5
  assert meta["some.bools"].tolist() == [True, False]
  assert meta["some.nested"][1] == ["x"]
  for item in files.default_tensors():
    found = file.tensors[item.name]
    assert (found.shape, found.type) == (item.shape, item.type)
    assert found.n_bytes == len(item.data)
    with open(path, "rb") as raw:
      raw.seek(found.offset)
      assert raw.read(found.n_bytes) == item.data
    want = expected(item.type, item.data, item.shape)
    np.testing.assert_array_equal(bits(values[item.name]), bits(want))


def test_agrees_with_a_file_written_by_gguf(tmp_path):
  path = tmp_path / "w.gguf"
  writer = reference.GGUFWriter(path, "llama")
  writer.add_token_list(["a", "b", "ü"])
  writer.add_uint32("n", 5)
  array = np.arange(12, dtype=np.float32).reshape(3, 4)
  writer.add_tensor("w", array)
  writer.add_tensor("v", array[0])
  writer.write_header_to_file()
  writer.write_kv_data_to_file()
  writer.write_tensors_to_file()
  writer.close()
  file, values = load(path)
  assert file.metadata["tokenizer.ggml.tokens"] == ["a", "b", "ü"]
  assert file.metadata["n"] == 5
  np.testing.assert_array_equal(values["w"], array)
  np.testing.assert_array_equal(values["v"], array[0])


@pytest.mark.parametrize("align", [1, 8, 64, 4096])
def test_other_alignments(tmp_path, align):
  data = files.build_gguf(
    extra=[files.pair("general.alignment", Value.UINT32, align)], align=align
  )
  assert len(load(write(tmp_path, data))[1]) == 6


def test_version_2_no_last_padding_and_no_tensors(tmp_path):
  version = struct.pack("<I", 2)
  path = write(tmp_path, files.build_gguf(version=version, tail=b""))
  assert load(path)[0].version == 2
  path = write(tmp_path, files.build_gguf([]))
  assert load(path)[0].tensors == {}


def test_header_longer_than_one_read(tmp_path, monkeypatch):
  monkeypatch.setattr(gguf_header, "_FIRST_READ", 16)
  tokens = [f"token {i}" * (i % 7) for i in range(2000)]
  pairs = [
    files.pair("tokenizer.ggml.tokens", Value.ARRAY, (Value.STRING, tokens))
  ]
  path = write(tmp_path, files.build_gguf(pairs=pairs))
  assert load(path)[0].metadata["tokenizer.ggml.tokens"] == tokens


def test_threads_read_the_same_file(tmp_path):
  file = gguf.open_gguf(write(tmp_path, files.build_gguf()))
  names = list(file.tensors) * 20
  with ThreadPoolExecutor(4) as pool:
    found = list(pool.map(lambda n: gguf.read_tensor(file, n), names))
  for name, values in zip(names, found, strict=True):
    want = bits(gguf.read_tensor(file, name))
    np.testing.assert_array_equal(bits(values), want)


@pytest.mark.parametrize("view", ["transposed", "rows", "flat"])
def test_memory_beside_the_output_is_small(tmp_path, view):
  shape = (4096, 2048)
  block = files.finite_bytes(Type.Q4_1, (1, 2048))
  item = files.Tensor("w", Type.Q4_1, shape, block * shape[0])
  file = gguf.open_gguf(write(tmp_path, files.build_gguf([item])))
  out = np.empty(shape[::-1] if view == "transposed" else shape, np.float32)
  out = {"transposed": out.T, "rows": out, "flat": out.reshape(-1)}[view]
  gguf.read_tensor(file, "w", out)
  tracemalloc.start()
  gguf.read_tensor(file, "w", out)
  peak = tracemalloc.get_traced_memory()[1]
  tracemalloc.stop()
  assert peak < 6 << 20, f"{peak} bytes for an output of {out.nbytes}"


def test_a_large_header_opens_quickly(tmp_path):
  words = [f"w{i}" for i in range(50_000)]
  pairs = [
    files.pair(key, Value.ARRAY, (Value.STRING, words))
    for key in ("tokenizer.ggml.tokens", "tokenizer.ggml.merges")
  ]
  path = write(tmp_path, files.build_gguf(pairs=pairs))
  start = time.process_time()
  gguf.open_gguf(path)
  assert time.process_time() - start < 5  # 0.03 s when nothing else runs
