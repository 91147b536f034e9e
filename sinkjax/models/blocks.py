"""Norm, and the block that joins attention and MLP."""

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from sinkjax import mesh_context
from sinkjax.config import ModelConfig
from sinkjax.metrics.precision import wide
from sinkjax.models.attention import Attention
from sinkjax.models.attention_form import needs_no_pattern
from sinkjax.models.context import Context, mask_of
from sinkjax.models.depth import Depth, hide_keys
from sinkjax.models.mlp import Experts, Mlp
from sinkjax.models.projection import align, rms_normalize
from sinkjax.taps import Layer, Tapper, Taps, Trace

Residual = Float[Array, "B T D"]


class Norm(nn.Module):
  """RMS or layer norm over D; accumulates in float32 at least."""

  cfg: ModelConfig

  @nn.compact
  def __call__(self, x: Float[Array, "B T D"]) -> Float[Array, "B T D"]:
    cfg, width = self.cfg, (self.cfg.d_model,)
    scale = 1.0
    if cfg.norm_scale:
      # Fresh norms multiply by one, also where an offset is added to the scale.
      init = nn.initializers.constant(1.0 - cfg.norm_offset)
      # Beside 1, a small scale in half precision would lose its digits.
      shape = (1,) if cfg.one_scale else width
      scale = wide(self.param("scale", init, shape))
      scale = align(scale + cfg.norm_offset, x)
    if cfg.norm == "rms":
      return (rms_normalize(x, cfg.norm_eps) * scale).astype(x.dtype)
    high = wide(x)
    centred = high - jnp.mean(high, axis=-1, keepdims=True)
    normed = rms_normalize(centred, cfg.norm_eps) * scale
    if cfg.norm_bias:
      bias = self.param("bias", nn.initializers.zeros, width)
      normed = normed + align(bias, x)
    return normed.astype(x.dtype)


