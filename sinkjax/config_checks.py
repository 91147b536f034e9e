"""Which fields of a `ModelConfig` do not go together; errors name them."""

from typing import TYPE_CHECKING

from sinkjax.field_checks import positive, positive_int
from sinkjax.rope_scaling import BY_LENGTH

if TYPE_CHECKING:
  from sinkjax.config import ModelConfig


def check(cfg: "ModelConfig") -> None:
  """Raises unless every field goes with the others.

  Raises:
    ValueError: naming the fields, what was got and what is expected.
  """
  for part in (
    _norms,
    _attention,
    _roles,
    _depth,
    _experts,
    _routing,
    _rope,
    _latents,
    _window,
  ):
    part(cfg)


def _norms(cfg: "ModelConfig") -> None:
  if not (cfg.pre_norms or cfg.post_norms or cfg.stream_norms):
    raise ValueError(
      "pre_norms=False needs post_norms=True or stream_norms=True"
    )
  if cfg.shared_norm and not (cfg.parallel_residual and cfg.pre_norms):
    raise ValueError(
      "shared_norm=True needs parallel_residual=True and pre_norms=True"
    )
  if cfg.one_scale and not cfg.norm_scale:
    raise ValueError("one_scale=True needs norm_scale=True")
  if not cfg.stream_norms:
    return
  for name in ("pre_norms", "parallel_residual"):
    if getattr(cfg, name):
      raise ValueError(f"stream_norms=True needs {name}=False")


def _attention(cfg: "ModelConfig") -> None:
  """What does not go together."""
  fused = cfg.attention == "fused"
  if cfg.normalizer != "softmax" and (cfg.sink_logit or fused):
    raise ValueError(
      f"normalizer={cfg.normalizer!r} has no sink_logit and no "
      "attention='fused': use 'einsum'"
    )
  if fused and cfg.positions == "alibi":
    raise ValueError("attention='fused' has no positions='alibi': use 'einsum'")
  if cfg.alibi_scale != 1.0 and cfg.positions != "alibi":
    raise ValueError(
      f"alibi_scale needs positions='alibi', got {cfg.positions!r}"
    )
  if fused and cfg.value_dim != cfg.head_dim:
    raise ValueError(
      f"attention='fused' has no v_dim other than head_dim={cfg.head_dim}: "
      "use 'einsum'"
    )
  if fused and cfg.attn_bias != "none":
    raise ValueError("attention='fused' has no attn_bias: use 'einsum'")
  if cfg.attn_bias in ("k", "kv") and (
    cfg.sink_logit or cfg.normalizer != "softmax"
  ):
    raise ValueError(
      f"attn_bias={cfg.attn_bias!r} takes the place of sink_logit, and "
      "needs normalizer='softmax'"
    )
  # `jax.nn.dot_product_attention` has no place for a cap between the product
  # and the softmax.
  if fused and cfg.attn_softcap is not None:
    raise ValueError("attention='fused' has no attn_softcap: use 'einsum'")


def _roles(cfg: "ModelConfig") -> None:
  """Heads that control mixing, and the others."""
  count = cfg.control_heads
  if count == 0:
    return
  positive_int("control_heads", count)
  if count > cfg.n_heads or count % cfg.group_size:
    raise ValueError(
      f"control_heads must be at most n_heads={cfg.n_heads} and whole groups "
      f"of {cfg.group_size} query heads, got {count}"
    )
  if cfg.sink_logit or cfg.attn_bias != "none":
    raise ValueError(
      "control_heads have a learned key of their own, and go with neither "
      "sink_logit nor attn_bias"
    )
  if cfg.positions == "learned":
    raise ValueError(
      "control_heads have no positions, and learned ones are in what every "
      "head reads: use positions='rope', 'alibi' or 'none'"
    )
  if cfg.attention == "fused":
    raise ValueError("attention='fused' has no control_heads: use 'einsum'")


def _depth(cfg: "ModelConfig") -> None:
  """Tokens that do not take every layer."""
  if not 0 < cfg.depth_share <= 1:
    raise ValueError(f"depth_share must be in (0, 1], got {cfg.depth_share}")
  if cfg.depth_share != 0.5 and cfg.depth != "routed":
    raise ValueError(f"depth_share needs depth='routed', got {cfg.depth!r}")
  if cfg.depth != "none" and cfg.stream_norms:
    raise ValueError(
      f"depth={cfg.depth!r} leaves the residual stream of some tokens as it "
      "is, and stream_norms=True norms it: use pre_norms or post_norms"
    )
  if cfg.depth == "routed" and cfg.n_layers < 2:
    raise ValueError(
      "depth='routed' routes every second layer: it needs n_layers of 2 or "
      f"more, got {cfg.n_layers}"
    )


