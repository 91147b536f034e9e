"""DeepSeek V3 and R1, and what has their code, as Moonlight.

Latent attention with a value width of its own, experts in groups with one that
every token uses, and first layers without experts. Their layers for predicting
several tokens, behind the last one, are not read.
"""

import dataclasses
import math
from typing import Any

from sinkjax.config import ModelConfig, RopeScaling
from sinkjax.weights.expert_layouts import SideBySide
from sinkjax.weights.families import llama
from sinkjax.weights.families._config import (
  decoder_values,
  expert_fields,
  expert_values,
)
from sinkjax.weights.families._family import Family, Fields, Gguf, register
from sinkjax.weights.families._gguf import Metadata, all_but_qkv
from sinkjax.weights.families._gguf_rope import YARN_KEYS, yarn_scaling
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
from sinkjax.weights.formats.gguf import GGUFFile
from sinkjax.weights.fused_layouts import FusedRows
from sinkjax.weights.layout import Layout, Leaf, Linear, Reordered, Vector
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
  rows = {"k": cfg.head_dim - cfg.rotary_dim, "v": cfg.value_dim}
  own = at + "self_attn."
  made = fused_groups(rows, f"{own}kv_b_proj", False, cfg.n_kv_heads)
  mlp = at + "mlp"
  bias = Leaf(
    "blocks/mlp/choice_bias", f"{mlp}.gate.e_score_correction_bias", Layout()
  )
  experts = [bias, *expert_tensors(cfg, mlp, shared="shared_experts")]
  return [
    *norms(names, bias=False),
    *_attention(cfg, {name: own + x for name, x in _HF.items()}),
    *made,
    *linear("attn/o", f"{own}o_proj", cfg.out_bias),
    *_but_first(cfg, experts, mlp + ".{part}_proj.weight"),
    *tables(cfg, "model.embed_tokens", "lm_head"),
  ]


_HF = {
  "q": "q_proj",
  "q_down": "q_a_proj",
  "q_norm": "q_a_layernorm",
  "q_up": "q_b_proj",
  "kv_down": "kv_a_proj_with_mqa",
  "kv_norm": "kv_a_layernorm",
}
_LLAMA_CPP = {
  "q": "attn_q",
  "q_down": "attn_q_a",
  "q_norm": "attn_q_a_norm",
  "q_up": "attn_q_b",
  "kv_down": "attn_kv_a_mqa",
  "kv_norm": "attn_kv_a_norm",
}


def _attention(cfg: ModelConfig, names: dict[str, str]) -> list[Leaf]:
  """Queries, and a latent vector with the key that all heads share."""
  ours = "blocks/attn"
  scales = {f"{ours}/kv_latent": names["kv_norm"]}
  name = names["q"]
  found = []
  if cfg.q_rank:
    name = names["q_up"]
    scales[f"{ours}/q_latent"] = names["q_norm"]
    found += linear("attn/q_latent/down", names["q_down"], cfg.qkv_bias)
  found += partly_interleaved(linear("attn/q", name, False), cfg, last=True)
  name, sizes = names["kv_down"], (cfg.kv_rank, cfg.rotary_dim)
  for i, path in enumerate((f"{ours}/kv_latent/down", f"{ours}/k_rope")):
    layout = FusedRows(Linear(interleaved_rope=i == 1), i, sizes)
    found.append(Leaf(f"{path}/kernel", f"{name}.weight", layout))
    if cfg.qkv_bias:
      layout = FusedRows(Vector(interleaved_rope=i == 1), i, sizes)
      found.append(Leaf(f"{path}/bias", f"{name}.bias", layout))
  return found + norms(scales, bias=False)


def _but_first(cfg: ModelConfig, experts: list[Leaf], mlp: str) -> list[Leaf]:
  """Experts, and the MLPs of the first layers, which have none.

  Args:
    cfg: the model.
    experts: of all layers.
    mlp: the name of such an MLP's matrix, with "{part}" for which.
  """
  if not cfg.dense_layers:
    return experts
  rest = (cfg.dense_layers, cfg.n_layers)
  found = [dataclasses.replace(leaf, layers=rest) for leaf in experts]
  for part in mlp_parts(cfg):
    layout = SideBySide(cfg.dense_d_ff, part == "down")
    path, name = f"blocks/mlp/expert_{part}/kernel", mlp.replace("{part}", part)
    found.append(Leaf(path, name, layout, layers=(0, cfg.dense_layers)))
  return found


