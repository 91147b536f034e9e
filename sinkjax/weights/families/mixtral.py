"""Mixtral: Mistral with experts, two of eight a token by default.

The weights of a token's experts sum to one. Its experts' maps have the names
that Mistral AI gave them: w1 is the gate, w2 leads down, w3 up.
"""

import dataclasses
from typing import Any

from sinkjax.config import ModelConfig
from sinkjax.weights.families import llama, mistral
from sinkjax.weights.families._config import (
  expert_fields,
  expert_values,
  window_fields,
)
from sinkjax.weights.families._family import Family, Fields, register
from sinkjax.weights.families._gguf import Metadata, expert_gguf
from sinkjax.weights.families._reader import Reader
from sinkjax.weights.families._tensors import decoder_tensors, expert_tensors
from sinkjax.weights.layout import Leaf

# Of transformers' MixtralConfig.
_DEFAULTS = {
  "vocab_size": 32000,
  "hidden_size": 4096,
  "intermediate_size": 14336,
  "num_hidden_layers": 32,
  "num_attention_heads": 32,
  "max_position_embeddings": 131072,
  "num_key_value_heads": 8,
  "num_local_experts": 8,
  "num_experts_per_tok": 2,
}
_COUNT = "num_local_experts"


def read_config(read: Reader) -> dict[str, Any]:
  """See `Family`."""
  fields = llama.read_config(read, eps_default=1e-5, rope_base=1e6)
  return (
    fields
    | expert_fields(read, _COUNT)
    | {"norm_topk": True, "qkv_bias": False, "out_bias": False}
    | window_fields(read, fields["n_layers"], lambda i: True)
  )


def write_config(cfg: ModelConfig) -> dict[str, Any]:
  """See `Family`."""
  return mistral.write_config(cfg) | expert_values(cfg, _COUNT)


def tensors(cfg: ModelConfig) -> list[Leaf]:
  """See `Family`."""
  names = {"gate": "w1", "down": "w2", "up": "w3"}
  experts = expert_tensors(cfg, "model.layers.{i}.block_sparse_moe", names)
  return decoder_tensors(cfg, experts=experts)


def read_gguf(read: Metadata, fields: Fields) -> Fields:
  """See `Gguf`."""
  return expert_gguf(read, norm_topk=True)


register(
  Family(
    name="mixtral",
    transformers_class="MixtralForCausalLM",
    read_config=read_config,
    write_config=write_config,
    defaults=_DEFAULTS,
    aliases={"num_experts": _COUNT},
    tensors=tensors,
    gguf=dataclasses.replace(
      llama.GGUF, read_config=read_gguf, marked_by="expert_count"
    ),
  )
)
