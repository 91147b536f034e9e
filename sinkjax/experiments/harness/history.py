"""What runs measured on their way, as one table and arrays."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from sinkjax.experiments.harness.sweep_figures import COLORS
from sinkjax.report import html
from sinkjax.report.figures import MUTED, drawing, png


class Histories(NamedTuple):
  """Of M models with S seeds each, at K steps.

  Attributes:
    names: of what was measured.
    steps: [K].
    arrays: {name: [M, S, K]}.
    table: (header, rows), a row for each run and step.
  """

  names: list[str]
  steps: list[int]
  arrays: dict[str, np.ndarray]
  table: tuple[list[str], list[list[Any]]]


def histories(
  found: Sequence[Mapping[str, Any]], about: Sequence[str], seeds: int
) -> Histories:
  """Of outcomes whose "history" has rows {"step", name: scalar}.

  Args:
    found: of `jobs.run_jobs`, all seeds of a model in a row.
    about: what of a run's request stands in the table.
    seeds: S.
  """
  names = [key for key in found[0]["history"][0] if key != "step"]
  steps = [row["step"] for row in found[0]["history"]]
  rows = [
    [
      *(one["request"][key] for key in about),
      row["step"],
      *(row[name] for name in names),
    ]
    for one in found
    for row in one["history"]
  ]
  arrays = {
    name: np.array(
      [[row[name] for row in one["history"]] for one in found]
    ).reshape(-1, seeds, len(steps))
    for name in names
  }
  return Histories(names, steps, arrays, ([*about, "step", *names], rows))


def schedule(
  result,
  panels: Mapping[str, str],
  *,
  rows: int,
  height: float,
  even: str,
  scales: Mapping[str, Mapping[str, Any]],
) -> bytes:
  """What emerges when: a panel a quantity, a line a model, seeds as a band.

  Args:
    result: whose arrays are [models, seeds, steps].
    panels: {name of an array: title}.
    rows: of panels.
    height: of the figure, in inches.
    even: the panel with a line at even attention.
    scales: {name: arguments of `set_yscale`} of those that are not linear; a
      symmetric logarithm starts at 0.
  """
  arrays, numbers = result.arrays, result.numbers
  with drawing(9.6, height) as figure:
    axes = figure.subplots(rows, len(panels) // rows).flat
    for ax, (name, title) in zip(axes, panels.items(), strict=True):
      for i, model in enumerate(numbers["models"]):
        values, color = arrays[name][i], COLORS[i % len(COLORS)]
        ax.plot(
          arrays["steps"],
          values.mean(axis=0),
          color=color,
          lw=1.6,
          label=model.replace("_", " "),
        )
        ax.fill_between(
          arrays["steps"],
          values.min(axis=0),
          values.max(axis=0),
          color=color,
          alpha=0.15,
          linewidth=0,
        )
      if name == even:
        ax.axhline(numbers["uniform_first"], color=MUTED, lw=0.9, ls=":")
      if name in scales:
        ax.set_yscale(**scales[name])
        if scales[name]["value"] == "symlog":
          ax.set_ylim(bottom=0)
      ax.set_title(title)
      ax.set_xlabel("step")
      ax.grid(axis="y")
    figure.legend(
      *ax.get_legend_handles_labels(),
      loc="outside upper left",
      ncols=6,
      frameon=False,
      fontsize=8.5,
    )
    return png(figure)


def caption(result) -> str:
  """Of `schedule`."""
  return (
    f"Mean over the seeds ({len(result.numbers['seeds'])}), band from least to "
    "greatest. Dotted: even attention."
  )


def ends(result) -> html.Table:
  """What was measured at the end, means over seeds."""
  last = result.numbers["last"]
  rows = [
    [name, *(float(np.mean(v)) for v in values.values())]
    for name, values in last.items()
  ]
  return html.Table(["model", *next(iter(last.values()))], rows)
