"""Losses of rounded keys and values, by the tokens that are not rounded.

Axes: P texts, T tokens, K numbers of kept tokens, L layers, D dimensions.
"""

import dataclasses
import enum
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from sinkjax.experiments.harness.api import Result, Subject
from sinkjax.experiments.harness.stats import ends_of
from sinkjax.experiments.shared.key_rates import received
from sinkjax.experiments.shared.large_dimensions import large_and_next
from sinkjax.experiments.shared.prompt_corpus import Text
from sinkjax.experiments.shared.steps import Steps
from sinkjax.experiments.shared.text_batches import (
  batches,
  by_template,
  templates_of,
  texts_of_length,
)
from sinkjax.experiments.shared.watched import watched
from sinkjax.inference.quantize import Quantize
from sinkjax.inference.scoring import nats_of
from sinkjax.models.transformer import forward
from sinkjax.transforms.find_sinks import find_sinks, life_of
from sinkjax.transforms.intervene import intervene

WHOLE = 16
"""Bits at which rounding is below what half precision has: the unchanged model
by the same program."""

LAYOUTS = ("channel", "token")
"""How the steps of keys are shared; those of values are always a token's."""


class Policy(enum.StrEnum):
  """Which tokens are kept; the values are keys of recorded results."""

  FIRST = "first"
  PREDICTED = "predicted"
  FOUND = "found sinks"
  ATTENDED = "most attended"
  RANDOM = "random"


@dataclasses.dataclass(frozen=True)
class Config:
  """What is run.

  Attributes:
    count: texts of each domain, as in the experiment `prompts`.
    tokens: T of each; shorter texts are left out.
    bits: of keys and values.
    per: "channel" for steps of a channel of the keys in groups of tokens and
      of a token of the values (KIVI), "token" for a token's of both.
    group: tokens of a channel that share a step.
    keep: tokens of each text in full precision.
    claim_keep: of these, the number that claims are about.
    seed: of the choice of texts and of the random tokens.
  """

  count: int = 2
  tokens: int = 128
  # In this layout 3 bits cost SmolLM2 a tenth of a nat, within which policies
  # cannot be told apart; 2 bits cost more than half a nat.
  bits: int = 2
  per: str = "channel"
  group: int = 32
  keep: tuple[int, ...] = (1, 4, 16)
  claim_keep: int = 4
  seed: int = 0


def measure(
  subject: Subject,
  config: Config,
  *,
  texts: Sequence[Text] | None = None,
  progress: Callable[[int, int], Any] = lambda done, total: None,
) -> Result:
  """The loss with every policy and number of tokens.

  Args:
    subject: the model; its weights in memory.
    config: what is run.
    texts: other texts than those of `gather`.
    progress: called with (texts done, in all).

  Raises:
    ValueError: for numbers of tokens that claims do not find or texts do not
      have, an unknown layout, or fewer than two texts that are long enough.

  Cost: three forward passes that choose, two without kept tokens, and one for
  each policy and number.
  """
  check(config)
  ids = texts_of_length(
    subject, texts, config.count, config.tokens, config.seed, fewest=2
  )
  passes = 5 + len(Policy) * len(config.keep)
  step = Steps(progress, len(ids) * passes)
  order, sinks = _orders(subject, config, ids, step)
  loss_of = _meter(subject, config, ids, step)
  nothing = np.zeros(ids.shape, bool)
  whole = loss_of(WHOLE, nothing)
  rounded = loss_of(config.bits, nothing)
  losses, masks = {}, {}
  for policy, ranked in order.items():
    masks[policy] = [first_of(ranked, k) for k in config.keep]
    losses[policy] = np.stack(
      [loss_of(config.bits, mask) for mask in masks[policy]]
    )
  templates = templates_of(ids, subject.template)
  units = {"templates": templates}
  arrays = {"whole": whole, "nothing": rounded}
  arrays |= {f"loss, {policy}": value for policy, value in losses.items()}
  hits = {
    policy: [float(sinks[mask].sum() / max(sinks.sum(), 1)) for mask in kept]
    for policy, kept in masks.items()
  }
  return Result(
    numbers={
      "texts": len(ids),
      "templates": templates,
      "sinks": float(sinks.sum(axis=1).mean()),
      "sinks_after_first": float(sinks[:, 1:].sum(axis=1).mean()),
      "hits": {str(policy): values for policy, values in hits.items()},
    },
    tables={"policies.csv": _table(config, arrays, hits, units)},
    arrays=arrays,
  )


def check(config: Config) -> None:
  """Refuses what has no meaning.

  Raises:
    ValueError: naming the field.
  """
  if config.claim_keep not in config.keep:
    raise ValueError(
      f"claim_keep must be one of keep={config.keep}, got {config.claim_keep}"
    )
  if max(config.keep) > config.tokens:
    raise ValueError(
      f"keep must be at most tokens={config.tokens}, got {max(config.keep)}"
    )
  if config.per not in LAYOUTS:
    raise ValueError(f"per must be one of {list(LAYOUTS)}, got {config.per!r}")


def first_of(order: np.ndarray, count: int) -> np.ndarray:
  """[P, T] True at the first `count` tokens of an order [P, T].

  >>> first_of(np.array([[2, 0, 1]]), 2).tolist()
  [[True, False, True]]
  """
  mask = np.zeros(order.shape, bool)
  np.put_along_axis(mask, order[:, :count], True, axis=1)
  return mask


