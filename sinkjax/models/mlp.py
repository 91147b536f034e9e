"""The MLP of a layer: one, or experts among which each token chooses.

Both have two steps: `linear`, all that is affine in what the MLP reads, and
`activate`, the rest, so that an analysis can treat them apart.

Experts are computed for every token and weighted by the routing, where most
weights are 0. This is exact, has every derivative, and no token takes another
one's place; it costs `n_experts / experts_per_token` times the work of the
chosen ones.

Sharp edges: which experts a token uses is piecewise constant. Derivatives are
those within a piece, and say nothing of a step to another choice. There is no
loss that balances the use of experts in training.
"""

import math

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from sinkjax import mesh_context
from sinkjax.config import ModelConfig
from sinkjax.metrics.precision import wide
from sinkjax.models.projection import Projection, align, random_kernel
from sinkjax.taps import Tapper

ACTIVATIONS = {
  "silu": jax.nn.silu,
  "gelu": lambda x: jax.nn.gelu(x, approximate=False),
  "gelu_tanh": lambda x: jax.nn.gelu(x, approximate=True),
  "quick_gelu": lambda x: x * jax.nn.sigmoid(1.702 * x),
  "relu": jax.nn.relu,
  "relu2": lambda x: jnp.square(jax.nn.relu(x)),
}


def xielu(x: Array, p: Float[Array, "1"], n: Float[Array, "1"]) -> Array:
  """xIELU (arXiv 2411.13010), whose slope is 1/2 at 0.

  a_p x^2 + x / 2                    for x > 0,   a_p = softplus(p)
  a_n (exp(x) - 1 - x) + x / 2       for x <= 0,  a_n = softplus(n) + 1 / 2
  """
  up, down = (align(jax.nn.softplus(a).astype(x.dtype), x) for a in (p, n))
  # The branch that is not taken must not overflow: its slope would be NaN.
  negative = jnp.expm1(jnp.minimum(x, 0)) - x
  return 0.5 * x + jnp.where(x > 0, up * x * x, (down + 0.5) * negative)


def hidden_layer(
  cfg: ModelConfig, *pre: Float[Array, "*B F"]
) -> Float[Array, "*B F"]:
  """The hidden layer, from (up,) or (gate, up)."""
  act = ACTIVATIONS[cfg.activation]
  if not cfg.gated_mlp:
    return act(pre[0])
  gate, up = pre
  if cfg.mlp_clamp is not None:
    gate = jnp.minimum(gate, cfg.mlp_clamp)
    up = jnp.clip(up, -cfg.mlp_clamp, cfg.mlp_clamp)
  return act(gate) * (up + cfg.up_offset if cfg.up_offset else up)


class Mlp(nn.Module):
  """`act(x W_gate) * (x W_up) W_down`, or without the gate."""

  cfg: ModelConfig

  def setup(self):
    cfg = self.cfg

    def project(fan_in: int, fan_out: int) -> Projection:
      return Projection((fan_in,), (fan_out,), cfg.mlp_bias, cfg.init_std)

    self.up = project(cfg.d_model, cfg.d_ff)
    if cfg.gated_mlp:
      self.gate = project(cfg.d_model, cfg.d_ff)
    self.down = project(cfg.d_ff, cfg.d_model)
    if cfg.activation == "xielu":
      # The paper's: both a are 0.8 at first.
      for name, start in (("alpha_p", 0.8), ("alpha_n", 0.3)):
        init = nn.initializers.constant(math.log(math.expm1(start)))
        setattr(self, name, self.param(name, init, (1,)))

  def linear(self, x: Float[Array, "B T D"]) -> tuple[Array, ...]:
    """What enters the non-linearity, [B, T, F] each: (up,) or (gate, up)."""
    return (self.gate(x), self.up(x)) if self.cfg.gated_mlp else (self.up(x),)

  def activate(
    self, *pre: Float[Array, "B T F"], tap: Tapper
  ) -> Float[Array, "B T D"]:
    """The non-linearity and what follows it."""
    if self.cfg.activation == "xielu":
      hidden = xielu(*pre, self.alpha_p, self.alpha_n)
    else:
      hidden = hidden_layer(self.cfg, *pre)
    return self.down(tap("mlp_act", hidden))


