"""Sinks on schedule: the Bigram-Backcopy task (Guo et al., arXiv 2410.13835).

A head that copies at triggers has nothing to do at any other token. Trained
on that, attention goes dormant on BOS and the value of BOS drains away; in
deeper models its residual grows, see `residual_peak`. With normalisers that
need not give weight to anything, none of this is needed.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np

from sinkjax.experiments.harness import history
from sinkjax.experiments.harness.api import Claim, Result
from sinkjax.experiments.shared.backcopy import (
  LARGE_SCALES,
  BackcopyConfig,
  claim,
  schedule,
  trained,
)
from sinkjax.report import html
from sinkjax.report.figures import (
  FIRST,
  MUTED,
  color_bar,
  drawing,
  heat_map,
  png,
)

NAME, TITLE = "bigram_backcopy", "A head with nothing to do"


@dataclasses.dataclass(frozen=True)
class Config(BackcopyConfig):
  """What is trained: models of one layer."""


SCALES: dict[str, dict[str, Any]] = {
  "demo": {"seeds": (0,), "steps": 240},
  "cpu": {},
  **LARGE_SCALES,
}
"""Fields of `Config` by --scale."""


def run(
  config: Config,
  *,
  folder: Any,
  progress: Callable[[int, int], Any] = lambda done, total: None,
) -> Result:
  """Trains what is left of the sweep, and says what came of it.

  Args:
    config: the sweep.
    folder: where runs are kept.
    progress: called with (steps done, steps in all).

  Raises:
    ValueError: as `jobs.run_jobs`.

  Cost: 0.1 s a step of the cpu scale on two cores.
  """
  return trained(NAME, TITLE, config, folder, progress, claims)


def claims(config: Config, arrays, uniform: float) -> list[Claim]:
  """What the softmax runs show, and what the others do not."""
  if "softmax" not in config.normalizers or len(config.seeds) < 2:
    return []

  def last(name, normalizer="softmax"):
    return arrays[name][config.normalizers.index(normalizer), :, -1]

  first = last("dormant_first")
  copied = last("active_previous") - last("active_first")
  found = [
    claim(
      "Tokens at which a head has nothing to do attend to BOS.",
      "curves, no number",
      first,
      uniform,
      f" of their attention, where even attention gives {uniform:.3f}",
    ),
    claim(
      "Triggers attend to the token before them, not to BOS.",
      "curves, no number",
      copied,
      0.0,
      " more of their attention on the token before than on BOS",
    ),
    claim(
      "The value of BOS drains away.",
      "curves, no number",
      1 - last("value_ratio"),
      0.0,
      " of its norm is missing, beside that of the other values",
    ),
  ]
  for normalizer in config.normalizers:
    if normalizer == "softmax":
      continue
    excess = last("excess", normalizer).mean(), last("excess").mean()
    found.append(
      claim(
        f"With {normalizer} attention there is no such sink.",
        "ReLU: all of it is gone" if normalizer == "relu" else "not tried",
        first - last("dormant_first", normalizer),
        0.0,
        f" less of dormant attention on BOS than with softmax; loss above the "
        f"least possible {excess[0]:.3f} against {excess[1]:.3f} nats",
      )
    )
  return found


def draw(result) -> dict[str, bytes]:
  """Every figure, by file name."""
  return {"schedule.png": schedule(result), "phases.png": _phases(result)}


def _phases(result) -> bytes:
  """Attention of the trained models on one row; triggers are marked."""
  numbers, maps = result.numbers, result.arrays["maps"]
  labels = [
    "BOS" if t == "BOS" else (t.strip() or "␣") for t in numbers["tokens"]
  ]
  active = [t in numbers["triggers"] for t in numbers["tokens"]]
  models = numbers["models"]
  with drawing(3.6 * len(models) + 0.6, 4.2) as figure:
    axes = figure.subplots(1, len(models), squeeze=False)[0]
    for i, ax in enumerate(axes):
      seen = np.tri(len(labels), dtype=bool)
      image = heat_map(ax, np.where(seen, maps[i], np.nan), vmin=0, vmax=1)
      ax.set_xticks(range(len(labels)), labels, fontsize=5.5)
      ax.set_yticks(range(len(labels)), labels, fontsize=5.5)
      for label, on in zip(ax.get_yticklabels(), active, strict=True):
        label.set_color(FIRST if on else MUTED)
      ax.set_title(models[i])
    color_bar(image, axes, "share of the query's attention")
    return png(figure)


def sections(result, drawn: dict[str, bytes]) -> list[html.Section]:
  """The experiment's part of the report."""
  numbers = result.numbers
  triggers = ", ".join(repr(t) for t in numbers["triggers"])
  return [
    html.Section(
      result.title,
      body=(
        "Text of a bigram model; after one of the triggers "
        f"({triggers}) comes the token before it. A head that copies has work "
        "at triggers only. Attention is the share of what a query gives in "
        "all, so that normalisers whose rows do not sum to one compare. The "
        "loss is the divergence from the true next-token distribution: its "
        f"least is 0, at {numbers['optimum']:.3f} nats a token."
      ),
      figure=drawn["schedule.png"],
      caption=history.caption(result),
      table=history.ends(result),
    ),
    html.Section(
      "Active and dormant",
      body="Queries are rows. Those of triggers, in colour, look at the token "
      "before; the others have nothing to look for.",
      figure=drawn["phases.png"],
      caption="Attention of the trained one-layer models on a held-out row.",
    ),
  ]
