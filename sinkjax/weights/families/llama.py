"""Llama 1 to 3 and what has its code: SmolLM2, TinyLlama, Yi and many more.

llama.cpp also files Mistral under this architecture.
"""

import functools
from typing import Any

from sinkjax.config import ModelConfig
from sinkjax.weights.families._config import decoder_fields, decoder_values
from sinkjax.weights.families._family import Family, Gguf, register
from sinkjax.weights.families._gguf import gguf_tensors
from sinkjax.weights.families._reader import Reader
from sinkjax.weights.families._tensors import decoder_tensors

# Of transformers' LlamaConfig.
_DEFAULTS = {
  "vocab_size": 32000,
  "hidden_size": 4096,
  "intermediate_size": 11008,
  "num_hidden_layers": 32,
  "num_attention_heads": 32,
  "max_position_embeddings": 2048,
}


def read_config(
  read: Reader, *, activation: str = "silu", **defaults: Any
) -> dict[str, Any]:
  """See `Family`; `defaults` are those of `decoder_fields`."""
  bias = read.get("attention_bias", bool, False)
  return decoder_fields(read, **defaults) | {
    "activation": read.activation("hidden_act", default=activation),
    "qkv_bias": bias,
    "out_bias": bias,
    "mlp_bias": read.get("mlp_bias", bool, False),
  }


def write_config(cfg: ModelConfig) -> dict[str, Any]:
  """See `Family`."""
  return decoder_values(cfg) | {"mlp_bias": cfg.mlp_bias}


GGUF = Gguf(
  architecture="llama",
  tensors=functools.partial(gguf_tensors, interleaved_rope=True),
)


register(
  Family(
    name="llama",
    transformers_class="LlamaForCausalLM",
    read_config=read_config,
    write_config=write_config,
    defaults=_DEFAULTS,
    tensors=decoder_tensors,
    gguf=GGUF,
  )
)
