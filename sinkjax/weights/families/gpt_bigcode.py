"""GPT-BigCode, as SantaCoder and StarCoder: GPT-2 with one key head for all.

Unlike GPT-2's, its matrices are [out, in].
"""

from typing import Any

from sinkjax.config import ModelConfig
from sinkjax.weights.families import gpt2
from sinkjax.weights.families._family import Family, Gguf, register
from sinkjax.weights.families._gguf import gguf_tensors_fused
from sinkjax.weights.families._reader import Reader
from sinkjax.weights.families._tensors import fused_rows, linear, qkv_sizes
from sinkjax.weights.layout import Leaf
from sinkjax.weights.validate import WeightsError


def read_config(read: Reader) -> dict[str, Any]:
  """See `Family`."""
  if not read.get("multi_query", bool, True):
    raise WeightsError(
      f"{read.where}: multi_query=false, a key head for each query head, is "
      "not supported"
    )
  fields = gpt2.read_config(read)
  activation = read.activation(
    "activation_function", default="gelu_pytorch_tanh"
  )
  return fields | {"n_kv_heads": 1, "activation": activation}


def write_config(cfg: ModelConfig) -> dict[str, Any]:
  """See `Family`."""
  return gpt2.write_config(cfg) | {"multi_query": True}


def tensors(cfg: ModelConfig) -> list[Leaf]:
  """See `Family`."""
  attention = [
    *fused_rows(qkv_sizes(cfg), f"{gpt2.AT}attn.c_attn", True),
    *linear("attn/o", f"{gpt2.AT}attn.c_proj", True),
  ]
  return gpt2.tensors_around(attention, cfg)


register(
  Family(
    name="gpt_bigcode",
    transformers_class="GPTBigCodeForCausalLM",
    not_read="a key head for each query head (multi_query of false)",
    tokenizer="GPT2Tokenizer",
    read_config=read_config,
    write_config=write_config,
    defaults=gpt2.DEFAULTS,  # GPTBigCodeConfig has the same
    aliases=gpt2.ALIASES,
    tensors=tensors,
    optional_prefix="transformer.",
    gguf=Gguf(
      architecture="starcoder",
      tensors=gguf_tensors_fused,
      read_config=gpt2.read_gguf,
    ),
  )
)
