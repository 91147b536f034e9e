"""Figures and sections of the experiment `sink_regulariser`."""

from sinkjax.report import html, text_sweep


def draw(result) -> dict[str, bytes]:
  """Every figure, by file name."""
  panels = [
    *text_sweep.standard_panels(result.numbers),
    ("evenness of rows", lambda row: row["entropy_share"]),
    ("first value's norm over others'", lambda row: row["value_ratio"]),
    ("largest over median", lambda row: row["massive_ratio"]),
  ]
  rows = text_sweep.as_trained(result.numbers)
  names = ("first_mass", "sink_rate", "loss")
  return {
    "rows.png": text_sweep.bars(
      result, panels, label=lambda row: row["variant"].replace("_", " "),
      rows=list(rows.values()),
    ),
    "curves.png": text_sweep.curves(result, names=names),
  }  # fmt: skip


def sections(result, drawn: dict[str, bytes]) -> list[html.Section]:
  """The experiment's part of the report."""
  panels = [
    ("evenness of rows", lambda row: row["entropy_share"]),
    ("value ratio", lambda row: row["value_ratio"]),
    ("effective rank", lambda row: row["effective_rank"]),
  ]
  return [
    html.Section(
      result.title,
      body=(
        "Every head's attention on the first token, its mean over the rows of "
        "a window, is drawn to the target by a squared distance in the loss. "
        "The loss that is shown has no part of that. A target of 0 is less "
        "than attention can give: the first rows have no choice."
      ),
      figure=drawn["rows.png"],
      caption=(
        f"Ticks are the seeds ({len(result.numbers['seeds'])}), bars their "
        f"mean. Dotted: even attention, {result.numbers['uniform_mass']:.3f}."
      ),
      table=text_sweep.table(result, panels),
    ),
    text_sweep.training_section(result, drawn),
  ]
