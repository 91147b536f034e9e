"""Qwen 3, dense: Llama with norms on each head's queries and keys.

The models published with arXiv 2505.06708, which open each head's output by a
gate, have its name, and the gate's rows behind the queries of each KV group.
"""

from typing import Any

from sinkjax.config import ModelConfig
from sinkjax.weights.families import llama, qwen2
from sinkjax.weights.families._family import Family, Fields, Gguf, register
from sinkjax.weights.families._gguf import Metadata, gguf_tensors
from sinkjax.weights.families._reader import Reader
from sinkjax.weights.families._tensors import decoder_tensors, fused_groups
from sinkjax.weights.layout import Leaf
from sinkjax.weights.validate import WeightsError

# Of transformers' Qwen3Config.
_DEFAULTS = qwen2.DEFAULTS | {"head_dim": 128}


# What a gate is for, and the key that says so.
_GATES = {
  "head": "headwise_attn_output_gate",
  "element": "elementwise_attn_output_gate",
}


def _gate(read: Reader) -> str:
  found = [gate for gate, key in _GATES.items() if read.get(key, bool, False)]
  if found and (read.get("qkv_bias", bool) or read.get("attention_bias", bool)):
    raise WeightsError(
      f"{read.where}: gated attention with biases (qkv_bias or attention_bias) "
      "is not supported"
    )
  # Their code looks at the first key first.
  return found[0] if found else "none"


def read_config(read: Reader) -> dict[str, Any]:
  """See `Family`."""
  fields = llama.read_config(read) | {
    "qk_norm": read.get("use_qk_norm", bool, True),
    "gate": _gate(read),
  }
  return fields | qwen2.upper_window(read, fields["n_layers"])


def write_config(cfg: ModelConfig) -> dict[str, Any]:
  """See `Family`."""
  values = qwen2.write_config(cfg)
  if cfg.gate in _GATES:
    # Their code asks for all of these.
    values |= {key: gate == cfg.gate for gate, key in _GATES.items()}
    values |= {"use_qk_norm": cfg.qk_norm, "qkv_bias": False}
  return values


def tensors(cfg: ModelConfig) -> list[Leaf]:
  """See `Family`."""
  found = decoder_tensors(cfg)
  if cfg.gate == "none":
    return found
  name = "model.layers.{i}.self_attn.q_proj"
  each = {"head": 1, "element": cfg.head_dim}[cfg.gate]
  rows = {"q": cfg.group_size * cfg.head_dim, "gate": cfg.group_size * each}
  return [
    *(leaf for leaf in found if leaf.name != f"{name}.weight"),
    *fused_groups(rows, name, False, cfg.n_kv_heads),
  ]


def read_gguf(read: Metadata, fields: Fields) -> Fields:
  """See `Gguf`."""
  return {"qk_norm": True}


register(
  Family(
    name="qwen3",
    transformers_class="Qwen3ForCausalLM",
    not_read="gated attention with biases",
    tokenizer="Qwen2Tokenizer",
    read_config=read_config,
    write_config=write_config,
    defaults=_DEFAULTS,
    tensors=tensors,
    gguf=Gguf(
      architecture="qwen3", tensors=gguf_tensors, read_config=read_gguf
    ),
  )
)