class Block(nn.Module):
  """One layer: [B, T, D] residual in, residual and trace out.

  `resid_mid = resid_pre + attn_out` and `resid_post = resid_mid + mlp_out`, but
  for `stream_norms`, which norm both sums; a parallel residual changes only
  what the MLP reads, and post norms and `residual_scale` only what "attn_out"
  and "mlp_out" are. With `depth` both are 0 for tokens that do not take the
  layer.

  The steps are methods. All but `mix` act on every token alone; the steps
  inside attention and MLP are methods of `Attention`, `Mlp` and `Experts`.
  """

  cfg: ModelConfig

  def setup(self):
    cfg = self.cfg
    # Whoever runs a layer by itself would leave them out without a word.
    if cfg.apart()[1]:
      raise ValueError(
        "this runs layers by itself and does not know the edits of the config: "
        "use sinkjax.forward, or the config without edits"
      )
    self.attn = Attention(cfg)
    self.mlp = Experts(cfg) if cfg.n_experts else Mlp(cfg)
    if cfg.pre_norms or cfg.stream_norms:
      self.attn_norm = Norm(cfg)
      if not cfg.shared_norm:
        self.mlp_norm = Norm(cfg)
    if cfg.post_norms:
      self.attn_post_norm, self.mlp_post_norm = Norm(cfg), Norm(cfg)
    if cfg.depth != "none":
      self.depth = Depth(cfg)

  def seen(self, pre: Residual, ctx: Context, tap: Tapper) -> Context:
    """The context of this layer: tokens that it routes around are not read."""
    if self.cfg.depth != "routed":
      return ctx
    return hide_keys(ctx, self.taken(pre, tap) > 0)

  def taken(self, pre: Residual, tap: Tapper) -> Float[Array, "B T"]:
    """`resid_pre` -> 1 for tokens that take the layer, else 0."""
    return self.depth.taken(pre, tap)[0]

  def read(self, pre: Residual, tap: Tapper) -> Residual:
    """`resid_pre` -> what the attention reads."""
    return tap("attn_in", self.attn_norm(pre) if self.cfg.pre_norms else pre)

  def qkv(
    self, pre: Residual, layer: Layer, ctx: Context, tap: Tapper
  ) -> tuple[Array, Array, Array]:
    """`resid_pre` -> (q, k, v) as they enter the dot product."""
    q, k, v = self.attn.project_qkv(self.read(pre, tap))
    q, k = self.attn.norm_and_rotate_qk(q, k, ctx, layer)
    return tap("q", q), tap("k", k), tap("v", v)

  def mix(
    self,
    q: Float[Array, "B T H K"],
    k: Float[Array, "B S N K"],
    v: Float[Array, "B S N W"],
    mask: Bool[Array, "#B #H T S"],
    tap: Tapper,
    distance: Int[Array, "#B #H T S"] | None = None,
  ) -> Float[Array, "B T H W"]:
    """(q, k, v) -> what heads mix; q may be a block of rows."""
    attn = self.attn
    scores = attn.score(q, k, distance)
    return attn.attend(scores, v, mask, tap, attn.sink_logits(q))

  def heads(
    self,
    pre: Residual,
    z: Float[Array, "B T H W"],
    v: Float[Array, "B T N W"],
    tap: Tapper,
  ) -> Float[Array, "B T H W"]:
    """(`resid_pre`, what heads mix, values) -> z."""
    rated = self.cfg.mixing == "gate"
    return self.attn.heads(z, v, self.read(pre, tap) if rated else None, tap)

  def project_out(
    self, pre: Residual | None, z: Float[Array, "#B #T H W"], tap: Tapper
  ) -> Float[Array, "#B #T D"]:
    """z -> the attention's raw output; `resid_pre` is read by gates alone."""
    if self.cfg.gates_heads:
      # Read again rather than kept: with no gate `pre` need not be given.
      z = tap("z_gated", self.attn.open_gates(z, self.read(pre, tap)))
    return self.attn.project_out(z)

  def join(self, pre: Residual, attn_out: Residual, tap: Tapper) -> Residual:
    """(`resid_pre`, the attention's raw output) -> `resid_mid`."""
    if self.cfg.post_norms:
      attn_out = self.attn_post_norm(attn_out)
    mid = pre + tap("attn_out", self._added(pre, attn_out, tap))
    return tap(
      "resid_mid", self.attn_norm(mid) if self.cfg.stream_norms else mid
    )

  def add_attention(
    self, pre: Residual, z: Float[Array, "B T H W"], tap: Tapper
  ) -> Residual:
    """(`resid_pre`, z) -> `resid_mid`."""
    return self.join(pre, self.project_out(pre, z, tap), tap)

  def mlp_read(self, x: Residual, tap: Tapper) -> Residual:
    """`resid_mid`, or `resid_pre` where parallel -> what the MLP reads."""
    if self.cfg.pre_norms:
      x = (self.attn_norm if self.cfg.shared_norm else self.mlp_norm)(x)
    return tap("mlp_in", x)

  def mlp_output(self, x: Residual, tap: Tapper) -> Residual:
    """`resid_mid`, or `resid_pre` where parallel -> the MLP's raw output."""
    inner = self.mlp_linear(self.mlp_read(x, tap))
    return self.mlp_activate(*inner, tap=tap)

  def mlp_linear(self, normed: Residual) -> tuple[Array, ...]:
    """What the MLP reads -> what enters its non-linearity."""
    return self.mlp.linear(normed)

  def mlp_activate(self, *pre: Array, tap: Tapper) -> Residual:
    """What enters the MLP's non-linearity -> its raw output."""
    return self.mlp.activate(*pre, tap=tap)

  def finish(
    self, pre: Residual, mid: Residual, mlp_out: Residual, tap: Tapper
  ) -> Residual:
    """(`resid_pre`, `resid_mid`, the MLP's raw output) -> `resid_post`.

    `resid_pre` is read by `depth` alone.
    """
    if self.cfg.post_norms:
      mlp_out = self.mlp_post_norm(mlp_out)
    post = mid + tap("mlp_out", self._added(pre, mlp_out, tap))
    if self.cfg.depth != "none":
      post = self.depth.leave(pre, post, tap)
    return tap(
      "resid_post", self.mlp_norm(post) if self.cfg.stream_norms else post
    )

  def _added(self, pre: Residual, out: Residual, tap: Tapper) -> Residual:
    """A branch's output as it is added."""
    scale = self.cfg.residual_scale
    out = out if scale == 1.0 else out * jnp.asarray(scale, out.dtype)
    return out if self.cfg.depth == "none" else self.depth.branch(pre, out, tap)

  def transform(self, pre: Residual, mid: Residual, tap: Tapper) -> Residual:
    """(`resid_pre`, `resid_mid`) -> `resid_post`."""
    read = pre if self.cfg.parallel_residual else mid
    return self.finish(pre, mid, self.mlp_output(read, tap), tap)

  def __call__(
    self, x: Float[Array, "B T D"], layer: Array, ctx: Context, taps: Taps
  ) -> tuple[Float[Array, "B T D"], Trace]:
    tap = Tapper(taps, layer)
    pre = tap("resid_pre", mesh_context.constrain(x, ("rows", None, None)))
    q, k, v = self.qkv(pre, layer, ctx, tap)
    ctx = self.seen(pre, ctx, tap)
    # A tap at scores or pattern needs the path on which they exist.
    if tap.needs_no_scores() and needs_no_pattern(self.cfg, x.shape[1]):
      z = self.attn.without_pattern(q, k, v, ctx, layer, tap)
    else:
      mask = mask_of(self.cfg, ctx, layer)
      z = self.mix(q, k, v, mask, tap, ctx.distance())
    z = self.heads(pre, z, v, tap)
    post = self.transform(pre, self.add_attention(pre, z, tap), tap)
    return post, tap.trace()
