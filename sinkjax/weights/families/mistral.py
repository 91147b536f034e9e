"""Mistral 7B: Llama with a window over which every layer attends.

Its GGUF files are of the architecture "llama", which does not know the window.
"""

from typing import Any

from sinkjax.config import ModelConfig
from sinkjax.weights.families import llama
from sinkjax.weights.families._config import (
  Reader,
  decoder_values,
  window_fields,
  window_values,
)
from sinkjax.weights.families._family import Family, register
from sinkjax.weights.families._tensors import decoder_tensors


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
    tensors=decoder_tensors,
  )
)
