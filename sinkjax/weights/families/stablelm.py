"""StableLM 2: layer norms, a quarter of each head rotated.

Attention and MLP may be parallel, and then share a norm.
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
from sinkjax.weights.validate import WeightsError

# Of transformers' StableLmConfig.
_DEFAULTS = {
  "vocab_size": 50304,
  "hidden_size": 2560,
  "intermediate_size": 6912,
  "num_hidden_layers": 32,
  "num_attention_heads": 32,
  "num_key_value_heads": 32,
  "max_position_embeddings": 4096,
}


def read_config(read: Reader) -> dict[str, Any]:
  """See `Family`."""
  if read.get("qk_layernorm", bool, False):
    raise WeightsError(
      f"{read.where}: qk_layernorm=true, layer norms of queries and keys with "
      "a scale of each head, is not supported"
    )
  fields = llama.read_config(
    read, eps="layer_norm_eps", eps_default=1e-5, rope_share=0.25
  )
  parallel = read.get("use_parallel_residual", bool, False)
  return fields | {
    "norm": "layer",
    "qkv_bias": read.get("use_qkv_bias", bool, False),
    "out_bias": False,
    "mlp_bias": False,
    "parallel_residual": parallel,
    "shared_norm": parallel,
  }


def write_config(cfg: ModelConfig) -> dict[str, Any]:
  """See `Family`."""
  return decoder_values(cfg, eps="layer_norm_eps") | {
    "use_qkv_bias": cfg.qkv_bias,
    "use_parallel_residual": cfg.parallel_residual,
    "partial_rotary_factor": cfg.rotary_dim / cfg.head_dim,
  }


def read_gguf(read: Metadata, fields: Fields) -> Fields:
  """See `Gguf`.

  Whether the branches are parallel is told by the MLP's norm: llama.cpp looks
  at nothing else, and its converter writes a default of its own for the key.
  """
  read.get("use_parallel_residual", bool)
  parallel = not read.has("ffn_norm.weight")
  return layer_norm_gguf(read) | {
    "parallel_residual": parallel,
    "shared_norm": parallel,
  }


register(
  Family(
    name="stablelm",
    transformers_class="StableLmForCausalLM",
    not_read=(
      "qk_layernorm, norms with a scale of each head, as StableLM 2 12B "
      "has them"
    ),
    read_config=read_config,
    write_config=write_config,
    defaults=_DEFAULTS,
    tensors=decoder_tensors,
    gguf=Gguf(
      architecture="stablelm", tensors=gguf_tensors, read_config=read_gguf
    ),
  )
)
