"""The over-squashing bounds beside the exact Jacobian (theorem 3.2).

For some short texts, with the sink and with position 0 hidden from a layer
on: three valid bounds, the norms that they bound, and the decades between.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np

from sinkjax.analysis.over_squashing import FORMS, over_squashing
from sinkjax.experiments.harness.api import (
  AGREES,
  DISAGREES,
  Claim,
  Result,
  Subject,
  direction,
)
from sinkjax.experiments.harness.stats import mean_over
from sinkjax.experiments.shared.sink_removal import (
  CONDITIONS,
  texts_of,
  with_layer,
)
from sinkjax.experiments.shared.swap_texts import TEXTS
from sinkjax.models.transformer import forward
from sinkjax.report import html
from sinkjax.report.figures import INK, MUTED, drawing, png
from sinkjax.report.over_squashing import COLORS
from sinkjax.transforms.edits import knockout
from sinkjax.transforms.intervene import intervene

NAME, TITLE = "bound", "What the over-squashing bounds allow"
VALID = [name for name, form in FORMS.items() if form.valid]


@dataclasses.dataclass(frozen=True)
class Config:
  """What is computed.

  Attributes:
    texts: as `swaps.parse_swaps` takes them; the swaps are not used.
    count: how many of them.
    tokens: T.
    from_layer: the first layer at which position 0 is hidden; `None` for the
      one that leaves the fewest sinks, see `sink_removal`.
    budget_bytes: of the exact engine, see `jacobian_norms`.
  """

  texts: str = TEXTS
  count: int = 4
  tokens: int = 6
  from_layer: int | None = None
  budget_bytes: int | None = None


def run(
  subject: Subject,
  config: Config,
  *,
  progress: Callable[[int, int], Any] = lambda done, total: None,
) -> Result:
  """Bounds and exact norms of every text under both conditions.

  Args:
    subject: the model.
    config: what is computed.
    progress: called with (maps done, maps in all).

  Raises:
    ValueError: for texts that are too short or too few.

  Cost: four exact maps and two `layer_gains` a text.
  """
  if config.count < 2:
    raise ValueError(f"count must be at least 2, got {config.count}")
  config = with_layer(subject, config)
  ids = texts_of(subject, config.texts, config.tokens)[: config.count]
  f = forward(subject.cfg)
  edit = {"scores": knockout(0, from_layer=config.from_layer)}
  functions, found = (f, intervene(f, edit)), []
  for row in ids:
    for fn in functions:
      found.append(
        over_squashing(
          fn, subject.params, row, budget_bytes=config.budget_bytes
        )
      )
      progress(len(found), 2 * len(ids))
  return _result(config, found)


def _result(config: Config, found) -> Result:
  """`found`: text by text, both conditions of each."""
  texts = list(range(len(found) // 2))
  seen = np.tri(config.tokens, dtype=bool)

  def stacked(of):
    """[P, 2, ...] of something of each."""
    values = np.stack([of(one) for one in found])
    return values.reshape(len(texts), 2, *values.shape[1:])

  decades = {name: stacked(lambda x, n=name: x.decades(n)) for name in FORMS}
  logs = {
    name: stacked(lambda x, n=name: x.log_bounds[n]) / np.log(10)
    for name in FORMS
  }
  violated = {name: sum(x.violations(name) for x in found) for name in FORMS}

  def rise_of(log):
    """How much higher without the sink, mean of causal pairs.

    Pairs that are exactly 0 in either condition have no logarithm: those of
    token 0, where it is hidden from the first layer on.
    """
    both = seen & np.isfinite(log).all(axis=1)
    gap = np.subtract(
      log[:, 1], log[:, 0], where=both, out=np.zeros_like(log[:, 0])
    )
    return mean_over(gap.sum(axis=(1, 2)) / both.sum(axis=(1, 2)), texts)

  rise = {name: rise_of(log) for name, log in logs.items()}
  loose = {
    name: mean_over(np.median(d[:, 0][:, seen], axis=1), texts)
    for name, d in decades.items()
  }
  norms = stacked(lambda x: x.norms)
  with np.errstate(divide="ignore"):
    held = stacked(lambda x: np.log10(x.frozen_norms))
    exact = np.log10(norms)
  truth = rise_of(exact)
  pairs = len(found) * int(seen.sum())
  return Result(
    name=NAME,
    title=TITLE,
    claims=_claims(config, violated, loose, rise, truth, pairs),
    numbers={
      "texts": len(texts),
      "tokens": config.tokens,
      "pairs": pairs,
      "from_layer": config.from_layer,
      "violations": violated,
      "median_decades": {k: v._asdict() for k, v in loose.items()},
      "rise_without_sink": {k: v._asdict() for k, v in rise.items()},
      "rise_of_the_truth": truth._asdict(),
      "constants": [one.constants for one in found],
    },
    tables={"bounds.csv": _table(exact, held, logs, decades)},
    arrays={
      "log10_norms": exact,
      "log10_norms_held": held,
      **{f"log10_bound_{name}": log for name, log in logs.items()},
    },
  )


def _table(exact, held, logs, decades):
  header = ["text", "condition", "target", "source"]
  header += ["log10_norm", "log10_norm_pattern_held"]
  for name in FORMS:
    header += [f"log10_bound_{name}", f"decades_{name}"]
  rows = []
  for text, condition in np.ndindex(exact.shape[:2]):
    for t, s in zip(*np.tril_indices(exact.shape[-1]), strict=True):
      at = (text, condition, t, s)
      row = [
        text + 1,
        CONDITIONS[condition],
        int(t),
        int(s),
        exact[at],
        held[at],
      ]
      for name in FORMS:
        row += [logs[name][at], decades[name][at]]
      rows.append(row)
  return header, rows


def _claims(config, violated, loose, rise, truth, pairs):
  worst = sum(violated[name] for name in VALID)
  margins = "; ".join(f"{name} {loose[name].text('.1f')}" for name in VALID)
  hidden = f"position 0 hidden from layer {config.from_layer} on"
  return [
    Claim(
      "The Jacobian's norms stay within the over-squashing bound.",
      "theorem 3.2",
      "a theorem",
      f"{worst} of {pairs} pairs exceed a bound; medians are above the truth "
      f"by these decades: {margins}",
      DISAGREES if worst else AGREES,
      "constants measured on the weights; C absorbs the residual stream",
    ),
    Claim(
      "Sinks lower the bound.",
      "section 3.2",
      "no number",
      f"without the sink the paper's bound is {rise['paper'].text('+.1f')} "
      f"decades higher, the full one {rise['full'].text('+.1f')}, the exact "
      f"norms {truth.text('+.2f')}",
      direction(rise["paper"].low, rise["paper"].high),
      f"{rise['paper'].groups} texts of {config.tokens} tokens, {hidden}",
    ),
  ]


def draw(result) -> dict[str, bytes]:
  """Every figure, by file name."""
  return {"bounds.png": _bounds(result.arrays)}


def _bounds(arrays) -> bytes:
  """The last token's bounds and truths, mean of texts, by source."""
  with drawing(8.6, 4.2) as figure:
    axes = figure.subplots(1, 2, sharey=True)
    for i, (ax, title) in enumerate(zip(axes, CONDITIONS, strict=True)):

      def line(name, label, color, ax=ax, i=i, **look):
        values = arrays[name][:, i, -1]
        ax.plot(values.T, color=color, lw=0.6, alpha=0.35)
        ax.plot(values.mean(axis=0), color=color, label=label, lw=2, **look)

      for name, color in COLORS.items():
        line(f"log10_bound_{name}", f"bound: {name}", color)
      line("log10_norms_held", "exact, pattern held", MUTED, ls="--")
      line("log10_norms", "exact", INK)
      ax.set_title(title)
      ax.set_xlabel("changed token (source)")
      ax.set_xticks(range(arrays["log10_norms"].shape[-1]))
      ax.grid(axis="y")
    axes[0].set_ylabel("log10 of the last token's norm")
    figure.legend(
      *axes[0].get_legend_handles_labels(),
      loc="outside upper left",
      ncols=5,
      frameon=False,
      fontsize=8.5,
    )
    return png(figure)


def sections(result, drawn: dict[str, bytes]) -> list[html.Section]:
  """The experiment's part of the report."""
  numbers = result.numbers
  rows = [
    [
      name,
      form.label,
      "pattern held" if form.frozen else "the model",
      numbers["violations"][name],
      numbers["pairs"],
      numbers["median_decades"][name]["value"],
      numbers["rise_without_sink"][name]["value"],
    ]
    for name, form in FORMS.items()
  ]
  header = [
    "form",
    "what",
    "about",
    "violated",
    "pairs",
    "decades above",
    "rise without the sink, decades",
  ]
  return [
    html.Section(
      result.title,
      body=(
        f"{numbers['texts']} texts of {numbers['tokens']} tokens, spectral "
        "norms from embed to the last layer. Gains are measured on the "
        "model's own derivatives. The naive form leaves the residual stream "
        "out of its constant and need not hold."
      ),
      figure=drawn["bounds.png"],
      caption="Thin lines are texts, thick ones their mean.",
      table=html.Table(header, rows),
    )
  ]
