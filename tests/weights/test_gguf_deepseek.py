"""DeepSeek V3 in the form of llama.cpp: the model of the folder, or a refusal.

The golden model without the biases, which llama.cpp's files cannot hold, and
with `mscale` as large as `mscale_all_dim`, as every published model has it.
The file is written as llama.cpp's converter does, by the names of the `gguf`
package; the folder is read by code that is held to transformers.
"""

import json
import pathlib
import sys

import gguf
import jax
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

import sinkjax
from sinkjax.weights import huggingface
from sinkjax.weights.gguf_model import load_gguf, load_header, open_model
from sinkjax.weights.validate import WeightsError

sys.path.insert(0, str(pathlib.Path(__file__).parent))
from golden_metadata import write_vocabulary
from parts import check_parts

GOLDEN = pathlib.Path(__file__).parents[1] / "golden/families/deepseek_v3"


@pytest.fixture(scope="module", params=["q_lora", "whole queries"])
def folder(request, tmp_path_factory):
  """The golden model without biases; queries of a latent vector, or not."""
  path = tmp_path_factory.mktemp("deepseek")
  values = json.loads((GOLDEN / "config.json").read_text())
  values["attention_bias"] = False
  values["rope_parameters"]["mscale"] = 1.2
  tensors = {
    name: tensor
    for name, tensor in load_file(GOLDEN / "model.safetensors").items()
    if not name.endswith(".bias")
  }
  if request.param != "q_lora":
    values["q_lora_rank"] = None
    for i in range(3):
      at = f"model.layers.{i}.self_attn."
      for name in ("q_a_proj", "q_a_layernorm"):
        del tensors[f"{at}{name}.weight"]
      made = tensors.pop(f"{at}q_b_proj.weight")
      tensors[f"{at}q_proj.weight"] = np.resize(made, (len(made), 32))
  (path / "config.json").write_text(json.dumps(values))
  save_file(tensors, path / "model.safetensors")
  return path


def renamed(tensors):
  """(name of the converter before it renames, tensor)."""
  experts = {}
  for name, tensor in tensors.items():
    if ".experts." in name:
      start, end = name.split(".experts.")
      number, part = end.split(".", 1)
      key = f"{start}.experts.{part}"
      experts.setdefault(key, {})[int(number)] = tensor
    elif name.endswith("kv_b_proj.weight"):
      # [H, K + V, R]: 4 heads, 6 dimensions of keys and 7 of values.
      heads = tensor.reshape(4, 6 + 7, -1)
      keys = heads[:, :6].transpose(0, 2, 1)
      yield name.replace("kv_b", "k_b"), np.ascontiguousarray(keys)
      yield name.replace("kv_b", "v_b"), np.ascontiguousarray(heads[:, 6:])
    elif name.endswith("e_score_correction_bias"):
      yield name.replace("correction_bias", "correction.bias"), tensor
    else:
      yield name, tensor
  for name, found in experts.items():
    yield name, np.stack([found[i] for i in range(len(found))])


