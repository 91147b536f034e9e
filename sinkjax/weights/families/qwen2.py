"""Qwen 2 and 2.5: Llama with biases on queries, keys and values alone.

The upper layers may attend over a window.
"""

from typing import Any

from sinkjax.config import ModelConfig
from sinkjax.weights.families import llama
from sinkjax.weights.families._config import (
  decoder_values,
  window_fields,
  window_values,
)
from sinkjax.weights.families._family import Family, Gguf, register
from sinkjax.weights.families._gguf import gguf_tensors
from sinkjax.weights.families._reader import Reader
from sinkjax.weights.families._tensors import decoder_tensors

# Of transformers' Qwen2Config.
DEFAULTS = {
  "vocab_size": 151936,
  "hidden_size": 4096,
  "intermediate_size": 22016,
  "num_hidden_layers": 32,
  "num_attention_heads": 32,
  "max_position_embeddings": 32768,
  "num_key_value_heads": 32,
  "sliding_window": 4096,
}


def read_config(read: Reader) -> dict[str, Any]:
  """See `Family`."""
  fields = llama.read_config(read)
  return (
    fields
    | {"qkv_bias": True, "out_bias": False}
    | upper_window(read, fields["n_layers"])
  )


def upper_window(read: Reader, n_layers: int) -> dict[str, Any]:
  """The window of the layers from `max_window_layers` on, where it is used."""
  if not read.get("use_sliding_window", bool, False):
    return {}
  # 28 is the default of transformers' own config class.
  first = read.get("max_window_layers", int, 28)
  return window_fields(read, n_layers, lambda i: i >= first)


def write_config(cfg: ModelConfig) -> dict[str, Any]:
  """See `Family`."""
  return decoder_values(cfg) | window_values(cfg)


register(
  Family(
    name="qwen2",
    transformers_class="Qwen2ForCausalLM",
    tokenizer="Qwen2Tokenizer",
    read_config=read_config,
    write_config=write_config,
    defaults=DEFAULTS,
    tensors=decoder_tensors,
    gguf=Gguf(architecture="qwen2", tensors=gguf_tensors),
  )
)
