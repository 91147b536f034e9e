"""Figures and sections of the experiment `attention_variants`."""

from sinkjax.experiments.attention_variants import TOLD
from sinkjax.report import html, text_sweep

CHOSEN = ("softmax", "k_bias", "softmax1", "softpick", "sigmoid", "relu",
          "element_gate", "qk_norm")  # fmt: skip
"""Variants whose curves are drawn: more of them cannot be told apart."""


WITHIN = (
  ("what a query gives in all", "row_sum"),
  ("first value's norm over others'", "value_ratio"),
  ("kurtosis of activations", "kurtosis"),
  ("largest activation over median", "massive_ratio"),
  ("evenness of rows", "entropy_share"),
)
"""Titles and names of what is drawn beside the sinks."""


def _beside(numbers) -> list[text_sweep.Panel]:
  """What the papers say is left of softmax's sink, and what is here."""
  trained = text_sweep.as_trained(numbers)

  def theirs(row):
    told = TOLD.get(row["variant"])
    return told.left if told and row is trained[row["variant"]] else None

  def ours(row):
    if row is trained[row["variant"]]:
      return numbers["left"].get(row["variant"])
    return None

  return [
    ("papers: left of softmax's sink, %", theirs),
    ("ours: left of softmax's sink, %", ours),
  ]


def _within() -> list[text_sweep.Panel]:
  return [(title, lambda row, key=key: row[key]) for title, key in WITHIN]


def draw(result) -> dict[str, bytes]:
  """Every figure, by file name."""
  numbers = result.numbers
  rows = list(text_sweep.as_trained(numbers).values())

  def bars(panels):
    return text_sweep.bars(
      result, panels, label=lambda row: row["variant"].replace("_", " "),
      rows=rows,
    )  # fmt: skip

  drawn = [name for name in CHOSEN if name in numbers["variants"]]
  return {
    "variants.png": bars(
      [*_beside(numbers), *text_sweep.standard_panels(numbers)]
    ),
    "within.png": bars(_within()),
    "curves.png": text_sweep.curves(result, variants=drawn),
  }


def sections(result, drawn: dict[str, bytes]) -> list[html.Section]:
  """The experiment's part of the report."""
  numbers = result.numbers
  seeds = (
    f"Ticks are the seeds ({len(numbers['seeds'])}), bars their mean; orange "
    "with BOS or registers in front, blue without."
  )
  return [
    html.Section(
      result.title,
      body=(
        "All with BOS pinned at the start of every window, which is a learned "
        "sink token, but for no bos and registers; with registers the first "
        "token is the first of four. Sigmoid, elu1 and relu need not give all "
        "rows the same sum: their attention is counted as shares of what a "
        "query gives, the proxy of Gu et al. Elsewhere what a query gives to "
        "nothing, or to a learned key, counts as given. What is left of "
        "softmax's sink is, in the papers, the share of its heads above 0.3 "
        "(of its attention, where gates come from), and here of its attention "
        "above even. The papers' models have 60M to 1.7B parameters, and data "
        "of their own: compare signs. A dash: no number."
      ),
      figure=drawn["variants.png"],
      caption=(
        f"{seeds} Dotted: even attention, {numbers['uniform_mass']:.3f}; less "
        "than that is below zero in the second panel."
      ),
      table=text_sweep.table(result, _beside(numbers)),
    ),
    html.Section(
      "What else is otherwise",
      body=(
        "The sum of a row says how much a query gives to tokens, and not to "
        "nothing or to a learned key. Where sinks are, the first value is "
        "small and some activations are far from the others."
      ),
      figure=drawn["within.png"],
      caption=seeds,
      table=text_sweep.table(result, _within()),
    ),
    text_sweep.training_section(result, drawn),
  ]
