"""GGUF files: what all architectures have in metadata and tensor names."""

from collections.abc import Callable
from typing import Any

import numpy as np

from sinkjax.config import ModelConfig, RopeScaling
from sinkjax.field_checks import MAX_LAYERS
from sinkjax.weights.families._metadata import Metadata
from sinkjax.weights.families._tensors import (
  fused_rows,
  linear,
  mlp_parts,
  norms,
  qkv_sizes,
  tables,
)
from sinkjax.weights.formats.gguf import GGUFFile
from sinkjax.weights.layout import Layout, Leaf, Reordered
from sinkjax.weights.validate import WeightsError

_AT = "blk.{i}."


def common_fields(
  read: Metadata,
  file: GGUFFile,
  rope_scaling: Callable[[Metadata, GGUFFile, int], RopeScaling | None],
) -> dict[str, Any]:
  """Fields of `ModelConfig` that every architecture's file tells alike.

  Args:
    read: the metadata.
    file: the tensors beside it.
    rope_scaling: see `Gguf`.
  """
  width = read.need("embedding_length", int)
  heads = read.need("attention.head_count", int)
  layers = read.need("block_count", int)
  if heads <= 0 or not 0 < layers <= MAX_LAYERS:
    raise WeightsError(
      f"{read.where}: {heads} heads and {layers} layers are no model"
    )
  head_dim = read.get("attention.key_length", int, width // heads)
  # Latent attention alone has keys that are wider than its values.
  latent = read.get("attention.kv_lora_rank", int, 0)
  value_dim = read.get("attention.value_length", int, head_dim)
  if value_dim != head_dim and not latent:
    raise WeightsError(f"{read.where}: keys and values of different sizes")
  embed = file.tensors.get("token_embd.weight")
  if embed is None or len(embed.shape) != 2:
    raise WeightsError(f"{read.where}: tensor 'token_embd.weight' is missing")
  rope_dim = read.get("rope.dimension_count", int, head_dim)

  return {
    "vocab_size": int(embed.shape[0]),
    "d_model": width,
    "n_layers": layers,
    "n_heads": heads,
    "n_kv_heads": read.get("attention.head_count_kv", int, heads),
    "head_dim": head_dim,
    "d_ff": read.need("feed_forward_length", int),
    "max_len": read.need("context_length", int),
    "norm_eps": read.get("attention.layer_norm_rms_epsilon", float, 1e-5),
    "rope_base": read.get("rope.freq_base", float, 10000.0),
    "rope_dim": None if rope_dim == head_dim else rope_dim,
    "rope_scaling": rope_scaling(read, file, rope_dim),
    # No key tells whether the embedding is tied, or which maps have biases: the
    # tensors that are there do.
    "tie_embeddings": "output.weight" not in file.tensors,
    "qkv_bias": read.has("attn_q.bias") or read.has("attn_qkv.bias"),
    "out_bias": read.has("attn_output.bias"),
    "mlp_bias": read.has("ffn_up.bias"),
    "bos_id": read.token("bos_token_id", int(embed.shape[0])),
    "eos_id": read.token("eos_token_id", int(embed.shape[0])),
  }


# Under `{architecture}.`: keys that change what a model computes, and values
# with which they do not. The names are llama.cpp's.
_CHANGING: dict[str, tuple[Any, ...]] = {
  "attention.causal": (True,),
  "attention.clamp_kqv": (0.0,),
  "attention.max_alibi_bias": (0.0,),
  "attention.output_scale": (1.0,),
  "attention.scale": (0.0,),
  "attention.temperature_scale": (0.0,),
  "attention.value_scale": (1.0,),
  "attn_logit_softcapping": (0.0,),
  "deepstack_mapping": (),
  "embedding_scale": (0.0, 1.0),
  "expert_count": (0,),
  "expert_gating_func": (0,),
  "expert_group_count": (0, 1),
  "expert_shared_count": (0,),
  "expert_weights_norm": (),
  "expert_weights_scale": (0.0, 1.0),
  "final_logit_softcapping": (0.0,),
  "interleave_moe_layer_step": (0, 1),
  "leading_dense_block_count": (0,),
  "logit_scale": (0.0, 1.0),
  "nextn_predict_layers": (0,),
  "residual_scale": (0.0, 1.0),
  "router_logit_softcapping": (0.0,),
  "use_parallel_residual": (),
}


def check_keys(read: Metadata) -> None:
  """Refuses a key that changes the model and that its family did not read."""
  for key, neutral in _CHANGING.items():
    value = read.values.get(f"{read.architecture}.{key}")
    if value is None or key in read.read:
      continue
    if not isinstance(value, (int, float)) or value not in neutral:
      raise WeightsError(
        f"{read.where}: {read.architecture}.{key}={value!r:.80} is not "
        "supported"
      )


def expert_gguf(read: Metadata, norm_topk: bool) -> dict[str, Any]:
  """The experts of every layer.

  Args:
    read: the metadata.
    norm_topk: what the architecture does; a key that says so is rare.

  Raises:
    WeightsError: for other experts than `models.mlp` has.
  """
  found = {
    "n_experts": read.need("expert_count", int),
    "experts_per_token": read.need("expert_used_count", int),
    "norm_topk": norm_topk,
  }
  said = read.get("expert_weights_norm", bool, norm_topk)
  # 1 is the softmax of all, 3 that of those used, which is it normalised.
  gating = read.get("expert_gating_func", int, 0)
  if said != norm_topk or gating not in ((0, 1, 3) if norm_topk else (0, 1)):
    raise WeightsError(
      f"{read.where}: expert_weights_norm={said} and expert_gating_func="
      f"{gating} are not what {read.architecture!r} computes"
    )
  return found


def layer_norm_gguf(read: Metadata) -> dict[str, Any]:
  """Layer norms, whose epsilon has a key of its own."""
  eps = read.need("attention.layer_norm_epsilon", float)
  return {"norm": "layer", "norm_eps": eps}


def window_gguf(
  read: Metadata, n_layers: int, period: int, default: int = 0
) -> dict[str, Any]:
  """The window and the layers that it applies to.

  Args:
    read: the metadata.
    n_layers: of the model.
    period: the last of so many layers has none, where no key says otherwise.
    default: the window where no key says it, 0 for none.
  """
  window = read.get("attention.sliding_window", int, default)
  key = "attention.sliding_window_pattern"
  local = read.values.get(f"{read.architecture}.{key}")
  if not isinstance(local, np.ndarray):
    period = read.get(key, int, period)
    if period < 0:
      raise WeightsError(f"{read.where}: {read.architecture}.{key}={period}")
    local = [not period or (i + 1) % period for i in range(n_layers)]
  if len(local) != n_layers:
    raise WeightsError(
      f"{read.where}: {read.architecture}.{key} has {len(local)} entries for "
      f"{n_layers} layers"
    )
  if not window:
    return {"window": None, "local_layers": ()}
  return {"window": window, "local_layers": tuple(bool(x) for x in local)}


def numbers_gguf(
  file: GGUFFile, keys: tuple[str, ...], n_layers: int
) -> dict[str, float]:
  """Numbers of each layer that lie in the metadata, by names of tensors.

  Args:
    file: with its metadata.
    keys: each has a number for all layers, or as many as there are layers.
    n_layers: of the model.
  """
  found = {}
  for key in keys:
    value = file.metadata.get(key)
    one = isinstance(value, float)
    values = [value] * n_layers if one else value
    if (
      not isinstance(values, (list, np.ndarray))
      or len(values) != n_layers
      or not all(isinstance(x, (float, np.floating)) for x in values)
      or not np.all(np.isfinite(values))
    ):
      raise WeightsError(
        f"{file.path}: {key} must be {n_layers} finite numbers, got "
        f"{value!r:.80}"
      )
    found |= {f"{key}.{i}": float(x) for i, x in enumerate(values)}
  return found


def gguf_tensors(
  cfg: ModelConfig,
  *,
  interleaved_rope: bool = False,
  mlp_norm: str = "ffn_norm",
) -> list[Leaf]:
  """llama.cpp's names, queries, keys and values each a tensor.

  Args:
    cfg: the model.
    interleaved_rope: whether the converter permutes the rows of queries and
      keys; see `layout.Vector`.
    mlp_norm: the name of the norm of what the MLP reads.
  """
  found = []
  for letter in "qkv":
    found += linear(
      f"attn/{letter}",
      f"{_AT}attn_{letter}",
      cfg.qkv_bias,
      interleaved_rope=interleaved_rope and letter in "qk",
    )
  return found + all_but_qkv(cfg, mlp_norm)


def gguf_tensors_fused(cfg: ModelConfig) -> list[Leaf]:
  """llama.cpp's names, queries, keys and values in one tensor."""
  found = fused_rows(qkv_sizes(cfg), f"{_AT}attn_qkv", cfg.qkv_bias)
  return found + all_but_qkv(cfg)


def all_but_qkv(cfg: ModelConfig, mlp_norm: str = "ffn_norm") -> list[Leaf]:
  """llama.cpp's names of all but queries, keys and values."""
  names = {
    "blocks/attn_norm": f"{_AT}attn_norm",
    "blocks/mlp_norm": f"{_AT}{mlp_norm}",
    "final_norm": "output_norm",
  }
  if cfg.shared_norm or not cfg.pre_norms:
    del names["blocks/mlp_norm"]
  if not cfg.pre_norms:
    del names["blocks/attn_norm"]
  if cfg.embed_norm:
    names["embed_norm"] = "token_embd_norm"
  if cfg.post_norms:
    names["blocks/attn_post_norm"] = f"{_AT}post_attention_norm"
    names["blocks/mlp_post_norm"] = f"{_AT}post_ffw_norm"
  if cfg.qk_norm:
    names["blocks/attn/q_norm"] = f"{_AT}attn_q_norm"
    names["blocks/attn/k_norm"] = f"{_AT}attn_k_norm"
  if not cfg.norm_scale:
    names = {}
  bias = cfg.norm == "layer" and cfg.norm_bias
  found = norms(names, bias=bias, offset=cfg.norm_offset)
  found += linear("attn/o", f"{_AT}attn_output", cfg.out_bias)
  if cfg.sink_logit:
    found.append(Leaf("blocks/attn/sinks", f"{_AT}attn_sinks.weight"))
  if cfg.n_experts:
    found += _experts(cfg)
  for part in () if cfg.n_experts else mlp_parts(cfg):
    found += linear(f"mlp/{part}", f"{_AT}ffn_{part}", cfg.mlp_bias)
  return found + tables(cfg, "token_embd", "output", "position_embd")


def _experts(cfg: ModelConfig) -> list[Leaf]:
  """Experts, each map of all of them in one tensor, and the router."""
  found = linear("mlp/router", f"{_AT}ffn_gate_inp", cfg.router_bias)
  for part in mlp_parts(cfg):
    ours, name = f"blocks/mlp/expert_{part}", f"{_AT}ffn_{part}_exps"
    found.append(Leaf(f"{ours}/kernel", f"{name}.weight", Reordered()))
    if cfg.mlp_bias:
      found.append(Leaf(f"{ours}/bias", f"{name}.bias", Layout()))
    if cfg.shared_d_ff:
      name = f"{_AT}ffn_{part}_shexp"
      found += linear(f"mlp/shared_{part}", name, cfg.mlp_bias)
  if cfg.shared_d_ff and cfg.shared_open:
    name = f"{_AT}ffn_gate_inp_shexp.weight"
    found.append(Leaf("blocks/mlp/shared_open/kernel", name))
  return found
