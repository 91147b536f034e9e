"""Figures and sections of the experiment `noise_training`."""

import numpy as np

from sinkjax.experiments.harness import sweep_figures
from sinkjax.experiments.training.noise_training.experiment import (
  NAME,
  REGULARISED,
)
from sinkjax.report import html
from sinkjax.report.figures import FIRST, REST, drawing, png

PANELS = {
  "noise_kl": "noise on every token",
  "swap_kl": "a swapped token",
  "attack_first_kl": "an attack on the first token",
  "attack_kl": "an attack on another token",
}


def draw(result) -> dict[str, bytes]:
  """Every figure, by file name."""
  names = ("first_mass", "sink_rate", "loss")
  return {
    "sturdiness.png": _points(result.numbers["sturdiness"]),
    "curves.png": sweep_figures.curves(result, names=names),
  }


def _points(rows) -> bytes:
  """KL over attention on the first token, a point a variant."""
  with drawing(10.4, 6.4) as figure:
    for ax, (name, title) in zip(
      figure.subplots(2, 2).flat, PANELS.items(), strict=True
    ):
      for row in rows:
        color, up = (FIRST, -9) if row["experiment"] == NAME else (REST, 4)
        x, y = np.array(row["first_mass"]), np.array(row[name])
        ax.plot(x, y, "o", color=color, ms=3, alpha=0.5, mew=0)
        x, y = x.mean(), np.exp(np.log(y).mean())
        ax.plot(x, y, "o", color=color, ms=6)
        ax.annotate(
          row["variant"].replace("target_", "").replace("_", " "),
          (x, y),
          (5, up),
          textcoords="offset points",
          fontsize=7.5,
          color=color,
        )
      ax.set(title=title, yscale="log")
      ax.margins(x=0.14, y=0.12)
      ax.set_xlabel("attention on the first token")
      ax.set_ylabel("KL, nats a token (log scale)")
      ax.grid()
    there = {row["experiment"] for row in rows}
    for name, color, label in (
      (NAME, FIRST, "trained here"),
      (REGULARISED, REST, "of sink_regulariser, by target"),
    ):
      if name in there:
        ax.plot([], [], "o", color=color, label=label)
    figure.legend(
      *ax.get_legend_handles_labels(),
      loc="outside upper left",
      ncols=2,
      frameon=False,
    )
    return png(figure)


def sections(result, drawn: dict[str, bytes]) -> list[html.Section]:
  """The experiment's part of the report."""
  numbers = result.numbers
  rows = numbers["sturdiness"]
  names = [
    key for key in rows[0] if key not in ("experiment", "variant", "seeds")
  ]
  table = [
    [
      row["experiment"],
      row["variant"],
      *(float(np.mean(row[name])) for name in names),
    ]
    for row in rows
  ]
  return [
    html.Section(
      result.title,
      body=(
        "Every trained model meets the same changes on "
        f"{numbers['tests']} held-out texts of {numbers['tokens']} tokens, "
        "read as it was trained; the first half is changed, the second half "
        f"measured. Noise and attacks have {numbers['share']:g} of the norm of "
        "a token's embedding; noise is on every token but the first, an attack "
        f"of {numbers['gradients']} gradients on one. A worse model changes "
        "less, having less to lose: compare those of equal loss."
      ),
      figure=drawn["sturdiness.png"],
      caption="Small: a seed; large: the variant's (geometric) mean.",
      table=html.Table(["experiment", "variant", *names], table),
    ),
    sweep_figures.training_section(
      result,
      drawn,
      "On starts of held-out documents, as each was trained, without noise.",
    ),
  ]
