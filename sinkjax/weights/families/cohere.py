"""Cohere's Command R: attention and MLP in parallel behind one shared norm.

Layer norms have no bias, rotary pairs lie side by side, logits are scaled.
"""

import functools
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
from sinkjax.weights.validate import WeightsError

# Of transformers' CohereConfig.
_DEFAULTS = {
  "vocab_size": 256000,
  "hidden_size": 8192,
  "intermediate_size": 22528,
  "num_hidden_layers": 40,
  "num_attention_heads": 64,
  "max_position_embeddings": 8192,
  "rope_theta": 500000.0,
}


def read_config(read: Reader) -> dict[str, Any]:
  """See `Family`."""
  if read.get("use_qk_norm", bool, False):
    raise WeightsError(
      f"{read.where}: use_qk_norm=true, layer norms of queries and keys with a "
      "scale of each head, is not supported"
    )
  fields = llama.read_config(
    read, eps="layer_norm_eps", eps_default=1e-5, tied=True
  )
  return fields | {
    "norm": "layer",
    "norm_bias": False,
    "mlp_bias": False,
    "parallel_residual": True,
    "shared_norm": True,
    "logit_scale": read.get("logit_scale", float, 0.0625),
  }


def write_config(cfg: ModelConfig) -> dict[str, Any]:
  """See `Family`."""
  return decoder_values(cfg, eps="layer_norm_eps") | {
    "logit_scale": cfg.logit_scale
  }


tensors = functools.partial(decoder_tensors, interleaved_rope=True)

tensors_gguf = functools.partial(gguf_tensors, interleaved_rope=True)


def read_gguf(read: Metadata, fields: Fields) -> Fields:
  """See `Gguf`."""
  return layer_norm_gguf(read) | {
    "norm_bias": False,
    "parallel_residual": True,
    "shared_norm": True,
    "logit_scale": read.get("logit_scale", float, 1.0) or 1.0,
  }


register(
  Family(
    name="cohere",
    transformers_class="CohereForCausalLM",
    not_read=(
      "use_qk_norm, norms with a scale of each head, as Command R+ has them"
    ),
    read_config=read_config,
    write_config=write_config,
    defaults=_DEFAULTS,
    tensors=tensors,
    gguf=Gguf(
      architecture="command-r", tensors=tensors_gguf, read_config=read_gguf
    ),
  )
)
