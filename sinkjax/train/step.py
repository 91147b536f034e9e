"""Pure functions of training: `init_state`, `make_step`, `make_evaluate`."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Bool, Float, Int

from sinkjax import mesh_context
from sinkjax.config import ModelConfig
from sinkjax.models.transformer import Params, forward, init_params
from sinkjax.train.depth_loss import HaltTerm
from sinkjax.train.loss import Loss, Noise, SinkTarget, loss_of

Batch = Mapping[str, Array]
"""Packed windows, stacked; see `sinkjax.data.packing`."""

MEMORY = 50
"""Steps that the running mean of the loss looks back over."""


class Trend(NamedTuple):
  """The loss as it has been: what a spike is told by.

  Attributes:
    count: losses seen.
    mean: of them, exact for the first `MEMORY`, then exponential.
    variance: likewise.
  """

  count: Int[Array, ""]
  mean: Float[Array, ""]
  variance: Float[Array, ""]


class TrainState(NamedTuple):
  """All that a step changes.

  Attributes:
    step: steps done.
    params: in float32, whatever the compute dtype.
    opt_state: optax's.
    skipped: steps that were not applied.
    trend: of the loss.
  """

  step: Int[Array, ""]
  params: Params
  opt_state: Any
  skipped: Int[Array, ""]
  trend: Trend


class StepMetrics(NamedTuple):
  """What a step tells.

  Attributes:
    loss: nats a target, before the step.
    targets: how many there were.
    grad_norm: global norm before clipping.
    applied: False where the loss or the gradient was not finite, or the loss
      a spike.
    details: of the gradient, where asked for; see `make_step`.
  """

  loss: Float[Array, ""]
  targets: Float[Array, ""]
  grad_norm: Float[Array, ""]
  applied: Bool[Array, ""]
  details: dict[str, Float[Array, ""]]


def init_state(
  cfg: ModelConfig,
  optimizer: optax.GradientTransformation,
  key: Array,
  *,
  params: Params | None = None,
) -> TrainState:
  """The state before the first step.

  Args:
    cfg: the model.
    optimizer: of `make_optimizer`.
    key: of the initial parameters.
    params: start from these instead.
  """
  params = init_params(cfg, key) if params is None else params
  trend = Trend(jnp.zeros((), jnp.int32), jnp.zeros(()), jnp.zeros(()))
  return TrainState(
    jnp.zeros((), jnp.int32),
    params,
    optimizer.init(params),
    jnp.zeros((), jnp.int32),
    trend,
  )


def make_step(
  cfg: ModelConfig,
  optimizer: optax.GradientTransformation,
  *,
  separated: bool,
  accumulate: int = 1,
  spike: float | None = None,
  details: bool = False,
  shardings: TrainState | None = None,
  sink: SinkTarget | None = None,
  noise: Noise | None = None,
  halt: HaltTerm | None = None,
) -> Callable[
  [TrainState, Mapping[str, Array]], tuple[TrainState, StepMetrics]
]:
  """`step(state, batch) -> (state, metrics)`, jitted; the state is donated.

      g = d(sum of nats and penalty) / d(params) / (number of targets)

  Args:
    cfg: the model.
    optimizer: of `make_optimizer`.
    separated: see `loss_of`.
    accumulate: parts that a batch is worked through in, with the memory of
      one and the gradient of the whole.
    spike: leave out steps whose loss is so many standard deviations above its
      running mean; the mean follows, so a lasting rise is no spike for long.
    details: also tell `norm_GROUP` of the gradient of embed, attn, mlp, norms
      and unembed; and, with `accumulate` of 2 or more, `noise` S and `signal`
      |G|^2, whose ratio, each averaged over steps, is the batch in targets at
      which noise and gradient are even (McCandlish et al. 2018, arXiv
      1812.06162, equations A.2 and A.3, with parts and whole as the two
      batches).
    shardings: where the state's arrays lie, of `sharding.state_shardings`.
    sink: see `loss_of`; the loss that is told has no part of it.
    noise: see `loss_of`; the loss that is told is under it.
    halt: the term of models with `depth="halting"`, `None` for the usual one.
      The loss that is told of models with `depth` is that of training, see
      `depth_loss`.

  Raises:
    ValueError: (by step) if the parts do not divide the batch.

  Cost: three forward passes' time; with adversarial noise five.
  """
  loss = loss_of(
    forward(cfg),
    separated=separated,
    sink=sink,
    noise=noise,
    depth=None if cfg.depth == "none" else halt or HaltTerm(),
  )

  def objective(params, batch, key):
    found = loss(params, batch, key)
    return found.objective, (found.nats, found.targets)

  differentiated = jax.grad(objective, has_aux=True)

  def gradient(params, batch, key):
    grads, sums = differentiated(params, batch, key)
    return sums, grads

  def summed(params, batch, key):
    """((nats, targets), gradient of the sum, squared norm of a part's)."""
    if accumulate == 1:
      return *gradient(params, batch, key), jnp.zeros(())
    size = len(batch["tokens"])
    if size % accumulate:
      raise ValueError(
        f"a batch of {size} windows cannot be worked through in {accumulate} "
        "equal parts"
      )

    # Every n-th row: each device has its share of each part.
    def split(x):
      return x.reshape(-1, accumulate, *x.shape[1:]).swapaxes(0, 1)

    parts = jax.tree.map(split, dict(batch))
    keys = None if key is None else jax.random.split(key, accumulate)

    def add(total, now):
      (value, count), grads = gradient(params, *now)
      norm = optax.tree.norm(grads) / jnp.maximum(count, 1).astype(value.dtype)
      found = (value, count), grads, jnp.square(norm) / accumulate
      return jax.tree.map(jnp.add, total, found), None

    # The carry of `scan` must have exactly the shapes and dtypes that `add`
    # returns, which follow from the parameters'.
    first = jax.tree.map(lambda x: x[0], (parts, keys))
    shapes = *jax.eval_shape(gradient, params, *first), None
    shapes = (*shapes[:2], shapes[0][0])
    zero = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)
    return jax.lax.scan(add, zero, (parts, keys))[0]

  def step(state: TrainState, batch: Batch):
    key = None if noise is None else noise.key(state.step)
    (total, targets), grads, part_square = summed(state.params, batch, key)
    # A batch of padding alone has no targets; its gradient is 0 and stays
    # finite.
    count = jnp.maximum(targets, 1)
    grads = jax.tree.map(lambda g: g / count.astype(g.dtype), grads)
    norm, mean = optax.tree.norm(grads), total / count
    finite = jnp.isfinite(total) & jnp.isfinite(norm)
    trend, spiked = _follow(state.trend, mean, finite, spike)
    applied = finite & ~spiked

    def apply(params, opt_state):
      updates, opt_state = optimizer.update(grads, opt_state, params)
      return optax.apply_updates(params, updates), opt_state

    def leave(params, opt_state):
      return params, opt_state

    # The device decides: for a choice on the host each step would wait for its
    # loss.
    params, opt_state = jax.lax.cond(
      applied, apply, leave, state.params, state.opt_state
    )
    state = TrainState(
      state.step + 1,
      params,
      opt_state,
      state.skipped + (~applied).astype(jnp.int32),
      trend,
    )
    told = {}
    if details:
      told = {f"norm_{k}": v for k, v in _by_group(grads).items()}
      if accumulate > 1:
        told |= _noise(part_square, jnp.square(norm), count, accumulate)
    return state, StepMetrics(mean, targets, norm, applied, told)

  placed = None if shardings is None else (shardings, None)
  step = mesh_context.in_context(shardings, step)
  return jax.jit(step, donate_argnums=0, out_shardings=placed)


