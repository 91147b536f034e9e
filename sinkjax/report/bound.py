"""Figure and section of the experiment `bound`."""

from sinkjax.experiments.jacobian_maps import CONDITIONS
from sinkjax.experiments.over_squashing import FORMS
from sinkjax.report import html
from sinkjax.report.figures import INK, MUTED, drawing, png
from sinkjax.report.over_squashing import COLORS


def draw(result) -> dict[str, bytes]:
  """Every figure, by file name."""
  return {"bounds.png": _bounds(result.arrays)}


def _bounds(arrays) -> bytes:
  """The last token's bounds and truths, mean of texts, by source."""
  with drawing(8.6, 4.2) as figure:
    axes = figure.subplots(1, 2, sharey=True)
    for i, (ax, title) in enumerate(zip(axes, CONDITIONS, strict=True)):

      def line(name, label, color, ax=ax, i=i, **look):
        values = arrays[name][:, i, -1]
        ax.plot(values.T, color=color, lw=0.6, alpha=0.35)
        ax.plot(values.mean(axis=0), color=color, label=label, lw=2, **look)

      for name, color in COLORS.items():
        line(f"log10_bound_{name}", f"bound: {name}", color)
      line("log10_norms_held", "exact, pattern held", MUTED, ls="--")
      line("log10_norms", "exact", INK)
      ax.set_title(title)
      ax.set_xlabel("changed token (source)")
      ax.set_xticks(range(arrays["log10_norms"].shape[-1]))
      ax.grid(axis="y")
    axes[0].set_ylabel("log10 of the last token's norm")
    figure.legend(
      *axes[0].get_legend_handles_labels(), loc="outside upper left", ncols=5,
      frameon=False, fontsize=8.5,
    )  # fmt: skip
    return png(figure)


def sections(result, drawn: dict[str, bytes]) -> list[html.Section]:
  """The experiment's part of the report."""
  numbers = result.numbers
  rows = [
    [
      name, form.label, "pattern held" if form.frozen else "the model",
      numbers["violations"][name], numbers["pairs"],
      numbers["median_decades"][name]["value"],
      numbers["rise_without_sink"][name]["value"],
    ]
    for name, form in FORMS.items()
  ]  # fmt: skip
  header = ["form", "what", "about", "violated", "pairs", "decades above",
            "rise without the sink, decades"]  # fmt: skip
  return [
    html.Section(
      result.title,
      body=(
        f"{numbers['texts']} texts of {numbers['tokens']} tokens, spectral "
        "norms from embed to the last layer. Gains are measured on the "
        "model's own derivatives. The naive form leaves the residual stream "
        "out of its constant and need not hold."
      ),
      figure=drawn["bounds.png"],
      caption="Thin lines are texts, thick ones their mean.",
      table=html.Table(header, rows),
    )
  ]
