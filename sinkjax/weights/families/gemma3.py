"""Gemma 3, its language part: Gemma 2 with QK norms and a RoPE base of its own
in local layers, five of six.
"""

from typing import Any

from sinkjax.config import ModelConfig
from sinkjax.weights.families import gemma2
from sinkjax.weights.families._family import Family, Fields, Gguf, register
from sinkjax.weights.families._gguf import Metadata, gguf_tensors
from sinkjax.weights.families._reader import Reader
from sinkjax.weights.families._tensors import decoder_tensors
from sinkjax.weights.validate import WeightsError

# Of transformers' Gemma3TextConfig.
_DEFAULTS = {
  "vocab_size": 262208,
  "hidden_size": 2304,
  "intermediate_size": 9216,
  "num_hidden_layers": 26,
  "num_attention_heads": 8,
  "max_position_embeddings": 131072,
  "num_key_value_heads": 4,
  "head_dim": 256,
  "sliding_window": 4096,
}


def read_config(read: Reader) -> dict[str, Any]:
  """See `Family`."""
  local = read.get("rope_local_base_freq", float, 10000.0)
  rope = Reader(read.get("rope_parameters", dict, {}), read.where)
  sliding = rope.get("sliding_attention", dict)
  if sliding is not None:
    sliding = Reader(sliding, read.where)
    if sliding.get("rope_type", str, "default") != "default":
      raise WeightsError(f"{read.where}: scaled RoPE in local layers")
    local = sliding.get("rope_theta", float, local)
  fields = gemma2.read_config(read, pattern=6, rope_base=1e6)
  return fields | {"qk_norm": True, "rope_local_base": local}


def write_config(cfg: ModelConfig) -> dict[str, Any]:
  """See `Family`."""
  values = gemma2.write_config(cfg)
  return values | {"rope_local_base_freq": cfg.rope_local_base}


def read_gguf(read: Metadata, fields: Fields) -> Fields:
  """See `Gguf`; Gemma 2's soft caps are no longer there by default."""
  return gemma2.read_gguf(read, fields, pattern=6) | {
    "qk_norm": True,
    "rope_base": read.get("rope.freq_base", float, 1e6),
    "rope_local_base": read.get("rope.freq_base_swa", float, 10000.0),
    "attn_scale": gemma2.attn_scale(fields, layers_27b=62),
    "attn_softcap": read.get("attn_logit_softcapping", float),
    "logit_softcap": read.get("final_logit_softcapping", float),
  }


register(
  Family(
    name="gemma3_text",
    also_called=("gemma3",),
    transformers_class="Gemma3ForCausalLM",
    not_read=(
      "the vision tower, which is left out; RoPE that is scaled in local layers"
    ),
    read_config=read_config,
    write_config=write_config,
    defaults=_DEFAULTS,
    tensors=decoder_tensors,
    ignored_tensors=(r"^(model\.)?vision_tower\.", r"multi_modal_projector\."),
    gguf=Gguf(
      architecture="gemma3",
      tensors=gguf_tensors,
      read_config=read_gguf,
      rope_keys=("freq_base_swa",),
    ),
  )
)
