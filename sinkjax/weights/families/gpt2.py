"""GPT-2: learned positions, biases everywhere, kernels stored [in, out]."""

from typing import Any

from sinkjax.config import ModelConfig
from sinkjax.weights.families._config import head_dim
from sinkjax.weights.families._family import Family, Fields, Gguf, register
from sinkjax.weights.families._gguf import (
  Metadata,
  gguf_tensors_fused,
  layer_norm_gguf,
)
from sinkjax.weights.families._reader import ACTIVATION_NAMES, Reader
from sinkjax.weights.families._tensors import fused_qkv, linear, norms, tables
from sinkjax.weights.fused_layouts import FusedThirds
from sinkjax.weights.layout import Kernel, Leaf, Linear

AT = "transformer.h.{i}."
"""What the names in a layer begin with."""

# Of transformers' GPT2Config.
DEFAULTS = {
  "vocab_size": 50257,
  "n_embd": 768,
  "n_layer": 12,
  "n_head": 12,
  "n_positions": 1024,
}

ALIASES = {
  "hidden_size": "n_embd",
  "max_position_embeddings": "n_positions",
  "num_attention_heads": "n_head",
  "num_hidden_layers": "n_layer",
}
"""Other spellings of its keys, see `Family`."""


def read_config(read: Reader) -> dict[str, Any]:
  """See `Family`."""
  width, heads = read.need("n_embd", int), read.need("n_head", int)
  return {
    "vocab_size": read.need("vocab_size", int),
    "d_model": width,
    "n_layers": read.need("n_layer", int),
    "n_heads": heads,
    "n_kv_heads": heads,
    "head_dim": head_dim(read, width, heads),
    "d_ff": read.get("n_inner", int, 4 * width),
    "max_len": read.need("n_positions", int),
    "norm": "layer",
    "norm_eps": read.get("layer_norm_epsilon", float, 1e-5),
    "qkv_bias": True,
    "out_bias": True,
    "gated_mlp": False,
    "mlp_bias": True,
    "activation": read.activation("activation_function", default="gelu_new"),
    "positions": "learned",
    "tie_embeddings": read.get("tie_word_embeddings", bool, True),
  }


def write_config(cfg: ModelConfig) -> dict[str, Any]:
  """See `Family`."""
  return {
    "vocab_size": cfg.vocab_size,
    "n_embd": cfg.d_model,
    "n_layer": cfg.n_layers,
    "n_head": cfg.n_heads,
    "n_inner": cfg.d_ff,
    "n_positions": cfg.max_len,
    "layer_norm_epsilon": cfg.norm_eps,
    "activation_function": ACTIVATION_NAMES[cfg.activation],
  }


def tensors_around(
  attention: list[Leaf],
  cfg: ModelConfig,
  kind: type[Linear] | type[Kernel] = Linear,
) -> list[Leaf]:
  """All tensors by GPT-2's names, around those of the attention.

  Args:
    attention: where the attention's own lie.
    cfg: the model.
    kind: how the MLP's matrices lie.
  """
  names = {
    "blocks/attn_norm": f"{AT}ln_1",
    "blocks/mlp_norm": f"{AT}ln_2",
    "final_norm": "transformer.ln_f",
  }
  return [
    *norms(names, bias=True),
    *attention,
    *linear("mlp/up", f"{AT}mlp.c_fc", True, kind),
    *linear("mlp/down", f"{AT}mlp.c_proj", True, kind),
    *tables(cfg, "transformer.wte", "lm_head", "transformer.wpe"),
  ]


def tensors(cfg: ModelConfig) -> list[Leaf]:
  """See `Family`."""
  attention = [
    *fused_qkv(f"{AT}attn.c_attn", True, FusedThirds, Kernel),
    *linear("attn/o", f"{AT}attn.c_proj", True, Kernel),
  ]
  return tensors_around(attention, cfg, Kernel)


def read_gguf(read: Metadata, fields: Fields) -> Fields:
  """See `Gguf`."""
  return layer_norm_gguf(read) | {
    "gated_mlp": False,
    "activation": "gelu_tanh",
    "positions": "learned",
  }


register(
  Family(
    name="gpt2",
    transformers_class="GPT2LMHeadModel",
    tokenizer="GPT2Tokenizer",
    read_config=read_config,
    write_config=write_config,
    defaults=DEFAULTS,
    aliases=ALIASES,
    tensors=tensors,
    optional_prefix="transformer.",
    gguf=Gguf(
      architecture="gpt2", tensors=gguf_tensors_fused, read_config=read_gguf
    ),
  )
)
