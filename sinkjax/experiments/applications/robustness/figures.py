"""Figures and sections of the experiment `robustness`."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from sinkjax.experiments.applications.robustness.config import (
  ALL,
  SITES,
  SWAPPED,
  Condition,
  Defence,
)
from sinkjax.experiments.applications.robustness.results import (
  KL,
  LOSS,
  SPREAD,
  effects_of,
)
from sinkjax.experiments.harness.api import Result
from sinkjax.experiments.harness.stats import logs
from sinkjax.experiments.shared.attack_sites import SITES as SITE_WORDS
from sinkjax.experiments.shared.interval_plots import ends_over, error_bars
from sinkjax.experiments.shared.perturb import NOISE, SWAP
from sinkjax.report import html
from sinkjax.report.figures import FIRST, INK, MUTED, REST, drawing, png

TITLE = "Noise with and without the sink, and defences of the sink"
COLORS = {
  Condition.SINK: REST,
  Condition.HIDDEN: FIRST,
  Condition.CONTROL: MUTED,
  Condition.EMPTY: INK,
}
DEFENCES = {
  Defence.NONE: "no defence",
  Defence.OWN: "pinned: its own token's keys and values",
  Defence.OTHER: "pinned: another token's keys and values",
  Defence.FRONT: "a fixed token in front, pinned",
  Defence.CLIP_EMBED_MEDIAN: "embeddings clipped at the median norm",
  Defence.CLIP_EMBED_MAX: "embeddings clipped at the greatest norm",
  Defence.CLIP_RESID_MEDIAN: "residual clipped at the median norm",
  Defence.CLIP_RESID_MAX: "residual clipped at the greatest norm",
}


def draw(result: Result) -> dict[str, bytes]:
  """Every figure, by file name."""
  return {
    "disturbed.png": _perturbed(result),
    "defences.png": _defences(result.arrays["defences"]),
  }


def _perturbed(result: Result) -> bytes:
  """KL by place; then KL and relative change over those with the sink."""
  from matplotlib.ticker import LogLocator

  effects = effects_of(result)
  shown = [(NOISE, x) for x in (*result.numbers["positions"], ALL)]
  shown += [(SWAP, x) for x in SWAPPED]
  at = np.arange(len(shown))[::-1]
  kl, spread = (
    np.stack([logs(effects[x][..., m]).mean(axis=-1) for x in shown])
    for m in (KL, SPREAD)
  )  # [places, P, C]

  def dots(ax: Any, c: int, values: np.ndarray, name: str) -> None:
    # Conditions of a place lie side by side; intervals are of logarithms.
    ends, off = np.exp(ends_over(values)), 0.17 * (1.5 - c)
    look = {"color": COLORS[name], "label": name, "lw": 1}
    error_bars(ax, at + off, ends, across=True, **look)

  with drawing(11.2, 4.4) as figure:
    axes = figure.subplots(1, 3, sharey=True)
    for c, name in enumerate(COLORS):
      dots(axes[0], c, kl[..., c], name)
      if name != Condition.SINK:
        dots(axes[1], c, kl[..., c] - kl[..., 0], name)
        dots(axes[2], c, spread[..., c] - spread[..., 0], name)
    titles = (
      "KL divergence, nats a token",
      "KL divergence, ratio to that with the sink",
      "relative change, ratio to that with the sink",
    )
    for ax, title in zip(axes, titles, strict=True):
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


def _defences(attacks: np.ndarray) -> bytes:
  """The loss under each defence, with and without attack."""
  at = np.arange(len(DEFENCES))[::-1]
  with drawing(10.4, 3.9) as figure:
    axes = figure.subplots(1, len(SITES), sharey=True, sharex=True)
    for s, (ax, site) in enumerate(zip(axes, SITES, strict=True)):
      for k, (label, color) in enumerate(
        (("not attacked", REST), ("attacked", FIRST))
      ):
        error_bars(
          ax,
          at + 0.14 * (1 - 2 * k),
          ends_over(attacks[:, s, :, k, LOSS].T),
          across=True,
          color=color,
          label=label,
          lw=1,
        )
      ax.axvline(0, color=MUTED, lw=0.8, ls=":")
      ax.set_title(f"the first token's {SITE_WORDS[site]}")
      ax.set_yticks(at, DEFENCES.values())
      ax.grid(axis="x")
    axes[1].set_xlabel("change of the loss, nats a token")
    figure.legend(
      *axes[0].get_legend_handles_labels(),
      loc="outside upper left",
      ncols=2,
      frameon=False,
    )
    return png(figure)


def sections(result: Result, drawn: Mapping[str, bytes]) -> list[html.Section]:
  """The experiment's part of the report."""
  numbers = result.numbers
  at = ", ".join(f"{k} ({v})" for k, v in numbers["positions"].items())
  return [
    html.Section(
      TITLE,
      body=(
        f"{numbers['texts']} texts of {numbers['tokens']} tokens. Tokens at "
        f"the positions {at} are perturbed; tokens from position "
        f"{numbers['measured_from']} on are measured. Noise has "
        f"{numbers['noise']:g} of the norm of a token's own embedding, in "
        f'{numbers["draws"]} random directions for each place; "{ALL}" '
        "means every token of the first half but the sink. A swapped token is "
        f"replaced by {numbers['candidates']} random ones. The sink, or the "
        "token next to it, is hidden from all queries, or the sink's value set "
        f"to zero, from layer {numbers['from_layer']} on. Each condition is "
        "compared with itself without the perturbation."
      ),
      figure=drawn["disturbed.png"],
      caption=(
        "Geometric means over texts with 95 % intervals (log scales); the "
        "second and third panels are of ratios within a text."
      ),
      table=html.Table(*result.tables["disturbed.csv"]),
    ),
    html.Section(
      "Defences",
      body=(
        f"Attacks of {numbers['steps']} gradient steps with "
        f"{numbers['share']:g} of the norm of the attacked vector, in each "
        "layer, found on the defended model. With a token in front the attack "
        "is still on the text's first token, which is then at position 1. "
        "Pinned keys and values hide every change at position 0, so what "
        "remains is the cost of the pinning. Clips are at the median or the "
        "greatest norm in the other texts, by layer, and apart for first "
        "tokens and later ones."
      ),
      figure=drawn["defences.png"],
      caption=(
        "Change of the loss against the plain model without an attack; means "
        "over texts and 95 % intervals."
      ),
      table=html.Table(*result.tables["defences.csv"]),
    ),
  ]
