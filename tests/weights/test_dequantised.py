"""Quantised folders: values by hand, and by the functions of transformers."""

import json
import pathlib

import jax
import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from sinkjax.weights import dequantised, huggingface
from sinkjax.weights.validate import WeightsError

FAMILIES = pathlib.Path(__file__).parents[1] / "golden" / "families"
BOX = [16, 24]


def write(folder, config, tensors):
  folder.mkdir()
  (folder / "config.json").write_text(json.dumps(config))
  save_file(tensors, folder / "model.safetensors")
  return folder


def same(a, b):
  jax.tree.map(np.testing.assert_array_equal, a, b)


def gpt_oss(rng):
  """(config, plain tensors, the same in MXFP4 where that is used)."""
  source = FAMILIES / "gpt_oss"
  config = json.loads((source / "config.json").read_text())
  config["intermediate_size"] = 32
  sizes = {"gate_up_proj": 64, "down_proj": config["hidden_size"]}
  plain, packed = {}, {}
  for name, value in load_file(source / "model.safetensors").items():
    part = name.split(".")[-1]
    if part == "gate_up_proj_bias":
      value = rng.normal(size=(len(value), 64)).astype(np.float32)
    if part in sizes:
      rows = sizes[part]
      inputs = config["hidden_size"] if part == "gate_up_proj" else 32
      shape = (len(value), rows, inputs // 32)
      blocks = rng.integers(0, 256, (*shape, 16), dtype=np.uint8)
      scales = rng.integers(120, 130, shape, dtype=np.uint8)
      packed |= {f"{name}_blocks": blocks, f"{name}_scales": scales}
      plain[name] = by_hand(blocks, scales)
      continue
    plain[name] = packed[name] = value
  return config, plain, packed


def by_hand(blocks, scales):
  """Byte by byte: [E, R, G, 16] and [E, R, G] -> [E, 32 G, R]."""
  table = [0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0]
  experts, rows, groups, _ = blocks.shape
  out = np.zeros((experts, 32 * groups, rows), np.float32)
  for (e, r, g, i), byte in np.ndenumerate(blocks):
    for half, code in enumerate((byte % 16, byte // 16)):
      sign = -1.0 if code >= 8 else 1.0
      value = sign * table[code % 8] * 2.0 ** (int(scales[e, r, g]) - 127)
      out[e, 32 * g + 2 * i + half, r] = value
  return out


def test_gpt_oss_in_mxfp4_is_what_it_stands_for(tmp_path):
  config, plain, packed = gpt_oss(np.random.default_rng(0))
  want = huggingface.load(write(tmp_path / "plain", config, plain))
  config["quantization_config"] = {"quant_method": "mxfp4"}
  folder = write(tmp_path / "packed", config, packed)
  got = huggingface.load(folder)
  assert got[1] == want[1] == huggingface.check(folder)
  same(got[0], want[0])


def quantised_llama(rng):
  """(config, plain tensors, the same with fp8 in the maps of the layers)."""
  source = FAMILIES / "llama2"
  config = json.loads((source / "config.json").read_text())
  plain, packed = {}, {}
  for name, value in load_file(source / "model.safetensors").items():
    plain[name] = packed[name] = value
    if "_proj.weight" not in name:
      continue
    values = value.astype(ml_dtypes.float8_e4m3fn)
    grid = [-(-n // b) for n, b in zip(value.shape, BOX, strict=True)]
    factors = rng.uniform(0.5, 2.0, grid).astype(np.float32)
    packed |= {name: values, f"{name}_scale_inv": factors}
    plain[name] = np.zeros(value.shape, np.float32)
    for (r, c), x in np.ndenumerate(values.astype(np.float32)):
      plain[name][r, c] = x * factors[r // BOX[0], c // BOX[1]]
  return config, plain, packed


def test_blocks_of_fp8_are_what_they_stand_for(tmp_path):
  """Boxes at the edges are smaller."""
  config, plain, packed = quantised_llama(np.random.default_rng(0))
  want = huggingface.load(write(tmp_path / "plain", config, plain))
  how = {"quant_method": "fp8", "weight_block_size": BOX}
  config["quantization_config"] = how
  folder = write(tmp_path / "packed", config, packed)
  got = huggingface.load(folder)
  assert got[1] == want[1]
  same(got[0], want[0])
  source = huggingface.open_model(folder).source
  name = "model.layers.1.mlp.up_proj.weight"
  rows = source.read_rows(name, [3, 0])
  np.testing.assert_array_equal(rows, plain[name][[3, 0]])
  part = (slice(1, 5), slice(2, 30))
  np.testing.assert_array_equal(source.read_part(name, part), plain[name][part])


@pytest.mark.parametrize(
  ("change", "message"),
  [
    (lambda t, n: t.pop(f"{n}_scale_inv"), "of scales is missing"),
    (
      lambda t, n: t.update({f"{n}_scale_inv": np.ones((1, 1), np.float32)}),
      r"has shape \(1, 1\)",
    ),
    (
      lambda t, n: t.update(
        {f"{n}_scale_inv": np.full_like(t[f"{n}_scale_inv"], 3e38)}
      ),
      "values beyond float32",
    ),
  ],
)
def test_damaged_scales_are_named(change, message, tmp_path):
  config, _, packed = quantised_llama(np.random.default_rng(0))
  how = {"quant_method": "fp8", "weight_block_size": BOX}
  config["quantization_config"] = how
  name = "model.layers.1.mlp.up_proj.weight"
  packed[name] = np.full_like(packed[name], 9.0)
  change(packed, name)
  folder = write(tmp_path / "packed", config, packed)
  with pytest.raises(WeightsError, match=message):
    huggingface.load(folder)


def test_a_scale_that_is_no_number_is_refused(tmp_path):
  config, _, packed = gpt_oss(np.random.default_rng(0))
  name = next(name for name in packed if name.endswith("_scales"))
  packed[name][0, 1, 0] = 255
  config["quantization_config"] = {"quant_method": "mxfp4"}
  with pytest.raises(WeightsError, match="scales that are no numbers"):
    huggingface.load(write(tmp_path / "packed", config, packed))


@pytest.mark.parity
def test_mxfp4_is_that_of_transformers():
  import torch
  from transformers.integrations import mxfp4

  rng = np.random.default_rng(1)
  blocks = rng.integers(0, 256, (3, 8, 2, 16), dtype=np.uint8)
  scales = rng.integers(90, 160, (3, 8, 2), dtype=np.uint8)
  theirs = mxfp4.convert_moe_packed_tensors(
    torch.tensor(blocks), torch.tensor(scales), dtype=torch.float32
  )
  ours = dequantised.mxfp4(blocks, scales)
  np.testing.assert_array_equal(ours.swapaxes(-1, -2), theirs.numpy())


@pytest.mark.parity
def test_blocks_of_fp8_are_those_of_transformers():
  import torch
  from transformers.integrations.finegrained_fp8 import Fp8Dequantize

  rng = np.random.default_rng(1)
  values = torch.tensor(rng.normal(size=(32, 48))).to(torch.float8_e4m3fn)
  factors = rng.uniform(0.5, 2.0, (2, 2)).astype(np.float32)
  theirs = Fp8Dequantize(None)._dequantize_one(
    values, torch.tensor(factors), torch.float32
  )
  ours = dequantised.fp8_blocks(values.float().numpy(), factors, BOX)
  np.testing.assert_array_equal(ours, theirs.numpy())
