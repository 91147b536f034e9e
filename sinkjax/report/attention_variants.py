"""Figures and sections of the experiment `attention_variants`."""

import numpy as np

from sinkjax.report import html, text_sweep

CHOSEN = ("softmax", "k_bias", "softmax1", "softpick", "sigmoid", "relu",
          "element_gate", "qk_norm")  # fmt: skip
"""Variants whose curves are drawn: more of them cannot be told apart."""


def draw(result) -> dict[str, bytes]:
  """Every figure, by file name."""
  numbers = result.numbers
  panels = text_sweep.standard_panels(numbers)
  panels[2:2] = [
    ("what a query gives in all", lambda row: row["row_sum"]),
    ("first value's norm over others'", lambda row: row["value_ratio"]),
    ("kurtosis of activations", lambda row: row["kurtosis"]),
  ]
  rows: dict[str, dict] = {}
  for row in numbers["rows"]:  # as it was trained
    rows.setdefault(row["variant"], row)
  drawn = [name for name in CHOSEN if name in numbers["variants"]]
  return {
    "variants.png": text_sweep.bars(
      result, panels, label=lambda row: row["variant"].replace("_", " "),
      rows=list(rows.values()),
    ),
    "curves.png": text_sweep.curves(result, variants=drawn),
  }  # fmt: skip


def sections(result, drawn: dict[str, bytes]) -> list[html.Section]:
  """The experiment's part of the report."""
  panels = [
    (name, lambda row, key=key: float(np.mean(row[key])))
    for name, key in (
      ("row sum", "row_sum"), ("value ratio", "value_ratio"),
      ("kurtosis", "kurtosis"), ("largest over median", "massive_ratio"),
      ("evenness of rows", "entropy_share"),
    )
  ]  # fmt: skip
  return [
    html.Section(
      result.title,
      body=(
        "All with BOS pinned at the start of every window, which is a learned "
        "sink token, but for no bos and registers; with registers the first "
        "token is the first of four. Sigmoid, elu1 and relu need not give all "
        "rows the same sum: their attention is counted as shares of what a "
        "query gives, the proxy of Gu et al. Elsewhere what a query gives to "
        "nothing, or to a learned key, counts as given: the sum of a row says "
        "how much is left."
      ),
      figure=drawn["variants.png"],
      caption=(
        f"Ticks are the seeds ({len(result.numbers['seeds'])}), bars their "
        "mean; orange with BOS or registers in front, blue without. Dotted: "
        f"even attention, {result.numbers['uniform_mass']:.3f}."
      ),
      table=text_sweep.table(result, panels),
    ),
    text_sweep.training_section(result, drawn),
  ]
