"""Which tokens take a layer: `ModelConfig.depth`.

A token that does not take a layer leaves it as it entered. The derivative of
that choice is zero; what is learned is learned by the terms of
`sinkjax.train.depth_loss`.

With "halting" the last number of the residual stream is the token's halted
share u, which no branch writes:

    u_0 = 0,  u_l+1 = u_l + (1 - u_l) h_l,  h_l = sigmoid(w_l . norm(x_l) + b_l)

where x_l leaves layer l. The probability to stop behind layer l is
`p_l = h_l (1 - u_l)`, as in PonderNet (Banino et al. 2021, arXiv 2107.05407,
equation 2, of which a layer is a step). A token takes the layers as long as u
is below one half: it stops at the median. Later tokens still read the keys and
values that its last state has in each layer above.

With "routed" every second layer is taken by some tokens alone (Raposo et al.
2024, arXiv 2404.02258, section 3.4), whose branches' outputs are multiplied by
a weight, sigmoid(r_t), r_t = w . norm(x_t), and the others are not seen there:
no query reads their keys. In training these are the tokens with the largest
r_t, which takes the whole text to know; in use a predictor of the token alone
says which they would be.

Sharp edges:
  In training, and wherever a whole text is read at once, every token is
  computed in every layer, and what is not taken is multiplied by 0. Only the
  generation of text really skips, see `models.cache`.
  Our reading: the paper multiplies what attention and MLP come to together;
  here the MLP reads what the weighted attention has added to.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from sinkjax.config import ModelConfig
from sinkjax.models.context import Context
from sinkjax.models.projection import Projection, rms_normalize
from sinkjax.taps import Layer, Tapper

HALTED = 0.5
"""The halted share from which on a token takes no layer: the median."""


def without_share(
  cfg: ModelConfig, x: Float[Array, "B T D"]
) -> Float[Array, "B T D"]:
  """x with nothing at the place of the halted share, if there is one."""
  return x.at[..., -1].set(0) if cfg.depth == "halting" else x


def is_routed(layer: Layer) -> Array:
  """Whether a layer of a routed model is taken by some tokens alone."""
  return jnp.asarray(layer) % 2 == 1


def hide_keys(ctx: Context, seen: Bool[Array, "B S"]) -> Context:
  """A context in which only some keys are seen, and each by its own query."""
  valid = seen if ctx.valid is None else ctx.valid & seen
  kept = seen[:, None, None] | jnp.eye(seen.shape[1], dtype=bool)[None, None]
  masks = {
    name: None if mask is None else mask & kept
    for name, mask in (("mask", ctx.mask), ("local_mask", ctx.local_mask))
  }
  return ctx._replace(valid=valid, **masks)


class Depth(nn.Module):
  """What a layer knows of tokens that do not take it; token by token."""

  cfg: ModelConfig

  def setup(self):
    cfg, width = self.cfg, (self.cfg.d_model,)
    if cfg.depth == "halting":
      self.halt = Projection(width, (1,), True, cfg.init_std)
    else:
      self.router = Projection(width, (1,), False, cfg.init_std)
      self.predictor = Projection(width, (1,), True, cfg.init_std)

  def _logit(self, projection: Projection, x: Array) -> Float[Array, "B T"]:
    read = rms_normalize(x, self.cfg.norm_eps).astype(x.dtype)
    return projection(read)[..., 0]

  def taken(self, pre: Float[Array, "B T D"], tap: Tapper) -> tuple:
    """`resid_pre` -> (open, weight), [B, T] each.

    `open` is 1 where a token takes the layer and else 0, and `weight` is what
    its branches' outputs are multiplied by.
    """
    if self.cfg.depth == "halting":
      taken = tap("depth_open", (pre[..., -1] < HALTED).astype(pre.dtype))
      return taken, taken
    routed = is_routed(tap.layer)
    weight = jax.nn.sigmoid(tap("depth_router", self._logit(self.router, pre)))
    # The predictor learns what the router does, and the model not from it.
    read = jax.lax.stop_gradient(pre)
    logit = tap("depth_predictor", self._logit(self.predictor, read))
    taken = jnp.where(routed, (logit > 0).astype(pre.dtype), 1)
    taken = tap("depth_open", taken)
    return taken, taken * jnp.where(routed, weight, 1).astype(pre.dtype)

  def branch(
    self, pre: Float[Array, "B T D"], out: Float[Array, "B T D"], tap: Tapper
  ) -> Float[Array, "B T D"]:
    """(`resid_pre`, a branch's output) -> what of it is added."""
    weight = self.taken(pre, tap)[1]
    return without_share(self.cfg, out * weight[..., None])

  def leave(
    self, pre: Float[Array, "B T D"], post: Float[Array, "B T D"], tap: Tapper
  ) -> Float[Array, "B T D"]:
    """(`resid_pre`, what leaves) -> the same, with the halted share renewed."""
    if self.cfg.depth != "halting":
      return post
    share = tap("halt_share", jax.nn.sigmoid(self._logit(self.halt, post)))
    old = pre[..., -1]
    new = old + self.taken(pre, tap)[0] * (1 - old) * share
    return jnp.concatenate([post[..., :-1], new[..., None]], axis=-1)
