"""Figures, tables and sections that the reports of sweeps share."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from sinkjax.experiments.harness.api import Result
from sinkjax.report import html
from sinkjax.report.figures import FIRST, INK, MUTED, REST, SERIES, drawing, png

COLORS = SERIES
FORMS = {"bos": "BOS + text", "text": "text alone"}
"""How a text is read: behind what training put in front of it, or by itself."""

Row = Mapping[str, Any]
"""What a variant's models came to in one form, an entry of "rows"."""

Text = str | Callable[[Result], str]
"""Words of a report, or a function that writes them from the result."""


class Panel(NamedTuple):
  """One number of every row, for a panel of bars or a column of a table.

  Attributes:
    title: what it is; "{eps:g}" becomes the sweep's threshold.
    value: a key of a row, or `f(row, numbers)`: one number, one a seed, or
      `None`.
    factor: by which it is multiplied.
    uniform: whether the value of uniform attention is marked.
    zoomed: whether the axis starts near the least value instead of at zero,
      for numbers of which only differences matter.
  """

  title: str
  value: str | Callable[[Row, Mapping[str, Any]], Any]
  factor: float = 1
  uniform: bool = False
  zoomed: bool = False

  def heading(self, numbers: Mapping[str, Any]) -> str:
    """The title, filled in."""
    return self.title.format(eps=numbers["eps"])

  def of(self, row: Row, numbers: Mapping[str, Any]) -> np.ndarray | None:
    """The number of a row, one a seed."""
    found = (
      row[self.value]
      if isinstance(self.value, str)
      else self.value(row, numbers)
    )
    if found is None:
      return None
    # A number that does not depend on the seed becomes an array of one, so that
    # bars and tables treat all numbers alike.
    return self.factor * np.atleast_1d(np.asarray(found, float))


RATE = Panel("Heads with a sink (> {eps:g}), %", "rate", 100)
MASS = Panel("Attention on the first token", "first_mass", uniform=True)
LOSS = Panel("Held-out loss, nats", "loss", zoomed=True)
STANDARD = (RATE, MASS, LOSS)
"""What every sweep shows of its variants."""


@dataclasses.dataclass(frozen=True)
class Chart:
  """A figure and the section of the report that shows it.

  Attributes:
    file: name of the PNG file.
    draw: makes it.
    body: text above the figure.
    caption: text below it.
    table: of the section.
    title: of the section; `None` for the experiment's.
  """

  file: str
  draw: Callable[[Result], bytes]
  body: Text
  caption: Text
  table: Callable[[Result], html.Table]
  title: str | None = None

  def section(
    self, result: Result, drawn: Mapping[str, bytes], title: str
  ) -> html.Section:
    """Its section; `title` is the experiment's."""
    return html.Section(
      self.title or title,
      body=worded(self.body, result),
      figure=drawn[self.file],
      caption=worded(self.caption, result),
      table=self.table(result),
    )


def worded(text: Text, result: Result) -> str:
  """The words of a text."""
  return text if isinstance(text, str) else text(result)


def as_trained(numbers: Mapping[str, Any]) -> dict[str, Row]:
  """{variant: the row that reads texts as in training}, which is its first."""
  rows: dict[str, Row] = {}
  for row in numbers["rows"]:
    rows.setdefault(row["variant"], row)
  return rows


def bars(
  result: Result,
  panels: Sequence[Panel],
  *,
  label: Callable[[Row], str] = lambda row: row["variant"].replace("_", " "),
  rows: Sequence[Row] | None = None,
) -> bytes:
  """A bar for each row, a panel for each number; ticks are seeds.

  Args:
    result: of a sweep.
    panels: what is drawn. A row without the number gets a dash.
    label: of a row.
    rows: to draw; each variant as it was trained if `None`.
  """
  numbers = result.numbers
  rows = list(as_trained(numbers).values()) if rows is None else rows
  colors = [FIRST if row["form"] == "bos" else REST for row in rows]
  # Bars are counted from below, and the first row belongs on top.
  at = np.arange(len(rows))[::-1]
  with drawing(3.4 + 2.1 * len(panels), 0.36 * len(rows) + 1.2) as figure:
    axes = figure.subplots(1, len(panels), sharey=True, squeeze=False)[0]
    for ax, panel in zip(axes, panels, strict=True):
      found = [panel.of(row, numbers) for row in rows]
      values = [np.array([np.nan]) if x is None else x for x in found]
      ax.barh(at, [x.mean() for x in values], color=colors, height=0.62)
      for y, seeds in zip(at, values, strict=True):
        _seed_ticks(ax, y, seeds)
      if panel.uniform:
        ax.axvline(numbers["uniform_mass"], color=MUTED, lw=0.9, ls=":")
      if panel.zoomed:
        ends = np.concatenate(values)
        room = 0.15 * np.ptp(ends) + 1e-3  # equal values need a width, too
        ax.set_xlim(ends.min() - room, ends.max() + room)
      ax.set_title(panel.heading(numbers), fontsize=8.5)
      ax.grid(axis="x")
    axes[0].set_yticks(at, [label(row) for row in rows])
    return png(figure)


def _seed_ticks(ax: Any, y: float, seeds: np.ndarray) -> None:
  """A tick for every seed, a dash where there is no number."""
  if np.isnan(seeds).all():
    ax.annotate(
      "–", (0, y), (3, 0), textcoords="offset points", va="center", color=MUTED
    )
  # The tick of a single seed would only cover the end of its bar.
  elif seeds.size > 1:
    ax.plot(seeds, np.full(seeds.size, y), "|", color=INK, ms=7)


