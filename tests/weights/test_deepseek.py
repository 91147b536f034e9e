"""DeepSeek V3's `config.json` and files: what is read, and what refused."""

import json
import math
import pathlib
import shutil

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from sinkjax.weights import huggingface
from sinkjax.weights.hf_config import config_from_hf
from sinkjax.weights.validate import WeightsError

FOLDER = pathlib.Path(__file__).parents[1] / "golden/families/deepseek_v3"


def values():
  return json.loads((FOLDER / "config.json").read_text())


def test_the_scale_of_scores_is_that_of_yarn():
  """m^2 / sqrt(K) with m = 0.1 mscale_all_dim ln(factor) + 1, K = 10."""
  cfg = config_from_hf(values(), "config.json")
  m = 0.1 * 1.2 * math.log(4.0) + 1
  assert math.isclose(cfg.attn_scale, m * m / math.sqrt(10))
  assert (cfg.head_dim, cfg.rotary_dim, cfg.value_dim) == (10, 4, 7)
  plain = values()
  del plain["rope_parameters"]["mscale_all_dim"]
  assert config_from_hf(plain, "config.json").attn_scale is None


@pytest.mark.parametrize(
  ("changes", "message"),
  [
    ({"rope_interleave": False}, "rope_interleave=False is not supported"),
    ({"scoring_func": "softmax"}, "scoring_func='softmax' is not supported"),
    ({"num_key_value_heads": 2}, "must be num_attention_heads=4"),
    ({"n_shared_experts": 0}, "n_shared_experts must be at least 1"),
    ({"intermediate_size": 65}, "dense_d_ff must be at most n_experts d_ff=64"),
    ({"first_k_dense_replace": 3}, "less than n_layers=3"),
    ({"n_group": 3}, "router_groups=3 must cut n_experts=8"),
  ],
)
def test_refusals(changes, message):
  with pytest.raises(WeightsError, match=message):
    config_from_hf(values() | changes, "config.json")


def test_a_layer_without_experts_is_written_as_it_was(tmp_path):
  """Random numbers where it has no parameters do not reach the file."""
  params, cfg = huggingface.load(FOLDER)
  mlp = params["blocks"]["mlp"]
  for name in ("router", "shared_up"):
    kernel = np.array(mlp[name]["kernel"])
    assert not kernel[0].any() and kernel[1:].any()
    kernel[0] = 1.0
    mlp[name]["kernel"] = jax.numpy.asarray(kernel)
  huggingface.save(tmp_path / "out", params, cfg)
  got = load_file(tmp_path / "out" / "model.safetensors")
  want = load_file(FOLDER / "model.safetensors")
  assert set(got) == set(want)
  for name, tensor in want.items():
    np.testing.assert_array_equal(got[name], tensor, err_msg=name)


def test_a_tensor_of_a_layer_too_many_is_refused(tmp_path):
  shutil.copytree(FOLDER, tmp_path / "m")
  tensors = load_file(FOLDER / "model.safetensors")
  file = tmp_path / "m" / "model.safetensors"
  one = np.zeros(32, np.float32)
  # What predicts a second token stands behind the 61 layers of the model.
  spare = {"model.layers.61.enorm.weight": one}
  save_file(tensors | spare, file, {"format": "pt"})
  huggingface.check(tmp_path / "m")
  save_file(tensors | {"model.layers.3.enorm.weight": one}, file)
  with pytest.raises(WeightsError, match=r"layers.3.enorm.weight' has no pl"):
    huggingface.check(tmp_path / "m")
