"""What `config.json` leaves out, spells in an old way, or names otherwise."""

import json
import pathlib
import sys

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from sinkjax.config import RopeScaling
from sinkjax.weights import registry
from sinkjax.weights.hf_config import config_from_hf
from sinkjax.weights.huggingface import load
from sinkjax.weights.validate import WeightsError

sys.path.insert(0, str(pathlib.Path(__file__).parent))
from golden_models import FAMILIES, NAMES, family_of


def golden_config(name):
  return json.loads((FAMILIES / name / "config.json").read_text())


def test_gemma3_4b_as_published():
  """Its text_config has these six keys alone."""
  text = {
    "hidden_size": 2560,
    "intermediate_size": 10240,
    "model_type": "gemma3_text",
    "num_hidden_layers": 34,
    "rope_scaling": {"factor": 8.0, "rope_type": "linear"},
    "sliding_window": 1024,
  }
  values = {"model_type": "gemma3", "text_config": text, "eos_token_id": [1, 9]}
  cfg = config_from_hf(values, "config.json")
  assert (cfg.n_heads, cfg.n_kv_heads, cfg.head_dim) == (8, 4, 256)
  assert (cfg.vocab_size, cfg.max_len, cfg.eos_id) == (262208, 131072, 1)
  assert (cfg.rope_base, cfg.rope_local_base) == (1e6, 1e4)
  assert cfg.rope_scaling == RopeScaling("linear", factor=8.0)
  assert cfg.attn_scale == 256**-0.5
  assert cfg.local_layers[:7] == (True,) * 5 + (False, True)
  assert cfg.tie_embeddings and cfg.activation == "gelu_tanh"


@pytest.mark.parametrize(
  ("name", "field", "value"),
  [
    ("mistral", "window", 4096),
    ("mistral", "n_kv_heads", 8),
    ("gemma2", "attn_softcap", 50.0),
    ("gemma2", "logit_softcap", 30.0),
    ("gemma", "head_dim", 256),
    ("qwen3", "head_dim", 128),
    ("gpt_neox", "rotary_dim", 24),
    ("gpt2", "max_len", 1024),
  ],
)
def test_a_key_left_out_is_the_default_of_the_class(name, field, value):
  cfg = config_from_hf({"model_type": name}, "config.json")
  assert getattr(cfg, field) == value


def test_null_is_not_left_out():
  values = {"model_type": "mistral", "sliding_window": None}
  assert config_from_hf(values, "config.json").window is None
  values = {"model_type": "gemma2", "attn_logit_softcapping": None}
  assert config_from_hf(values, "config.json").attn_softcap is None


def test_gpt2_by_the_usual_names():
  values = {"model_type": "gpt2", "hidden_size": 32, "num_attention_heads": 4}
  cfg = config_from_hf(values, "config.json")
  assert (cfg.d_model, cfg.n_heads, cfg.d_ff) == (32, 4, 128)


@pytest.mark.parametrize(
  ("name", "changes", "activation"),
  [
    ("gemma", {"hidden_act": "gelu"}, "gelu_tanh"),
    ("gemma", {"hidden_act": "gelu", "hidden_activation": None}, "gelu_tanh"),
    ("gemma2", {"hidden_act": "gelu"}, "gelu_tanh"),
    ("gemma2", {"hidden_activation": "gelu"}, "gelu"),
    ("gemma3", {"hidden_act": "gelu"}, "gelu_tanh"),
    ("gpt_neox_sequential", {"hidden_act": "gelu"}, "gelu"),
    ("llama3", {"hidden_act": "gelu_python"}, "gelu"),
  ],
)
def test_activations_mean_what_they_meant(name, changes, activation):
  values = golden_config(name)
  values.pop("hidden_act", None)
  values.pop("hidden_activation", None)
  assert config_from_hf(values | changes, "c").activation == activation


def with_tensors(folder, name, rename):
  """A golden model whose tensors have other names."""
  tensors = load_file(FAMILIES / name / "model.safetensors")
  renamed = {rename(key): tensor for key, tensor in tensors.items()}
  save_file(renamed, folder / "model.safetensors")
  text = (FAMILIES / name / "config.json").read_text()
  (folder / "config.json").write_text(text)
  return folder


@pytest.mark.thorough
@pytest.mark.parametrize("name", NAMES)
def test_the_prefix_of_the_base_model_is_optional(name, tmp_path):
  """Checkpoints of the base model, as embedding models are published."""
  prefix = family_of(name).optional_prefix
  names = load_file(FAMILIES / name / "model.safetensors")
  assert any(key.startswith(prefix) for key in names)
  with_tensors(tmp_path, name, lambda key: key.removeprefix(prefix))
  params, cfg = load(tmp_path)
  want, want_cfg = load(FAMILIES / name)
  assert cfg == want_cfg
  jax.tree.map(np.testing.assert_array_equal, params, want)


