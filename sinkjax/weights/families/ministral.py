"""Ministral: Llama with a window in every layer, or in the listed ones."""

from typing import Any

from sinkjax.weights.families import llama, qwen2
from sinkjax.weights.families._config import window_fields
from sinkjax.weights.families._family import Family, register
from sinkjax.weights.families._reader import Reader
from sinkjax.weights.families._tensors import decoder_tensors

# Of transformers' MinistralConfig.
_DEFAULTS = {
  "vocab_size": 32000,
  "hidden_size": 4096,
  "intermediate_size": 14336,
  "num_hidden_layers": 32,
  "num_attention_heads": 32,
  "num_key_value_heads": 8,
  "max_position_embeddings": 131072,
  "sliding_window": 4096,
}


def read_config(read: Reader) -> dict[str, Any]:
  """See `Family`."""
  fields = llama.read_config(read)
  return fields | window_fields(read, fields["n_layers"], lambda i: True)


register(
  Family(
    name="ministral",
    transformers_class="MinistralForCausalLM",
    read_config=read_config,
    write_config=qwen2.write_config,
    defaults=_DEFAULTS,
    tensors=decoder_tensors,
  )
)
