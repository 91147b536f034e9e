"""Figures and sections of the experiment `make_a_sink`."""

from collections.abc import Mapping

from sinkjax.experiments.harness.api import Result
from sinkjax.experiments.harness.stats import ends_columns
from sinkjax.experiments.paper.make_a_sink.experiment import Case
from sinkjax.experiments.shared.interval_plots import ends_in, error_bars
from sinkjax.experiments.shared.key_rates import LAST
from sinkjax.experiments.shared.large_dimensions import LARGE
from sinkjax.report import html
from sinkjax.report.figures import (
  FIRST,
  INK,
  MUTED,
  REST,
  drawing,
  legend_above,
  png,
)

TITLE = "Making a sink, and taking one away"

SHOWN = (Case.PLAIN, Case.ALONE, Case.AVERAGE)
"""Cases whose rates are shown by key."""


def draw(result: Result) -> dict[str, bytes]:
  """Every figure, by file name."""
  return {"cases.png": _cases(result), "keys.png": _keys(result)}


def _cases(result: Result) -> bytes:
  rows = result.records("cases.csv")
  plain = next(row["loss"] for row in rows if row["case"] == Case.PLAIN)
  looks = (
    ("first", FIRST, "first token"),
    ("token", REST, f"token {result.config.at}"),
    ("elsewhere", MUTED, "others"),
  )
  with drawing(8.4, 3.8) as figure:
    left, right = figure.subplots(1, 2, sharey=True, width_ratios=(2, 1))
    for i, (name, color, label) in enumerate(looks):
      ends = 100 * ends_in(rows, ends_columns(name))
      at = [row + 0.2 * (i - 1) for row in range(len(rows))]
      error_bars(left, at, ends, across=True, color=color, label=label, ms=5)
    left.set_yticks(range(len(rows)), [row["case"] for row in rows])
    left.set_ylim(len(rows) - 0.5, -0.5)
    left.set(xlabel="heads with a sink there, %", xlim=(-2, 102))
    legend_above(left, "sink rate")
    more = [row["loss"] - plain for row in rows]
    right.barh(range(len(rows)), more, color=INK, height=0.5)
    right.axvline(0, color=MUTED, lw=1)
    right.set_xlabel("loss, nats more")
    for ax in (left, right):
      ax.grid(axis="x")
    return png(figure)


def _keys(result: Result) -> bytes:
  with drawing(8.4, 2.4) as figure:
    axes = figure.subplots(1, len(SHOWN), sharey=True)
    for ax, case in zip(axes, SHOWN, strict=True):
      rates = 100 * result.arrays[f"rates, {case}"][:, :-LAST].mean(axis=0)
      ax.bar(range(len(rates)), rates, width=1.0, color=REST)
      ax.axvline(result.config.at, color=INK, lw=0.6, ls=":")
      ax.set_title(str(case))
      ax.set_xlabel("key")
      ax.grid(True, axis="y")
    axes[0].set_ylabel("heads with a sink, %")
    return png(figure)


def sections(result: Result, drawn: Mapping[str, bytes]) -> list[html.Section]:
  """The experiment's part of the report."""
  numbers, config = result.numbers, result.config
  rise = numbers["rise"]
  found = numbers["dimensions"]
  dims = ", ".join(map(str, found)) if found else "none here"
  ratio = numbers["first_over_other"][rise + 1]
  return [
    html.Section(
      TITLE,
      body=f"{numbers['texts']} texts of {config.tokens} tokens; the token at "
      f"position {config.at} is changed. The first token's norm rises most in "
      f"layer {rise}, to {ratio:.3g} times that of this token. Attention is "
      f"changed up to this layer, states once after it; large are dimensions "
      f"with {100 * LARGE:.0f} % or more of the first token's squares: {dims}. "
      "The average is what attention writes to tokens after the first, over "
      "tokens and texts.",
      figure=drawn["cases.png"],
      caption="Left: share of all heads whose mean attention on a key is above "
      f"{config.eps:g}; means over texts with their 95 % intervals. Right: "
      "loss without what the changed token predicts.",
      table=html.Table(*result.tables["cases.csv"]),
    ),
    html.Section(
      "Sinks by key",
      figure=drawn["keys.png"],
      caption="Mean over texts; dotted: the token that is changed.",
    ),
  ]
