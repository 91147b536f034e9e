"""`ModelConfig`: one frozen, validated description of a decoder.

Everything that tells GPT-2 from Gemma 3 is a field here; the block reads
fields, never a family's name. A config is hashable, so it can be a static
argument of `jax.jit`, and a bad one cannot be built: every error names the
field, what was got and what is expected.
"""

import dataclasses
import math
from typing import Any

from sinkjax import config_checks, finite
from sinkjax.field_checks import one_of, plain, positive, positive_int
from sinkjax.models.normalizers import NORMALIZERS
from sinkjax.rope_scaling import ADDED_TO_SCALING, RopeScaling

NORMS = ("rms", "layer")
ACTIVATIONS = (
  "silu",
  "gelu",
  "gelu_tanh",
  "quick_gelu",
  "relu",
  "relu2",
  "xielu",
)
POSITIONS = ("rope", "learned", "alibi", "none")
DTYPES = ("float32", "bfloat16", "float16", "float64")
PRECISIONS = (
  "default",
  "high",
  "highest",
  "TF32_TF32_F32_X3",
  "BF16_BF16_F32_X3",
  "BF16_BF16_F32_X6",
  "BF16_BF16_F32_X9",
)
ATTENTIONS = ("online", "einsum", "fused")
ATTN_BIASES = ("none", "k", "kv", "v")
QK_NORM_OVER = ("head", "all")
ROUTER_SCORES = ("softmax", "sigmoid")
GATES = ("none", "head", "element", "value")
MIXINGS = ("none", "rate", "gate")
DEPTHS = ("none", "halting", "routed")
REMATS = ("none", "full", "dots")
CHOICES = {
  "norm": NORMS,
  "activation": ACTIVATIONS,
  "positions": POSITIONS,
  "dtype": DTYPES,
  "precision": PRECISIONS,
  "attention": ATTENTIONS,
  "normalizer": NORMALIZERS,
  "attn_bias": ATTN_BIASES,
  "gate": GATES,
  "mixing": MIXINGS,
  "depth": DEPTHS,
  "qk_norm_over": QK_NORM_OVER,
  "router_score": ROUTER_SCORES,
  "remat": REMATS,
}
"""The valid values of each field of `ModelConfig` that is a choice."""

SIZES = (
  "vocab_size",
  "d_model",
  "n_layers",
  "n_heads",
  "n_kv_heads",
  "head_dim",
  "d_ff",
  "max_len",
)
"""Fields that are positive integers."""

POSITIVE = (
  "norm_eps",
  "rope_base",
  "embed_scale",
  "logit_scale",
  "residual_scale",
  "alibi_scale",
  "routed_scale",
)
"""Fields that are positive numbers."""

OPTIONAL = (
  "attn_scale",
  "attn_softcap",
  "logit_softcap",
  "rope_local_base",
  "mlp_clamp",
  "qkv_clip",
  "init_std",
)
"""Fields that are positive numbers or `None`."""

ADDED = (
  "norm_bias",
  "pre_norms",
  "qk_norm_over",
  "shared_norm",
  "rope_layers",
  "rope_bases",
  "logit_scale",
  "residual_scale",
  "n_experts",
  "experts_per_token",
  "norm_topk",
  "shared_d_ff",
  "router_bias",
  "mlp_clamp",
  "up_offset",
  "qkv_clip",
  "norm_scale",
  "unembed_bias",
  "embed_norm",
  "alibi_scale",
  "v_dim",
  "q_rank",
  "kv_rank",
  "router_score",
  "choice_bias",
  "router_groups",
  "groups_per_token",
  "routed_scale",
  "shared_open",
  "dense_layers",
  "dense_d_ff",
  "stream_norms",
  "mixing",
  "control_heads",
  "one_scale",
  "depth",
  "depth_share",
)
"""Fields that configs recorded earlier lack; a new field goes here."""


