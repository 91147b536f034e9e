"""Figures and sections of the experiment `robustness`."""

import numpy as np

from sinkjax.experiments import defences, robustness
from sinkjax.experiments.attack import logs
from sinkjax.experiments.disturbances import NOISE, SWAP
from sinkjax.experiments.perturbing import MEASURES
from sinkjax.experiments.robustness_claims import CONDITIONS
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


def _ends(level: np.ndarray):
  """Geometric mean over texts and its 95 % interval, from logs [P]."""
  from sinkjax.experiments.uncertainty import mean_over

  found = mean_over(level, range(len(level)))
  return [float(np.exp(x)) for x in found[:3]]


def _disturbed(result) -> bytes:
  """KL and relative change by place, a color for each condition."""
  places = list(result.numbers["positions"])
  shown = [(NOISE, x) for x in (*places, robustness.ALL)]
  shown += [(SWAP, x) for x in robustness.SWAPPED]
  labels = [
    f"noise\n{x}" if kind == NOISE else f"swap\n{x}" for kind, x in shown
  ]
  labels = [x.replace("all but the first", "every token") for x in labels]
  at = np.arange(len(shown))
  with drawing(10.4, 3.9) as figure:
    axes = figure.subplots(1, 2)
    for ax, m, title in (
      (axes[0], KL, "KL, nats a token (log scale)"),
      (axes[1], SPREAD, "relative change of later tokens (log scale)"),
    ):
      for c, (name, color) in enumerate(COLORS.items()):
        ends = np.array([
          _ends(logs(result.arrays[" ".join(x)][:, c, :, m]).mean(axis=-1))
          for x in shown
        ])  # fmt: skip
        gaps = np.abs(ends[:, 1:] - ends[:, :1]).T
        ax.errorbar(at + 0.17 * (c - 1.5), ends[:, 0], gaps, fmt="o", ms=4,
                    color=color, lw=1, label=name)  # fmt: skip
      ax.set(title=title, yscale="log")
      ax.set_xticks(at, labels)
      ax.grid(axis="y")
    figure.legend(
      *ax.get_legend_handles_labels(), loc="outside upper left", ncols=4,
      frameon=False,
    )  # fmt: skip
    return png(figure)


def _defences(fought: np.ndarray) -> bytes:
  """The loss that each defence leaves, with and without attack."""
  from sinkjax.experiments.uncertainty import mean_over

  at = np.arange(len(defences.DEFENCES))[::-1]
  with drawing(10.4, 3.3) as figure:
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
        ax.errorbar(value, at + 0.14 * (1 - 2 * k), xerr=gap.T, fmt="o", ms=4,
                    color=color, lw=1, label=label)  # fmt: skip
      ax.axvline(0, color=MUTED, lw=0.8, ls=":")
      ax.set_title(f"the first token's {words}")
      ax.set_yticks(at, defences.DEFENCES)
      ax.grid(axis="x")
    axes[1].set_xlabel("change of the loss, nats a token")
    figure.legend(
      *ax.get_legend_handles_labels(), loc="outside upper left", ncols=2,
      frameon=False,
    )  # fmt: skip
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
        f"{numbers['draws']} random directions a place; every token: all of "
        "the first half but the first. Swaps for "
        f"{numbers['candidates']} random tokens. Taken away from layer "
        f"{numbers['from_layer']} on. Each condition is compared with itself "
        "without the change, by the same changes."
      ),
      figure=drawn["disturbed.png"],
      caption="Geometric means over texts with 95 % intervals.",
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
        f"costs. Clips are at the {numbers['clip']:g} quantile of the norms in "
        "the other texts, first tokens and later ones apart."
      ),
      figure=drawn["defences.png"],
      caption="Beside the plain model without attack; means and intervals.",
      table=html.Table(*result.tables["defences.csv"]),
    ),
  ]
