"""Arcee's AFM: Llama whose MLP has no gate and squares a ReLU."""

import functools
from typing import Any

from sinkjax.weights.families import llama
from sinkjax.weights.families._family import Family, Fields, Gguf, register
from sinkjax.weights.families._gguf import Metadata, gguf_tensors
from sinkjax.weights.families._gguf_rope import YARN_KEYS, yarn_scaling
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


def read_gguf(read: Metadata, fields: Fields) -> Fields:
  """See `Gguf`."""
  return {"gated_mlp": False, "activation": "relu2"}


register(
  Family(
    name="arcee",
    transformers_class="ArceeForCausalLM",
    read_config=read_config,
    write_config=llama.write_config,
    defaults=_DEFAULTS,
    tensors=decoder_tensors,
    gguf=Gguf(
      architecture="arcee",
      tensors=functools.partial(gguf_tensors, interleaved_rope=True),
      read_config=read_gguf,
      rope_keys=YARN_KEYS,
      rope_scaling=yarn_scaling,
    ),
  )
)
