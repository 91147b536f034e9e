"""Figure and section of the experiment `model_size`."""

import numpy as np

from sinkjax.report import html
from sinkjax.report.figures import REST, drawing, png


def draw(result) -> dict[str, bytes]:
  """Every figure, by file name."""
  models = result.numbers["models"]
  with drawing(7, 0.5 * len(models) + 1.6) as figure:
    axes = figure.subplots(
      1, len(result.numbers["eps"]), sharey=True, squeeze=False
    )[0]
    y = np.arange(len(models))
    for ax, eps in zip(axes, result.numbers["eps"], strict=True):
      value, low, high = (
        100 * np.array([list(model["rates"][eps][:3]) for model in models]).T
      )
      ax.errorbar(
        value, y, xerr=np.maximum([value - low, high - value], 0), fmt="o",
        color=REST, ms=5, lw=1.4,
      )  # fmt: skip
      ax.set(xlim=(-3, 103), xlabel="% of heads")
      ax.set_title(f"sink score above {eps:g}")
      ax.grid(axis="x")
    names = [f"{m['model']}, {m['all_heads']} heads" for m in models]
    axes[0].set_yticks(y, names, parse_math=False)
    axes[0].set_ylim(len(models) - 0.5, -0.5)
    return {"models.png": png(figure)}


def sections(result, drawn: dict[str, bytes]) -> list[html.Section]:
  """The experiment's part of the report."""
  header, rows = result.tables["models.csv"]
  return [
    html.Section(
      result.title,
      body=(
        f"The first {result.numbers['tokens']} tokens of the same texts, in "
        "each model's own tokens, with BOS where its file says so. Rates are "
        "percent of heads, intervals 95 % over texts. Models that differ in "
        "more than size are no test of size."
      ),
      figure=drawn["models.png"],
      caption="Share of heads with a sink at position 0, by threshold.",
      table=html.Table(header, rows),
    )
  ]
