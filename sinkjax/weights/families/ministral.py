"""Ministral: Llama with a window in every layer, or in those that are listed.

Its config class has a window of 4096 where the key is left out.
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
  window = Reader({"sliding_window": 4096} | read.values, read.where)
  return fields | window_fields(window, fields["n_layers"], lambda i: True)


def write_config(cfg: ModelConfig) -> dict[str, Any]:
  """See `Family`."""
  return decoder_values(cfg) | window_values(cfg)


register(
  Family(
    name="ministral",
    transformers_class="MinistralForCausalLM",
    read_config=read_config,
    write_config=write_config,
    tensors=decoder_tensors,
  )
)
