"""Figures and sections of the experiment `attack`."""

import numpy as np

from sinkjax.experiments.applications.attack import experiment
from sinkjax.experiments.shared.perturb import MEASURES
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

COLORS = dict(zip(experiment.KINDS, (MUTED, REST, FIRST), strict=True))
KL, KEPT = MEASURES.index("kl"), MEASURES.index("kept")


def draw(result) -> dict[str, bytes]:
  """Every figure, by file name."""
  names = list(result.numbers["positions"])
  return {
    "gradient.png": _gradient(result.arrays["gradient"], names),
    "swaps.png": _swaps(result.arrays["swaps"], names),
  }


def _geometric(values: np.ndarray) -> np.ndarray:
  """The geometric mean over texts."""
  return np.exp(experiment.logs(values).mean(axis=0))


def _log(ax) -> None:
  ax.set_yscale("log")
  ax.grid(axis="y")


def _gradient(values: np.ndarray, names) -> bytes:
  x = np.arange(len(names))
  with drawing(10, 5.4) as figure:
    axes = figure.subplots(2, len(experiment.SITES), sharex=True, sharey="col")
    for row, norm in zip(range(2), experiment.NORMS, strict=True):
      for column, site in enumerate(experiment.SITES):
        ax = axes[row, column]
        for k, kind in enumerate(experiment.KINDS):
          mine = values[:, column, row, :, k, KL]
          ax.plot(
            x, np.maximum(mine, 1e-9).T, color=COLORS[kind], lw=0.5, alpha=0.3
          )
          ax.plot(x, _geometric(mine), "o-", color=COLORS[kind], ms=4)
        ax.set_title(f"{experiment.SITES[site].split(' in ')[0]}, {norm} norm")
        ax.set_xticks(x, names)
        _log(ax)
      axes[row, 0].set_ylabel("KL, nats a token (log scale)")
    for kind, color in COLORS.items():
      axes[0, 0].plot([], [], "o-", color=color, label=kind)
    figure.legend(
      *axes[0, 0].get_legend_handles_labels(),
      loc="outside upper left",
      ncols=3,
      frameon=False,
    )
    return png(figure)


def _swaps(swaps: np.ndarray, names) -> bytes:
  x, rng = np.arange(len(names)), np.random.default_rng(0)
  with drawing(8, 3.4) as figure:
    axes = figure.subplots(1, 2, sharey=True)
    for ax, way, values in zip(
      axes, experiment.WAYS, swaps.swapaxes(0, 1), strict=True
    ):
      kl = values[..., KL]
      shift = rng.uniform(-0.16, 0.16, kl.shape)
      at = np.broadcast_to(x[None, :, None], kl.shape) + shift
      ax.scatter(
        at,
        np.maximum(kl, 1e-9),
        s=5,
        lw=0,
        alpha=0.4,
        color=REST,
        label="one candidate in one text",
      )
      ax.plot(
        x, _geometric(kl).mean(axis=-1), "o-", color=INK, label="mean", ms=4
      )
      ax.plot(
        x, _geometric(kl.max(axis=-1)), "o-", color=FIRST, label="worst", ms=4
      )
      ax.set_xticks(x, names)
      legend_above(ax, f"a random token {way}")
      _log(ax)
    axes[0].set_ylabel("KL, nats a token (log scale)")
    return png(figure)


def sections(result, drawn: dict[str, bytes]) -> list[html.Section]:
  """The experiment's part of the report."""
  numbers = result.numbers
  at = ", ".join(f"{k} ({v})" for k, v in numbers["positions"].items())
  norms = numbers["norm_over_median"]
  rows = [
    [experiment.SITES[site], *one.values()] for site, one in norms.items()
  ]
  return [
    html.Section(
      result.title,
      body=(
        f"{numbers['texts']} texts of {numbers['tokens']} tokens; attacked "
        f"positions {at}; measured from position {numbers['measured_from']} "
        f"on. A shift has {numbers['share']:g} of the norm of what it is added "
        "to, in each layer: of the attacked token's own (relative) or of the "
        "median token's (absolute). The gradient is of the loss of the "
        f"measured tokens; several steps are {numbers['steps']}, each put back "
        "on the sphere. The residual stream is shifted after layer "
        f"{numbers['middle_layer']}."
      ),
      figure=drawn["gradient.png"],
      caption="Geometric mean over texts; thin lines are single texts.",
      table=html.Table(*result.tables["gradient.csv"]),
    ),
    html.Section(
      "How long the attacked vectors are",
      body="Norm over the text's median token, mean of layers and texts.",
      table=html.Table(["site", *numbers["positions"]], rows),
    ),
    html.Section(
      "Random tokens swapped in, and put in",
      body=(
        "The same candidates everywhere. Put in: before the token of that "
        "position, so that all later ones move by one; in front of the sink, "
        "at 0. The worst candidate is the one that raises the loss most in "
        "the table, the one of largest KL in the figure."
      ),
      figure=drawn["swaps.png"],
      caption="Mean and worst are geometric means over texts.",
      table=html.Table(*result.tables["swaps.csv"]),
    ),
  ]