def _follow(trend: Trend, loss, finite, spike):
  """The trend with one more loss, and whether that was a spike."""
  loss = loss.astype(trend.mean.dtype)
  top = jnp.inf
  if spike is not None:
    # Mean and variance of fewer losses are too uncertain to call one a spike.
    known = trend.count >= MEMORY
    top = trend.mean + spike * jnp.sqrt(trend.variance)
    top = jnp.where(known, top, jnp.inf)
  spiked = loss > top
  share = 1 / (1 + jnp.minimum(trend.count, MEMORY)).astype(loss.dtype)
  # A spike counts as no more than the border: a single one hardly moves the
  # mean, while a lasting rise does in time.
  off = jnp.minimum(loss, top) - trend.mean
  new = Trend(
    trend.count + 1,
    trend.mean + share * off,
    (1 - share) * (trend.variance + share * jnp.square(off)),
  )
  # A single NaN would stay in the running mean for good.
  return jax.tree.map(lambda a, b: jnp.where(finite, a, b), new, trend), spiked


def _by_group(grads: Params) -> dict[str, Array]:
  """Norm of the gradient by kind of parameter."""
  blocks = grads["blocks"]
  groups = {
    "embed": [grads["embed"], grads.get("positions")],
    "attn": blocks["attn"],
    "mlp": blocks["mlp"],
    "norms": [grads.get("embed_norm"), grads.get("final_norm")]
    + [v for k, v in blocks.items() if k.endswith("norm")],
    "unembed": [grads.get("unembed"), grads.get("unembed_bias")],
  }
  return {
    name: optax.tree.norm(group)
    for name, group in groups.items()
    if jax.tree.leaves(group)
  }


def _noise(part, whole, targets, parts: int) -> dict[str, Array]:
  """Unbiased S and |G|^2 from squared norms at 1/parts of the batch and all."""
  small = targets / parts
  return {
    "noise": (part - whole) / (1 / small - 1 / targets),
    "signal": (targets * whole - small * part) / (targets - small),
  }


def make_evaluate(
  cfg: ModelConfig, *, separated: bool
) -> Callable[[Params, Batch], Loss]:
  """`evaluate(params, batch) -> Loss`, jitted; sums that add over batches.

  With fused attention and arrays on several devices it is called under
  `jax.set_mesh`.
  """
  return jax.jit(loss_of(forward(cfg), separated=separated))
