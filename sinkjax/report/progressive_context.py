"""Figures and sections of the experiment `progressive_context`."""

import numpy as np

from sinkjax.report import html, text_sweep


def draw(result) -> dict[str, bytes]:
  """Every figure, by file name."""
  names = ("first_mass", "sink_rate", "loss")
  rows = text_sweep.as_trained(result.numbers)
  seconds = result.numbers["seconds"]
  panels = [
    *text_sweep.standard_panels(result.numbers),
    ("seconds", lambda row: np.asarray(seconds[row["variant"]])),
  ]
  return {
    "rows.png": text_sweep.bars(
      result, panels, label=lambda row: row["variant"], rows=list(rows.values())
    ),
    "curves.png": text_sweep.curves(result, names=names),
  }


def sections(result, drawn: dict[str, bytes]) -> list[html.Section]:
  """The experiment's part of the report."""
  numbers = result.numbers
  stages = ", ".join(
    f"{n} for {100 * share:.0f} %"
    for n, share in zip(numbers["contexts"], numbers["shares"], strict=True)
  )
  panels = [
    ("loss of 64 tokens", lambda row: row["near_loss"]),
    ("seconds", lambda row: numbers["seconds"][row["variant"]]),
  ]
  return [
    html.Section(
      result.title,
      body=(
        f"Growing: windows of {stages} of the steps. Fixed: of the last length "
        "throughout. Short: of the first. All have the same tokens a step and "
        "in all. The losses of the bars are on texts of each one's last length."
      ),
      figure=drawn["rows.png"],
      caption=(
        f"Ticks are the seeds ({len(numbers['seeds'])}), bars their mean. "
        f"Dotted: even attention, {numbers['uniform_mass']:.3f}."
      ),
      table=text_sweep.table(result, panels),
    ),
    text_sweep.training_section(
      result,
      drawn,
      "Sinks on texts of 64 tokens; the loss is on held-out windows of the "
      "length of the moment.",
    ),
  ]
