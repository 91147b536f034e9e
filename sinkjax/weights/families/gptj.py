"""GPT-J: attention and MLP in parallel behind one norm, a bias on the logits.

The first dimensions of each head are rotated, and pairs lie side by side.
"""

from typing import Any

from sinkjax.config import ModelConfig
from sinkjax.weights.families import gpt2
from sinkjax.weights.families._family import Family, register
from sinkjax.weights.families._reader import Reader
from sinkjax.weights.families._tensors import (
  linear,
  norms,
  partly_interleaved,
  tables,
)
from sinkjax.weights.layout import Leaf

# Of transformers' GPTJConfig.
_DEFAULTS = {
  "vocab_size": 50400,
  "n_embd": 4096,
  "n_layer": 28,
  "n_head": 16,
  "n_positions": 2048,
  "rotary_dim": 64,
}


def read_config(read: Reader) -> dict[str, Any]:
  """See `Family`; its base of RoPE, 10000, is that of no key."""
  return gpt2.read_config(read) | {
    "qkv_bias": False,
    "out_bias": False,
    "positions": "rope",
    "rope_dim": read.need("rotary_dim", int),
    "parallel_residual": True,
    "shared_norm": True,
    "unembed_bias": True,
    "tie_embeddings": read.get("tie_word_embeddings", bool, False),
  }


def write_config(cfg: ModelConfig) -> dict[str, Any]:
  """See `Family`."""
  return gpt2.write_config(cfg) | {"rotary_dim": cfg.rotary_dim}


def tensors(cfg: ModelConfig) -> list[Leaf]:
  """See `Family`."""
  names = {
    "blocks/attn_norm": f"{gpt2.AT}ln_1",
    "final_norm": "transformer.ln_f",
  }
  found = norms(names, bias=True)
  for part in "qkv":
    found += linear(f"attn/{part}", f"{gpt2.AT}attn.{part}_proj", False)
  return [
    *partly_interleaved(found, cfg),
    *linear("attn/o", f"{gpt2.AT}attn.out_proj", False),
    *linear("mlp/up", f"{gpt2.AT}mlp.fc_in", True),
    *linear("mlp/down", f"{gpt2.AT}mlp.fc_out", True),
    *tables(cfg, "transformer.wte", "lm_head"),
  ]


register(
  Family(
    name="gptj",
    transformers_class="GPTJForCausalLM",
    tokenizer="GPT2Tokenizer",
    read_config=read_config,
    write_config=write_config,
    defaults=_DEFAULTS,
    aliases=gpt2.ALIASES,
    optional_prefix="transformer.",
    # Old checkpoints carry their masks under this module's name.
    ignored_tensors=(r"\.attn\.(masked_)?bias$",),
    tensors=tensors,
  )
)
