"""Arcee's AFM: Llama whose MLP has no gate and squares a ReLU."""

from typing import Any

from sinkjax.weights.families import llama
from sinkjax.weights.families._family import Family, register
from sinkjax.weights.families._reader import Reader
from sinkjax.weights.families._tensors import decoder_tensors

# Of transformers' ArceeConfig.
_DEFAULTS = {
  "vocab_size": 32000,
  "hidden_size": 2560,
  "intermediate_size": 18432,
  "num_hidden_layers": 32,
  "num_attention_heads": 32,
  "max_position_embeddings": 4096,
}


def read_config(read: Reader) -> dict[str, Any]:
  """See `Family`."""
  return llama.read_config(read, eps_default=1e-5, activation="relu2") | {
    "gated_mlp": False
  }


register(
  Family(
    name="arcee",
    transformers_class="ArceeForCausalLM",
    read_config=read_config,
    write_config=llama.write_config,
    defaults=_DEFAULTS,
    tensors=decoder_tensors,
  )
)
