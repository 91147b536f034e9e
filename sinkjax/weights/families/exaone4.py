"""EXAONE 4: norms on the branches' outputs and on each query and key.

Where a window is used, the layers without it, every fourth by default, rotate
nothing.
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
  fields = llama.read_config(read, eps_default=1e-5)
  layers = fields["n_layers"]
  window = Reader({"sliding_window": 4096} | read.values, read.where)
  every = 4
  if read.values.get("layer_types") is None:
    every = read.get("sliding_window_pattern", int, 4)
  fields |= window_fields(window, layers, lambda i: (i + 1) % every != 0)
  local = fields["local_layers"] or (False,) * layers
  rotated = (True,) * layers if fields["window"] is None else local
  return fields | {
    "qkv_bias": False,
    "out_bias": False,
    "mlp_bias": False,
    "pre_norms": False,
    "post_norms": True,
    "qk_norm": True,
    "rope_layers": () if all(rotated) else rotated,
  }


def write_config(cfg: ModelConfig) -> dict[str, Any]:
  """See `Family`."""
  return decoder_values(cfg) | window_values(cfg)


register(
  Family(
    name="exaone4",
    transformers_class="Exaone4ForCausalLM",
    read_config=read_config,
    write_config=write_config,
    tensors=decoder_tensors,
  )
)
