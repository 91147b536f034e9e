"""Next-token loss over packed windows."""

from collections.abc import Callable, Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from sinkjax.metrics.sinks import attention_share, sink_score
from sinkjax.models.normalizers import UNNORMALIZED
from sinkjax.transforms.branches import separate
from sinkjax.transforms.capture import capture
from sinkjax.transforms.intervene import intervene


class Loss(NamedTuple):
  """Sums that add over batches; the loss is `nats / targets`.

  Attributes:
    nats: -log p of all targets.
    targets: how many.
    penalty: what training adds to the nats, of `SinkTarget`.
  """

  nats: Float[Array, ""]
  targets: Float[Array, ""]
  penalty: Float[Array, ""]

  @property
  def objective(self) -> Float[Array, ""]:
    """What is trained for."""
    return self.nats + self.penalty


class SinkTarget(NamedTuple):
  """A wish for how much attention the first token gets.

      weight * mean over layers, heads of (alpha - mass)^2

  with alpha a head's sink score, its mean over the rows of a batch (of one
  part, where it is worked through in parts), see `metrics.sinks.sink_score`.
  The first rows have no choice: a mass of 0 is less than attention can give.

  Attributes:
    mass: what every head's alpha is drawn to, in [0, 1].
    weight: nats a target at a distance of 1.
  """

  mass: float
  weight: float = 1.0


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
  logits = logits.astype(jnp.promote_types(logits.dtype, jnp.float32))
  # The targets are moved, not the logits: those are large.
  following = jnp.roll(tokens, -1, axis=1)
  picked = jnp.take_along_axis(logits, following[..., None], axis=-1)[..., 0]
  nats = jax.nn.logsumexp(logits, axis=-1) - picked
  targets = jnp.roll(weights, -1, axis=1).at[:, -1].set(False)
  total = jnp.sum(jnp.where(targets, nats, 0.0))
  return Loss(total, jnp.sum(targets.astype(nats.dtype)), jnp.zeros_like(total))


def loss_of(
  fn: Callable, *, separated: bool, sink: SinkTarget | None = None
) -> Callable:
  """`f(params, batch) -> Loss` of a model on packed windows.

  Args:
    fn: the model, `forward` or an edited one.
    separated: hide other documents, by the batch's segments; without it no
      mask is built, and the segments are not read.
    sink: what is added to `Loss.objective`; the nats stay what they are.

  Cost: with `sink` the attention is built whole, T^2 a head.

  Raises:
    ValueError: for a target outside [0, 1] or a negative weight.
  """
  if sink is not None and not (0 <= sink.mass <= 1 and sink.weight >= 0):
    raise ValueError(
      f"a sink's mass must be in [0, 1] and its weight not negative, got "
      f"{sink.mass} and {sink.weight}"
    )

  def score(pattern):
    if fn.cfg.normalizer in UNNORMALIZED:
      pattern = attention_share(pattern)
    return jnp.mean(sink_score(pattern), axis=0)

  def loss(params, batch: Mapping[str, Array]) -> Loss:
    run = fn
    if separated:
      run = intervene(run, {"scores": separate(batch["segments"])})
    if sink is not None:
      run = capture(run, {"sink_target": ("pattern", score)})
    out = run(params, batch["tokens"], positions=batch["positions"])
    found = next_token_nats(out.logits, batch["tokens"], batch["weights"])
    if sink is None:
      return found
    off = out.trace["sink_target"].astype(found.nats.dtype) - sink.mass
    penalty = sink.weight * jnp.mean(jnp.square(off))
    return found._replace(penalty=penalty * found.targets)

  return loss
