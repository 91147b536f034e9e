"""DeepSeek V3 and R1, and what has their code, as Moonlight.

Latent attention with a value width of its own, experts in groups with one that
every token uses, and first layers without experts. Their layers for predicting
several tokens, behind the last one, are not read.
"""

import dataclasses
import math
from typing import Any

from sinkjax.config import ModelConfig
from sinkjax.weights.expert_layouts import SideBySide
from sinkjax.weights.families import llama
from sinkjax.weights.families._config import (
  decoder_values,
  expert_fields,
  expert_values,
)
from sinkjax.weights.families._family import Family, register
from sinkjax.weights.families._reader import Reader
from sinkjax.weights.families._rope import mscale
from sinkjax.weights.families._tensors import (
  expert_tensors,
  fused_groups,
  linear,
  mlp_parts,
  norms,
  partly_interleaved,
  tables,
)
from sinkjax.weights.fused_layouts import FusedRows
from sinkjax.weights.layout import Layout, Leaf, Linear, Vector
from sinkjax.weights.validate import WeightsError

# Of transformers' DeepseekV3Config.
_DEFAULTS = {
  "vocab_size": 129280,
  "hidden_size": 7168,
  "intermediate_size": 18432,
  "moe_intermediate_size": 2048,
  "num_hidden_layers": 61,
  "num_attention_heads": 128,
  "n_shared_experts": 1,
  "n_routed_experts": 256,
  "routed_scaling_factor": 2.5,
  "kv_lora_rank": 512,
  "q_lora_rank": 1536,
  "qk_rope_head_dim": 64,
  "v_head_dim": 128,
  "qk_nope_head_dim": 128,
  "n_group": 8,
  "topk_group": 4,
  "num_experts_per_tok": 8,
  "first_k_dense_replace": 3,
  "norm_topk_prob": True,
  "max_position_embeddings": 4096,
}
_COUNT = "n_routed_experts"
# What is read of them has one value alone.
_FIXED = {
  "rope_interleave": True,
  "scoring_func": "sigmoid",
  "topk_method": "noaux_tc",
  "moe_layer_freq": 1,
}


def read_config(read: Reader) -> dict[str, Any]:
  """See `Family`."""
  for key, value in _FIXED.items():
    if read.values.get(key, value) != value:
      raise WeightsError(
        f"{read.where}: {key}={read.values[key]!r:.40} is not supported, only "
        f"{value!r}"
      )
  heads = read.need("num_attention_heads", int)
  if read.get("num_key_value_heads", int, heads) != heads:
    raise WeightsError(
      f"{read.where}: num_key_value_heads must be num_attention_heads={heads}, "
      "since each head has keys of its own"
    )
  if read.need("n_shared_experts", int) < 1:
    raise WeightsError(f"{read.where}: n_shared_experts must be at least 1")
  rotated = read.need("qk_rope_head_dim", int)
  width = read.need("qk_nope_head_dim", int) + rotated
  # What `head_dim` says here is how many dimensions are rotated.
  plain = Reader(read.values | {"head_dim": width}, read.where)
  fields = llama.read_config(plain) | expert_fields(read, _COUNT)
  each = read.need("moe_intermediate_size", int)
  dense = read.need("first_k_dense_replace", int)
  return fields | {
    "rope_dim": rotated,
    "v_dim": read.need("v_head_dim", int),
    "q_rank": read.get("q_lora_rank", int, 0),
    "kv_rank": read.need("kv_lora_rank", int),
    "attn_scale": _attn_scale(read, fields, width),
    "d_ff": each,
    "router_score": "sigmoid",
    "choice_bias": True,
    "router_groups": read.need("n_group", int),
    "groups_per_token": read.need("topk_group", int),
    "norm_topk": read.get("norm_topk_prob", bool, True),
    "routed_scale": read.need("routed_scaling_factor", float),
    "shared_d_ff": read.need("n_shared_experts", int) * each,
    "shared_open": False,
    "dense_layers": dense,
    "dense_d_ff": read.need("intermediate_size", int) if dense else 0,
  }


def _attn_scale(
  read: Reader, fields: dict[str, Any], width: int
) -> float | None:
  """The factor on scores where the scaling of RoPE changes it, else `None`."""
  rope = read.get("rope_scaling", dict, {}) | read.get(
    "rope_parameters", dict, {}
  )
  more = Reader(rope, f"{read.where} (RoPE)").get("mscale_all_dim", float)
  scaling = fields["rope_scaling"]
  if scaling is None or not more or scaling.factor <= 1:
    return None
  return mscale(scaling.factor, more) ** 2 / math.sqrt(width)


