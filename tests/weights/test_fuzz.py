"""Thousands of damaged files: a full load or one clear line, nothing else.

A case mutates a small valid file, loads every tensor, and accepts a load of
finite float32 arrays or a `WeightsError` of one line, within two seconds,
without a warning but those about files that disagree.
"""

import collections
import functools
import json
import pathlib
import random
import struct
import sys
import tempfile
import time
import warnings

import hypothesis
import numpy as np
import pytest
from hypothesis import strategies
from jax.tree_util import tree_leaves as leaves

import sinkjax
from sinkjax.weights.formats import gguf, safetensors_io
from sinkjax.weights.validate import WeightsError, WeightsWarning

sys.path.insert(0, str(pathlib.Path(__file__).parent))
import gguf_files as files

QUICK, SLOW = 40, 2000
FAMILY = pathlib.Path(__file__).parents[1] / "golden" / "families" / "llama3"
INDEX = "model.safetensors.index.json"
LIMIT_S = 2.0
"""Of CPU, so that other work of the machine does not count: a refusal reads
headers of some kilobytes, which takes hundredths of a second."""
EXTREMES = sorted(
  {
    (base + step) % 2**64
    for base in (0, 2**7, 2**8, 2**15, 2**16, 2**20, 2**31, 2**32, 2**62, 2**63)
    for step in (-1, 0, 1, 4)
  }
)


def mutate(data: bytes, rng: random.Random, header: int) -> bytes:
  """One to four random edits; half of them inside the header."""
  data = bytearray(data)
  for _ in range(rng.choice((1, 1, 1, 2, 4))):
    end = min(len(data), header if rng.random() < 0.7 else len(data))
    at = rng.randrange(max(1, end))
    kind = rng.randrange(6)
    if kind == 0 and data:
      data[at % len(data)] ^= 1 << rng.randrange(8)
    elif kind == 1:
      size = rng.choice((4, 8))
      value = rng.choice(EXTREMES) % 256**size
      data[at : at + size] = value.to_bytes(size, "little")
    elif kind == 2:
      del data[at:]
    elif kind == 3:
      data[at:at] = rng.randbytes(rng.choice((1, 4, 8, 32, 100)))
    elif kind == 4:
      del data[at : at + rng.choice((1, 4, 8, 32, 100))]
    else:
      start, size = rng.randrange(max(1, end)), rng.choice((4, 8, 24, 64))
      data[at : at + size] = data[start : start + size]
  return bytes(data)


JSON_VALUES = (
  None,
  True,
  -1,
  0,
  1,
  2**31,
  2**63,
  2**64,
  10**30,
  1.5,
  "",
  "F64",
  "F16",
  "../x.safetensors",
  "/x.safetensors",
  "a",
  [],
  {},
  [0, 0],
  [1] * 9,
  [[[]]],
  "\ud800",
  "x\n",
)


def mutate_json(node, rng: random.Random):
  """Replaces, removes, renames or duplicates one random node."""
  spots = []

  def walk(parent):
    keys = parent if isinstance(parent, dict) else range(len(parent))
    for key in keys:
      spots.append((parent, key))
      if isinstance(parent[key], dict | list):
        walk(parent[key])

  walk(node)
  for _ in range(rng.choice((1, 1, 2))):
    parent, key = rng.choice(spots)
    kind = rng.randrange(4)
    if (
      isinstance(parent, list)
      and key >= len(parent)
      or (isinstance(parent, dict) and key not in parent)
    ):
      continue
    if kind == 0:
      del parent[key]
    elif kind == 1 and isinstance(parent, dict):
      parent[rng.choice(("a", "z", "dtype", ""))] = parent.pop(key)
    elif kind == 2 and isinstance(parent[key], int):
      parent[key] += rng.choice((-96, -4, -1, 1, 4, 96, 2**32, 2**64))
    else:
      parent[key] = rng.choice(JSON_VALUES)
  return node


def gguf_case(folder: pathlib.Path, rng: random.Random):
  data = files.build_gguf()
  header = data.index(files.default_tensors()[0].data)
  path = folder / "m.gguf"
  path.write_bytes(mutate(data, rng, header))

  def load():
    file = gguf.open_gguf(path)
    return {n: gguf.read_tensor(file, n) for n in file.tensors}

  return load


def _load_folder(folder):
  def load():
    found = safetensors_io.open_folder(folder)
    for name in found.tensors:
      found.read_raw(name)
    return {name: found.read(name) for name in found.tensors}

  return load


