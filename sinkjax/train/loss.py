"""Next-token loss over packed windows."""

from collections.abc import Callable, Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from sinkjax.transforms.branches import separate
from sinkjax.transforms.intervene import intervene


class Loss(NamedTuple):
  """Sums that add over batches; the loss is `nats / targets`.

  Attributes:
    nats: -log p of all targets.
    targets: how many.
  """

  nats: Float[Array, ""]
  targets: Float[Array, ""]


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
  return Loss(
    jnp.sum(jnp.where(targets, nats, 0.0)), jnp.sum(targets.astype(nats.dtype))
  )


def loss_of(fn: Callable, *, separated: bool) -> Callable:
  """`f(params, batch) -> Loss` of a model on packed windows.

  Args:
    fn: the model, `forward` or an edited one.
    separated: hide other documents, by the batch's segments; without it no
      mask is built, and the segments are not read.
  """

  def loss(params, batch: Mapping[str, Array]) -> Loss:
    run = fn
    if separated:
      run = intervene(fn, {"scores": separate(batch["segments"])})
    out = run(params, batch["tokens"], positions=batch["positions"])
    return next_token_nats(out.logits, batch["tokens"], batch["weights"])

  return loss
