"""GPT-BigCode, as SantaCoder and StarCoder: GPT-2 with one key head for all.

Unlike GPT-2's, its matrices are [out, in].
"""

from typing import Any

from sinkjax.config import ModelConfig
from sinkjax.weights.families import gpt2
from sinkjax.weights.families._config import Reader
from sinkjax.weights.families._family import Family, register
from sinkjax.weights.families._tensors import (
  fused_rows,
  linear,
  norms,
  qkv_sizes,
  tables,
)
from sinkjax.weights.layout import Leaf
from sinkjax.weights.validate import WeightsError

# Of transformers' GPTBigCodeConfig.
_DEFAULTS = {
  "vocab_size": 50257,
  "n_embd": 768,
  "n_layer": 12,
  "n_head": 12,
  "n_positions": 1024,
}


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
  at = "transformer.h.{i}."
  names = {
    "blocks/attn_norm": at + "ln_1",
    "blocks/mlp_norm": at + "ln_2",
    "final_norm": "transformer.ln_f",
  }
  return [
    *norms(names, bias=True),
    *fused_rows(qkv_sizes(cfg), at + "attn.c_attn", True),
    *linear("attn/o", at + "attn.c_proj", True),
    *linear("mlp/up", at + "mlp.c_fc", True),
    *linear("mlp/down", at + "mlp.c_proj", True),
    *tables(cfg, "transformer.wte", "lm_head", "transformer.wpe"),
  ]


register(
  Family(
    name="gpt_bigcode",
    transformers_class="GPTBigCodeForCausalLM",
    tokenizer="GPT2Tokenizer",
    read_config=read_config,
    write_config=write_config,
    defaults=_DEFAULTS,
    aliases={
      "hidden_size": "n_embd",
      "max_position_embeddings": "n_positions",
      "num_attention_heads": "n_head",
      "num_hidden_layers": "n_layer",
    },
    tensors=tensors,
    optional_prefix="transformer.",
  )
)