def safetensors_case(folder: pathlib.Path, rng: random.Random):
  if rng.random() < 0.5:
    header, _ = files.safetensors_header(files.default_arrays())
    data = files.safetensors_bytes(header=mutate_json(header, rng))
  else:
    data = files.safetensors_bytes()
    header = 8 + struct.unpack("<Q", data[:8])[0]
    data = mutate(data, rng, header)
  (folder / "model.safetensors").write_bytes(data)
  return _load_folder(folder)


def index_case(folder: pathlib.Path, rng: random.Random):
  files.write_sharded(folder)
  path = folder / INDEX
  if rng.random() < 0.5:
    index = mutate_json(json.loads(path.read_text()), rng)
    path.write_text(json.dumps(index))
  elif rng.random() < 0.7:
    data = path.read_bytes()
    path.write_bytes(mutate(data, rng, len(data)))
  else:
    shard = folder / rng.choice(list(files.default_shards()))
    shard.write_bytes(mutate(shard.read_bytes(), rng, 200))
  return _load_folder(folder)


def _load_model(path):
  def load():
    model = sinkjax.load(path)
    return {str(i): np.asarray(x) for i, x in enumerate(leaves(model.params))}

  return load


def config_case(folder: pathlib.Path, rng: random.Random):
  """A whole model whose config.json is damaged."""
  raw = (FAMILY / "model.safetensors").read_bytes()
  (folder / "model.safetensors").write_bytes(raw)
  text = (FAMILY / "config.json").read_text()
  if rng.random() < 0.8:
    text = json.dumps(mutate_json(json.loads(text), rng))
    data = text.encode()
  else:
    data = mutate(text.encode(), rng, len(text))
  (folder / "config.json").write_bytes(data)
  return _load_model(folder)


@functools.cache
def whole_gguf() -> bytes:
  """A whole tiny model, tokenizer included, as one GGUF file."""
  from golden_models import write_gguf

  with tempfile.TemporaryDirectory() as folder:
    path = pathlib.Path(folder) / "m.gguf"
    write_gguf(path, "llama2")
    return path.read_bytes()


def model_case(folder: pathlib.Path, rng: random.Random):
  """A whole model in a GGUF file whose first part is damaged."""
  path = folder / "m.gguf"
  path.write_bytes(mutate(whole_gguf(), rng, 5000))
  return _load_model(path)


CASES = {
  "gguf": gguf_case,
  "safetensors": safetensors_case,
  "index": index_case,
  "config": config_case,
  "model": model_case,
}
WHOLE = ("config", "model")  # messages may name a parameter, not the file


def outcome(kind: str, folder: pathlib.Path, rng: random.Random) -> str:
  """Runs one case: "loaded" or "refused", and nothing else."""
  load = CASES[kind](folder, rng)
  start = time.process_time()
  try:
    with warnings.catch_warnings():
      warnings.simplefilter("error")
      # A mutated id of a special token may be outside the vocabulary.
      warnings.simplefilter("ignore", WeightsWarning)
      values = load()
  except WeightsError as error:
    message = str(error)
    assert message.isprintable() and len(message) < 900
    assert message.startswith(str(folder)) or kind in WHOLE, message
    found = "refused"
  else:
    for array in values.values():
      assert array.dtype == np.float32 and np.isfinite(array).all()
    found = "loaded"
  assert time.process_time() - start < LIMIT_S
  return found


def run(kind: str, parent: pathlib.Path, examples: int) -> None:
  """Lets hypothesis choose, and shrink, every random decision of a case."""
  outcomes: collections.Counter[str] = collections.Counter()

  @hypothesis.settings(
    max_examples=examples,
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=list(hypothesis.HealthCheck),
  )
  @hypothesis.given(rng=strategies.randoms(use_true_random=False))
  def case(rng):
    with tempfile.TemporaryDirectory(dir=parent) as folder:
      outcomes[outcome(kind, pathlib.Path(folder), rng)] += 1

  case()
  print(f"{kind}: {dict(outcomes)}")
  assert outcomes["refused"] > examples // 3
  assert outcomes["loaded"], "every file was refused"


@pytest.mark.thorough
@pytest.mark.parametrize("kind", CASES)
def test_damaged_files(tmp_path, kind):
  run(kind, tmp_path, QUICK)


@pytest.mark.slow
@pytest.mark.parametrize("kind", CASES)
def test_many_damaged_files(tmp_path, kind):
  run(kind, tmp_path, SLOW)