@pytest.mark.parametrize(
  "wrapper",
  ["model.language_model.", "language_model.model.", "language_model."],
)
def test_wrappers_of_multimodal_models(wrapper, tmp_path):
  def rename(key):
    return wrapper + key.removeprefix("model.")

  with_tensors(tmp_path, "gemma3", rename)
  params, _ = load(tmp_path)
  want, _ = load(FAMILIES / "gemma3")
  jax.tree.map(np.testing.assert_array_equal, params, want)


def test_two_tensors_of_one_name(tmp_path):
  with_tensors(tmp_path, "qwen3", lambda key: key)
  file = tmp_path / "model.safetensors"
  tensors = load_file(file)
  save_file(tensors | {"norm.weight": tensors["model.norm.weight"]}, file)
  with pytest.raises(WeightsError, match="and 'norm.weight' are 'model.norm"):
    load(tmp_path)


def test_a_model_without_a_head_that_needs_one(tmp_path):
  with_tensors(tmp_path, "llama3", lambda key: key)
  file = tmp_path / "model.safetensors"
  tensors = load_file(file)
  del tensors["lm_head.weight"]
  save_file(tensors, file)
  with pytest.raises(WeightsError, match="'lm_head.weight' is missing: the m"):
    load(tmp_path)


GPTQ = {"quant_method": "gptq", "bits": 4, "group_size": 128}
MLX = {"group_size": 64, "bits": 4}


@pytest.mark.parametrize(
  ("values", "message"),
  [
    ({"quantization_config": GPTQ}, r"quantised \(GPTQ, 4 bits\)"),
    (
      {"quantization_config": {"quant_method": "awq", "w_bit": 4}},
      r"quantised \(AWQ, 4 bits\)",
    ),
    (
      {
        "quantization_config": {
          "quant_method": "bitsandbytes",
          "load_in_4bit": False,
          "load_in_8bit": True,
        }
      },
      r"quantised \(bitsandbytes, 8 bits\)",
    ),
    ({"quantization_config": {"load_in_4bit": True}}, "bitsandbytes, 4 bits"),
    (
      {"quantization_config": {"quant_method": "compressed-tensors"}},
      r"quantised \(compressed-tensors\)",
    ),
    ({"compression_config": {"format": "dense"}}, "compressed-tensors"),
    ({"quantization": MLX, "quantization_config": MLX}, "MLX, 4 bits"),
    ({"quantization_config": {"quant_method": "new"}}, r"quantised \(new\)"),
    ({"quantization_config": {"x": 1}}, "an unknown kind"),
    ({"quantization_config": 4}, "quantization_config must be an object"),
  ],
)
@pytest.mark.parametrize("read", [registry.peek, registry.load])
def test_quantised_folders_are_refused_by_name(values, message, read, tmp_path):
  """From the config alone: the folder has no tensors to look at."""
  values = golden_config("llama3") | values
  (tmp_path / "config.json").write_text(json.dumps(values))
  with pytest.raises(WeightsError, match=message) as error:
    read(tmp_path)
  assert "\n" not in str(error.value)
  if "must be" not in message:
    assert "use the original checkpoint" in str(error.value)


def test_a_quantised_text_part_and_one_that_is_no_longer():
  text = golden_config("gemma3")
  with pytest.raises(WeightsError, match="GPTQ"):
    config_from_hf({"text_config": text | {"quantization_config": GPTQ}}, "c")
  with pytest.raises(WeightsError, match="GPTQ"):
    config_from_hf({"text_config": text, "quantization_config": GPTQ}, "c")
  for empty in (None, {}):
    config_from_hf(text | {"quantization_config": empty}, "c")


@pytest.mark.parametrize(
  "name",
  [
    "consolidated.safetensors",
    "model.fp16.safetensors",
    "model-00001-of-00001.safetensors",
  ],
)
def test_the_one_file_of_a_folder_is_read(name, tmp_path):
  with_tensors(tmp_path, "llama3", lambda key: key)
  (tmp_path / "model.safetensors").rename(tmp_path / name)
  (tmp_path / "._model.safetensors").write_bytes(b"notes of a file system")
  params, _ = load(tmp_path)
  want, _ = load(FAMILIES / "llama3")
  jax.tree.map(np.testing.assert_array_equal, params, want)
  (tmp_path / "another.safetensors").write_bytes(b"")
  with pytest.raises(WeightsError, match="2 safetensors files.*call the one"):
    load(tmp_path)