def gguf_tensors(cfg: ModelConfig) -> list[Leaf]:
  """See `Gguf`."""
  at, ours = "blk.{i}.", "blocks/attn"
  rest = all_but_qkv(cfg)
  experts = [leaf for leaf in rest if leaf.path.startswith("blocks/mlp/")]
  bias = Leaf("blocks/mlp/choice_bias", f"{at}exp_probs_b.bias", Layout())
  return [
    *_attention(cfg, {name: at + x for name, x in _LLAMA_CPP.items()}),
    Leaf(f"{ours}/k/kernel", f"{at}attn_k_b.weight", Reordered((1, 0, 2))),
    Leaf(f"{ours}/v/kernel", f"{at}attn_v_b.weight", Reordered((1, 2, 0))),
    *(leaf for leaf in rest if leaf not in experts),
    *_but_first(cfg, [*experts, bias], at + "ffn_{part}.weight"),
  ]


def read_gguf(read: Metadata, fields: Fields) -> Fields:
  """See `Gguf`."""
  if read.has("attn_kv_b.weight"):
    raise WeightsError(
      f"{read.where}: the maps to keys and values are one tensor, attn_kv_b, "
      "as llama.cpp wrote them until April 2025; convert the model again"
    )
  # 2 is a sigmoid of each logit by itself.
  if (gating := read.get("expert_gating_func", int, 1)) != 2:
    raise WeightsError(
      f"{read.where}: {read.architecture}.expert_gating_func={gating} is not "
      "supported, only 2: routing by a softmax is DeepSeek V2's"
    )
  experts = read.need("expert_count", int)
  groups = read.get("expert_group_count", int)
  if groups is None and experts == _DEFAULTS[_COUNT]:
    raise WeightsError(
      f"{read.where}: {read.architecture}.expert_group_count is missing, and a "
      f"model of {experts} experts chooses among groups; convert it again"
    )
  each = read.need("expert_feed_forward_length", int)
  shared = read.need("expert_shared_count", int)
  if shared < 1:
    raise WeightsError(f"{read.where}: expert_shared_count={shared}")
  dense = read.get("leading_dense_block_count", int, 0)
  width = read.need("attention.key_length_mla", int)
  scaling = fields["rope_scaling"]
  more = _log_multiplier(read)
  longer = scaling is not None and scaling.kind == "yarn" and more
  return {
    "n_kv_heads": fields["n_heads"],
    "head_dim": width,
    "rope_dim": read.need("rope.dimension_count", int),
    "v_dim": read.need("attention.value_length_mla", int),
    "q_rank": read.get("attention.q_lora_rank", int, 0),
    "kv_rank": read.need("attention.kv_lora_rank", int),
    "attn_scale": mscale(scaling.factor, more) ** 2 / math.sqrt(width)
    if longer
    else None,
    "n_experts": experts,
    "experts_per_token": read.need("expert_used_count", int),
    "router_score": "sigmoid",
    "choice_bias": True,
    "router_groups": groups or 1,
    "groups_per_token": read.get("expert_group_used_count", int, 0) or 1,
    "norm_topk": read.get("expert_weights_norm", bool, False),
    "routed_scale": read.get("expert_weights_scale", float, 1.0),
    "d_ff": each,
    "shared_d_ff": shared * each,
    "shared_open": False,
    "dense_layers": dense,
    "dense_d_ff": fields["d_ff"] if dense else 0,
  }


_LOG_MULTIPLIER = "scaling.yarn_log_multiplier"


def _log_multiplier(read: Metadata) -> float:
  """`mscale_all_dim` of `config.json`, a tenth of which the file has."""
  return 10 * read.get(f"rope.{_LOG_MULTIPLIER}", float, 0.0)


def _rope_scaling(
  read: Metadata, file: GGUFFile, dim: int
) -> RopeScaling | None:
  """YaRN's, where queries and keys are not lengthened: the scores are.

  llama.cpp takes `mscale`, which the file does not have, for the same.
  """
  found = yarn_scaling(read, file, dim)
  if found is None or found.kind != "yarn" or not _log_multiplier(read):
    return found
  return dataclasses.replace(found, attention=1.0)


register(
  Family(
    name="deepseek_v3",
    transformers_class="DeepseekV3ForCausalLM",
    not_read=(
      "the layers that predict several tokens, which are left out; "
      "routing by a softmax or without a bias of choice, as V2 has it; "
      "models without a shared expert; GGUF files with biases, or written "
      "before llama.cpp kept keys and values apart (April 2025)"
    ),
    read_config=read_config,
    write_config=write_config,
    defaults=_DEFAULTS,
    aliases={"num_local_experts": _COUNT},
    tensors=tensors,
    # Those of the layer that predicts a second token, behind the last one.
    ignored_tensors=(r"^model\.layers\.61\.",),
    gguf=Gguf(
      architecture="deepseek2",
      tensors=gguf_tensors,
      read_config=read_gguf,
      rope_keys=(*YARN_KEYS, _LOG_MULTIPLIER),
      rope_scaling=_rope_scaling,
    ),
  )
)