class Stack(nn.Module):
  """As many linear maps as there are experts, of one shape.

  Attributes:
    shape: experts, inputs, outputs.
    bias: whether each has one.
    std: see `attention.Projection`.
  """

  shape: tuple[int, int, int]
  bias: bool
  std: float | None

  @nn.compact
  def __call__(self, x: Array) -> Float[Array, "B T E O"]:
    """Every expert's outputs, of [B, T, I] or of its own [B, T, E, I]."""
    experts, fan_in, fan_out = self.shape
    kernel = self.param("kernel", random_kernel(fan_in, self.std), self.shape)
    form = "btd,edf->btef" if x.ndim == 3 else "bted,edf->btef"
    out = jnp.einsum(form, x, kernel.astype(x.dtype))
    if self.bias:
      init = nn.initializers.zeros
      bias = self.param("bias", init, (experts, fan_out))
      out = out + align(bias, out).astype(x.dtype)
    return out


class Experts(nn.Module):
  """Gated MLPs, of which each token uses some, and one that all use.

      y = sum_e w_e MLP_e(x) + sigmoid(x W_open) MLP_shared(x)

  w is what `routing` makes of the router's logits, 0 for experts that a token
  does not use. Without `shared_open` the last factor is 1.

  The first `dense_layers` layers have one MLP of width `dense_d_ff` instead. It
  is the experts side by side, each with weight 1, as far as that width goes:
  all layers have the same parameters, and what is beyond it, the router and the
  shared expert of such a layer have no effect, whatever they are.
  """

  cfg: ModelConfig

  def setup(self):
    cfg = self.cfg
    wide, narrow = (cfg.d_model, cfg.d_ff), (cfg.d_ff, cfg.d_model)

    def stack(shape: tuple[int, int]) -> Stack:
      return Stack((cfg.n_experts, *shape), cfg.mlp_bias, cfg.init_std)

    def project(fan_in: int, fan_out: int, bias: bool) -> Projection:
      return Projection((fan_in,), (fan_out,), bias, cfg.init_std)

    self.router = project(cfg.d_model, cfg.n_experts, cfg.router_bias)
    self.choice_bias = None
    if cfg.choice_bias:
      init = nn.initializers.zeros
      self.choice_bias = self.param("choice_bias", init, cfg.n_experts)
    self.expert_up, self.expert_down = stack(wide), stack(narrow)
    if cfg.gated_mlp:
      self.expert_gate = stack(wide)
    if cfg.shared_d_ff:
      if cfg.shared_open:
        self.shared_open = project(cfg.d_model, 1, False)
      self.shared_up = project(cfg.d_model, cfg.shared_d_ff, cfg.mlp_bias)
      if cfg.gated_mlp:
        self.shared_gate = project(cfg.d_model, cfg.shared_d_ff, cfg.mlp_bias)
      self.shared_down = project(cfg.shared_d_ff, cfg.d_model, cfg.mlp_bias)

  def linear(self, x: Float[Array, "B T D"]) -> tuple[Array, ...]:
    """The router's logits, and what enters each expert's non-linearity.

    Of experts [B, T, E, F] each; of a shared one its gate's logit, where it has
    one, comes first.
    """
    gated, shared = self.cfg.gated_mlp, self.cfg.shared_d_ff
    maps = [self.router]
    maps += [self.expert_gate] if gated else []
    maps += [self.expert_up]
    maps += [self.shared_open] if shared and self.cfg.shared_open else []
    maps += [self.shared_gate] if shared and gated else []
    maps += [self.shared_up] if shared else []
    return tuple(f(x) for f in maps)

  def activate(self, *pre: Array, tap: Tapper) -> Float[Array, "B T D"]:
    """The routing, the non-linearity and what follows it."""
    cfg, logits = self.cfg, pre[0]
    weights = routing(cfg, tap("router_logits", logits), self.choice_bias)
    maps = 2 if cfg.gated_mlp else 1
    of_experts, of_shared = pre[1 : 1 + maps], pre[1 + maps :]
    hidden = [hidden_layer(cfg, *of_experts)]
    if of_shared:
      hidden.append(hidden_layer(cfg, *of_shared[-maps:]))
    if cfg.dense_layers:
      dense = jnp.asarray(tap.layer) < cfg.dense_layers
      weights = jnp.where(dense, 1.0, weights).astype(weights.dtype)
      hidden = _dense(cfg, hidden, dense)
    if tap.meets("mlp_act"):
      hidden = _tapped(hidden, tap)
    out = self.expert_down(hidden[0]) * weights[..., None]
    if of_shared:
      shared = self.shared_down(hidden[1])
      if cfg.shared_open:
        shared = jax.nn.sigmoid(of_shared[0]) * shared
      if mesh_context.ways("experts") > 1 and not tap.meets("expert_out"):
        # Side by side with experts of other devices it would have each device
        # gather the outputs of all.
        return jnp.sum(out, axis=2) + shared
      out = jnp.concatenate([out, shared[:, :, None]], axis=2)
    return jnp.sum(tap("expert_out", out), axis=2)


