"""Qwen 3, dense: Llama with norms on each head's queries and keys."""

from typing import Any

from sinkjax.weights.families import llama, qwen2
from sinkjax.weights.families._config import Reader
from sinkjax.weights.families._family import Family, Fields, Gguf, register
from sinkjax.weights.families._gguf import Metadata, gguf_tensors
from sinkjax.weights.families._tensors import decoder_tensors

# Of transformers' Qwen3Config.
_DEFAULTS = qwen2.DEFAULTS | {"head_dim": 128}


def read_config(read: Reader) -> dict[str, Any]:
  """See `Family`."""
  fields = llama.read_config(read) | {"qk_norm": True}
  return fields | qwen2.upper_window(read, fields["n_layers"])


def read_gguf(read: Metadata, fields: Fields) -> Fields:
  """See `Gguf`."""
  return {"qk_norm": True}


register(
  Family(
    name="qwen3",
    transformers_class="Qwen3ForCausalLM",
    tokenizer="Qwen2Tokenizer",
    read_config=read_config,
    write_config=qwen2.write_config,
    defaults=_DEFAULTS,
    tensors=decoder_tensors,
    gguf=Gguf(
      architecture="qwen3", tensors=gguf_tensors, read_config=read_gguf
    ),
  )
)
