"""Figure and section of the experiment `residual_peak`."""

from sinkjax.report import histories, html
from sinkjax.report.bigram_backcopy import schedule


def draw(result) -> dict[str, bytes]:
  """Every figure, by file name."""
  return {"schedule.png": schedule(result)}


def sections(result, drawn: dict[str, bytes]) -> list[html.Section]:
  """The experiment's part of the report."""
  return [
    html.Section(
      result.title,
      body=(
        f"The same task, in {result.numbers['layers']} layers. The residual's "
        "norm is of the layer where that of BOS is greatest beside the mean of "
        "the other tokens'."
      ),
      figure=drawn["schedule.png"], caption=histories.caption(result),
      table=histories.ends(result),
    )
  ]  # fmt: skip
