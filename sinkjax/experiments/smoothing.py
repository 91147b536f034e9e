"""What does attention do without its sink? (section 3.1, figure 3)

Every text is run as it is, without its first token, and with position 0
hidden from layer l on, for every l. Where the sink goes, how even attention
becomes, and what it costs.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from sinkjax.experiments.perturbation import times
from sinkjax.experiments.result import Claim, Result, Subject, direction
from sinkjax.experiments.sink_removal import (
  KEYS,
  late_layer,
  loss_from,
  observe,
  rates,
  sweep,
  texts_of,
)
from sinkjax.experiments.swaps import TEXTS
from sinkjax.experiments.uncertainty import mean_over
from sinkjax.metrics.spread import total_mixing
from sinkjax.models.transformer import forward
from sinkjax.transforms.capture import capture
from sinkjax.transforms.edits import knockout
from sinkjax.transforms.intervene import intervene
from sinkjax.transforms.jacobian import jacobian_norms

NAME, TITLE = "smoothing", "What attention does without its sink"


@dataclasses.dataclass(frozen=True)
class Config:
  """What is run.

  Attributes:
    texts: as `swaps.parse_swaps` takes them; the swaps are not used.
    tokens: T, tokens of each text; texts with fewer are left out.
    eps: a head has a sink where its score exceeds this.
    late: the layer from which on "late" hides the sink; `None` for the one
      that leaves the fewest sinks anywhere.
    jacobian_tokens: tokens of the texts whose Jacobian is taken.
    jacobian_texts: how many.
  """

  texts: str = TEXTS
  tokens: int = 46
  eps: float = 0.3
  late: int | None = None
  jacobian_tokens: int = 12
  jacobian_texts: int = 3


def run(
  subject: Subject,
  config: Config,
  *,
  progress: Callable[[int, int], Any] = lambda done, total: None,
) -> Result:
  """Every text under every condition.

  Args:
    subject: the model; its weights in memory.
    config: what is run.
    progress: called with (steps done, steps in all).

  Raises:
    ValueError: for texts that are too short, or a `late` that is no layer.

  Cost: L + 2 forward passes a text, and two exact Jacobians of a few.
  """
  cfg, ids = subject.cfg, texts_of(subject, config.texts, config.tokens)
  if config.late is not None and not 0 <= config.late < cfg.n_layers:
    raise ValueError(f"late must be in [0, {cfg.n_layers}), got {config.late}")
  f, tokens = forward(cfg), jnp.asarray(ids)
  total = cfg.n_layers + 2 + 2 * config.jacobian_texts

  @jax.jit
  def shortened(params, tokens):
    out = capture(f, {"seen": ("pattern", observe)})(params, tokens)
    return (*out.trace["seen"], loss_from(out.logits, tokens, KEYS - 1))

  scores, even, loss = sweep(
    subject, ids, progress=lambda done: progress(done, total)
  )
  removed = jax.tree.map(np.asarray, shortened(subject.params, tokens[:, 1:]))
  progress(cfg.n_layers + 2, total)
  late = config.late
  if late is None:
    late = late_layer(scores, config.eps)
  mixing = _mixing(subject, config, ids, late, total, progress)
  return _result(subject, config, scores, even, loss, removed, late, mixing)


def _mixing(subject, config, ids, late, total, progress) -> np.ndarray:
  """[texts, 2] total mixing as it is and with the sink hidden late."""
  f, found = forward(subject.cfg), []
  edits = {"scores": knockout(0, from_layer=jnp.asarray(late))}
  for row in ids[: config.jacobian_texts]:
    pair = []
    for fn in (f, intervene(f, edits)):
      short = jnp.asarray(row[: config.jacobian_tokens])
      norms = jacobian_norms(fn, subject.params, short)
      pair.append(float(total_mixing(jnp.asarray(norms, jnp.float32))))
      progress(subject.cfg.n_layers + 2 + 2 * len(found) + len(pair), total)
    found.append(pair)
  return np.array(found)


def _result(subject, config, scores, even, loss, removed, late, mixing):
  plain, texts = len(scores) - 1, list(range(scores.shape[2]))
  by_key = rates(scores, config.eps)  # [L + 1, P, K]
  gone_scores, gone_even, gone_loss = removed
  gone_rates = rates(gone_scores, config.eps)
  evenness = even.mean(axis=(1, 3))  # [L + 1, P]
  means = {
    "sink_rate": mean_over(by_key[plain, :, 0], texts),
    "sink_rate_new_first": mean_over(gone_rates[:, 0], texts),
    "sink_rate_next_hidden_everywhere": mean_over(by_key[0, :, 1], texts),
    "sink_rate_anywhere_late": mean_over(by_key[late].max(axis=-1), texts),
    "evenness_removed": mean_over(
      gone_even.mean(axis=(0, 2)) - evenness[plain], texts
    ),
    "evenness_late": mean_over(evenness[late] - evenness[plain], texts),
    "loss_removed": mean_over(gone_loss - loss[plain], texts),
    "loss_late": mean_over(loss[late] - loss[plain], texts),
    "moved_removed": mean_over(
      gone_rates[:, 0] - by_key[plain, :, 0] / 2, texts
    ),
    "moved_hidden": mean_over(by_key[0, :, 1] - by_key[plain, :, 0] / 2, texts),
  }
  if len(mixing) > 1:
    log = np.log(mixing[:, 1] / mixing[:, 0])
    means["log_mixing_late"] = mean_over(log, range(len(log)))
  by_layer = np.concatenate(
    [by_key.mean(axis=1), evenness.mean(axis=1)[:, None],
     loss.mean(axis=1)[:, None]], axis=1,
  )  # fmt: skip
  header = ["hidden_from_layer", *(f"sink_rate_key_{k}" for k in range(KEYS))]
  return Result(
    name=NAME, title=TITLE,
    claims=_claims(subject, config, means, late, mixing),
    numbers={
      "texts": len(texts), "tokens": config.tokens, "eps": config.eps,
      "late": late, "total_mixing": mixing,
      **{name: mean._asdict() for name, mean in means.items()},
    },
    tables={
      "layers.csv": (
        [*header, "evenness", "loss"],
        [[layer if layer < plain else "never", *map(float, row)]
         for layer, row in enumerate(by_layer)],
      ),
    },
    arrays={
      "rates": by_key, "evenness": evenness, "loss": loss,
      "rates_removed": gone_rates, "evenness_by_layer": even.mean(axis=(2, 3)),
      "evenness_removed_by_layer": gone_even.mean(axis=(1, 2)),
    },
  )  # fmt: skip


def _claims(subject, config, means, late, mixing):
  def shown(name, form=".2f", unit="", scale=1.0):
    mean = means[name]
    scaled = mean._replace(
      value=scale * mean.value, low=scale * mean.low, high=scale * mean.high
    )
    return scaled.text(form, unit)

  def percent(name):
    return shown(name, ".1f", " %", 100.0)

  def verdict(name):
    return direction(means[name].low, means[name].high)

  where = f"{len(mixing)} texts of {config.jacobian_tokens} tokens"
  first = "its BOS" if subject.has_bos() else "the first word"
  claims = [
    Claim(
      "Without the first token attention is smoother.",
      "section 3.1, figure 3", "no number; visible in some heads (Gemma 7B)",
      f"evenness of rows {shown('evenness_removed', '+.3f')} without {first}",
      verdict("evenness_removed"),
      "entropy over its maximum, mean of heads; see the next line for where "
      "the sink went",
    ),
    Claim(
      "A sink belongs to being first, not to the token that is first.",
      "section 5", "sink rate 65.15 without and 65.10 with BOS, where training "
      "did not fix it (120M)",
      f"{percent('sink_rate_new_first')} at the new first token, "
      f"{percent('sink_rate')} at the old one",
      verdict("moved_removed"), "agrees above half of the old rate",
    ),
    Claim(
      "Hiding position 0 at every layer moves the sink to the next token.",
      "not in the paper; our question", "no number",
      f"{percent('sink_rate_next_hidden_everywhere')} at position 1",
      verdict("moved_hidden"), "agrees above half of the old rate",
    ),
    Claim(
      "Attention that loses its sink late is smoother.",
      "section 3.1", "no number",
      f"evenness {shown('evenness_late', '+.3f')}, hidden from layer {late} "
      f"on; sinks left anywhere {percent('sink_rate_anywhere_late')}",
      verdict("evenness_late"), "layer chosen by where sinks stop moving",
    ),
    Claim(
      "A model that loses its sink late predicts worse.",
      "section 5, table 2", "validation loss 2.69 to 7.56, where training "
      "fixed BOS (120M)", f"loss {shown('loss_late', '+.2f', ' nats')}",
      verdict("loss_late"), f"tokens from position {KEYS} on",
    ),
  ]  # fmt: skip
  if "log_mixing_late" in means:
    claims.append(
      Claim(
        "Without its sink the model mixes more.", "theorem 3.2", "no number",
        f"{times(means['log_mixing_late'])} the total mixing of the exact "
        f"Jacobian, {where}",
        verdict("log_mixing_late"), f"hidden from layer {late} on",
      )
    )  # fmt: skip
  return claims
