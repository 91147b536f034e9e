"""Granite 3: Llama with factors on embedding, scores, branches and logits."""

import functools
from typing import Any

from sinkjax.config import ModelConfig
from sinkjax.weights.families import llama
from sinkjax.weights.families._family import Family, Fields, Gguf, register
from sinkjax.weights.families._gguf import Metadata, gguf_tensors
from sinkjax.weights.families._reader import Reader
from sinkjax.weights.families._tensors import decoder_tensors
from sinkjax.weights.validate import WeightsError

# Of transformers' GraniteConfig.
_DEFAULTS = {
  "vocab_size": 32000,
  "hidden_size": 4096,
  "intermediate_size": 11008,
  "num_hidden_layers": 32,
  "num_attention_heads": 32,
  "max_position_embeddings": 2048,
}


def read_config(read: Reader, *, tied: bool = False) -> dict[str, Any]:
  """See `Family`; `tied` is the default of a family that has its code."""
  divisor = read.get("logits_scaling", float, 1.0)
  if not divisor > 0:
    raise WeightsError(
      f"{read.where}: logits_scaling must be positive, got {divisor}"
    )
  return llama.read_config(read, tied=tied) | {
    "embed_scale": read.get("embedding_multiplier", float, 1.0),
    "attn_scale": read.get("attention_multiplier", float, 1.0),
    "residual_scale": read.get("residual_multiplier", float, 1.0),
    "logit_scale": 1.0 / divisor,
  }


def write_config(cfg: ModelConfig) -> dict[str, Any]:
  """See `Family`."""
  return llama.write_config(cfg) | {
    "embedding_multiplier": cfg.embed_scale,
    "attention_multiplier": cfg.score_scale,
    "residual_multiplier": cfg.residual_scale,
    "logits_scaling": 1.0 / cfg.logit_scale,
  }


def read_gguf(read: Metadata, fields: Fields) -> Fields:
  """See `Gguf`; a factor that is not there, or 0, is 1."""
  divisor = read.need("logit_scale", float)
  if not divisor > 0:
    raise WeightsError(
      f"{read.where}: granite.logit_scale must be positive, got {divisor}"
    )
  if not read.get("rope.scaling.finetuned", bool, True):
    raise WeightsError(
      f"{read.where}: granite.rope.scaling.finetuned=false, no positions, is "
      "not supported"
    )
  return {
    "embed_scale": read.get("embedding_scale", float, 1.0) or 1.0,
    "attn_scale": read.get("attention.scale", float) or None,
    "residual_scale": read.get("residual_scale", float, 1.0) or 1.0,
    "logit_scale": 1.0 / divisor,
  }


register(
  Family(
    name="granite",
    transformers_class="GraniteForCausalLM",
    not_read=(
      "in GGUF files, models without positions (rope.scaling.finetuned of "
      "false)"
    ),
    read_config=read_config,
    write_config=write_config,
    defaults=_DEFAULTS,
    tensors=decoder_tensors,
    gguf=Gguf(
      architecture="granite",
      tensors=functools.partial(gguf_tensors, interleaved_rope=True),
      read_config=read_gguf,
    ),
  )
)