def _experts(cfg: "ModelConfig") -> None:
  positive_int("experts_per_token", cfg.experts_per_token)
  for name in ("n_experts", "shared_d_ff", "dense_layers", "dense_d_ff"):
    if getattr(cfg, name) != 0:
      positive_int(name, getattr(cfg, name))
  for name in (
    "shared_d_ff",
    "norm_topk",
    "router_bias",
    "choice_bias",
    "dense_layers",
  ):
    if getattr(cfg, name) and not cfg.n_experts:
      raise ValueError(f"{name} needs n_experts, got 0")
  if not cfg.gated_mlp and (cfg.mlp_clamp is not None or cfg.up_offset):
    raise ValueError("mlp_clamp and up_offset need gated_mlp=True")
  if cfg.activation == "xielu" and (cfg.gated_mlp or cfg.n_experts):
    raise ValueError("activation='xielu' needs gated_mlp=False and no experts")
  if cfg.n_experts and cfg.experts_per_token > cfg.n_experts:
    raise ValueError(
      f"experts_per_token must be at most n_experts={cfg.n_experts}, got "
      f"{cfg.experts_per_token}"
    )


def _routing(cfg: "ModelConfig") -> None:
  """Groups of experts, and layers without any."""
  for name in ("router_groups", "groups_per_token"):
    positive_int(name, getattr(cfg, name))
  groups, used = cfg.router_groups, cfg.groups_per_token
  if used > groups:
    raise ValueError(
      f"groups_per_token must be at most router_groups={groups}, got {used}"
    )
  # A group is as good as its two best experts.
  if groups > 1 and (cfg.n_experts % groups or cfg.n_experts // groups < 2):
    raise ValueError(
      f"router_groups={groups} must cut n_experts={cfg.n_experts} into "
      "groups of one size, of two experts at least"
    )
  if groups > 1 and cfg.experts_per_token > cfg.n_experts // groups * used:
    raise ValueError(
      f"experts_per_token={cfg.experts_per_token} are more than "
      f"groups_per_token={used} groups have"
    )
  if bool(cfg.dense_layers) != bool(cfg.dense_d_ff):
    raise ValueError("dense_layers and dense_d_ff need each other")
  if not cfg.dense_layers:
    return
  if cfg.dense_layers >= cfg.n_layers:
    raise ValueError(
      f"dense_layers must be less than n_layers={cfg.n_layers}, got "
      f"{cfg.dense_layers}: a model without experts has n_experts=0"
    )
  if cfg.dense_d_ff > cfg.n_experts * cfg.d_ff:
    raise ValueError(
      f"dense_d_ff must be at most n_experts d_ff="
      f"{cfg.n_experts * cfg.d_ff}, got {cfg.dense_d_ff}"
    )
  if cfg.mlp_bias:
    raise ValueError("dense_layers needs mlp_bias=False")


def _latents(cfg: "ModelConfig") -> None:
  """Latent vectors, from which queries, keys and values are projected."""
  for name in ("q_rank", "kv_rank"):
    if getattr(cfg, name) != 0:
      positive_int(name, getattr(cfg, name))
  if cfg.v_dim is not None:
    positive_int("v_dim", cfg.v_dim)
  if cfg.q_rank and not cfg.kv_rank:
    raise ValueError("q_rank needs kv_rank, got 0")
  if not cfg.kv_rank:
    return
  # The rotated part of a key is not made of its latent vector, the rest is.
  if cfg.positions != "rope" or cfg.rotary_dim >= cfg.head_dim:
    raise ValueError(
      f"kv_rank needs positions='rope' and rope_dim below head_dim="
      f"{cfg.head_dim}, got {cfg.positions!r} and {cfg.rotary_dim}"
    )


def _rope(cfg: "ModelConfig") -> None:
  if cfg.positions != "rope":
    for name in ("rope_layers", "rope_bases"):
      if getattr(cfg, name):
        raise ValueError(
          f"{name} needs positions='rope', got {cfg.positions!r}"
        )
    return
  _one_a_layer(cfg, "rope_layers")
  _one_a_layer(cfg, "rope_bases")
  for base in cfg.rope_bases:
    positive("rope_bases", base)
  if cfg.rope_bases and cfg.rope_local_base is not None:
    raise ValueError("rope_bases takes the place of rope_local_base")
  dim = cfg.rotary_dim
  # Dimensions are rotated in pairs.
  if dim % 2 or not 0 < dim <= cfg.head_dim:
    raise ValueError(
      f"rope_dim must be even and in (0, {cfg.head_dim}], got {dim}"
    )
  kind = cfg.rope_scaling.kind if cfg.rope_scaling else None
  if kind in BY_LENGTH and cfg.rope_local_base is not None:
    raise ValueError(f"rope_scaling of kind {kind!r} has no rope_local_base")
  if kind == "dynamic" and dim < 4:
    raise ValueError(
      f"rope_scaling of kind 'dynamic' needs 4 rotated dimensions, got {dim}"
    )
  factors = cfg.rope_scaling.factors if cfg.rope_scaling else ()
  if factors and len(factors) != dim // 2:
    raise ValueError(
      f"rope_scaling.factors must have {dim // 2} entries, one a "
      f"frequency, got {len(factors)}"
    )


def _window(cfg: "ModelConfig") -> None:
  _one_a_layer(cfg, "local_layers")
  if cfg.window is not None:
    positive_int("window", cfg.window)
  if any(cfg.local_layers) and cfg.window is None:
    raise ValueError("local_layers needs a window, got window=None")


def _one_a_layer(cfg: "ModelConfig", name: str) -> None:
  entries = getattr(cfg, name)
  if entries and len(entries) != cfg.n_layers:
    raise ValueError(
      f"{name} must have n_layers={cfg.n_layers} entries, got {len(entries)}"
    )
