"""Figures and sections of the experiment `robustness`."""

import numpy as np

from sinkjax.experiments.applications.robustness import defences
from sinkjax.experiments.applications.robustness import experiment as robustness
from sinkjax.experiments.applications.robustness.claims import CONDITIONS
from sinkjax.experiments.harness.stats import logs, mean_over
from sinkjax.experiments.shared.perturb import MEASURES, NOISE, SWAP
from sinkjax.report import html
from sinkjax.report.figures import FIRST, INK, MUTED, REST, drawing, png

COLORS = dict(zip(CONDITIONS, (REST, FIRST, MUTED, INK), strict=True))
KL, LOSS, SPREAD = (MEASURES.index(x) for x in ("kl", "loss", "spread"))
SITES = {"embed": "embedding", "k": "keys", "v": "values"}


def draw(result) -> dict[str, bytes]:
  """Every figure, by file name."""
  return {
    "disturbed.png": _disturbed(result),
    "defences.png": _defences(result.arrays["defences"]),
  }


def _levels(result, name, m: int) -> np.ndarray:
  """[P, C] mean over draws of the logarithms of a measure."""
  return logs(result.arrays[" ".join(name)][..., m]).mean(axis=-1)


def _dots(ax, at, levels, color: str, label: str) -> None:
  """Geometric means of logs [P], a list of them, with 95 % intervals."""
  found = [mean_over(level, range(len(level))) for level in levels]
  ends = np.exp([x[:3] for x in found])
  gaps = np.abs(ends[:, 1:] - ends[:, :1]).T
  ax.errorbar(
    ends[:, 0], at, xerr=gaps, fmt="o", ms=4, color=color, lw=1, label=label
  )


def _disturbed(result) -> bytes:
  """KL by place; then KL and relative change over those with the sink."""
  from matplotlib.ticker import LogLocator

  places = list(result.numbers["positions"])
  shown = [(NOISE, x) for x in (*places, robustness.ALL)]
  shown += [(SWAP, x) for x in robustness.SWAPPED]
  at = np.arange(len(shown))[::-1]
  with drawing(11.2, 4.4) as figure:
    axes = figure.subplots(1, 3, sharey=True)
    for c, (name, color) in enumerate(COLORS.items()):
      off = at + 0.17 * (1.5 - c)
      _dots(
        axes[0], off, [_levels(result, x, KL)[:, c] for x in shown], color, name
      )
      for ax, m in ((axes[1], KL), (axes[2], SPREAD)):
        if c:
          both = [_levels(result, x, m) for x in shown]
          _dots(ax, off, [x[:, c] - x[:, 0] for x in both], color, name)
    for ax, title in zip(
      axes,
      (
        "KL, nats a token",
        "KL over that with the sink",
        "relative change, over that with the sink",
      ),
      strict=True,
    ):
      ax.set(title=title, xscale="log")
      ax.grid(axis="x")
    for ax in axes[1:]:
      ax.axvline(1, color=MUTED, lw=0.8, ls=":")
      ax.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
      ax.xaxis.set_major_formatter("{x:g}")
      ax.xaxis.set_minor_formatter("")
    axes[0].set_yticks(at, [f"{kind}: {place}" for kind, place in shown])
    figure.legend(
      *axes[0].get_legend_handles_labels(),
      loc="outside upper left",
      ncols=4,
      frameon=False,
    )
    return png(figure)


def _defences(fought: np.ndarray) -> bytes:
  """The loss that each defence leaves, with and without attack."""
  at = np.arange(len(defences.DEFENCES))[::-1]
  with drawing(10.4, 3.9) as figure:
    axes = figure.subplots(1, len(SITES), sharey=True, sharex=True)
    for s, (ax, words) in enumerate(zip(axes, SITES.values(), strict=True)):
      for k, (label, color) in enumerate(
        (("not attacked", REST), ("attacked", FIRST))
      ):
        found = [
          mean_over(fought[:, s, d, k, LOSS], range(len(fought)))
          for d in range(len(at))
        ]
        value = np.array([x.value for x in found])
        gap = np.array([[x.value - x.low, x.high - x.value] for x in found])
        ax.errorbar(
          value,
          at + 0.14 * (1 - 2 * k),
          xerr=gap.T,
          fmt="o",
          ms=4,
          color=color,
          lw=1,
          label=label,
        )
      ax.axvline(0, color=MUTED, lw=0.8, ls=":")
      ax.set_title(f"the first token's {words}")
      ax.set_yticks(at, defences.DEFENCES)
      ax.grid(axis="x")
    axes[1].set_xlabel("change of the loss, nats a token")
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
  at = ", ".join(f"{k} ({v})" for k, v in numbers["positions"].items())
  return [
    html.Section(
      result.title,
      body=(
        f"{numbers['texts']} texts of {numbers['tokens']} tokens; places {at}; "
        f"measured from position {numbers['measured_from']} on. Noise of "
        f"{numbers['noise']:g} of a token's own embedding's norm, "
        f"{numbers['draws']} random directions a place; all other tokens: all "
        "of the first half but the first. Swaps for "
        f"{numbers['candidates']} random tokens. Taken away from layer "
        f"{numbers['from_layer']} on. Each condition is compared with itself "
        "without the change, by the same changes."
      ),
      figure=drawn["disturbed.png"],
      caption=(
        "Geometric means over texts with 95 % intervals; the second and third "
        "panel are of ratios within a text (log scales)."
      ),
      table=html.Table(*result.tables["disturbed.csv"]),
    ),
    html.Section(
      "Defences",
      body=(
        f"Attacks of {numbers['steps']} gradients, {numbers['share']:g} of the "
        "norm of what is attacked, in each layer, made against the guarded "
        "model. With a token in front the attacked one is the same, the text's "
        "first; it stands at position 1 then. Pinned keys and values hide "
        "whatever is done at position 0: what is left is what the pinning "
        "costs. Clips are at the median or the greatest norm in the other "
        "texts, by layer, first tokens and later ones apart."
      ),
      figure=drawn["defences.png"],
      caption="Beside the plain model without attack; means and intervals.",
      table=html.Table(*result.tables["defences.csv"]),
    ),
  ]
