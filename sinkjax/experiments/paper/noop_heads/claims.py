"""Whether there are no-op heads, and what they read."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from sinkjax.experiments.harness.api import Claim, Result
from sinkjax.experiments.harness.effects import (
  AUROC,
  SHARE,
  Count,
  Effect,
  Expect,
  Unit,
  effect,
)
from sinkjax.experiments.harness.stats import Mean, group_means, mean_of
from sinkjax.experiments.paper.noop_heads.kinds import BROADCAST, NOOP, Kind
from sinkjax.experiments.shared.text_batches import with_units

FIGURE = "section 3.2, figure 4"

RARE = 0.01
"""A kind of sinks that makes up less than this share of them is none: two
heads of SmolLM2-135M."""

RATIO = Unit("times", "ratio less one", 0.1, ".2f", lambda x: 1 + x, null=1.0)
"""Of norms, whose mean files keep without logarithms: a tenth more or less, as
for logarithms of ratios."""


def claims(result: Result) -> list[Claim]:
  """The heads, their values while dormant and active, and kinds of sinks."""
  made = [
    _heads(result),
    _value(
      result,
      "sink_ratio",
      id="dormant_value_small",
      claim="A no-op head reads a value of small norm while it is dormant.",
      expect=Expect.LESS,
    ),
    _value(
      result,
      "acted_ratio",
      id="active_value_large",
      claim="A no-op head reads a value of large norm when it is active.",
      expect=Expect.MORE,
    ),
    _kinds(result),
  ]
  return with_units(made, result.numbers)


def _mean(numbers: Mapping[str, Any], name: str) -> Mean | None:
  """A stored mean; `None` where there was nothing to average."""
  return None if numbers[name] is None else Mean.read(numbers[name])


def _effect(
  result: Result,
  name: str,
  chance: float,
  what: str,
  unit: Unit,
  expect: Expect,
  margin: float | None = None,
) -> Effect:
  """How far something is from what it would be by chance."""
  by_text = result.arrays.get(f"{name} by text")
  if by_text is None:
    # Files recorded before keep the mean alone, whose sign-flip test was not of
    # this chance: the t test stands in for it.
    mean = _mean(result.numbers, name)
    ends = [x - chance for x in mean[:3]]
    made = effect(
      Mean(*ends, mean.groups, mean.p), what, unit, expect, margin=margin
    )
    # A test by drawn signs has no smaller p than this.
    p = mean.p if chance == 0 else max(made.p_differs(), 1e-5)
    values = made.mean._replace(p=p)
  else:
    # What is measured on held-out texts has those alone, the last ones.
    templates = np.array(result.numbers["templates"])[-len(by_text) :]
    known = np.isfinite(by_text)
    values = mean_of(group_means(by_text[known] - chance, templates[known]))
  return effect(values, what, unit, expect, margin=margin)


def _stand_in(result: Result, name: str) -> str:
  """What `_effect` had to do without, for a claim to say."""
  if f"{name} by text" in result.arrays:
    return ""
  return (
    "; the file keeps no values by text, so the p of the t test stands in for "
    "that of the sign-flip test"
  )


def _heads(result: Result) -> Claim:
  numbers, conditions = result.numbers, result.numbers["conditions"]
  auroc = _mean(numbers, "auroc")
  if auroc is None:
    ours = f"none of {numbers['heads']} heads"
    made: Effect | Count = Count(
      f"search of {numbers['heads']} heads finds none", 1, 1
    )
  else:
    best, *_ = drawn = numbers["drawn"]
    ours = (
      f"{numbers['found']} of {numbers['heads']} heads; for the best "
      f"{len(drawn)} the trigger predicts active queries with AUROC "
      f"{auroc.text('.3f')}; the best is layer {best['layer']} head "
      f"{best['head']} by {best['trigger']}"
    )
    made = _effect(
      result,
      "auroc",
      0.5,
      "AUROC by which the trigger predicts active queries, less 0.5, chance",
      AUROC,
      Expect.MORE,
    )
  return Claim(
    id="heads_with_trigger",
    claim="Some heads act on a trigger and otherwise attend to the first "
    "token.",
    source=FIGURE,
    paper="one head in the first layers of Gemma 7B, whose trigger is an "
    "apostrophe as the previous token",
    ours=ours,
    effect=made,
    how=f"a head counts if at least {100 * conditions['resting'][0]:g} % of "
    "its queries are dormant and a trigger predicts the active ones with AUROC "
    f"{conditions['auroc']:g} on the texts that choose it; tested on held-out "
    "texts" + ("" if auroc is None else _stand_in(result, "auroc")),
  )


def _value(
  result: Result, name: str, *, id: str, claim: str, expect: Expect
) -> Claim:
  """A claim that a ratio of norms is above 1, or below."""
  numbers = result.numbers
  mean, made, ours = _mean(numbers, name), None, "no such head"
  if mean is not None:
    ours = f"{mean.text('.2f')} times the mean norm of the other tokens' values"
    read = "sink's" if expect is Expect.LESS else "read"
    made = _effect(
      result,
      name,
      1.0,
      f"norm of the {read} value over the mean of the other tokens' values",
      RATIO,
      expect,
    )
  return Claim(
    id=id,
    claim=claim,
    source=FIGURE,
    paper="no number: a bar chart",
    ours=ours,
    effect=made,
    how=f"{numbers['found']} heads, averaged first; held-out texts"
    + _stand_in(result, name),
    untested="" if made else "the model has no such head",
  )


def _kinds(result: Result) -> Claim:
  numbers = result.numbers
  noop, broadcast = _mean(numbers, Kind.NOOP), _mean(numbers, Kind.BROADCAST)
  made, provided, ours = None, (), "no sinks"
  if noop is not None and broadcast is not None:
    small, large = (
      mean.scaled(100).text(".1f", " %") for mean in (noop, broadcast)
    )
    ranks = ", ".join(
      f"{numbers['stable_rank'][kind]:.2f} ({kind})"
      for kind in (Kind.NOOP, Kind.BROADCAST)
      if numbers["stable_rank"][kind] is not None
    )
    ours = (
      f"{small} of the sinks are no-op, {large} have a ratio above "
      f"{BROADCAST:g}; stable rank of the update {ranks}"
    )
    made, *provided = (
      _effect(
        result,
        kind,
        0.0,
        f"share of the sinks that are {kind}",
        SHARE,
        Expect.MORE,
        margin=RARE,
      )
      # The rarer kind is what is in question.
      for kind in sorted(
        (Kind.BROADCAST, Kind.NOOP), key=lambda x: _mean(numbers, x).value
      )
    )
  return Claim(
    id="two_kinds_of_sinks",
    claim="Sinks are of two kinds: no-op, of small value, and broadcast.",
    source="2606.08105",
    paper=f"value ratio below {NOOP:g} (no-op) and about 1 (broadcast)",
    ours=ours,
    effect=made,
    how=f"heads with a sink score above {result.config.eps:g}; a kind is none "
    f"below {100 * RARE:g} % of the sinks",
    provided=tuple(provided),
    untested="" if made else "the model has no sinks",
  )
