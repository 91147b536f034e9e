"""GGUF models: the same parameters as the Hugging Face folder they came from.

The files are written here as llama.cpp's converter writes them: its names,
its permutation of rotary rows, its `1 + w` in Gemma's norms, its transposed
and fused GPT-2 projections.
"""

import json
import pathlib
import re

import gguf
import jax
import numpy as np
import pytest
from safetensors.numpy import load_file

import sinkjax
from sinkjax.weights import huggingface
from sinkjax.weights.gguf_model import load_gguf
from sinkjax.weights.validate import WeightsError

FAMILIES = pathlib.Path(__file__).parents[1] / "golden" / "families"
ARCHITECTURES = {
  "llama2": "llama",
  "smollm2": "llama",
  "gpt2": "gpt2",
  "qwen2": "qwen2",
  "qwen3": "qwen3",
  "gemma": "gemma",
  "gemma2": "gemma2",
  "gemma3": "gemma3",
}
_NAMES = {
  "self_attn.q_proj": "attn_q",
  "self_attn.k_proj": "attn_k",
  "self_attn.v_proj": "attn_v",
  "self_attn.o_proj": "attn_output",
  "self_attn.q_norm": "attn_q_norm",
  "self_attn.k_norm": "attn_k_norm",
  "mlp.gate_proj": "ffn_gate",
  "mlp.up_proj": "ffn_up",
  "mlp.down_proj": "ffn_down",
  "input_layernorm": "attn_norm",
  "pre_feedforward_layernorm": "ffn_norm",
  "post_feedforward_layernorm": "post_ffw_norm",
  "ln_1": "attn_norm",
  "ln_2": "ffn_norm",
  "attn.c_attn": "attn_qkv",
  "attn.c_proj": "attn_output",
  "mlp.c_fc": "ffn_up",
  "mlp.c_proj": "ffn_down",
}
_TOP = {
  "model.embed_tokens": "token_embd",
  "model.norm": "output_norm",
  "lm_head": "output",
  "transformer.wte": "token_embd",
  "transformer.wpe": "position_embd",
  "transformer.ln_f": "output_norm",
}


