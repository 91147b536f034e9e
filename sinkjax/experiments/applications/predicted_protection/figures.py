"""Figures and sections of the experiment `predicted_protection`."""

from collections.abc import Mapping

import numpy as np

from sinkjax.experiments.applications.predicted_protection.experiment import (
  Policy,
)
from sinkjax.experiments.harness.api import Result
from sinkjax.experiments.shared.interval_plots import ends_over, error_bars
from sinkjax.experiments.shared.text_batches import by_template
from sinkjax.report import html
from sinkjax.report.figures import FIRST, INK, MUTED, REST, drawing, png

TITLE = "Which tokens to keep in full precision"

LOOKS = {
  Policy.FIRST: (REST, "o-"),
  Policy.PREDICTED: (FIRST, "o-"),
  Policy.FOUND: (FIRST, "s:"),
  Policy.ATTENDED: (INK, "^-"),
  Policy.RANDOM: (MUTED, "o-"),
}
"""Colour and marker by policy."""


def draw(result: Result) -> dict[str, bytes]:
  """Every figure, by file name."""
  config, arrays, numbers = result.config, result.arrays, result.numbers
  places = np.arange(len(config.keep))

  def ends(values: np.ndarray) -> np.ndarray:
    more = values.astype(float) - arrays["whole"]
    return ends_over(np.stack([by_template(x, numbers) for x in more]))

  with drawing(8.4, 3.4) as figure:
    left, right = figure.subplots(1, 2)
    nothing = ends(arrays["nothing"][None])[0, 0]
    left.axhline(nothing, color=MUTED, ls=":", lw=1)
    for i, (policy, (color, marker)) in enumerate(LOOKS.items()):
      found = ends(arrays[f"loss, {policy}"])
      at = places + 0.07 * (i - 2)
      error_bars(left, at, found, color=color, fmt=marker, label=str(policy))
      share = 100 * np.array(numbers["hits"][str(policy)])
      right.plot(places, share, marker, color=color, ms=4, lw=1.2)
    for ax in (left, right):
      ax.set_xticks(places, [str(x) for x in config.keep])
      ax.set_xlabel("tokens kept")
      ax.grid(True, axis="y")
    left.set_ylabel("loss, nats more")
    left.set_ylim(bottom=min(0.0, left.get_ylim()[0]))
    right.set(ylabel="of the sinks found, %", ylim=(-2, 102))
    right.set_title("sinks among them", pad=34)
    left.set_title("cost of rounding all others", pad=34)
    left.legend(
      loc="lower left",
      bbox_to_anchor=(-0.01, 1.0),
      ncols=3,
      frameon=False,
      fontsize=8,
      columnspacing=1.0,
      handlelength=1.6,
      borderaxespad=0.1,
    )
    return {"policies.png": png(figure)}


def sections(result: Result, drawn: Mapping[str, bytes]) -> list[html.Section]:
  """The experiment's part of the report."""
  numbers, config = result.numbers, result.config
  return [
    html.Section(
      TITLE,
      body=f"{numbers['texts']} texts of {config.tokens} tokens with "
      f"{numbers['sinks']:.1f} sinks each, {numbers['sinks_after_first']:.1f} "
      f"after the first token. Keys and values are rounded to {config.bits} "
      "bits but for some tokens of each text: the first; those with the most "
      "in the first token's large dimensions after the layer in which its norm "
      "rises most (of a model without such dimensions, with the largest norm); "
      "sinks, those of most heads before others, and then the first tokens; "
      "those that receive the most attention; random ones.",
      figure=drawn["policies.png"],
      caption="Left: means over texts with their 95 % intervals; dotted: "
      "nothing kept. Right: share of all sinks that are among the kept tokens.",
      table=html.Table(*result.tables["policies.csv"]),
    )
  ]
