"""Nemotron 3 and 4: layer norms that multiply by 1 + w, squared ReLUs.

Half of each head is rotated by default, and the MLP has no gate.
"""

from typing import Any

from sinkjax.config import ModelConfig
from sinkjax.weights.families import llama
from sinkjax.weights.families._config import decoder_values
from sinkjax.weights.families._family import Family, Fields, Gguf, register
from sinkjax.weights.families._gguf import (
  Metadata,
  gguf_tensors,
  layer_norm_gguf,
)
from sinkjax.weights.families._reader import Reader
from sinkjax.weights.families._tensors import decoder_tensors

# Of transformers' NemotronConfig.
_DEFAULTS = {
  "vocab_size": 256000,
  "hidden_size": 6144,
  "intermediate_size": 24576,
  "num_hidden_layers": 32,
  "num_attention_heads": 48,
  "max_position_embeddings": 4096,
}


def read_config(read: Reader) -> dict[str, Any]:
  """See `Family`."""
  fields = llama.read_config(
    read, eps="norm_eps", eps_default=1e-5, rope_share=0.5, activation="relu2"
  )
  return fields | {"norm": "layer", "norm_offset": 1.0, "gated_mlp": False}


def write_config(cfg: ModelConfig) -> dict[str, Any]:
  """See `Family`."""
  return decoder_values(cfg, eps="norm_eps") | {
    "mlp_bias": cfg.mlp_bias,
    "partial_rotary_factor": cfg.rotary_dim / cfg.head_dim,
  }


def read_gguf(read: Metadata, fields: Fields) -> Fields:
  """See `Gguf`; the files store 1 + w."""
  return layer_norm_gguf(read) | {
    "norm_offset": 1.0,
    "gated_mlp": False,
    "activation": "relu2",
  }


register(
  Family(
    name="nemotron",
    transformers_class="NemotronForCausalLM",
    read_config=read_config,
    write_config=write_config,
    defaults=_DEFAULTS,
    tensors=decoder_tensors,
    gguf=Gguf(
      architecture="nemotron", tensors=gguf_tensors, read_config=read_gguf
    ),
  )
)
