"""Does a head with nothing to do grow a sink and drain its value?

    python -m launch.reproduce --experiment=bigram_backcopy --scale=cpu \\
      --out=DIR

The Bigram-Backcopy task (Guo et al., arXiv 2410.13835): a head that copies at
triggers has nothing to do at any other token. Trained on that, its attention
goes to BOS at those tokens, and the value of BOS becomes small; in deeper
models the residual of BOS grows, see `residual_peak`. Normalisers that need not
give weight to any token need none of this.

The cpu scale (9 runs) took 4 minutes on two CPU cores. Expected verdicts: all
inconclusive, as three seeds are fewer than a verdict needs; `seeds` takes
more.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np

from sinkjax.experiments.harness import history
from sinkjax.experiments.harness.api import Claim, Experiment, Result
from sinkjax.experiments.harness.effects import SHARE, Expect
from sinkjax.experiments.harness.stats import mean
from sinkjax.experiments.shared import backcopy
from sinkjax.experiments.shared.backcopy_training import BackcopyConfig
from sinkjax.experiments.shared.seed_effects import seed_effect
from sinkjax.report import html
from sinkjax.report.figures import (
  FIRST,
  MUTED,
  color_bar,
  drawing,
  heat_map,
  png,
)

TITLE = "When a head has nothing to do"


@dataclasses.dataclass(frozen=True)
class Config(BackcopyConfig):
  """What is trained: models of one layer."""


SCALES: dict[str, dict[str, Any]] = {
  "demo": {"seeds": (0,), "steps": 240},
  "cpu": {},
  **backcopy.LARGE_SCALES,
}
"""Fields of `Config` by --scale."""


def claims(result: Result) -> list[Claim]:
  """What softmax models do, and what the others do less."""
  if not backcopy.is_tested(result):
    return []

  def final(name: str, normalizer: str = "softmax") -> np.ndarray:
    return backcopy.through_training(result, name, normalizer)[:, -1]

  models = backcopy.models_in_words(result)
  copied = final("active_previous") - final("active_first")
  found = [
    backcopy.dormant_claim(result),
    Claim(
      "triggers_attend_to_previous",
      f"{models} triggers attend to the previous token more than to BOS.",
      backcopy.SOURCE,
      "curves, no number",
      f"{mean(copied)} more of their attention is on the previous token than "
      "on BOS",
      seed_effect(
        copied,
        "attention of triggers on the previous token, less that on BOS,",
        SHARE,
        Expect.MORE,
      ),
    ),
    backcopy.value_claim(result),
  ]
  for normalizer in backcopy.others(result):
    less = final("dormant_first") - final("dormant_first", normalizer)
    excess = final("excess", normalizer).mean(), final("excess").mean()
    name = backcopy.in_words(normalizer)
    found.append(
      Claim(
        f"weaker_sink_{normalizer}",
        f"{models} dormant queries attend less to BOS with "
        f"{name} attention than with softmax.",
        backcopy.SOURCE,
        backcopy.paper_on(normalizer),
        f"{mean(less)} less of their attention is on BOS; loss "
        f"{excess[0]:.3f} against {excess[1]:.3f} nats above the lowest "
        "possible",
        seed_effect(
          -less,
          f"attention of dormant queries on BOS with {name} attention, less "
          "that with softmax,",
          SHARE,
          Expect.LESS,
        ),
        "attention is the share of a query's total with every normaliser",
        (backcopy.learnt_as_much(result, normalizer),),
      )
    )
  return found


def draw(result: Result) -> dict[str, bytes]:
  """Every figure, by file name."""
  return {
    "schedule.png": backcopy.schedule(result),
    "phases.png": _phases(result),
  }


def _phases(result: Result) -> bytes:
  """Attention of the trained models on one row; triggers are marked."""
  numbers, maps = result.numbers, result.arrays["maps"]
  # A space or a line break would be an empty label.
  labels = [
    "BOS" if t == "BOS" else (t.strip() or "␣") for t in numbers["tokens"]
  ]
  active = [t in numbers["triggers"] for t in numbers["tokens"]]
  models = numbers["models"]
  with drawing(3.6 * len(models) + 0.6, 4.2) as figure:
    axes = figure.subplots(1, len(models), squeeze=False)[0]
    for i, ax in enumerate(axes):
      # What a query cannot see is blank, unlike a token that gets no attention.
      seen = np.tri(len(labels), dtype=bool)
      image = heat_map(ax, np.where(seen, maps[i], np.nan), vmin=0, vmax=1)
      ax.set_xticks(range(len(labels)), labels, fontsize=5.5)
      ax.set_yticks(range(len(labels)), labels, fontsize=5.5)
      for label, on in zip(ax.get_yticklabels(), active, strict=True):
        label.set_color(FIRST if on else MUTED)
      ax.set_title(models[i])
    color_bar(image, axes, "share of the query's attention")
    return png(figure)


def sections(result: Result, drawn: Mapping[str, bytes]) -> list[html.Section]:
  """The experiment's part of the report."""
  numbers = result.numbers
  triggers = ", ".join(repr(t) for t in numbers["triggers"])
  return [
    html.Section(
      TITLE,
      body=(
        "Texts are sampled from a bigram model, except that each of the "
        f"triggers ({triggers}) is followed by the token before it. A head "
        "that copies has work at triggers only; all other queries are "
        "dormant. Attention is the share of the query's total, so that "
        "normalisers whose rows do not sum to one can be compared. The loss "
        "is the divergence from the true next-token distribution: the lowest "
        f"possible is 0, at {numbers['optimum']:.3f} nats a token."
      ),
      figure=drawn["schedule.png"],
      caption=history.caption(result),
      table=history.final_table(result),
    ),
    html.Section(
      "Active and dormant queries",
      body="Queries are rows. Those of triggers, in colour, attend to the "
      "previous token; the others have nothing to copy.",
      figure=drawn["phases.png"],
      caption="Attention of the trained one-layer models on a held-out row.",
    ),
  ]


EXPERIMENT = Experiment(
  TITLE,
  Config,
  backcopy.measure,
  claims,
  draw,
  sections,
  scales=SCALES,
  plan=backcopy.plan,
)