CURVE_TITLES = {
  "first_mass": "Attention on the first token",
  "sink_rate": "Share of heads with sink score above {eps:g}",
  "loss": "Loss on held-out windows, nats",
}


def curves(
  result: Result, *, names: Sequence[str], variants: Sequence[str]
) -> bytes:
  """Measurements through training, a line for each variant.

  Args:
    result: of a sweep.
    names: keys of `CURVE_TITLES`.
    variants: that are drawn.
  """
  arrays, numbers = result.arrays, result.numbers
  rows = -(-len(variants) // 5)  # of the legend
  with drawing(4.8 * len(names), 3.3 + 0.25 * rows) as figure:
    panels = figure.subplots(1, len(names), squeeze=False)[0]
    for ax, name in zip(panels, names, strict=True):
      for i, variant in enumerate(variants):
        steps = arrays[f"{'loss_' if name == 'loss' else ''}steps_{variant}"]
        # Variants beyond the number of colours are told apart by the dashes.
        style = ("-", "--", ":")[i // len(COLORS) % 3]
        _band(ax, steps, arrays[f"{name}_{variant}"], variant, i, style)
      if name == "first_mass":
        ax.axhline(numbers["uniform_mass"], color=MUTED, lw=0.9, ls=":")
      if name == "loss":
        # The first loss is far above all others and would flatten them.
        ends = [arrays[f"loss_{variant}"] for variant in variants]
        later = np.concatenate([x[:, 1:].ravel() for x in ends])
        room = 0.05 * np.ptp(later) + 1e-3
        ax.set_ylim(later.min() - room, later.max() + room)
      ax.set_title(CURVE_TITLES[name].format(eps=numbers["eps"]))
      ax.set_xlabel("step")
      ax.grid(axis="y")
    legend(figure, ax, columns=5)
    return png(figure)


def _band(
  ax: Any, steps: np.ndarray, values: np.ndarray, label: str, i: int, style: str
) -> None:
  """The mean over seeds [S, K], and a band from the least to the greatest."""
  color = COLORS[i % len(COLORS)]
  ax.plot(steps, values.mean(axis=0), style, color=color, lw=1.6, label=label)
  ax.fill_between(
    steps,
    values.min(axis=0),
    values.max(axis=0),
    color=color,
    alpha=0.12,
    linewidth=0,
  )


def legend(figure: Any, ax: Any, *, columns: int) -> None:
  """The labels of one panel, above all panels."""
  figure.legend(
    *ax.get_legend_handles_labels(),
    # With "outside", the constrained layout makes room for the legend.
    loc="outside upper left",
    ncols=columns,
    frameon=False,
    fontsize=8.5,
  )


def table(
  result: Result,
  columns: Sequence[Panel] = (),
  *,
  paper: bool = False,
  label: str = "variant",
) -> html.Table:
  """The rows as a table, means over seeds.

  Args:
    result: of a sweep.
    columns: beside sink rate, attention on the first token and loss.
    paper: whether the figures of a paper stand beside ours.
    label: of the first column.
  """
  numbers = result.numbers
  header = [label, "input"]
  header += ["paper, % of heads"] * paper + ["ours, % of heads"]
  header += ["attention on the first token"]
  header += ["paper, nats"] * paper + ["ours, nats"]
  header += [column.heading(numbers) for column in columns]
  found = []
  for row in numbers["rows"]:
    percent, nats = row["paper"]
    line = [row["variant"], FORMS[row["form"]]]
    line += [percent] * paper + [_mean(RATE.of(row, numbers))]
    line += [_mean(MASS.of(row, numbers))]
    line += [nats] * paper + [_mean(LOSS.of(row, numbers))]
    line += [_mean(column.of(row, numbers)) for column in columns]
    found.append(["" if x is None else x for x in line])
  return html.Table(header, found)


def _mean(values: np.ndarray | None) -> float | None:
  return None if values is None else float(np.mean(values))


def uniform_attention(result: Result) -> str:
  """What the dotted line of a figure is, with its value."""
  mass = result.numbers["uniform_mass"]
  return f"Dotted line: uniform attention, {mass:.3f}."


def seeds_caption(result: Result, mean: str, single: str) -> str:
  """Which marks are the mean over seeds, and which the single seeds."""
  seeds = len(result.numbers["seeds"])
  return (
    f"{mean} are means over the seeds ({seeds}), {single} the single seeds."
  )


def bar_caption(result: Result) -> str:
  """Of `bars` with the panels `STANDARD`."""
  return (
    f"{seeds_caption(result, 'Bars', 'ticks')} A head has a sink if its mean "
    f"attention on the first token is above {result.numbers['eps']:g}. "
    f"{uniform_attention(result)}"
  )


def point_caption(result: Result) -> str:
  """Of figures with a point for each variant and a dash for each seed."""
  return (
    f"{seeds_caption(result, 'Points', 'dashes')} {uniform_attention(result)}"
  )


def curve_caption(result: Result) -> str:
  """Of `curves`."""
  seeds = len(result.numbers["seeds"])
  return (
    f"Lines are means over the seeds ({seeds}), bands reach from the lowest "
    f"seed to the highest. {uniform_attention(result)}"
  )


def seed_points(
  ax: Any, x: Sequence[float], values: np.ndarray, *, color: str, label: str
) -> None:
  """[N, S] values over x: a line through the means, a dash for each seed."""
  ax.plot(x, values.mean(axis=1), "o-", color=color, ms=4, lw=1.6, label=label)
  for i, seeds in enumerate(values):
    ax.plot(np.full(len(seeds), x[i]), seeds, "_", color=INK, ms=6, lw=1)