def write(path, folder, **changes):
  """A GGUF file of the folder; `changes` of keys, `None` for none of it."""
  cfg = huggingface.load_config(folder)
  keys = {
    "context_length": cfg.max_len,
    "embedding_length": cfg.d_model,
    "block_count": cfg.n_layers,
    "feed_forward_length": 28,
    "attention.head_count": cfg.n_heads,
    "attention.head_count_kv": 1,
    "attention.key_length": 12 + 4,
    "attention.value_length": 12,
    "attention.key_length_mla": 6 + 4,
    "attention.value_length_mla": 7,
    "attention.kv_lora_rank": 12,
    "attention.q_lora_rank": cfg.q_rank or None,
    "attention.layer_norm_rms_epsilon": cfg.norm_eps,
    "rope.dimension_count": 4,
    "rope.freq_base": 500.0,
    "rope.scaling.type": "yarn",
    "rope.scaling.factor": 4.0,
    "rope.scaling.original_context_length": 16,
    "rope.scaling.yarn_beta_fast": 4.0,
    "rope.scaling.yarn_beta_slow": 0.5,
    "rope.scaling.yarn_log_multiplier": 0.1 * 1.2,
    "leading_dense_block_count": 1,
    "expert_count": 8,
    "expert_used_count": 3,
    "expert_shared_count": 2,
    "expert_feed_forward_length": 8,
    "expert_group_count": 2,
    "expert_group_used_count": 1,
    "expert_weights_norm": True,
    "expert_weights_scale": 1.5,
    "expert_gating_func": 2,
  } | changes
  writer = gguf.GGUFWriter(path, "deepseek2")
  for key, value in keys.items():
    add = {
      bool: writer.add_bool,
      int: writer.add_uint32,
      float: writer.add_float32,
      str: writer.add_string,
    }
    if value is not None:
      add[type(value)](f"deepseek2.{key}", value)
  write_vocabulary(writer, cfg)
  names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.DEEPSEEK2, cfg.n_layers)
  for name, tensor in renamed(load_file(folder / "model.safetensors")):
    name = names.get_name(name, try_suffixes=(".weight", ".bias"))
    writer.add_tensor(name, tensor)
  writer.write_header_to_file()
  writer.write_kv_data_to_file()
  writer.write_tensors_to_file()
  writer.close()
  return path


@pytest.mark.thorough
def test_same_parameters_and_config_as_the_folder(folder, tmp_path):
  params, cfg, _ = load_gguf(write(tmp_path / "m.gguf", folder))
  want, theirs = huggingface.load(folder)
  jax.tree.map(np.testing.assert_array_equal, params, want)
  # The file keeps numbers of 32 bits.
  np.testing.assert_allclose(cfg.attn_scale, theirs.attn_scale, rtol=1e-6)
  assert cfg.replace(attn_scale=1.0) == theirs.replace(
    attn_scale=1.0, norm_eps=cfg.norm_eps
  )
  tokens = np.arange(3, 23)[None]
  np.testing.assert_allclose(
    sinkjax.forward(cfg)(params, tokens).logits,
    sinkjax.forward(theirs)(want, tokens).logits,
    atol=2e-5,
  )


def test_parts_of_it(folder, tmp_path):
  """As devices that share the model read it."""
  unread, _ = open_model(write(tmp_path / "m.gguf", folder))
  check_parts(unread, huggingface.load(folder)[0])


def test_without_scaling_the_scores_have_the_usual_scale(folder, tmp_path):
  keys = (
    "type factor original_context_length yarn_beta_fast yarn_beta_slow "
    "yarn_log_multiplier"
  )
  none = {f"rope.scaling.{key}": None for key in keys.split()}
  cfg, _ = load_header(write(tmp_path / "m.gguf", folder, **none))
  assert cfg.rope_scaling is None and cfg.attn_scale is None


@pytest.mark.parametrize(
  ("changes", "message"),
  [
    ({"expert_gating_func": None}, "expert_gating_func=1 is not supported"),
    ({"expert_shared_count": 0}, "expert_shared_count=0"),
    ({"attention.key_length_mla": None}, "key_length_mla is missing"),
    ({"expert_count": 256, "expert_group_count": None}, "group_count is miss"),
    ({"nextn_predict_layers": 1}, "nextn_predict_layers=1 is not supported"),
    ({"rope.scaling.yarn_attn_factor": 1.5}, "yarn_attn_factor=1.5 is not"),
  ],
)
def test_refusals(folder, tmp_path, changes, message):
  with pytest.raises(WeightsError, match=message):
    load_header(write(tmp_path / "m.gguf", folder, **changes))


def test_one_tensor_of_keys_and_values_is_named(folder, tmp_path, monkeypatch):
  monkeypatch.setattr(
    sys.modules[__name__],
    "renamed",
    lambda tensors: (
      (n, x) for n, x in tensors.items() if "kv_b" in n or "embed" in n
    ),
  )
  with pytest.raises(WeightsError, match="attn_kv_b, as llama.cpp wrote"):
    load_header(write(tmp_path / "m.gguf", folder))
