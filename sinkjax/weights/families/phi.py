"""Phi 1, 1.5 and 2: attention and MLP in parallel behind one norm.

Biases everywhere, on the logits too; half of each head is rotated.
"""

from typing import Any

from sinkjax.config import ModelConfig
from sinkjax.weights.families._config import decoder_fields, decoder_values
from sinkjax.weights.families._family import Family, Fields, Gguf, register
from sinkjax.weights.families._gguf import (
  Metadata,
  gguf_tensors,
  layer_norm_gguf,
)
from sinkjax.weights.families._reader import Reader
from sinkjax.weights.families._tensors import linear, norms, tables
from sinkjax.weights.layout import Leaf
from sinkjax.weights.validate import WeightsError

# Of transformers' PhiConfig.
_DEFAULTS = {
  "vocab_size": 51200,
  "hidden_size": 2048,
  "intermediate_size": 8192,
  "num_hidden_layers": 24,
  "num_attention_heads": 32,
  "max_position_embeddings": 2048,
}


def read_config(read: Reader) -> dict[str, Any]:
  """See `Family`."""
  if read.get("qk_layernorm", bool, False):
    raise WeightsError(
      f"{read.where}: qk_layernorm=true, layer norms of queries and keys, is "
      "not supported"
    )
  fields = decoder_fields(
    read, eps="layer_norm_eps", eps_default=1e-5, rope_share=0.5
  )
  return fields | {
    "norm": "layer",
    "activation": read.activation("hidden_act", default="gelu_new"),
    "gated_mlp": False,
    "qkv_bias": True,
    "out_bias": True,
    "mlp_bias": True,
    "parallel_residual": True,
    "shared_norm": True,
    "unembed_bias": True,
  }


def write_config(cfg: ModelConfig) -> dict[str, Any]:
  """See `Family`."""
  return decoder_values(cfg, eps="layer_norm_eps") | {
    "partial_rotary_factor": cfg.rotary_dim / cfg.head_dim
  }


def tensors(cfg: ModelConfig) -> list[Leaf]:
  """See `Family`."""
  at = "model.layers.{i}."
  names = {
    "blocks/attn_norm": at + "input_layernorm",
    "final_norm": "model.final_layernorm",
  }
  found = norms(names, bias=True)
  for part in "qkv":
    found += linear(f"attn/{part}", f"{at}self_attn.{part}_proj", True)
  return [
    *found,
    *linear("attn/o", at + "self_attn.dense", True),
    *linear("mlp/up", at + "mlp.fc1", True),
    *linear("mlp/down", at + "mlp.fc2", True),
    *tables(cfg, "model.embed_tokens", "lm_head"),
  ]


def read_gguf(read: Metadata, fields: Fields) -> Fields:
  """See `Gguf`."""
  return layer_norm_gguf(read) | {
    "gated_mlp": False,
    "activation": "gelu_tanh",
    "parallel_residual": True,
    "shared_norm": True,
    "unembed_bias": True,
  }


register(
  Family(
    name="phi",
    transformers_class="PhiForCausalLM",
    not_read="qk_layernorm, norms of queries and keys",
    tokenizer="GPT2Tokenizer",
    read_config=read_config,
    write_config=write_config,
    defaults=_DEFAULTS,
    tensors=tensors,
    gguf=Gguf(architecture="phi2", tensors=gguf_tensors, read_config=read_gguf),
  )
)
