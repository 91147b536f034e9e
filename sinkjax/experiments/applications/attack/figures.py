"""Figures and sections of the experiment `attack`."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from sinkjax.experiments.applications.attack.config import NORMS, Kind, Way
from sinkjax.experiments.harness.api import Result
from sinkjax.experiments.harness.stats import logs
from sinkjax.experiments.shared.attack_sites import SITES
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

TITLE = "Attacks on the sink and on other tokens"
COLORS = {Kind.RANDOM: MUTED, Kind.ONE_STEP: REST, Kind.SEVERAL_STEPS: FIRST}
LABELS = {
  Kind.RANDOM: "random direction",
  Kind.ONE_STEP: "one gradient step",
  Kind.SEVERAL_STEPS: "several gradient steps",
}
PANELS = {
  "embed": "embedding",
  "k": "keys",
  "v": "values",
  "resid_post": "residual stream",
}
WAYS = {
  Way.SWAPPED: "a token swapped for a random one",
  Way.INSERTED: "a random token inserted before it",
}
KL = MEASURES.index("kl")


def draw(result: Result) -> dict[str, bytes]:
  """Every figure, by file name."""
  names = list(result.numbers["positions"])
  return {
    "gradient.png": _gradient(result.arrays["gradient"], names),
    "swaps.png": _swaps(result.arrays["swaps"], names),
  }


def _geometric(kl: np.ndarray) -> np.ndarray:
  """The geometric mean over texts."""
  return np.exp(logs(kl).mean(axis=0))


def _axes(ax: Any, names: list[str]) -> None:
  ax.set_xticks(range(len(names)), names)
  ax.set_yscale("log")
  ax.grid(axis="y")


def _gradient(values: np.ndarray, names: list[str]) -> bytes:
  """KL by position, a column of panels for each site, a row for each norm."""
  x = np.arange(len(names))
  with drawing(10, 5.4) as figure:
    axes = figure.subplots(2, len(SITES), sharex=True, sharey="col")
    for row, norm in enumerate(NORMS):
      for column, site in enumerate(SITES):
        ax = axes[row, column]
        for k, (kind, color) in enumerate(COLORS.items()):
          # A divergence that rounding made 0 is drawn at the floor of `logs`.
          kl = values[:, column, row, :, k, KL]
          ax.plot(x, np.exp(logs(kl)).T, color=color, lw=0.5, alpha=0.3)
          label = LABELS[kind] if ax is axes[0, 0] else None
          ax.plot(x, _geometric(kl), "o-", color=color, ms=4, label=label)
        ax.set_title(f"{PANELS[site]}, {norm} norm")
        _axes(ax, names)
      axes[row, 0].set_ylabel("KL divergence, nats a token")
    figure.legend(
      *axes[0, 0].get_legend_handles_labels(),
      loc="outside upper left",
      ncols=3,
      frameon=False,
    )
    return png(figure)


def _swaps(swaps: np.ndarray, names: list[str]) -> bytes:
  """KL of every candidate in every text, by position."""
  x, rng = np.arange(len(names)), np.random.default_rng(0)
  with drawing(8, 3.4) as figure:
    axes = figure.subplots(1, 2, sharey=True)
    for ax, way, values in zip(axes, Way, swaps.swapaxes(0, 1), strict=True):
      kl = values[..., KL]
      # Sideways, so that dots do not hide each other; a seed keeps the file the
      # same.
      shift = rng.uniform(-0.16, 0.16, kl.shape)
      at = np.broadcast_to(x[None, :, None], kl.shape) + shift
      look = {"s": 5, "lw": 0, "alpha": 0.4, "color": REST}
      ax.scatter(at, np.exp(logs(kl)), label="candidate in a text", **look)
      mean, worst = _geometric(kl).mean(axis=-1), _geometric(kl.max(axis=-1))
      ax.plot(x, mean, "o-", color=INK, label="mean", ms=4)
      ax.plot(x, worst, "o-", color=FIRST, label="largest", ms=4)
      legend_above(ax, WAYS[way])
      _axes(ax, names)
    axes[0].set_ylabel("KL divergence, nats a token")
    return png(figure)


def sections(result: Result, drawn: Mapping[str, bytes]) -> list[html.Section]:
  """The experiment's part of the report."""
  numbers = result.numbers
  at = ", ".join(f"{k} ({v})" for k, v in numbers["positions"].items())
  rows = [
    [SITES[site], *(one[name] for name in numbers["positions"])]
    for site, one in numbers["norm_over_median"].items()
  ]
  return [
    html.Section(
      TITLE,
      body=(
        f"{numbers['texts']} texts of {numbers['tokens']} tokens. Positions "
        f"{at} are attacked; tokens from position {numbers['measured_from']} "
        f"on are measured. A shift has {numbers['share']:g} of the norm of the "
        "vector it is added to, in each layer: of the attacked token's own "
        "(relative norm) or of the text's median token (absolute norm). "
        "Gradients are of the loss of the measured tokens; the attack of "
        f"several steps takes {numbers['steps']}, each projected back to the "
        "sphere. The residual stream is shifted after layer "
        f"{numbers['middle_layer']}."
      ),
      figure=drawn["gradient.png"],
      caption=(
        "KL divergence of the next-token predictions, by attacked position "
        "(log scale). Thick: geometric mean over texts; thin: single texts."
      ),
      table=html.Table(*result.tables["gradient.csv"]),
    ),
    html.Section(
      "Norms of the attacked vectors",
      body="Norm over that of the text's median token, mean over layers and "
      "texts.",
      table=html.Table(["site", *numbers["positions"]], rows),
    ),
    html.Section(
      "Random tokens swapped in and inserted",
      body=(
        f"The same {len(numbers['candidates'])} random tokens everywhere. An "
        "inserted token comes before the token of that position and moves all "
        "later ones by one; at position 0 it comes before the sink. The worst "
        "candidate is the one that raises the loss most."
      ),
      figure=drawn["swaps.png"],
      caption=(
        "KL divergence by position (log scale). Lines: geometric means over "
        "texts of the mean and of the largest over candidates."
      ),
      table=html.Table(*result.tables["swaps.csv"]),
    ),
  ]
