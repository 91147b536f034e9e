"""Figures and sections of the experiment `streaming`."""

import numpy as np

from sinkjax.report import html
from sinkjax.report.figures import (
  FIRST,
  INK,
  MUTED,
  REST,
  drawing,
  legend_above,
  limits,
  png,
)

COLORS = (REST, FIRST, INK, MUTED)
KEPT, RECOMPUTE = "4 first and window", "recompute"
LOOKS = {
  "window alone": (MUTED, "-"),
  "1 first and window": (REST, "--"),
  KEPT: (FIRST, "-"),
  "dense": (INK, "-"),
}


def draw(result) -> dict[str, bytes]:
  """Every figure, by file name."""
  numbers, tables = result.numbers, result.tables
  return {
    "positions.png": _positions(
      numbers, tables["positions.csv"][1], tables["context.csv"]
    ),
    "sinks.png": _sinks(numbers, tables["sinks.csv"][1]),
    "time.png": _time(tables["time.csv"][1]),
    "starts.png": _starts(tables["starts.csv"][1]),
  }


def _positions(numbers, rows, near) -> bytes:
  """Loss over position, and around the end of the context."""
  header, bins = near
  with drawing(10.4, 3.8) as figure:
    left, right = figure.subplots(1, 2, width_ratios=(1.5, 1))
    for name, (color, style) in LOOKS.items():
      x, y = _curve(rows, name)
      look = {"color": color, "ls": style, "lw": 1.6}
      left.plot(x, y, label=name, **look)
      if name in header and bins:
        at, kept = header.index(name), header.index(KEPT)
        middle = [(row[0] + row[1]) / 2 for row in bins]
        right.plot(middle, [row[at] - row[kept] for row in bins], **look)
    _anew(left, [row for row in rows if row[0] == RECOMPUTE])
    left.set_xscale("log")
    left.axvline(numbers["total"], color=MUTED, ls=":", lw=1)
    for ax in (left, right):
      ax.axvline(numbers["context"], color=INK, ls=":", lw=1)
      ax.set_xlabel("position, tokens")
      ax.grid(axis="y")
    if bins:
      right.set(xlim=(bins[0][0], bins[-1][1]))
    right.set_title(f"above {KEPT}, nats a token", pad=21)
    for axis in (left.xaxis, right.xaxis):
      axis.set_major_formatter("{x:,.0f}")
    legend_above(left, "loss, nats a token")
    return png(figure)


def _curve(rows, name):
  mine = [row for row in rows if row[0] == name]
  return [np.sqrt(row[1] * row[2]) for row in mine], [row[4] for row in mine]


def _anew(ax, rows) -> None:
  """Recomputed tokens, with intervals."""
  if not rows:
    return
  x = [np.sqrt(row[1] * row[2]) for row in rows]
  value, low, high = np.array([row[4:7] for row in rows], float).T
  ax.errorbar(
    x,
    value,
    yerr=[value - low, high - value],
    fmt="o",
    color=REST,
    ms=4,
    lw=1.2,
    label=RECOMPUTE,
  )


def _sinks(numbers, rows) -> bytes:
  """Loss over first tokens kept, a line for each size of cache."""
  shared = [row for row in rows if row[4] == _fewer(rows)]
  totals = sorted({row[0] for row in shared if row[0] is not None})
  counts = sorted({row[1] for row in shared if row[1] is not None})
  with drawing(9.2, 3.8) as figure:
    left, right = figure.subplots(1, 2)
    for i, total in enumerate(totals):
      mine = [row for row in shared if row[0] == total]
      look = {"color": COLORS[i % len(COLORS)], "ms": 4, "lw": 1.4}
      x = np.array([counts.index(row[1]) for row in mine], float)
      left.plot(
        x, [row[5] for row in mine], "o-", label=f"{total} kept", **look
      )
      some = [row for row in mine if row[1] and row[9] is not None]
      if some:
        x = np.array([counts.index(row[1]) for row in some], float)
        value, low, high = 1000 * np.array([row[9:12] for row in some], float).T
        right.errorbar(
          x + 0.08 * (i - (len(totals) - 1) / 2),
          value,
          fmt="o",
          yerr=[value - low, high - value],
          **look,
        )
    dense = [row for row in shared if row[0] is None]
    if dense:
      left.axhline(dense[0][5], color=INK, ls=":", lw=1, label="dense")
    right.axhline(0, color=MUTED, lw=0.8)
    right.set_title(f"above {numbers['kept']} kept, millinats", pad=21)
    for ax in (left, right):
      ax.set_xticks(range(len(counts)), counts)
      ax.set_xlabel("first tokens kept")
      ax.grid(axis="y")
    right.set_xlim(0.5, len(counts) - 0.5)
    legend_above(left, "loss, nats a token")
    return png(figure)


def _fewer(rows) -> int:
  """The end of the stretch that every cache saw."""
  return min(row[4] for row in rows if row[0] is not None)


