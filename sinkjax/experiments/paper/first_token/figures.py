"""Figures and sections of the experiment `first_token`."""

import numpy as np

from sinkjax.report import html
from sinkjax.report.figures import (
  FIRST,
  INK,
  MUTED,
  REST,
  drawing,
  heat_map,
  legend_above,
  png,
)

LOOKS = {
  "BOS first": (INK, "s"),
  "no BOS": (REST, "o"),
  "as it is": (REST, "o"),
  "sink hidden": (FIRST, "D"),
  "next token hidden": (MUTED, "v"),
}
"""Colour and marker of each condition."""

DEPTHS = 8
"""Bins of the picture by depth."""


def draw(result) -> dict[str, bytes]:
  """Every figure, by file name."""
  drawn = {"tasks.png": _tasks(result.tables["tasks.csv"][1])}
  if result.numbers["lengths"]:
    drawn["needles.png"] = _needles(result.tables["needles.csv"][1])
    drawn["depth.png"] = _depth(result)
  return drawn


def _names(rows, column):
  return list(dict.fromkeys(row[column] for row in rows))


def _errors(rows):
  value, low, high = 100 * np.array([row[3:6] for row in rows], float).T
  return value, np.maximum([value - low, high - value], 0)


def _tasks(rows) -> bytes:
  tasks, conditions = _names(rows, 0), _names(rows, 1)
  with drawing(7.4, 0.62 * len(tasks) + 1.5) as figure:
    ax = figure.add_subplot()
    for i, name in enumerate(conditions):
      color, marker = LOOKS[name]
      some = [row for row in rows if row[1] == name]
      value, error = _errors(some)
      y = np.arange(len(tasks)) + 0.17 * (i - (len(conditions) - 1) / 2)
      ax.errorbar(
        value,
        y,
        fmt=marker,
        color=color,
        ms=4.5,
        lw=1.3,
        xerr=error,
        label=name,
      )
    chance = [100 * next(r[6] for r in rows if r[0] == task) for task in tasks]
    for at, level in enumerate(chance):
      ax.plot([level, level], [at - 0.4, at + 0.4], color=MUTED, ls=":", lw=1.5)
    labels = [task.replace("/", "\n") for task in tasks]
    ax.set_yticks(range(len(tasks)), labels, parse_math=False)
    ax.set(xlim=(0, 102), ylim=(len(tasks) - 0.5, -0.5), xlabel="%")
    ax.grid(axis="x")
    legend_above(ax, "items right, 95 %; dotted: chance")
    return png(figure)


def _needles(rows) -> bytes:
  sizes = _names(rows, 0)
  with drawing(6.2, 3.4) as figure:
    ax = figure.add_subplot()
    for name in _names(rows, 1):
      color, marker = LOOKS[name]
      value, error = _errors([row for row in rows if row[1] == name])
      ax.errorbar(
        sizes,
        value,
        yerr=error,
        fmt=f"{marker}-",
        color=color,
        ms=4.5,
        lw=1.6,
        label=name,
      )
    ax.axhline(100 * rows[0][6], color=MUTED, ls=":", lw=1.5)
    ax.set_xscale("log", base=2)
    ax.set_xticks(sizes, [f"{size:,}" for size in sizes])
    ax.minorticks_off()
    ax.set(xlabel="tokens", ylabel="%", ylim=(0, 102))
    ax.grid(axis="y")
    legend_above(ax, "needles found, 95 %; dotted: chance")
    return png(figure)


def _depth(result) -> bytes:
  sizes = result.numbers["lengths"]
  names = _names(result.tables["needles.csv"][1], 1)
  with drawing(2.3 * len(names) + 0.6, 2.9) as figure:
    axes = np.atleast_1d(figure.subplots(1, len(names), sharey=True))
    for ax, name in zip(axes, names, strict=True):
      shares = np.full((DEPTHS, len(sizes)), np.nan)
      for j, size in enumerate(sizes):
        found = result.arrays[f"found {size}, {name}"]
        depth = result.arrays[f"depth {size}"]
        bins = np.clip((DEPTHS * depth).astype(int), 0, DEPTHS - 1)
        for i in np.unique(bins):
          shares[i, j] = 100 * found[bins == i].mean()
      image = heat_map(
        ax, shares, vmin=0, vmax=100, extent=(-0.5, len(sizes) - 0.5, 100, 0)
      )
      ax.set_xticks(range(len(sizes)), [f"{n / 1024:.2g}k" for n in sizes])
      ax.set(xlabel="tokens", title=name)
    axes[0].set_ylabel("depth, %")
    figure.colorbar(image, ax=list(axes), label="found, %")
    return png(figure)


def sections(result, drawn: dict[str, bytes]) -> list[html.Section]:
  """The experiment's part of the report."""
  numbers = result.numbers

  def table(name):
    header, rows = result.tables[name]
    return html.Table(header, rows, whole=True)

  count = sum(numbers["items"].values())
  too_long = sum(numbers["items_too_long"].values())
  found = [
    html.Section(
      result.title,
      body=(
        f"{count} items of {len(numbers['items'])} multiple-choice tasks of "
        "BIG-bench, no example before them and the choices not listed; the "
        "ending of the greatest log-likelihood a byte is the answer. This "
        f"model's own texts: {numbers['own']}. Hidden: from layer "
        f"{numbers['from_layer']} on."
        + (f" Too long for its context: {too_long} more." if too_long else "")
      ),
      figure=drawn["tasks.png"],
      caption="By task.",
      table=table("tasks.csv"),
    )
  ]
  if "needles.png" in drawn:
    left_out = ", ".join(map(str, numbers["left_out"]))
    found += [
      html.Section(
        "Needles in a haystack",
        body=(
          f"{numbers['needles']} sentences like “The password of Lisbon is "
          "copper.” in a long text, each asked for at its end. The answer is "
          "the likeliest of the text's passwords."
          + (f" Beyond the model's context: {left_out}." if left_out else "")
        ),
        figure=drawn["needles.png"],
        caption="By length of the text.",
        table=table("needles.csv"),
      ),
      html.Section(
        "By depth",
        figure=drawn["depth.png"],
        caption="Where in the text the sentence stood; 0 is its start.",
      ),
    ]
  return found
