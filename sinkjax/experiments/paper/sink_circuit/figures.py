"""Figures and sections of the experiment `sink_circuit`."""

from collections.abc import Mapping

import numpy as np

from sinkjax.experiments.harness.api import Result
from sinkjax.experiments.harness.stats import ends_of
from sinkjax.experiments.shared.interval_plots import rows_of_bars
from sinkjax.experiments.shared.layer_plots import Line, add_lines
from sinkjax.experiments.shared.text_batches import by_template
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

TITLE = "What builds the sink"


def draw(result: Result) -> dict[str, bytes]:
  """Every figure, by file name."""
  drawn = {"neurons.png": _neurons(result)}
  if result.numbers["parts"]:
    drawn["scores.png"] = _scores(result)
  drawn["gates.png"] = _gates(result)
  return drawn


def _gates(result: Result) -> bytes:
  at = result.config.at
  bars = {
    "first token": "first",
    "first, given the others' mean": "first averaged",
    f"token {at}, sees itself alone": "token alone",
    f"token {at}, index of the first": "token indexed",
    f"token {at}": "token",
    "other tokens": "others",
  }
  values = [
    ends_of(by_template(result.arrays[f"gates, {x}"], result.numbers))
    for x in bars.values()
  ]
  with drawing(6.4, 2.6) as figure:
    ax = figure.add_subplot()
    rows_of_bars(ax, list(bars), np.array(values).T)
    ax.set_xlabel("standard deviations above the other tokens' mean")
    return png(figure)


def _neurons(result: Result) -> bytes:
  """Norms by layer, and ablation against derivative."""
  arrays, numbers = result.arrays, result.numbers
  with drawing(8, 3.2) as figure:
    left, right = figure.subplots(1, 2)
    lines = {
      "first token": Line(arrays["first, by layer"], FIRST),
      "others": Line(arrays["others, by layer"], REST),
      "others, repeated token": Line(
        arrays["repeated others, by layer"], INK, style="--"
      ),
    }
    add_lines(left, lines)
    left.axvline(numbers["chosen_layer"], color=MUTED, lw=1, ls=":")
    left.set_yscale("log")
    legend_above(left, "norm after each layer (log scale)")
    falls, slopes = (arrays[x].mean(axis=0) for x in ("falls", "slopes"))
    half = len(falls) // 2
    for at, color, label in (
      (slice(0, half), FIRST, "greatest output"),
      (slice(half, None), REST, "random"),
    ):
      right.plot(slopes[at], falls[at], "o", color=color, label=label, ms=5)
    # Neurons differ by orders of magnitude, with either sign.
    small = max(1e-2 * np.abs(falls).max(), 1e-6)
    right.set_xscale("symlog", linthresh=small)
    right.set_yscale("symlog", linthresh=small)
    for axis in (right.xaxis, right.yaxis):
      axis.get_major_locator().numticks = 5
    right.set(xlabel="derivative by the log of a neuron", ylabel="ablation")
    right.grid(True)
    legend_above(right, "what a neuron adds to the norm")
    return png(figure)


def _scores(result: Result) -> bytes:
  with drawing(6.4, 3.2) as figure:
    ax = figure.add_subplot()
    lines = {
      name.replace("_", " "): Line(
        result.arrays[f"score by layer, {name}"], color, style=style
      )
      for name, color, style in (
        ("content", FIRST, "-"),
        ("query_bias", REST, "-"),
        ("position", INK, "-"),
        ("total", MUTED, "--"),
      )
    }
    add_lines(ax, lines)
    ax.axhline(0, color=MUTED, lw=1)
    ax.set_ylabel("logits above other keys")
    legend_above(ax, "score of the first key, heads with a sink")
    return png(figure)


def sections(result: Result, drawn: Mapping[str, bytes]) -> list[html.Section]:
  """The experiment's part of the report."""
  numbers = result.numbers
  found = [
    html.Section(
      TITLE,
      body=f"{numbers['texts']} texts of {result.config.tokens} tokens; layer "
      f"{numbers['chosen_layer']} and its neurons were chosen on others. "
      "Ablation and derivative are of the first token's norm after layer "
      f"{numbers['peak']}.",
      figure=drawn["neurons.png"],
      caption="Left: dotted is the layer that is looked at. Right: one point a "
      "neuron, mean over texts.",
      table=html.Table(*result.tables["neurons.csv"]),
    ),
    html.Section(
      "The neurons together, on ordinary text and on a repeated token",
      body="Ablated at position 0 on ordinary text, at all positions on a "
      "repeated token.",
      table=html.Table(*result.tables["ablation.csv"]),
    ),
  ]
  if numbers["parts"]:
    found.append(
      html.Section(
        "What later queries see in the first key",
        body="The score of key 0 less the mean of a row's other keys, split "
        "exactly.",
        figure=drawn["scores.png"],
        caption="Mean over texts and queries; layers without a head that has a "
        "sink are at zero.",
      )
    )
  found.append(
    html.Section(
      "Which gates say: I stand first",
      body=f"Gates of layer {result.config.gates_layer}, before the "
      "non-linearity, that are furthest from the other tokens' at the first, "
      "chosen on other texts.",
      figure=drawn["gates.png"],
      caption="The mean of these gates, over texts with its 95 % interval.",
      table=html.Table(*result.tables["gates.csv"]),
    )
  )
  return found
