"""`ModelConfig` to Hugging Face's `config.json`.

RoPE is written in the older form, `rope_theta` with `rope_scaling`, which
every version of transformers understands.
"""

import math
from typing import Any

from sinkjax.config import ModelConfig, RopeScaling
from sinkjax.weights.hf_config import FAMILIES, config_from_hf

_ACTIVATION_NAMES = {
  "silu": "silu",
  "gelu": "gelu",
  "gelu_tanh": "gelu_pytorch_tanh",
  "relu": "relu",
}


def config_to_hf(cfg: ModelConfig) -> dict[str, Any]:
  """A `config.json` that transformers reads as the same function.

  Raises:
    ValueError: where no family of ours can express `cfg`; checked by reading
      the result back.
  """
  if cfg.model_type not in FAMILIES:
    raise ValueError(
      f"model_type {cfg.model_type!r} has no Hugging Face form; known: "
      f"{list(FAMILIES)}"
    )
  values = _gpt2_to_hf(cfg) if cfg.model_type == "gpt2" else _to_hf(cfg)
  values |= {
    "bos_token_id": cfg.bos_id,
    "eos_token_id": cfg.eos_id,
    "tie_word_embeddings": cfg.tie_embeddings,
    "torch_dtype": "float32",
  }
  back = config_from_hf(values, "the exported config")
  runtime = {
    "dtype",
    "precision",
    "scan_layers",
    "attention",
    "remat",
    "init_std",
  }
  mine, theirs = cfg.to_dict(), back.to_dict()
  for name, value in mine.items():
    if name in runtime or theirs[name] == value:
      continue
    if name == "attn_scale" and math.isclose(back.score_scale, cfg.score_scale):
      continue
    if name == "rope_dim" and back.rotary_dim == cfg.rotary_dim:
      continue
    raise ValueError(
      f"a {cfg.model_type} config.json cannot express {name}={value!r}"
    )
  return values


def _gpt2_to_hf(cfg: ModelConfig) -> dict[str, Any]:
  return {
    "model_type": "gpt2",
    "architectures": ["GPT2LMHeadModel"],
    "vocab_size": cfg.vocab_size,
    "n_embd": cfg.d_model,
    "n_layer": cfg.n_layers,
    "n_head": cfg.n_heads,
    "n_inner": cfg.d_ff,
    "n_positions": cfg.max_len,
    "layer_norm_epsilon": cfg.norm_eps,
    "activation_function": _ACTIVATION_NAMES[cfg.activation],
  }


_ARCHITECTURES = {
  "llama": "LlamaForCausalLM",
  "mistral": "MistralForCausalLM",
  "qwen2": "Qwen2ForCausalLM",
  "qwen3": "Qwen3ForCausalLM",
  "gemma": "GemmaForCausalLM",
  "gemma2": "Gemma2ForCausalLM",
  "gemma3_text": "Gemma3ForCausalLM",
  "gpt_neox": "GPTNeoXForCausalLM",
}


def _to_hf(cfg: ModelConfig) -> dict[str, Any]:
  family = cfg.model_type
  eps = "layer_norm_eps" if family == "gpt_neox" else "rms_norm_eps"
  activation = _ACTIVATION_NAMES[cfg.activation]
  values = {
    "model_type": family,
    "architectures": [_ARCHITECTURES[family]],
    "vocab_size": cfg.vocab_size,
    "hidden_size": cfg.d_model,
    "num_hidden_layers": cfg.n_layers,
    "num_attention_heads": cfg.n_heads,
    "num_key_value_heads": cfg.n_kv_heads,
    "head_dim": cfg.head_dim,
    "intermediate_size": cfg.d_ff,
    "max_position_embeddings": cfg.max_len,
    eps: cfg.norm_eps,
    "hidden_act": activation,
    "attention_bias": cfg.out_bias,
    "rope_theta": cfg.rope_base,
    "rope_scaling": _scaling_to_hf(cfg.rope_scaling),
  }
  if family == "llama":
    values["mlp_bias"] = cfg.mlp_bias
  if family == "gpt_neox":
    values["rotary_emb_base"] = values.pop("rope_theta")
    values["rotary_pct"] = cfg.rotary_dim / cfg.head_dim
    values["use_parallel_residual"] = cfg.parallel_residual
    values["attention_bias"] = cfg.qkv_bias
  if family.startswith("gemma"):
    values["hidden_activation"] = activation
  if family in ("mistral", "qwen2", "qwen3", "gemma2", "gemma3_text"):
    values["sliding_window"] = cfg.window
    values["use_sliding_window"] = any(cfg.local_layers)
    if family == "mistral" and not any(cfg.local_layers):
      values["sliding_window"] = None
    if family != "mistral":
      local = cfg.local_layers or (False,) * cfg.n_layers
      kinds = {True: "sliding_attention", False: "full_attention"}
      values["layer_types"] = [kinds[is_local] for is_local in local]
  if family in ("gemma2", "gemma3_text"):
    scalar = round(cfg.score_scale**-2, 6)
    values["query_pre_attn_scalar"] = int(scalar) if scalar % 1 == 0 else scalar
    values["attn_logit_softcapping"] = cfg.attn_softcap
    values["final_logit_softcapping"] = cfg.logit_softcap
  if family == "gemma3_text":
    values["rope_local_base_freq"] = cfg.rope_local_base
  return values


def _scaling_to_hf(scaling: RopeScaling | None) -> dict[str, Any] | None:
  if scaling is None:
    return None
  if scaling.kind == "linear":
    return {"rope_type": "linear", "factor": scaling.factor}
  if scaling.kind == "llama3":
    return {
      "rope_type": "llama3",
      "factor": scaling.factor,
      "low_freq_factor": scaling.low_freq,
      "high_freq_factor": scaling.high_freq,
      "original_max_position_embeddings": scaling.original_max_len,
    }
  raise ValueError(
    "RoPE frequency factors (from a GGUF file) have no Hugging Face form"
  )
