"""Mistral 7B: Llama with a window over which every layer attends.

Its GGUF files are of the architecture "llama", which does not know the window.
"""

from typing import Any

from sinkjax.config import ModelConfig
from sinkjax.weights.families import llama
from sinkjax.weights.families._config import (
  decoder_values,
  window_fields,
  window_values,
)
from sinkjax.weights.families._family import Family, register
from sinkjax.weights.families._reader import Reader
from sinkjax.weights.families._tensors import decoder_tensors

# Of transformers' MistralConfig.
_DEFAULTS = {
  "vocab_size": 32000,
  "hidden_size": 4096,
  "intermediate_size": 14336,
  "num_hidden_layers": 32,
  "num_attention_heads": 32,
  "max_position_embeddings": 131072,
  "num_key_value_heads": 8,
  "sliding_window": 4096,
}


def read_config(read: Reader) -> dict[str, Any]:
  """See `Family`."""
  fields = llama.read_config(read)
  return fields | window_fields(read, fields["n_layers"], lambda i: True)


def write_config(cfg: ModelConfig) -> dict[str, Any]:
  """See `Family`: every layer has the window, or it is `null`."""
  window = window_values(cfg)
  del window["layer_types"]
  if not any(cfg.local_layers):
    window["sliding_window"] = None
  return decoder_values(cfg) | window


register(
  Family(
    name="mistral",
    transformers_class="MistralForCausalLM",
    read_config=read_config,
    write_config=write_config,
    defaults=_DEFAULTS,
    tensors=decoder_tensors,
  )
)
