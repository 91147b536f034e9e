"""Next-token loss over packed windows."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from sinkjax.config import ModelConfig
from sinkjax.metrics.sinks import attention_share, sink_score
from sinkjax.models.normalizers import UNNORMALIZED
from sinkjax.taps import Layer
from sinkjax.train import depth_loss
from sinkjax.train.depth_loss import HaltTerm
from sinkjax.transforms.branches import separate
from sinkjax.transforms.capture import capture
from sinkjax.transforms.edits import add, pytree_dataclass
from sinkjax.transforms.intervene import intervene


class Loss(NamedTuple):
  """Sums that add over batches; the loss is `nats / targets`.

  Attributes:
    nats: -log p of all targets.
    targets: how many.
    penalty: what training adds to the nats, of `SinkTarget` and `depth_loss`.
  """

  nats: Float[Array, ""]
  targets: Float[Array, ""]
  penalty: Float[Array, ""]

  @property
  def objective(self) -> Float[Array, ""]:
    """What is trained for."""
    return self.nats + self.penalty


class SinkTarget(NamedTuple):
  """A regulariser that draws the sink score of every head to a target.

      weight * mean over layers, heads of (alpha - target)^2

  with alpha a head's sink score, its mean over the rows of a batch (of one
  part, where it is worked through in parts), see `metrics.sinks.sink_score`.
  The first rows have no choice: a mass of 0 is less than attention can give.

  Attributes:
    mass: what every head's alpha is drawn to, in [0, 1].
    weight: nats for each target token at a distance of 1.
    heads: only the first so many heads of each layer are drawn to `mass`, and
      the others to `others`; `None` for all.
    others: see `heads`.
  """

  mass: float
  weight: float = 1.0
  heads: int | None = None
  others: float = 0.0

  def by_head(self, count: int) -> Float[Array, "H"]:
    """The target of each of a layer's heads."""
    first = count if self.heads is None else self.heads
    return jnp.where(jnp.arange(count) < first, self.mass, self.others)


class Noise(NamedTuple):
  """Noise on every token's embedding, drawn anew at each step.

      |noise_t| = share |embed_t|

  in a random direction, or in the one in which the loss grows fastest (Miyato
  et al. 2017, arXiv 1605.07725, equation 7, there by the norm of the whole
  text's embeddings). No derivative is taken through the noise.

  Attributes:
    share: of each embedding's norm.
    adversarial: along the gradient.
    seed: of the random directions.
  """

  share: float
  adversarial: bool = False
  seed: int = 0

  def key(self, step: Int[Array, ""]) -> Array:
    """Of the noise of a step."""
    return jax.random.fold_in(jax.random.key(self.seed), step)


@pytree_dataclass
class Along:
  """Adds a share of each token's norm along a direction; zeros add nothing.

  Attributes:
    way: [B, T, D] directions, of any length.
    share: of the norm of what it is added to.
  """

  way: Any
  share: Any

  def __call__(self, value: Array, layer: Layer) -> Array:
    """The disturbed value."""
    way = jnp.asarray(self.way, value.dtype)
    most = jnp.max(jnp.abs(way), axis=-1, keepdims=True)
    # Gradients are small, and their squares would underflow to 0.
    way = way / jnp.where(most > 0, most, 1)
    size = jnp.sum(value * value, axis=-1, keepdims=True)
    own = jnp.sum(way * way, axis=-1, keepdims=True)
    size = jnp.sqrt(size / jnp.where(own > 0, own, 1))
    return value + jax.lax.stop_gradient(self.share * size * way)


def next_token_nats(
  logits: Float[Array, "B T V"],
  tokens: Int[Array, "B T"],
  weights: Bool[Array, "B T"],
) -> Loss:
  """Nats of every token that is a target, predicted from the one before.

  Args:
    logits: of every position; the last ones are not used.
    tokens: ids.
    weights: which tokens are targets; the first of a row cannot be.
  """
  return _summed(_nats_of(logits, tokens), weights)


def _nats_of(
  logits: Float[Array, "B T V"], tokens: Int[Array, "B T"]
) -> Float[Array, "B T"]:
  """Nats of the token after each; the last of a row means nothing."""
  # A sum over the vocabulary loses too many digits in bfloat16; float64 stays
  # what it is.
  logits = logits.astype(jnp.promote_types(logits.dtype, jnp.float32))
  # The targets are moved, not the logits: those are large.
  following = jnp.roll(tokens, -1, axis=1)
  picked = jnp.take_along_axis(logits, following[..., None], axis=-1)[..., 0]
  return jax.nn.logsumexp(logits, axis=-1) - picked


def _summed(nats: Float[Array, "B T"], weights: Bool[Array, "B T"]) -> Loss:
  """The sums over targets, of nats that stand one token before them."""
  targets = jnp.roll(weights, -1, axis=1).at[:, -1].set(False)
  total = jnp.sum(jnp.where(targets, nats, 0.0))
  return Loss(total, jnp.sum(targets.astype(nats.dtype)), jnp.zeros_like(total))


