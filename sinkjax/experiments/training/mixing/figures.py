"""Figures and sections of the experiment `mixing`."""

import numpy as np

from sinkjax.experiments.harness.sweep_figures import COLORS, FORMS
from sinkjax.experiments.training.mixing.claims import CLAIMS, as_trained
from sinkjax.report import html
from sinkjax.report.figures import INK, color_bar, drawing, heat_map, png

TITLES = {
  "mixing_rest": "mixing: share of the squared Jacobian\nbetween tokens",
  "bound_paper": "the paper's bound, decades",
  "spread": "relative change of later tokens\nafter a swap",
  "rank": "effective rank over its maximum",
}
MAPS = 8
"""Jacobian maps that are drawn, from the least sink to the most."""


def draw(result) -> dict[str, bytes]:
  """Every figure, by file name."""
  return {"mixing.png": _points(result), "maps.png": _maps(result)}


def _points(result) -> bytes:
  """Each variant's numbers over its sink, a color an experiment."""
  rows = result.numbers["rows"]
  experiments = list(dict.fromkeys(row["experiment"] for row in rows))
  names = [name for name, *_ in CLAIMS]
  with drawing(10.6, 7.0) as figure:
    for ax, name in zip(figure.subplots(2, 2).flat, names, strict=True):
      for row in rows:
        if None in row[name]:
          continue
        color = COLORS[experiments.index(row["experiment"]) % len(COLORS)]
        x, y = np.mean(row["first_mass"]), np.mean(row[name])
        ax.errorbar(
          x,
          y,
          xerr=np.std(row["first_mass"]),
          yerr=np.std(row[name]),
          fmt="o" if row["form"] == "bos" else "s",
          color=color,
          ms=5,
          lw=0.8,
          mfc=color if row["form"] == "bos" else "none",
        )
        if row["experiment"] == "sink_regulariser" and row["form"] == "bos":
          ax.annotate(
            row["variant"].removeprefix("target_"),
            (x, y),
            (4, 4),
            textcoords="offset points",
            fontsize=7,
            color=INK,
          )
      ax.set_title(TITLES[name])
      ax.set_xlabel("attention on the first token")
      ax.grid()
    for i, name in enumerate(experiments):
      ax.plot(
        [], [], "o", color=COLORS[i % len(COLORS)], label=name.replace("_", " ")
      )
    figure.legend(
      *ax.get_legend_handles_labels(),
      loc="outside upper left",
      ncols=4,
      frameon=False,
      fontsize=8.5,
    )
    return png(figure)


def _maps(result) -> bytes:
  """Exact Jacobian maps of variants from the least sink to the most."""
  rows = sorted(
    as_trained(result.numbers["rows"]),
    key=lambda row: np.mean(row["first_mass"]),
  )
  at = np.linspace(0, len(rows) - 1, min(MAPS, len(rows))).round().astype(int)
  shown = [rows[i] for i in dict.fromkeys(at)]
  with drawing(11.4, 2.9 * -(-len(shown) // 4)) as figure:
    axes = figure.subplots(-(-len(shown) // 4), 4, squeeze=False)
    for ax in axes.flat[len(shown) :]:
      ax.set_visible(False)
    for ax, row in zip(axes.flat, shown, strict=False):
      name = "-".join((row["experiment"], row["variant"], row["form"]))
      norms = result.arrays[f"map_{name}"]
      own = norms / np.diag(norms)[:, None]
      seen = np.tri(len(own), dtype=bool)
      image = heat_map(ax, np.where(seen, own, np.nan), vmin=0, vmax=0.5)
      ax.set_title(
        f"{row['experiment'].replace('_', ' ')}:\n{row['variant']}, sink "
        f"{np.mean(row['first_mass']):.3f}",
        fontsize=8,
      )
    color_bar(image, axes, "norm over the token's own")
    return png(figure)


def sections(result, drawn: dict[str, bytes]) -> list[html.Section]:
  """The experiment's part of the report."""
  numbers = result.numbers
  names = [
    "loss",
    "first_mass",
    "mixing",
    "mixing_rest",
    "reach",
    "bound_paper",
    "bound_frozen",
    "bound_full",
    "loose",
    "cosine",
    "residual",
    "rank",
    "spread",
    "reached",
  ]
  rows = [
    [
      row["experiment"],
      row["variant"],
      FORMS[row["form"]],
      *(
        "" if None in row[name] else float(np.mean(row[name])) for name in names
      ),
    ]
    for row in numbers["rows"]
  ]
  return [
    html.Section(
      result.title,
      body=(
        "Every trained model of the experiments named, on "
        f"{numbers['texts']} held-out texts of {numbers['tokens']} tokens. "
        "Mixing is the share of the squared norms of the exact Jacobian, from "
        "embedding to the last layer's residual, that is between different "
        'tokens; "rest" leaves out the first token. Bounds are decades, '
        "their means over pairs of tokens of one text; loose is how many the "
        "full one is above the exact spectral norm; empty where they do not "
        "cover the model. Cosine, residual and rank are of the last layer, "
        "without the first token. A change is "
        "relative, of the tokens after a replaced one; reached is the share of "
        f"these above {numbers['threshold']:g}. Variants differ in more than "
        "the sink, but for those of the sink regulariser."
      ),
      figure=drawn["mixing.png"],
      caption=(
        "Full: read with what training put in front; hollow: text alone. Bars: "
        "standard deviation over seeds. Labels: the target of the regulariser."
      ),
      table=html.Table(["experiment", "variant", "input", *names], rows),
    ),
    html.Section(
      "Exact Jacobians, from the least sink to the most",
      body="Rows are targets, columns sources.",
      figure=drawn["maps.png"],
      caption="Mean norms over texts and seeds, each over its row's diagonal.",
    ),
  ]