def write_config(cfg: ModelConfig) -> dict[str, Any]:
  """See `Family`."""
  values = decoder_values(cfg) | expert_values(cfg, _COUNT)
  del values["head_dim"]
  scaling = values["rope_scaling"]
  if cfg.attn_scale is not None and scaling and cfg.rope_scaling.factor > 1:
    more = math.sqrt(cfg.attn_scale * math.sqrt(cfg.head_dim)) - 1
    scaling["mscale_all_dim"] = more / 0.1 / math.log(cfg.rope_scaling.factor)
  return values | {
    "attention_bias": cfg.qkv_bias,
    "qk_rope_head_dim": cfg.rotary_dim,
    "qk_nope_head_dim": cfg.head_dim - cfg.rotary_dim,
    "v_head_dim": cfg.value_dim,
    "q_lora_rank": cfg.q_rank or None,
    "kv_lora_rank": cfg.kv_rank,
    "intermediate_size": cfg.dense_d_ff or cfg.d_ff,
    "moe_intermediate_size": cfg.d_ff,
    "first_k_dense_replace": cfg.dense_layers,
    "n_group": cfg.router_groups,
    "topk_group": cfg.groups_per_token,
    "routed_scaling_factor": cfg.routed_scale,
    "n_shared_experts": cfg.shared_d_ff // cfg.d_ff,
    "num_nextn_predict_layers": 0,
  }


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
    *_attention(cfg, at + "self_attn"),
    *_experts(cfg, at + "mlp"),
    *tables(cfg, "model.embed_tokens", "lm_head"),
  ]


def _attention(cfg: ModelConfig, at: str) -> list[Leaf]:
  """Queries, a latent vector with the shared key, and what is made of it."""
  ours = "blocks/attn"
  scales = {f"{ours}/kv_latent": f"{at}.kv_a_layernorm"}
  name = f"{at}.q_proj"
  found = []
  if cfg.q_rank:
    name = f"{at}.q_b_proj"
    scales[f"{ours}/q_latent"] = f"{at}.q_a_layernorm"
    found += linear("attn/q_latent/down", f"{at}.q_a_proj", cfg.qkv_bias)
  found += partly_interleaved(linear("attn/q", name, False), cfg, last=True)
  name, sizes = f"{at}.kv_a_proj_with_mqa", (cfg.kv_rank, cfg.rotary_dim)
  for i, path in enumerate((f"{ours}/kv_latent/down", f"{ours}/k_rope")):
    layout = FusedRows(Linear(interleaved_rope=i == 1), i, sizes)
    found.append(Leaf(f"{path}/kernel", f"{name}.weight", layout))
    if cfg.qkv_bias:
      layout = FusedRows(Vector(interleaved_rope=i == 1), i, sizes)
      found.append(Leaf(f"{path}/bias", f"{name}.bias", layout))
  rows = {"k": cfg.head_dim - cfg.rotary_dim, "v": cfg.value_dim}
  found += fused_groups(rows, f"{at}.kv_b_proj", False, cfg.n_kv_heads)
  found += linear("attn/o", f"{at}.o_proj", cfg.out_bias)
  return found + norms(scales, bias=False)


def _experts(cfg: ModelConfig, at: str) -> list[Leaf]:
  """Experts, the shared one, and the MLPs of the layers without any."""
  bias = Leaf(
    "blocks/mlp/choice_bias", f"{at}.gate.e_score_correction_bias", Layout()
  )
  found = [bias, *expert_tensors(cfg, at, shared="shared_experts")]
  if not cfg.dense_layers:
    return found
  rest = (cfg.dense_layers, cfg.n_layers)
  found = [dataclasses.replace(leaf, layers=rest) for leaf in found]
  for part in mlp_parts(cfg):
    layout = SideBySide(cfg.dense_d_ff, part == "down")
    path, name = f"blocks/mlp/expert_{part}/kernel", f"{at}.{part}_proj.weight"
    found.append(Leaf(path, name, layout, layers=(0, cfg.dense_layers)))
  return found


register(
  Family(
    name="deepseek_v3",
    transformers_class="DeepseekV3ForCausalLM",
    not_read=(
      "the layers that predict several tokens, which are left out; "
      "routing by a softmax or without a bias of choice, as V2 has it; "
      "models without a shared expert"
    ),
    read_config=read_config,
    write_config=write_config,
    defaults=_DEFAULTS,
    aliases={"num_local_experts": _COUNT},
    tensors=tensors,
    # Those of the layer that predicts a second token, behind the last one.
    ignored_tensors=(r"^model\.layers\.61\.",),
  )
)