def _orders(
  subject: Subject, config: Config, ids: np.ndarray, step: Steps
) -> tuple[dict[Policy, np.ndarray], np.ndarray]:
  """Tokens in the order in which a policy keeps them, [P, T] each, and the
  sinks that were found, [P, T]."""
  look = _look(subject, ids, step)
  rise, _ = life_of(look["norm"].mean(axis=1))
  large, _ = large_and_next(look["first"][rise])
  # Where no dimension is large, the norm itself says what is massive.
  counted = large if large.any() else ~large
  sign = _squares(subject, ids, counted, step)[rise]
  heads = _found(subject, ids, step)
  rng = np.random.default_rng(config.seed)
  scores = {
    Policy.FIRST: np.zeros(ids.shape),
    Policy.PREDICTED: sign,
    Policy.FOUND: heads,
    Policy.ATTENDED: look["received"],
    Policy.RANDOM: rng.random(ids.shape),
  }
  # Of equals the earlier: so found sinks are followed by the first tokens.
  found = {
    policy: np.argsort(-score, axis=1, kind="stable")
    for policy, score in scores.items()
  }
  return found, heads > 0


def _look(
  subject: Subject, ids: np.ndarray, step: Steps
) -> dict[str, np.ndarray]:
  """Of the unchanged model.

  "norm" [L + 1, P] of the first token after the embedding and each layer,
  "first" [L, D] its squares, mean over texts, and "received" [P, T], mean over
  layers and heads.
  """
  watch = {
    "start": ("embed", lambda x: jnp.linalg.norm(x[:, 0], axis=-1)),
    "first": ("resid_post", lambda x: x[:, 0]),
    "received": ("pattern", lambda p: received(p).mean(axis=1)),
  }
  out = watched(subject, ids, watch, step)
  squares = np.square(out["first"])
  norm = np.sqrt(squares.sum(axis=-1))
  return {
    "norm": np.concatenate([out["start"], norm]),
    "first": squares.mean(axis=1),
    "received": out["received"].mean(axis=0),
  }


def _squares(
  subject: Subject, ids: np.ndarray, dims: np.ndarray, step: Steps
) -> np.ndarray:
  """[L, P, T] the squares of some dimensions, after each layer."""
  # A second pass, as the states of all tokens would take gigabytes.
  mask = jnp.asarray(dims, jnp.float32)

  def squares(x: jax.Array) -> jax.Array:
    return jnp.square(x.astype(jnp.float32)) @ mask

  return watched(subject, ids, {"sum": ("resid_post", squares)}, step)["sum"]


def _found(subject: Subject, ids: np.ndarray, step: Steps) -> np.ndarray:
  """[P, T] of every sink one more than its heads, 0 elsewhere."""
  fn = forward(subject.cfg)

  def find(rows: np.ndarray) -> np.ndarray:
    heads = np.zeros(rows.shape)
    for sink in find_sinks(fn, subject.params, rows).sinks:
      heads[sink.text, sink.position] = 1 + sink.heads
    return heads

  parts = []
  for _, count, rows in batches(ids, min(8, len(ids))):
    parts.append(subject.kept("sinks", find, rows)[:count])
    step(count)
  return np.concatenate(parts)


def _meter(
  subject: Subject, config: Config, ids: np.ndarray, step: Steps
) -> Callable[[int, np.ndarray], np.ndarray]:
  """`f(bits, keep)`: [P] losses with keys and values rounded but for a mask."""
  f = forward(subject.cfg)
  key: dict[str, Any] = {"per": config.per}
  if config.per == "channel":
    key["group"] = config.group

  @jax.jit
  def run(
    params: Any, ids: jax.Array, bits: jax.Array, keep: jax.Array
  ) -> jax.Array:
    # Each text has a mask of its own, which an edit has once: so texts are
    # mapped, not put into one batch.
    def one(row: jax.Array, keep: jax.Array) -> jax.Array:
      edits = {
        "k": Quantize(bits, keep, **key),
        "v": Quantize(bits, keep, per="token"),
      }
      logits = intervene(f, edits)(params, row[None]).logits[:, :-1]
      return nats_of(logits, row[None, 1:]).mean()

    return jax.vmap(one)(ids, keep)

  size = min(8, len(ids))

  def losses(bits: int, keep: np.ndarray) -> np.ndarray:
    found = []
    pairs = zip(batches(ids, size), batches(keep, size), strict=True)
    for (_, count, rows), (_, _, mask) in pairs:
      nats = subject.kept(
        "batch",
        run,
        subject.params,
        jnp.asarray(rows),
        jnp.asarray(bits, jnp.float32),
        jnp.asarray(mask),
      )
      found.append(nats.astype(np.float64)[:count])
      step(count)
    return np.concatenate(found)

  return losses


def _table(
  config: Config,
  arrays: dict[str, np.ndarray],
  hits: dict[Policy, list[float]],
  units: dict[str, Any],
) -> tuple[list[str], list[list[Any]]]:
  whole, nothing = arrays["whole"], arrays["nothing"]

  def ends(values: np.ndarray) -> list[float]:
    return ends_of(by_template(values, units))

  rows: list[list[Any]] = [
    ["nothing", 0, *ends(nothing - whole), None, None, None, None]
  ]
  for policy in Policy:
    losses = arrays[f"loss, {policy}"]
    for i, count in enumerate(config.keep):
      gain = ends(nothing - losses[i])
      share = hits[policy][i]
      rows.append([str(policy), count, *ends(losses[i] - whole), *gain, share])
  header = ["kept", "tokens", "loss_increase", "loss_low", "loss_high"]
  return [*header, "gain", "gain_low", "gain_high", "of_sinks"], rows