def _time(rows) -> bytes:
  """Seconds a token, cached and anew, with their ratio."""
  totals, cached, anew = (np.array([row[i] for row in rows]) for i in range(3))
  with drawing(8.6, 3.4) as figure:
    left, right = figure.subplots(1, 2)
    for y, color, label in (
      (anew, REST, "window computed anew"),
      (cached, FIRST, "first tokens and window kept"),
    ):
      left.plot(totals, 1000 * y, "o-", color=color, ms=4, lw=1.6, label=label)
    limits(left, 1000 * np.concatenate([cached, anew]), log=True)
    legend_above(left, "milliseconds a token")
    value, low, high = np.array([row[3:6] for row in rows], float).T
    right.errorbar(
      totals,
      value,
      yerr=[value - low, high - value],
      fmt="o-",
      color=INK,
      ms=4,
      lw=1.6,
    )
    right.set_ylim(bottom=0)
    right.set_title("times as long anew", pad=21)
    for ax in (left, right):
      ax.set_xscale("log", base=2)
      ax.set_xticks(totals, [str(n) for n in totals])
      ax.minorticks_off()
      ax.set_xlabel("tokens kept")
      ax.grid(axis="y")
    return png(figure)


def _starts(rows) -> bytes:
  """What other first tokens cost, with intervals over blocks."""
  with drawing(7, 0.5 * len(rows) + 1.1) as figure:
    ax = figure.add_subplot()
    value, low, high = np.array([row[5:8] for row in rows], float).T
    ax.errorbar(
      value,
      range(len(rows)),
      xerr=[value - low, high - value],
      fmt="o",
      color=FIRST,
    )
    ax.set_yticks(range(len(rows)), [row[0] for row in rows])
    ax.axvline(0, color=MUTED, lw=1)
    ax.set(ylim=(len(rows) - 0.5, -0.5))
    ax.set_xlabel("loss above that with the text's own first tokens, nats")
    ax.grid(axis="x")
    return png(figure)


def sections(result, drawn: dict[str, bytes]) -> list[html.Section]:
  """The experiment's part of the report."""
  numbers = result.numbers
  bytes_of = numbers["bytes"]

  def table(name):
    return html.Table(*result.tables[name])

  at = numbers["totals"].index(numbers["total"])
  return [
    html.Section(
      result.title,
      body=(
        f"The text: {numbers['text']}, the first {numbers['tokens']:,} tokens. "
        "Caches "
        f"keep {numbers['total']} tokens in all, the first ones among them; "
        f"positions are those in the cache. Dense keeps everything, for "
        f"{numbers['dense']:,} tokens, at the text's positions. Recompute is a "
        f"forward pass on the {numbers['total']} tokens before each of "
        f"{numbers['recomputed']}."
      ),
      figure=drawn["positions.png"],
      caption=(
        "Means in bins of position; right, differences around the end of the "
        "context, where the text's own ups and downs cancel. Dotted: the size "
        "of the cache, and the context of training. Recompute: the mean of "
        "first tokens and window in a bin, plus the difference at the "
        "recomputed tokens, 95 %."
      ),
      table=table("positions.csv"),
    ),
    html.Section(
      "First tokens kept",
      body=(
        "The size of a cache is the same whatever it keeps. The figure shows "
        "the tokens that all caches saw, after the size of the largest; the "
        "table has all. The row without a size is dense."
      ),
      figure=drawn["sinks.png"],
      caption=(
        "Right: the difference at the same tokens, without 0, and its 95 % "
        f"interval over blocks of {numbers['block']} tokens. The table's "
        "intervals of the loss hold the differences between stretches of text."
      ),
      table=table("sinks.csv"),
    ),
    html.Section(
      "Other first tokens",
      body=(
        f"{numbers['kept']} tokens put before the text and kept; and the end "
        "of the text as if it began there, against the stream that came all "
        "the way."
      ),
      figure=drawn["starts.png"],
      caption="95 % intervals of differences, over blocks.",
      table=table("starts.csv"),
    ),
    html.Section(
      "Time and memory",
      body=(
        "One token more, in interleaved rounds: one step with the cache, or "
        "a forward pass on as many tokens as the cache holds. With "
        f"{numbers['total']} tokens the cache has "
        f"{bytes_of['cached'][at] / 1e6:.3g} MB, whatever the length of the "
        f"text, fed one token at a time; with everything kept "
        f"{numbers['dense']:,} tokens take {bytes_of['dense'] / 1e6:.3g} MB."
      ),
      figure=drawn["time.png"],
      caption=(
        "Medians of the seconds; 95 % intervals of the ratio over rounds. "
        "Working bytes are what the compiled step needs beside its arguments."
      ),
      table=table("time.csv"),
    ),
    html.Section("Around the end of the context", table=table("context.csv")),
  ]
