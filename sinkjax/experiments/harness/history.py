"""What runs measured through training, as one table, arrays and a figure."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from sinkjax.experiments.harness.api import Result
from sinkjax.experiments.harness.sweep_figures import COLORS, legend
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

  def last(self, models: Sequence[str]) -> dict[str, dict[str, np.ndarray]]:
    """{model: {name: [S]}} at the last step."""
    return {
      model: {name: self.arrays[name][i, :, -1] for name in self.names}
      for i, model in enumerate(models)
    }


def histories(
  found: Sequence[Mapping[str, Any]], about: Sequence[str], seeds: int
) -> Histories:
  """Of outcomes whose "history" has rows {"step", name: scalar}.

  Args:
    found: of `jobs.run_jobs`, all seeds of a model in a row.
    about: keys of a run's request that the table has as columns.
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
  result: Result,
  panels: Mapping[str, str],
  *,
  rows: int,
  height: float,
  uniform: str,
  scales: Mapping[str, Mapping[str, Any]],
) -> bytes:
  """What emerges when: a panel a quantity, a line a model, seeds as a band.

  Args:
    result: whose arrays are [models, seeds, steps].
    panels: {name of an array: title}.
    rows: of panels.
    height: of the figure, in inches.
    uniform: the panel in which uniform attention is marked.
    scales: {name: arguments of `set_yscale`} of those that are not linear; a
      symmetric logarithm starts at 0.
  """
  with drawing(9.6, height) as figure:
    axes = figure.subplots(rows, len(panels) // rows).flat
    for ax, (name, title) in zip(axes, panels.items(), strict=True):
      for i, model in enumerate(result.numbers["models"]):
        _band(ax, result, name, i, model.replace("_", " "))
      if name == uniform:
        mass = result.numbers["uniform_first"]
        ax.axhline(mass, color=MUTED, lw=0.9, ls=":")
      if name in scales:
        ax.set_yscale(**scales[name])
        if scales[name]["value"] == "symlog":
          ax.set_ylim(bottom=0)
      ax.set_title(title)
      ax.set_xlabel("step")
      ax.grid(axis="y")
    legend(figure, ax, columns=6)
    return png(figure)


def _band(ax: Any, result: Result, name: str, i: int, label: str) -> None:
  """Model i: the mean over seeds, and a band from the least to the greatest."""
  steps, values = result.arrays["steps"], result.arrays[name][i]
  color = COLORS[i % len(COLORS)]
  ax.plot(steps, values.mean(axis=0), color=color, lw=1.6, label=label)
  ax.fill_between(
    steps,
    values.min(axis=0),
    values.max(axis=0),
    color=color,
    alpha=0.15,
    linewidth=0,
  )


def caption(result: Result) -> str:
  """Of `schedule`."""
  return (
    f"Lines are means over the seeds ({len(result.numbers['seeds'])}), bands "
    "reach from the lowest seed to the highest. Dotted line: uniform attention."
  )


def final_table(result: Result) -> html.Table:
  """What was measured at the last step, means over seeds."""
  last = result.numbers["last"]
  rows = [
    [name, *(float(np.mean(v)) for v in values.values())]
    for name, values in last.items()
  ]
  return html.Table(["model", *next(iter(last.values()))], rows)