def permute(weight, heads):
  """llama.cpp's converter: half-split rotary rows to neighbouring pairs."""
  split = weight.reshape(heads, 2, weight.shape[0] // heads // 2, -1)
  return split.swapaxes(1, 2).reshape(weight.shape)


def gguf_name(name, arch):
  stem, kind = name.rsplit(".", 1)
  if stem in _TOP:
    return f"{_TOP[stem]}.{kind}"
  layer, part = re.fullmatch(r"[a-z.]+\.(\d+)\.(.+)", stem).groups()
  if part == "post_attention_layernorm":
    ours = {"gemma2": "post_attention_norm", "gemma3": "post_attention_norm"}
    return f"blk.{layer}.{ours.get(arch, 'ffn_norm')}.{kind}"
  return f"blk.{layer}.{_NAMES[part]}.{kind}"


def write(path, family, arch, drop=(), extra=()):
  """The family's tiny model as a GGUF file."""
  cfg = huggingface.load_config(FAMILIES / family)
  raw = json.loads((FAMILIES / family / "config.json").read_text())
  writer = gguf.GGUFWriter(path, arch)
  writer.add_context_length(cfg.max_len)
  writer.add_embedding_length(cfg.d_model)
  writer.add_block_count(cfg.n_layers)
  writer.add_feed_forward_length(cfg.d_ff)
  writer.add_head_count(cfg.n_heads)
  writer.add_head_count_kv(cfg.n_kv_heads)
  writer.add_key_length(cfg.head_dim)
  writer.add_value_length(cfg.head_dim)
  if cfg.norm == "layer":
    writer.add_layer_norm_eps(cfg.norm_eps)
  else:
    writer.add_layer_norm_rms_eps(cfg.norm_eps)
    writer.add_rope_freq_base(cfg.rope_base)
  if cfg.rope_scaling is not None:
    writer.add_rope_scaling_type(gguf.RopeScalingType.LINEAR)
    writer.add_rope_scaling_factor(cfg.rope_scaling.factor)
  if cfg.window and arch.startswith("gemma"):
    writer.add_sliding_window(cfg.window)
    if cfg.attn_softcap:
      writer.add_attn_logit_softcapping(cfg.attn_softcap)
      writer.add_final_logit_softcapping(cfg.logit_softcap)
  tokens = [f"t{i}" for i in range(raw["vocab_size"])]
  writer.add_tokenizer_model("llama")
  writer.add_token_list(tokens)
  writer.add_token_scores([-float(i) for i in range(len(tokens))])
  writer.add_token_types([1] * len(tokens))
  writer.add_bos_token_id(1)
  writer.add_eos_token_id(2)
  for name, tensor in load_file(
    FAMILIES / family / "model.safetensors"
  ).items():
    if name in drop:
      continue
    if arch == "llama" and "q_proj" in name:
      tensor = permute(tensor, cfg.n_heads)
    if arch == "llama" and "k_proj" in name:
      tensor = permute(tensor, cfg.n_kv_heads)
    if arch.startswith("gemma") and "norm" in name:
      tensor = tensor + 1
    if arch == "gpt2" and re.search(r"c_(attn|proj|fc)\.weight", name):
      tensor = tensor.T
    writer.add_tensor(gguf_name(name, arch), np.ascontiguousarray(tensor))
  for name, tensor in extra:
    writer.add_tensor(name, tensor)
  writer.write_header_to_file()
  writer.write_kv_data_to_file()
  writer.write_tensors_to_file()
  writer.close()


@pytest.mark.parametrize(("family", "arch"), ARCHITECTURES.items())
def test_same_parameters_as_the_folder(family, arch, tmp_path):
  write(tmp_path / "m.gguf", family, arch)
  params, _, _ = load_gguf(tmp_path / "m.gguf")
  want, _ = huggingface.load(FAMILIES / family)
  exact = not arch.startswith("gemma")
  compare = np.testing.assert_array_equal if exact else near
  jax.tree.map(compare, params, want)


def near(a, b):
  """Gemma's `w + 1 - 1` rounds."""
  np.testing.assert_allclose(a, b, atol=2e-7)


@pytest.mark.parametrize(
  ("family", "arch"),
  [(f, a) for f, a in ARCHITECTURES.items() if a not in ("gemma2", "gemma3")],
)
def test_same_config_and_logits(family, arch, tmp_path):
  """Gemma 2 and 3 differ: their files store neither scale nor local base."""
  write(tmp_path / "m.gguf", family, arch)
  params, cfg, _ = load_gguf(tmp_path / "m.gguf")
  cfg = cfg.replace(window=None, local_layers=())
  theirs_params, theirs = huggingface.load(FAMILIES / family)
  theirs = theirs.replace(window=None, local_layers=())
  tokens = np.arange(3, 17)[None]
  np.testing.assert_allclose(
    sinkjax.forward(cfg)(params, tokens).logits,
    sinkjax.forward(theirs)(theirs_params, tokens).logits,
    atol=2e-4,
  )


def test_gemma_fields(tmp_path):
  write(tmp_path / "2.gguf", "gemma2", "gemma2")
  write(tmp_path / "3.gguf", "gemma3", "gemma3")
  _, two, _ = load_gguf(tmp_path / "2.gguf")
  _, three, _ = load_gguf(tmp_path / "3.gguf")
  assert two.local_layers == (True, False, True)
  assert (two.attn_softcap, two.logit_softcap, two.window) == (2.0, 3.0, 5)
  assert three.local_layers == (True, True, True)
  assert three.rope_local_base == 10000.0
  assert three.rope_scaling == sinkjax.RopeScaling("linear", factor=8.0)
  assert three.qk_norm and two.post_norms and three.norm_offset == 1.0


def test_rope_factors_scale_frequencies(tmp_path):
  factors = np.array([1, 1, 4, 8], np.float32)
  extra = [("rope_freqs.weight", factors)]
  write(tmp_path / "m.gguf", "llama2", "llama", extra=extra)
  _, cfg, _ = load_gguf(tmp_path / "m.gguf")
  assert cfg.rope_scaling == sinkjax.RopeScaling(
    "factors", factors=(1, 1, 4, 8)
  )


def test_missing_and_extra_tensors(tmp_path):
  write(tmp_path / "a.gguf", "llama2", "llama", drop=["model.norm.weight"])
  with pytest.raises(WeightsError, match="'output_norm.weight' is missing"):
    load_gguf(tmp_path / "a.gguf")
  extra = [("blk.0.attn_gate.weight", np.zeros((4, 32), np.float32))]
  write(tmp_path / "b.gguf", "llama2", "llama", extra=extra)
  with pytest.raises(WeightsError, match="attn_gate.weight' has no place"):
    load_gguf(tmp_path / "b.gguf")


def test_unknown_architecture(tmp_path):
  write(tmp_path / "m.gguf", "llama2", "llama")
  data = (tmp_path / "m.gguf").read_bytes().replace(b"llama", b"lemma")
  (tmp_path / "m.gguf").write_bytes(data)
  with pytest.raises(WeightsError, match="unknown architecture 'lemma'"):
    load_gguf(tmp_path / "m.gguf")
