"""OLMo 2: norms on the branches' outputs alone.

Queries and keys are normalised over all heads of a token together.
"""

from typing import Any

from sinkjax.weights.families import llama
from sinkjax.weights.families._config import decoder_values
from sinkjax.weights.families._family import Family, Fields, Gguf, register
from sinkjax.weights.families._gguf import Metadata, gguf_tensors
from sinkjax.weights.families._reader import Reader
from sinkjax.weights.families._tensors import decoder_tensors

# Of transformers' Olmo2Config.
DEFAULTS = {
  "vocab_size": 50304,
  "hidden_size": 4096,
  "intermediate_size": 11008,
  "num_hidden_layers": 32,
  "num_attention_heads": 32,
  "max_position_embeddings": 2048,
}


def read_config(read: Reader, rope_base: float = 1e4) -> dict[str, Any]:
  """See `Family`."""
  fields = llama.read_config(read, eps_default=1e-5, rope_base=rope_base)
  return fields | {
    "mlp_bias": False,
    "pre_norms": False,
    "post_norms": True,
    "qk_norm": True,
    "qk_norm_over": "all",
  }


def read_gguf(read: Metadata, fields: Fields) -> Fields:
  """See `Gguf`."""
  return {
    "pre_norms": False,
    "post_norms": True,
    "qk_norm": True,
    "qk_norm_over": "all",
  }


register(
  Family(
    name="olmo2",
    transformers_class="Olmo2ForCausalLM",
    read_config=read_config,
    write_config=decoder_values,
    defaults=DEFAULTS,
    tensors=decoder_tensors,
    gguf=Gguf(
      architecture="olmo2", tensors=gguf_tensors, read_config=read_gguf
    ),
  )
)