def loss_of(
  fn: Callable,
  *,
  separated: bool,
  sink: SinkTarget | None = None,
  noise: Noise | None = None,
  depth: HaltTerm | None = None,
) -> Callable:
  """`f(params, batch, key=None) -> Loss` of a model on packed windows.

  Args:
    fn: the model, `forward` or an edited one.
    separated: hide other documents, by the batch's segments; without it no
      mask is built, and the segments are not read.
    sink: what is added to `Loss.objective`; the nats stay what they are.
    noise: of the embeddings, by f's `key`; the nats are under it.
    depth: the loss by which a model with `depth` learns which tokens take a
      layer, see `depth_loss`; the nats are then those of training. Without it
      they are those of use.

  Cost: with `sink` the attention is built whole, T^2 a head; adversarial
    noise takes a gradient of its own.

  Raises:
    ValueError: for a target outside [0, 1], a negative weight or share.
  """
  _check(fn.cfg.n_heads, sink, noise)
  if depth is not None:
    depth.check()

  def score(pattern: Float[Array, "B H T S"]) -> Float[Array, "H"]:
    if fn.cfg.normalizer in UNNORMALIZED:
      pattern = attention_share(pattern)
    return jnp.mean(sink_score(pattern), axis=0)

  def loss(
    params: Any, batch: Mapping[str, Array], key: Array | None = None
  ) -> Loss:
    run = fn
    if separated:
      run = intervene(run, {"scores": separate(batch["segments"])})
    if noise is not None:
      run = _disturbed(run, params, batch, noise, key)
    if sink is not None:
      run = capture(run, {"sink_target": ("pattern", score)})
    if depth is not None:
      run = depth_loss.in_training(run)
    out = run(params, batch["tokens"], positions=batch["positions"])
    nats = next_token_nats(out.logits, batch["tokens"], batch["weights"])
    if depth is not None:
      nats = _with_depth(fn.cfg, params, batch, out.trace, depth, nats)
    if sink is None:
      return nats
    # Times the targets, as nats are sums over them: parts of a batch add up.
    off = out.trace["sink_target"].astype(nats.nats.dtype)
    off -= sink.by_head(fn.cfg.n_heads)[None].astype(off.dtype)
    penalty = sink.weight * jnp.mean(jnp.square(off))
    return nats._replace(penalty=nats.penalty + penalty * nats.targets)

  return loss


def _with_depth(
  cfg: ModelConfig,
  params: Any,
  batch: Mapping[str, Array],
  trace: Mapping[str, Any],
  term: HaltTerm,
  nats: Loss,
) -> Loss:
  """The loss of a model some of whose tokens do not take every layer."""
  if cfg.depth == "routed":
    penalty = depth_loss.predicted(trace).astype(nats.nats.dtype)
    return nats._replace(penalty=penalty * nats.targets)
  mean, added = depth_loss.expected(
    cfg, params, trace, term, lambda logits: _nats_of(logits, batch["tokens"])
  )
  penalty = _summed(added, batch["weights"]).nats
  return _summed(mean, batch["weights"])._replace(penalty=penalty)


def _check(heads: int, sink: SinkTarget | None, noise: Noise | None) -> None:
  if sink is not None and not (0 <= sink.mass <= 1 and sink.weight >= 0):
    raise ValueError(
      f"a sink's mass must be in [0, 1] and its weight not negative, got "
      f"{sink.mass} and {sink.weight}"
    )
  if sink is not None and not 0 <= sink.others <= 1:
    raise ValueError(
      f"the mass of other heads' sinks must be in [0, 1], got {sink.others}"
    )
  if sink is not None and not 0 <= (sink.heads or 0) <= heads:
    raise ValueError(
      f"heads with a sink's target must be 0 to {heads}, got {sink.heads}"
    )
  if noise is not None and not noise.share >= 0:
    raise ValueError(f"noise must not be negative, got {noise.share}")


def _disturbed(
  fn: Callable,
  params: Any,
  batch: Mapping[str, Array],
  noise: Noise,
  key: Array | None,
) -> Callable:
  """The model with noise in its embeddings."""
  shape = (*batch["tokens"].shape, fn.cfg.d_model)
  if not noise.adversarial:  # only the direction counts, `Along` scales it
    way = jax.random.normal(key, shape)
  else:

    def nats(shift: Float[Array, "B T D"]) -> Float[Array, ""]:
      g = intervene(fn, {"embed": add(shift)})
      out = g(params, batch["tokens"], positions=batch["positions"])
      loss = next_token_nats(out.logits, batch["tokens"], batch["weights"])
      return loss.nats

    way = jax.lax.stop_gradient(jax.grad(nats)(jnp.zeros(shape)))
  return intervene(fn, {"embed": Along(way, noise.share)})
