"""Cohere's Command R7B and Command A: Cohere with a window in most layers.

Layers without the window, every fourth by default, rotate nothing.
"""

from typing import Any

from sinkjax.config import ModelConfig
from sinkjax.weights.families import cohere
from sinkjax.weights.families._config import window_fields, window_values
from sinkjax.weights.families._family import Family, Fields, Gguf, register
from sinkjax.weights.families._gguf import Metadata, window_gguf
from sinkjax.weights.families._reader import Reader
from sinkjax.weights.families._rope import rotated_layers
from sinkjax.weights.validate import WeightsError

# Of transformers' Cohere2Config.
_DEFAULTS = {
  "vocab_size": 256000,
  "hidden_size": 8192,
  "intermediate_size": 22528,
  "num_hidden_layers": 40,
  "num_attention_heads": 64,
  "max_position_embeddings": 8192,
  "sliding_window": 4096,
}


def read_config(read: Reader) -> dict[str, Any]:
  """See `Family`."""
  fields = cohere.read_config(read)
  layers = fields["n_layers"]
  every = read.get("sliding_window_pattern", int, 4)
  fields |= window_fields(read, layers, lambda i: (i + 1) % every != 0)
  local = fields["local_layers"] or (False,) * layers
  return fields | {"rope_layers": rotated_layers(local)}


def write_config(cfg: ModelConfig) -> dict[str, Any]:
  """See `Family`."""
  return cohere.write_config(cfg) | window_values(cfg)


def read_gguf(read: Metadata, fields: Fields) -> Fields:
  """See `Gguf`."""
  if read.need("attention.sliding_window", int) <= 0:
    raise WeightsError(f"{read.where}: cohere2.attention.sliding_window is 0")
  found = window_gguf(read, fields["n_layers"], 4)
  rotated = {"rope_layers": rotated_layers(found["local_layers"])}
  return cohere.read_gguf(read, fields) | found | rotated


register(
  Family(
    name="cohere2",
    transformers_class="Cohere2ForCausalLM",
    read_config=read_config,
    write_config=write_config,
    defaults=_DEFAULTS,
    tensors=cohere.tensors,
    gguf=Gguf(
      architecture="cohere2", tensors=cohere.tensors_gguf, read_config=read_gguf
    ),
  )
)
