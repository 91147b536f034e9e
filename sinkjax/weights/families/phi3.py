"""Phi-3, Phi-3.5 and Phi-4: Llama with fused tensors.

Queries, keys and values share a tensor, and so do gate and up. Phi-3 mini has a
window over which every layer attends; Phi-4 mini rotates a part of each head.
The long-context models have longrope.
"""

from typing import Any

from sinkjax.config import ModelConfig
from sinkjax.weights.families._config import (
  decoder_fields,
  decoder_values,
  window_fields,
  window_values,
)
from sinkjax.weights.families._family import Family, Fields, Gguf, register
from sinkjax.weights.families._gguf import (
  Metadata,
  gguf_tensors_fused,
  window_gguf,
)
from sinkjax.weights.families._gguf_rope import (
  LONGROPE_KEYS,
  LONGROPE_TENSORS,
  longrope_scaling,
)
from sinkjax.weights.families._reader import Reader
from sinkjax.weights.families._tensors import (
  fused_gate_up,
  fused_rows,
  linear,
  norms,
  qkv_sizes,
  tables,
)
from sinkjax.weights.layout import Leaf
from sinkjax.weights.validate import WeightsError

# Of transformers' Phi3Config.
_DEFAULTS = {
  "vocab_size": 32064,
  "hidden_size": 3072,
  "intermediate_size": 8192,
  "num_hidden_layers": 32,
  "num_attention_heads": 32,
  "max_position_embeddings": 4096,
  "original_max_position_embeddings": 4096,
}


def read_config(read: Reader) -> dict[str, Any]:
  """See `Family`."""
  fields = decoder_fields(
    read,
    eps_default=1e-5,
    # Old names, as the class reads them.
    rope_names={"su": "longrope", "yarn": "longrope"},
  )
  scaling = fields["rope_scaling"]
  if scaling is not None and scaling.kind != "longrope":
    raise WeightsError(
      f"{read.where}: RoPE scaling {scaling.kind!r} is not one of this family, "
      "which has longrope"
    )
  return (
    fields
    | {"activation": read.activation("hidden_act", default="silu")}
    | window_fields(read, fields["n_layers"], lambda i: True)
  )


def write_config(cfg: ModelConfig) -> dict[str, Any]:
  """See `Family`: every layer has the window, or it is `null`."""
  window = window_values(cfg)
  del window["layer_types"]
  if not any(cfg.local_layers):
    window["sliding_window"] = None
  original = cfg.max_len
  if cfg.rope_scaling is not None:
    original = cfg.rope_scaling.original_max_len
  return (
    decoder_values(cfg)
    | window
    | {
      "original_max_position_embeddings": original,
      "partial_rotary_factor": cfg.rotary_dim / cfg.head_dim,
      # The class's own may lie outside the vocabulary.
      "pad_token_id": None,
    }
  )


def tensors(cfg: ModelConfig) -> list[Leaf]:
  """See `Family`."""
  at = "model.layers.{i}."
  names = {
    "blocks/attn_norm": at + "input_layernorm",
    "blocks/mlp_norm": at + "post_attention_layernorm",
    "final_norm": "model.norm",
  }
  return [
    *norms(names, bias=False),
    *fused_rows(qkv_sizes(cfg), at + "self_attn.qkv_proj", False),
    *linear("attn/o", at + "self_attn.o_proj", False),
    *fused_gate_up(cfg, at + "mlp.gate_up_proj"),
    *linear("mlp/down", at + "mlp.down_proj", False),
    *tables(cfg, "model.embed_tokens", "lm_head"),
  ]


def tensors_gguf(cfg: ModelConfig) -> list[Leaf]:
  """See `Gguf`; the gate lies before the other half, as in the folders."""
  found = [
    leaf
    for leaf in gguf_tensors_fused(cfg)
    if not leaf.path.startswith(("blocks/mlp/gate/", "blocks/mlp/up/"))
  ]
  return found + fused_gate_up(cfg, "blk.{i}.ffn_up")


def read_gguf(read: Metadata, fields: Fields) -> Fields:
  """See `Gguf`; the window, which llama.cpp says it leaves out, is used.

  Every layer has it, as in transformers.
  """
  return window_gguf(read, fields["n_layers"], 0)


register(
  Family(
    name="phi3",
    transformers_class="Phi3ForCausalLM",
    not_read="another scaling of RoPE than longrope",
    read_config=read_config,
    write_config=write_config,
    defaults=_DEFAULTS,
    tensors=tensors,
    gguf=Gguf(
      architecture="phi3",
      tensors=tensors_gguf,
      read_config=read_gguf,
      rope_keys=LONGROPE_KEYS,
      rope_scaling=longrope_scaling,
      ignored_tensors=LONGROPE_TENSORS,
    ),
  )
)