@dataclasses.dataclass(frozen=True)
class ModelConfig:
  """A decoder-only transformer.

  Attributes:
    vocab_size: V, rows of the token embedding.
    d_model: D, width of the residual stream.
    n_layers: L.
    n_heads: H, query heads.
    n_kv_heads: key and value heads; divides `n_heads`.
    head_dim: K, width of one head; need not be `d_model / n_heads`.
    v_dim: width of a head's values, `None` for `head_dim`.
    q_rank: queries are projected from a normed latent vector of this width
      instead of from what the attention reads; 0 for none. Needs `kv_rank`.
    kv_rank: keys and values are, from one of theirs, but for the rotated
      dimensions of the keys, which all heads share (multi-head latent
      attention, arXiv 2405.04434); 0 for none. See `models.attention`.
    d_ff: F, width of the MLP's hidden layer, or of each expert's.
    max_len: longest context that the positions are defined for.
    model_type: the family's name in Hugging Face's `config.json`. A label for
      reading and writing weights; the model never looks at it.
    norm: "rms" or "layer".
    norm_eps: added to the variance inside the root.
    norm_offset: the norm multiplies by `scale + norm_offset` (Gemma: 1).
    norm_bias: layer norms add a bias (Cohere: they do not).
    norm_scale: norms multiply by a scale (OLMo 1: they do not).
    one_scale: that scale is one learned number for all dimensions, so that no
      dimension is apart (single-scale RMS norm, arXiv 2506.19697).
    post_norms: also normalise each branch's output before it is added (Gemma
      2 and 3).
    pre_norms: normalise what each branch reads. `False`, with `post_norms`,
      leaves the norms on the branches' outputs alone (OLMo 2).
    stream_norms: normalise the residual stream itself behind each branch, as
      the first transformer did ("post-norm"): `resid_mid = norm(resid_pre +
      attn_out)`, `resid_post = norm(resid_mid + mlp_out)`, and no norm before
      the logits (OPT-350M). Needs `pre_norms=False`.
    qk_norm: RMS-normalise queries and keys.
    qk_norm_over: "head", each head by itself, with one scale for all; "all",
      the heads of a token together, with a scale of each (OLMo 2).
    qkv_clip: queries and keys, after their norms, and values are clipped to
      within plus and minus this (OLMoE), or `None`.
    qkv_bias: biases on the query, key and value projections; with `kv_rank`,
      on those to latent vectors and to the shared key alone.
    out_bias: a bias on the attention's output projection.
    gated_mlp: `act(x W_gate) * (x W_up)` instead of `act(x W_up)`.
    mlp_bias: biases in the MLP.
    activation: "silu", "gelu" (exact), "gelu_tanh", "quick_gelu",
      `x sigmoid(1.702 x)`, "relu", "relu2", its square, or "xielu", which has
      two parameters a layer, see `models.mlp.xielu`.
    n_experts: MLPs that a layer has in place of one, 0 for one; see
      `models.experts`.
    experts_per_token: of them, those that each token uses.
    router_score: what the router's logits become: "softmax", over all
      experts, or "sigmoid", of each by itself.
    choice_bias: a number of each expert that is added to its score where
      experts are chosen, and not where they are weighted.
    router_groups: experts are in this many groups of one size, and a token
      chooses within the `groups_per_token` whose two best experts have the
      largest sum of scores.
    groups_per_token: see `router_groups`.
    norm_topk: the weights of a token's experts are divided by their sum.
    routed_scale: factor on those weights.
    shared_d_ff: width of an expert that every token uses beside those; 0 for
      none.
    shared_open: a sigmoid gate opens that expert (Qwen 2 MoE).
    router_bias: a bias on the logits by which tokens choose experts.
    dense_layers: how many of the first layers have one MLP and no experts. It
      lies where the experts of other layers do, see `models.mlp.Experts`.
    dense_d_ff: its width; at most `n_experts d_ff`.
    mlp_clamp: what enters a gated MLP is clipped, the gate from above and the
      rest from both sides (gpt-oss), or `None`.
    up_offset: `act(x W_gate) * (x W_up + up_offset)` (gpt-oss: 1).
    parallel_residual: the MLP reads the same residual as the attention (GPT-
      NeoX) instead of the attention's result.
    shared_norm: with a parallel residual, one norm before both (Phi, Cohere).
      What each reads is still a site of its own.
    positions: "rope", "learned" (absolute, added to the embedding), "alibi"
      (arXiv 2108.12409: a head's scores are lowered by its slope times the
      distance, `m_h (t - s)`, see `models.positions.alibi_slopes`) or "none".
    alibi_scale: factor on the slopes (Falcon: `head_dim ** -0.5`).
    rope_base: base of the rotary frequencies.
    rope_dim: rotated dimensions of each head, `None` for all.
    rope_layers: one bool a layer, `False` where nothing is rotated (SmolLM3);
      empty for all.
    rope_bases: one base a layer in place of `rope_base` (Granite SWA); empty
      for the same in all.
    rope_scaling: a `RopeScaling` or `None`.
    rope_local_base: base for local layers (Gemma 3), `None` for the same; a
      separate local base is not scaled.
    window: local layers see the last `window` positions, themselves included.
    local_layers: one bool a layer, `True` where `window` applies.
    attn_scale: factor on the dot products, `None` for `head_dim ** -0.5`.
    attn_softcap: `c tanh(score / c)` on scores, or `None`.
    logit_softcap: the same on logits, or `None`.
    logit_scale: factor on logits, before any soft cap (Granite, Cohere).
    residual_scale: factor on each branch's output before it is added to the
      residual stream (Granite); "attn_out" and "mlp_out" have it.
    normalizer: how scores become a pattern, see `models.normalizers`.
    sink_logit: each head has a learned logit that takes weight and has no
      value, so that rows of attention sum to less than one.
    attn_bias: a learned key or value of each KV head that belongs to no
      token: "k", a key that takes weight and has no value; "kv", a key with a
      value; "v", a value that is added to the head's output.
    gate: sigmoid gates computed from what the attention reads: "head", one on
      the output of each head; "element", one on each of its dimensions;
      "value", on the values before they are mixed.
    mixing: each head has a rate g at which it mixes, and keeps its own value
      for the rest, `z_t = (1 - g_t) v_t + g_t sum_s p_ts v_s`: "rate", one
      learned number a head, the same for all tokens; "gate", computed from what
      the attention reads. Fresh rates are one half. "none" is g = 1.
    control_heads: the first so many heads of each layer are for the control of
      mixing: softmax heads without positions, with a learned key that takes
      weight and has no value. `normalizer` and `positions` are those of the
      others. Whole groups of query heads.
    depth: which tokens take a layer, see `models.depth`: "halting", each until
      its halted share, learned by PonderNet's loss, is one half; the share is
      the last number of its residual stream. "routed", every second layer is
      taken by the tokens that a router chooses (Mixture-of-Depths, arXiv
      2404.02258). "none" is all.
    depth_share: of the tokens of a text, those that take a routed layer in
      training, in (0, 1]; in use a predictor of each token says which do.
    embed_norm: a norm behind the embedding (BLOOM).
    embed_scale: factor on the token embedding (Gemma: `sqrt(d_model)`).
    tie_embeddings: logits use the transposed token embedding.
    unembed_bias: a bias on logits, one number a token of the vocabulary (GPT-J,
      Phi).
    init_std: standard deviation of every random matrix in `init_params`, as
      Hugging Face's `initializer_range`; `None` for 0.02 in embeddings and
      1 / sqrt(fan in) elsewhere, with which tokens mix from the start. Loaded
      weights do not depend on it.
    bos_id: token id of BOS where the file names one, else `None`.
    eos_id: token id of EOS, else `None`.
    dtype: compute dtype; norms and softmax accumulate in at least float32.
    precision: of matrix products, see `jax.default_matmul_precision`. The
      default gives true float32 products on every device. Names such as
      "BF16_BF16_F32_X6" are algorithms of `jax.lax.DotAlgorithmPreset`, which
      make a float32 product of several faster ones; a device that has not got
      one refuses it.
    scan_layers: `lax.scan` over layers (one compiled layer) or all unrolled
      (longer compilation, the same parameters and results).
    attention: "online" writes no pattern in layers of which no tap sees scores
      or pattern, where the text is long enough to gain by it, see
      `models.online`; "einsum" always writes it; "fused" uses a device's own
      kernel in such layers, which has no forward mode, see `models.fused`, and
      what "online" does where the device has none.
    remat: what a backward pass computes again instead of keeping it: "none",
      nothing; "full", a whole layer, from its input; "dots", all but products
      with parameters.
  """

  vocab_size: int
  d_model: int
  n_layers: int
  n_heads: int
  n_kv_heads: int
  head_dim: int
  d_ff: int
  max_len: int
  model_type: str = "llama"
  norm: str = "rms"
  norm_eps: float = 1e-5
  norm_offset: float = 0.0
  norm_bias: bool = True
  norm_scale: bool = True
  one_scale: bool = False
  post_norms: bool = False
  pre_norms: bool = True
  stream_norms: bool = False
  qk_norm: bool = False
  qk_norm_over: str = "head"
  qkv_clip: float | None = None
  v_dim: int | None = None
  q_rank: int = 0
  kv_rank: int = 0
  qkv_bias: bool = False
  out_bias: bool = False
  gated_mlp: bool = True
  mlp_bias: bool = False
  activation: str = "silu"
  n_experts: int = 0
  experts_per_token: int = 1
  router_score: str = "softmax"
  choice_bias: bool = False
  router_groups: int = 1
  groups_per_token: int = 1
  norm_topk: bool = False
  routed_scale: float = 1.0
  shared_d_ff: int = 0
  shared_open: bool = True
  router_bias: bool = False
  dense_layers: int = 0
  dense_d_ff: int = 0
  mlp_clamp: float | None = None
  up_offset: float = 0.0
  parallel_residual: bool = False
  shared_norm: bool = False
  positions: str = "rope"
  alibi_scale: float = 1.0
  rope_base: float = 10000.0
  rope_dim: int | None = None
  rope_layers: tuple[bool, ...] = ()
  rope_bases: tuple[float, ...] = ()
  rope_scaling: RopeScaling | None = None
  rope_local_base: float | None = None
  window: int | None = None
  local_layers: tuple[bool, ...] = ()
  attn_scale: float | None = None
  attn_softcap: float | None = None
  logit_softcap: float | None = None
  logit_scale: float = 1.0
  residual_scale: float = 1.0
  normalizer: str = "softmax"
  sink_logit: bool = False
  attn_bias: str = "none"
  gate: str = "none"
  mixing: str = "none"
  control_heads: int = 0
  depth: str = "none"
  depth_share: float = 0.5
  embed_norm: bool = False
  embed_scale: float = 1.0
  tie_embeddings: bool = False
  unembed_bias: bool = False
  init_std: float | None = None
  bos_id: int | None = None
  eos_id: int | None = None
  dtype: str = "float32"
  precision: str = "highest"
  scan_layers: bool = True
  attention: str = "online"
  remat: str = "none"

  def __post_init__(self):
    for field in dataclasses.fields(self):
      plain(field, getattr(self, field.name))
    for name in SIZES:
      positive_int(name, getattr(self, name))
    if self.n_heads % self.n_kv_heads:
      raise ValueError(
        f"n_kv_heads must divide n_heads={self.n_heads}, got {self.n_kv_heads}"
      )
    for name, valid in CHOICES.items():
      one_of(name, getattr(self, name), valid)
    for name in POSITIVE:
      positive(name, getattr(self, name))
    for name in OPTIONAL:
      if getattr(self, name) is not None:
        positive(name, getattr(self, name))
    finite.require_fields(self)
    config_checks.check(self)
    for name in ("bos_id", "eos_id"):
      token = getattr(self, name)
      # JAX clamps an index outside the table without a word.
      if token is not None and not 0 <= token < self.vocab_size:
        raise ValueError(
          f"{name} must be in [0, {self.vocab_size}), got {token}"
        )

  @property
  def rotary_dim(self) -> int:
    """Rotated dimensions of each head."""
    return self.head_dim if self.rope_dim is None else self.rope_dim

  @property
  def value_dim(self) -> int:
    """Width of a head's values, and of what it mixes."""
    return self.head_dim if self.v_dim is None else self.v_dim

  @property
  def mlp_width(self) -> int:
    """Numbers that a token's hidden layers have, those of all experts."""
    return self.d_ff * max(1, self.n_experts) + self.shared_d_ff

  @property
  def gates_heads(self) -> bool:
    """Whether gates stand between heads and their output projection."""
    return self.gate in ("head", "element")

  @property
  def learned_sink(self) -> bool:
    """Whether weight goes to a sink that is no token.

    A learned logit, softmax1's constant one, or the key of `attn_bias` or of
    `control_heads`: rows of the pattern, which are over tokens, then sum to
    less than one. Beside heads whose rows do so for other reasons, the key of
    `control_heads` does not count.
    """
    keyed = self.attn_bias in ("k", "kv")
    keyed |= self.control_heads > 0 and self.normalizer == "softmax"
    return self.sink_logit or self.normalizer == "softmax1" or keyed

  @property
  def score_scale(self) -> float:
    """The factor on query-key dot products."""
    if self.attn_scale is not None:
      return self.attn_scale
    return 1.0 / math.sqrt(self.head_dim)

  @property
  def group_size(self) -> int:
    """G, query heads that share one key and value head."""
    return self.n_heads // self.n_kv_heads

  def replace(self, **changes: Any) -> "ModelConfig":
    """A copy with some fields changed, validated again."""
    return dataclasses.replace(self, **changes)

  def apart(self) -> "tuple[ModelConfig, dict[str, Any]]":
    """(this without edits, edits that are part of the model, by site).

    Only a config that `sinkjax.edited` made has some.
    """
    return self, {}

  def to_dict(self) -> dict[str, Any]:
    """Plain JSON-ready values; `from_dict` is the inverse.

    Fields of `ADDED` are left out at their defaults, so that runs recorded
    before there were such fields are still recognised.
    """
    values = dataclasses.asdict(self)
    for name in ADDED:
      if values[name] == getattr(ModelConfig, name):  # the field's default
        del values[name]
    scaling = values["rope_scaling"] or {}
    for name in ADDED_TO_SCALING:
      if name in scaling and scaling[name] == getattr(RopeScaling, name):
        del scaling[name]
    return values

  @classmethod
  def from_dict(cls, values: dict[str, Any]) -> "ModelConfig":
    """The config that `to_dict` described.

    Raises:
      ValueError: for an unknown field, naming it and the valid ones.
    """
    known = {field.name for field in dataclasses.fields(cls)}
    unknown = sorted(set(values) - known)
    if unknown:
      raise ValueError(
        f"unknown config field {unknown[0]!r}; valid: {sorted(known)}"
      )
    values = dict(values)
    if values.get("rope_scaling") is not None:
      scaling = dict(values["rope_scaling"])
      for name in ("factors", "short_factors"):
        scaling[name] = tuple(scaling.get(name, ()))
      values["rope_scaling"] = RopeScaling(**scaling)
    # JSON has lists, a hashable config needs tuples.
    for name in ("local_layers", "rope_layers", "rope_bases"):
      values[name] = tuple(values.get(name, ()))
    return cls(**values)


TINY = ModelConfig(
  vocab_size=64,
  d_model=32,
  n_layers=3,
  n_heads=4,
  n_kv_heads=2,
  head_dim=8,
  d_ff=48,
  max_len=64,
)
"""A model for tests and examples: 3 layers, 4 heads, width 32."""
