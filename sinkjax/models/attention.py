"""Causal multi-head attention, with a tap at every step.

`score` and `attend` write scores and pattern, as einsums: the reference, and
what a tap on them sees. Where none looks, `without_pattern` gives the same `z`
by blocks of keys, or by a device's own kernel.

With `kv_rank`, keys and values are made of a latent vector of each token:

    c = norm(x W_c),  k_h = [rotate(x W_r), c W_k,h],  v_h = c W_v,h

where x W_r, the dimensions that are rotated, is one for all heads; with
`q_rank`, queries are made of a latent vector of theirs. What `project_qkv`
returns, and what taps and caches see, are the keys and values of every head.
"""

import functools
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from sinkjax import mesh_context
from sinkjax.config import ModelConfig
from sinkjax.metrics.norms import token_norms
from sinkjax.metrics.precision import wide
from sinkjax.metrics.row_statistic import PatternSums
from sinkjax.models import attention_form, normalizers
from sinkjax.models.context import Context, mask_of, rotated
from sinkjax.models.fused import fused_attention
from sinkjax.models.online_sums import attention_with_sums
from sinkjax.models.positions import alibi_slopes
from sinkjax.models.products import mixture, products
from sinkjax.models.projection import (
  HeadNorm,
  Latent,
  Projection,
  align,
  softcapped,
)
from sinkjax.taps import Layer, Tapper


def _clipped(x: Array, limit: float | None) -> Array:
  return x if limit is None else jnp.clip(x, -limit, limit)