def _dense(cfg: ModelConfig, hidden: list[Array], dense: Array) -> list[Array]:
  """Hidden layers, 0 where a layer without experts has none.

  Args:
    cfg: the model.
    hidden: of the experts and, where there is one, the shared one.
    dense: [] whether this layer is one.
  """
  place = jnp.arange(cfg.n_experts * cfg.d_ff).reshape(-1, cfg.d_ff)
  kept = [~dense | (place < cfg.dense_d_ff), ~dense]
  return [
    jnp.where(here, x, jnp.zeros((), x.dtype))
    for here, x in zip(kept, hidden, strict=False)
  ]


def _tapped(hidden: list[Array], tap: Tapper) -> list[Array]:
  """Hidden layers after a tap that sees all of them side by side."""
  flat = [x.reshape(*x.shape[:2], -1) for x in hidden]
  seen = tap("mlp_act", jnp.concatenate(flat, axis=-1))
  parts = jnp.split(seen, [flat[0].shape[-1]], axis=-1)
  return [part.reshape(x.shape) for part, x in zip(parts, hidden, strict=False)]


def routing(
  cfg: ModelConfig,
  logits: Float[Array, "B T E"],
  choice_bias: Float[Array, "E"] | None = None,
) -> Float[Array, "B T E"]:
  """The weight of every expert, 0 for those that a token does not use.

      w_e = routed_scale score_e  of the experts that are chosen,

  with `norm_topk` divided by the sum of the chosen scores. Chosen are the
  largest `score_e + choice_bias_e` within the groups that `among_groups` keeps.
  """
  # In float32 at least, as transformers has it: experts are often near a tie.
  high = wide(logits)
  rank = scores = router_scores(cfg, high)
  if choice_bias is not None:
    rank = rank + align(wide(choice_bias), rank)
  elif cfg.router_score != "sigmoid" and cfg.router_groups == 1:
    rank = high  # in the same order, and without the rounding of a softmax
  rank = among_groups(cfg, jax.lax.stop_gradient(rank))
  _, chosen = jax.lax.top_k(rank, cfg.experts_per_token)
  used = jnp.sum(jax.nn.one_hot(chosen, cfg.n_experts, dtype=high.dtype), -2)
  return weights_of(cfg, scores, used).astype(logits.dtype)


def router_scores(
  cfg: ModelConfig, logits: Float[Array, "B T E"]
) -> Float[Array, "B T E"]:
  """The score of every expert, before any is chosen."""
  if cfg.router_score == "sigmoid":
    return jax.nn.sigmoid(logits)
  return jax.nn.softmax(logits, axis=-1)


def weights_of(
  cfg: ModelConfig, scores: Float[Array, "B T E"], used: Float[Array, "B T E"]
) -> Float[Array, "B T E"]:
  """The weight of every expert, where it is known which ones a token uses.

  Args:
    cfg: the model.
    scores: of `router_scores`, of logits in float32 at least.
    used: 1 for the experts that are chosen, 0 for others.
  """
  weights = scores * used
  if cfg.norm_topk:
    total = jnp.sum(weights, axis=-1, keepdims=True)
    # Sigmoids may all be 0; transformers adds the same.
    sigmoid = cfg.router_score == "sigmoid"
    weights = weights / (total + 1e-20 if sigmoid else total)
  if cfg.routed_scale != 1.0:
    weights = weights * cfg.routed_scale
  return weights


def among_groups(
  cfg: ModelConfig, rank: Float[Array, "B T E"]
) -> Float[Array, "B T E"]:
  """`rank`, and -infinity in the groups of experts that a token leaves out.

  It keeps the `groups_per_token` groups whose two largest ranks have the
  largest sum.
  """
  if cfg.router_groups == 1:
    return rank
  by_group = rank.reshape(*rank.shape[:-1], cfg.router_groups, -1)
  best = jnp.sum(jax.lax.top_k(by_group, 2)[0], axis=-1)
  _, kept = jax.lax.top_k(best, cfg.groups_per_token)
  open_groups = jnp.any(jax.nn.one_hot(kept, cfg.router_groups) > 0, axis=-2)
  by_group = jnp.where(open_groups[..., None], by_group, -jnp.inf)
  return by_group.reshape(rank.shape)
