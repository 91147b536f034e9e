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

from sinkjax.experiments.harness.api import Claim, Result, Subject, direction
from sinkjax.experiments.harness.stats import format_ratio, mean_over
from sinkjax.experiments.shared.sink_removal import (
  KEYS,
  late_layer,
  loss_from,
  observe,
  rates,
  sweep,
  texts_of,
)
from sinkjax.experiments.shared.swap_texts import TEXTS
from sinkjax.metrics.spread import total_mixing
from sinkjax.models.transformer import forward
from sinkjax.report import html
from sinkjax.report.figures import (
  FIRST,
  INK,
  REST,
  color_bar,
  drawing,
  heat_map,
  legend_above,
  png,
  ticks,
)
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
    [
      by_key.mean(axis=1),
      evenness.mean(axis=1)[:, None],
      loss.mean(axis=1)[:, None],
    ],
    axis=1,
  )
  header = ["hidden_from_layer", *(f"sink_rate_key_{k}" for k in range(KEYS))]
  return Result(
    name=NAME,
    title=TITLE,
    claims=_claims(subject, config, means, late, mixing),
    numbers={
      "texts": len(texts),
      "tokens": config.tokens,
      "eps": config.eps,
      "late": late,
      "total_mixing": mixing,
      **{name: mean._asdict() for name, mean in means.items()},
    },
    tables={
      "layers.csv": (
        [*header, "evenness", "loss"],
        [
          [layer if layer < plain else "never", *map(float, row)]
          for layer, row in enumerate(by_layer)
        ],
      )
    },
    arrays={
      "rates": by_key,
      "evenness": evenness,
      "loss": loss,
      "rates_removed": gone_rates,
      "evenness_by_layer": even.mean(axis=(2, 3)),
      "evenness_removed_by_layer": gone_even.mean(axis=(1, 2)),
    },
  )


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
      "section 3.1, figure 3",
      "no number; visible in some heads (Gemma 7B)",
      f"evenness of rows {shown('evenness_removed', '+.3f')} without {first}",
      verdict("evenness_removed"),
      "entropy over its maximum, mean of heads; see the next line for where "
      "the sink went",
    ),
    Claim(
      "A sink belongs to being first, not to the token that is first.",
      "section 5",
      "sink rate 65.15 without and 65.10 with BOS, where training "
      "did not fix it (120M)",
      f"{percent('sink_rate_new_first')} at the new first token, "
      f"{percent('sink_rate')} at the old one",
      verdict("moved_removed"),
      "agrees above half of the old rate",
    ),
    Claim(
      "Hiding position 0 at every layer moves the sink to the next token.",
      "not in the paper; our question",
      "no number",
      f"{percent('sink_rate_next_hidden_everywhere')} at position 1",
      verdict("moved_hidden"),
      "agrees above half of the old rate",
    ),
    Claim(
      "Attention that loses its sink late is smoother.",
      "section 3.1",
      "no number",
      f"evenness {shown('evenness_late', '+.3f')}, hidden from layer {late} "
      f"on; sinks left anywhere {percent('sink_rate_anywhere_late')}",
      verdict("evenness_late"),
      "layer chosen by where sinks stop moving",
    ),
    Claim(
      "A model that loses its sink late predicts worse.",
      "section 5, table 2",
      "validation loss 2.69 to 7.56, where training fixed BOS (120M)",
      f"loss {shown('loss_late', '+.2f', ' nats')}",
      verdict("loss_late"),
      f"tokens from position {KEYS} on",
    ),
  ]
  if "log_mixing_late" in means:
    claims.append(
      Claim(
        "Without its sink the model mixes more.",
        "theorem 3.2",
        "no number",
        f"{format_ratio(means['log_mixing_late'], '.2f')} the total mixing of "
        f"the exact Jacobian, {where}",
        verdict("log_mixing_late"),
        f"hidden from layer {late} on",
      )
    )
  return claims


def draw(result) -> dict[str, bytes]:
  """Every figure, by file name."""
  arrays, late = result.arrays, result.numbers["late"]
  return {
    "where.png": _where(100 * arrays["rates"].mean(axis=1), late),
    "cost.png": _cost(arrays, late),
    "evenness.png": _evenness(arrays, late),
  }


def _where(rates: np.ndarray, late: int) -> bytes:
  """Sink rate by key and by the layer from which position 0 is hidden."""
  with drawing(7.2, 3.4) as figure:
    ax = figure.add_subplot()
    image = heat_map(ax, rates.T, vmin=0, vmax=rates.max())
    shown = ticks(len(rates) - 1)
    names = [*map(str, shown), "never"]
    ax.set_xticks([*shown, len(rates) - 1], names)
    ax.axvline(late - 0.5, color=FIRST, lw=1.5)
    ax.set(xlabel="position 0 hidden from this layer on", ylabel="position")
    ax.set_title("share of heads whose sink is at a position")
    color_bar(image, ax, "%")
    return png(figure)


def _cost(arrays, late: int) -> bytes:
  with drawing(8, 3.3) as figure:
    for ax, name, title in zip(
      figure.subplots(1, 2),
      ("evenness", "loss"),
      ("evenness of attention", "loss, nats a token"),
      strict=True,
    ):
      values = arrays[name]
      x = np.arange(len(values) - 1)
      ax.plot(x, values[:-1], color=REST, lw=0.7, alpha=0.35)
      ax.plot(x, values[:-1].mean(axis=1), color=REST, lw=2, label="hidden")
      ax.axhline(values[-1].mean(), color=INK, lw=1, ls="--", label="never")
      ax.axvline(late, color=FIRST, lw=1)
      ax.set_xlabel("position 0 hidden from this layer on")
      ax.grid(axis="y")
      legend_above(ax, title)
    return png(figure)


def _evenness(arrays, late: int) -> bytes:
  series = {
    "as it is": (arrays["evenness_by_layer"][-1], REST),
    "first token removed": (arrays["evenness_removed_by_layer"], INK),
    f"hidden from layer {late} on": (arrays["evenness_by_layer"][late], FIRST),
  }
  with drawing(6.4, 3.4) as figure:
    ax = figure.add_subplot()
    for label, (values, color) in series.items():
      ax.plot(values, color=color, label=label, lw=1.8)
    ax.set(xlabel="layer", ylabel="entropy over its maximum", ylim=(0, 1))
    ax.grid(axis="y")
    legend_above(ax, "evenness of attention by layer, mean of heads and texts")
    return png(figure)


def sections(result, drawn: dict[str, bytes]) -> list[html.Section]:
  """The experiment's part of the report."""
  numbers = result.numbers
  header, rows = result.tables["layers.csv"]
  return [
    html.Section(
      result.title,
      body=(
        f"{numbers['texts']} texts of {numbers['tokens']} tokens. A head has "
        f"a sink at a position if it gets more than {numbers['eps']:g} of the "
        "attention of the queries that see it. Hiding position 0 from layer 0 "
        "on only moves the sink; hiding it later takes the sink away. The "
        "line marks the layer from which hiding leaves the fewest anywhere."
      ),
      figure=drawn["where.png"],
      caption="Sink rate by position; columns are conditions.",
      table=html.Table(header, rows),
    ),
    html.Section(
      "What it costs",
      figure=drawn["cost.png"],
      caption=(
        "Left: entropy of rows over its maximum, all layers and heads. Right: "
        "loss. Thin lines are texts, the thick one their mean."
      ),
    ),
    html.Section(
      "By layer",
      figure=drawn["evenness.png"],
      caption="Removing the first token is not hiding it late.",
    ),
  ]