class Attention(nn.Module):
  """Grouped-query attention, step by step. Heads H, KV heads N, H = N G.

  Values and what is mixed of them, z, are of width W, `cfg.value_dim`.

  `project_qkv`, `norm_and_rotate_qk` and `project_out` act on each token
  alone. Only `score` and `attend` move information between tokens, and there
  the queries may be a block of rows: T and S are independent. Analyses that
  treat the steps apart call them apart.
  """

  cfg: ModelConfig

  def setup(self):
    cfg, width, keys = self.cfg, self.cfg.d_model, self.cfg.head_dim
    biased = cfg.qkv_bias
    if cfg.kv_rank:
      biased, keys = False, cfg.head_dim - cfg.rotary_dim
      self.kv_latent = Latent(cfg, cfg.kv_rank)
      one = (1, cfg.rotary_dim)
      self.k_rope = Projection((width,), one, cfg.qkv_bias, cfg.init_std)
    if cfg.q_rank:
      self.q_latent = Latent(cfg, cfg.q_rank)

    def project(fan_in: int, *outer: int) -> Projection:
      return Projection((fan_in,), outer, biased, cfg.init_std)

    self.q = project(cfg.q_rank or width, cfg.n_heads, cfg.head_dim)
    self.k = project(cfg.kv_rank or width, cfg.n_kv_heads, keys)
    self.v = project(cfg.kv_rank or width, cfg.n_kv_heads, cfg.value_dim)
    if cfg.qk_norm:
      self.q_norm, self.k_norm = HeadNorm(cfg), HeadNorm(cfg)
    self.sinks = None
    if cfg.sink_logit:
      self.sinks = self.param("sinks", nn.initializers.zeros, (cfg.n_heads,))
    # 0.02 as for embeddings, whose place these learned keys and values take.
    small, each = nn.initializers.normal(0.02), (cfg.n_kv_heads, cfg.value_dim)
    if cfg.attn_bias in ("k", "kv"):
      key = (cfg.n_kv_heads, cfg.head_dim)
      self.k_bias = self.param("k_bias", small, key)
    if cfg.control_heads:
      key = (cfg.control_heads // cfg.group_size, cfg.head_dim)
      self.null_key = self.param("null_key", small, key)
    if cfg.attn_bias in ("kv", "v"):
      self.v_bias = self.param("v_bias", small, each)
    gates = {
      "head": (cfg.n_heads, 1),
      "element": (cfg.n_heads, cfg.value_dim),
      "value": each,
    }
    if cfg.gate != "none":
      self.gate = Projection((width,), gates[cfg.gate], False, cfg.init_std)
    if cfg.mixing == "rate":
      zeros = nn.initializers.zeros  # a rate of one half
      self.mix_rate = self.param("mix_rate", zeros, (cfg.n_heads,))
    elif cfg.mixing == "gate":
      rates = (cfg.n_heads,)
      self.mix_rate = Projection((width,), rates, True, cfg.init_std)
    mixed = (cfg.n_heads, cfg.value_dim)
    self.o = Projection(mixed, (width,), cfg.out_bias, cfg.init_std)

  def project_qkv(self, x: Float[Array, "B T D"]) -> tuple[Array, Array, Array]:
    """Queries [B, T, H, K], keys [B, T, N, K] and values [B, T, N, W].

    They are as projected; where there is a gate on values or a clip, values
    come gated and clipped.
    """
    of_q = self.q_latent(x) if self.cfg.q_rank else x
    of_kv = self.kv_latent(x) if self.cfg.kv_rank else x
    q, k, v = self.q(of_q), self.k(of_kv), self.v(of_kv)
    if self.cfg.kv_rank:
      shared = jnp.broadcast_to(
        self.k_rope(x), (*k.shape[:-1], self.cfg.rotary_dim)
      )
      k = jnp.concatenate([shared, k], axis=-1)
    if self.cfg.gate == "value":
      v = v * jax.nn.sigmoid(self.gate(x))
    return q, k, _clipped(v, self.cfg.qkv_clip)

  def norm_and_rotate_qk(
    self,
    q: Float[Array, "B T H K"],
    k: Float[Array, "B S N K"],
    ctx: Context,
    layer: Layer,
  ) -> tuple[Array, Array]:
    """Queries and keys normalised and rotated, where the model does so."""
    cfg = self.cfg
    if cfg.qk_norm:
      q, k = self.q_norm(q), self.k_norm(k)
    q, k = _clipped(q, cfg.qkv_clip), _clipped(k, cfg.qkv_clip)
    return rotated(cfg, ctx, layer, q), rotated(cfg, ctx, layer, k)

  def score(
    self,
    q: Float[Array, "B T H K"],
    k: Float[Array, "B S N K"],
    distance: Int[Array, "#B #H T S"] | None = None,
  ) -> Float[Array, "B H T S"]:
    """Scaled products of queries and keys, before any soft cap.

    With ALiBi less what the distance from query to key takes.
    """
    cfg, (batch, length) = self.cfg, q.shape[:2]
    grouped = (cfg.n_kv_heads, cfg.group_size)
    q_BxTxNxGxK = q.reshape(batch, length, *grouped, cfg.head_dim)
    scores = products(q_BxTxNxGxK, k)
    scores = scores.reshape(batch, cfg.n_heads, length, -1) * cfg.score_scale
    if cfg.positions != "alibi":
      return scores
    if distance is None:
      raise ValueError("positions='alibi' needs the distances of keys")
    slopes = jnp.asarray(alibi_slopes(cfg), wide(scores).dtype)
    lowered = wide(scores) - slopes[None, :, None, None] * distance
    return lowered.astype(scores.dtype)

  def sink_logits(
    self, q: Float[Array, "B T H K"]
  ) -> Float[Array, "*#B _ #T 1"] | None:
    """The learned logit that takes weight away from tokens, or `None`.

    It is that of `sink_logit`, or the product of the query with the key of
    `attn_bias`, which meets every query as if it stood at position 0. Of
    `control_heads`, theirs alone.
    """
    cfg = self.cfg
    if self.sinks is not None:
      return self.sinks[None, :, None, None]
    if cfg.control_heads:
      keys, q = self.null_key, q[:, :, : cfg.control_heads]
    elif cfg.attn_bias in ("k", "kv"):
      keys = self.k_bias
    else:
      return None
    key = jnp.repeat(keys, cfg.group_size, axis=0).astype(q.dtype)
    logits = jnp.einsum("bthk,hk->bht", q, key) * cfg.score_scale
    return logits[..., None]

  def attend(
    self,
    scores: Float[Array, "B H T S"],
    v: Float[Array, "B S N W"],
    mask: Bool[Array, "#B #H T S"],
    tap: Tapper,
    sink_logits: Float[Array, "#B _ #T 1"] | None = None,
  ) -> Float[Array, "B T H W"]:
    """The values mixed by the pattern that the scores give.

    Args:
      scores: of `score`.
      v: values.
      mask: True where a key may be seen.
      tap: of this layer.
      sink_logits: of `sink_logits`.
    """
    cfg, (batch, _, length, _) = self.cfg, scores.shape
    if cfg.attn_softcap is not None:
      scores = softcapped(scores, cfg.attn_softcap)
    scores_BxHxTxS = tap("scores", scores)
    pattern = self._normalized(scores_BxHxTxS, mask, sink_logits)
    pattern_BxHxTxS = tap("pattern", pattern)
    grouped = (cfg.n_kv_heads, cfg.group_size)
    pattern = pattern_BxHxTxS.reshape(batch, *grouped, length, -1)
    z = mixture(pattern, v)
    z = z.reshape(batch, length, cfg.n_heads, cfg.value_dim)
    left = None
    if cfg.attn_bias == "kv":
      left = normalizers.leftover(scores_BxHxTxS, mask, sink_logits)
      left = jnp.swapaxes(left, 1, 2)
    return self._with_value_bias(z, left)

  def _normalized(
    self,
    scores: Float[Array, "B H T S"],
    mask: Bool[Array, "#B #H T S"],
    sink_logits: Float[Array, "#B _ #T 1"] | None,
  ) -> Float[Array, "B H T S"]:
    """Scores to weights."""
    normalize = normalizers.NORMALIZERS[self.cfg.normalizer]
    if sink_logits is None:
      return normalize(scores, mask)
    # `ModelConfig` allows sink logits of all heads with a softmax only.
    sunk = functools.partial(normalizers.softmax, sinks=sink_logits)
    if not self.cfg.control_heads:
      return sunk(scores, mask)
    at = (self.cfg.control_heads,)
    control, others = jnp.split(scores, at, axis=1)
    seen = (mask, mask) if mask.shape[1] == 1 else jnp.split(mask, at, axis=1)
    parts = sunk(control, seen[0]), normalize(others, seen[1])
    return jnp.concatenate(parts, axis=1)

  def without_pattern(
    self,
    q: Float[Array, "B T H K"],
    k: Float[Array, "B T N K"],
    v: Float[Array, "B T N W"],
    ctx: Context,
    layer: Layer,
    tap: Tapper,
  ) -> Float[Array, "B T H W"]:
    """What `score` and `attend` give, where no tap stands between.

    By a kernel of the device where `cfg.attention` is "fused" and it has one,
    else by `models.online`.
    """
    cfg, seen = self.cfg, tap.visible(q.shape[1])
    z = None
    if cfg.attention == "fused":
      z = fused_attention(
        *(q, k, v),
        scale=cfg.score_scale,
        window=attention_form.window_of_all(cfg),
        mask=self._fused_mask(ctx, layer, seen),
        sinks=self.sinks,
      )
    if z is None:
      z, _, _ = self._online(q, k, v, ctx, layer, seen)
    return z

  def _fused_mask(
    self, ctx: Context, layer: Layer, seen: Array | None
  ) -> Array | None:
    """A mask where a kernel needs one, beside causality and one window."""
    cfg, mask = self.cfg, None
    mixed = any(cfg.local_layers) and not all(cfg.local_layers)
    if mixed or ctx.valid is not None:
      mask = mask_of(cfg, ctx, layer)
    if seen is not None:
      mask = seen if mask is None else mask & seen
    return mask

  def with_sums(
    self,
    q: Float[Array, "B T H K"],
    k: Float[Array, "B T N K"],
    v: Float[Array, "B T N W"],
    ctx: Context,
    layer: Layer,
    wanted: frozenset[Any],
  ) -> tuple[Float[Array, "B T H W"], PatternSums]:
    """What heads mix, and sums over the pattern, which is not written.

    Args:
      q: queries.
      k: keys.
      v: values.
      ctx: of the pass, without padding.
      layer: its index.
      wanted: what `RowStatistic`s need, see `models.online_sums`.
    """
    z, lse, known = self._online(q, k, v, ctx, layer, None, wanted)
    sinks = self._all_sink_logits(q)
    return z, attention_form.pattern_sums(
      self.cfg, (q, k, v), lse, sinks, layer, wanted, known
    )

  def _all_sink_logits(self, q: Array) -> Array | None:
    """`sink_logits`, and the 0 of the softmax that adds one."""
    if self.cfg.normalizer == "softmax1":
      return jnp.zeros((1, self.cfg.n_heads, 1, 1))
    return self.sink_logits(q)

  def _online(
    self,
    q: Array,
    k: Array,
    v: Array,
    ctx: Context,
    layer: Layer,
    seen: Array | None,
    wanted: frozenset[Any] = frozenset(),
  ) -> tuple[Array, Array, dict[str, Array]]:
    """`z`, the logarithm of what each row is divided by, and known sums."""
    cfg, sinks = self.cfg, self._all_sink_logits(q)
    form = attention_form.online_form(cfg)
    window = attention_form.window_of(cfg, layer, q.shape[1])
    attend = functools.partial(
      attention_with_sums,
      wanted=wanted,
      scale=cfg.score_scale,
      scores=form.scores,
      weights=form.weights,
    )
    rows, heads = ("rows", None, "heads", None), ("rows", "heads", None)
    each, norms = ("rows", None), rows[:3]
    inputs = rows, rows, rows, norms, heads, (), (*each, None, None), each
    z, lse, sums = mesh_context.per_device(attend, inputs, output=rows[:3])(
      *(q, k, v),
      token_norms(v) if "written" in wanted else None,
      None if sinks is None else sinks[..., 0],
      window,
      seen,
      ctx.valid,
    )
    left = None
    if cfg.attn_bias == "kv":
      left = jnp.exp(jnp.swapaxes(wide(sinks[..., 0]), 1, 2) - lse)[..., None]
    return self._with_value_bias(z, left), lse, sums

  def _with_value_bias(
    self, z: Float[Array, "B T H W"], left: Float[Array, "B T H 1"] | None
  ) -> Float[Array, "B T H W"]:
    """`z` and the value of `attn_bias`: "kv" weighs it by what its key took."""
    if self.cfg.attn_bias not in ("kv", "v"):
      return z
    value = jnp.repeat(self.v_bias, self.cfg.group_size, axis=0)
    value = align(value, z).astype(z.dtype)
    return z + (value if left is None else left.astype(z.dtype) * value)

  def open_gates(
    self, z: Float[Array, "B T H W"], x: Float[Array, "B T D"]
  ) -> Float[Array, "B T H W"]:
    """z behind its gates, which open by `x`, what the attention reads."""
    return z * jax.nn.sigmoid(self.gate(x))

  def heads(
    self,
    z: Float[Array, "B T H W"],
    v: Float[Array, "B T N W"],
    x: Float[Array, "B T D"] | None,
    tap: Tapper,
  ) -> Float[Array, "B T H W"]:
    """What heads mix -> their outputs, `z`.

        z_t = (1 - g_t) v_t + g_t z_t,  g_t the rate of mixing

    Args:
      z: what they mix.
      v: the values of the same tokens.
      x: what the attention reads; only rates are computed from it.
      tap: of this layer.
    """
    if self.cfg.mixing != "none":
      logits = self.mix_rate
      if self.cfg.mixing == "gate":
        logits = self.mix_rate(x)
      rate = jax.nn.sigmoid(jnp.broadcast_to(logits, z.shape[:3]))
      rate = tap("mix_rate", rate.astype(z.dtype))[..., None]
      own = jnp.repeat(v, self.cfg.group_size, axis=2)
      z = (1 - rate) * own + rate * z
    return tap("z", z)

  def project_out(self, z: Float[Array, "B T H W"]) -> Float[Array, "B T D"]:
    """What the heads' outputs, gated where they are, add to the residual."""
    return self.o(z)
