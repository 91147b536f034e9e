"""How secondary sinks differ from the first, and from other tokens."""

from collections.abc import Callable

import numpy as np

from sinkjax.experiments.harness.api import Claim, Result
from sinkjax.experiments.harness.effects import (
  LOG_RATIO,
  SHARE,
  TOKENS,
  Expect,
  Unit,
  effect,
)
from sinkjax.experiments.harness.stats import format_ratio, mean_of
from sinkjax.experiments.paper.secondary_sinks.experiment import Kind, column
from sinkjax.experiments.shared.text_batches import by_template

SOURCE = "2512.22213"
PAPER = "no number that was at hand"


def claims(result: Result) -> list[Claim]:
  """One on their number, two on their layers, two on size, two on tokens."""
  return [
    _number(result),
    _claim(
      result,
      "secondary_begin_later",
      "Secondary sinks begin in later layers than the first token's sink.",
      _of_sinks(result, _begin, first=True),
      "first layer of the secondary sinks, less that of the first token's "
      "life, over the number of layers",
      SHARE,
      Expect.MORE,
    ),
    _claim(
      result,
      "secondary_last_less",
      "Secondary sinks last for fewer layers than the first token's sink.",
      _of_sinks(result, _lasting, first=True),
      "layers of the secondary sinks, over those of the first token's life, "
      "less one",
      SHARE,
      Expect.LESS,
    ),
    _claim(
      result,
      "secondary_have_fewer_heads",
      "Secondary sinks are the sink of fewer heads than the first token.",
      _heads(result),
      "share of heads that give a secondary sink much attention, less that of "
      "the first token",
      SHARE,
      Expect.LESS,
    ),
    _claim(
      result,
      "secondary_values_are_small",
      "Secondary sinks have smaller values than other tokens.",
      _of_sinks(result, _value),
      "norm of a secondary sink's values over the median of the text",
      LOG_RATIO,
      Expect.LESS,
    ),
    _claim(
      result,
      "secondary_are_delimiters",
      "Secondary sinks are delimiters more often than tokens are.",
      _against_all(result, _delimiter(result)),
      "share of delimiters among secondary sinks, less that among all tokens "
      "after the first",
      SHARE,
      Expect.MORE,
    ),
    _claim(
      result,
      "secondary_are_first_seen",
      "Secondary sinks occur for the first time in their text more often than "
      "tokens do.",
      _against_all(result, result.arrays["first seen"]),
      "share of tokens seen for the first time among secondary sinks, less "
      "that among all tokens after the first",
      SHARE,
      Expect.MORE,
    ),
  ]


def _late(result: Result) -> np.ndarray:
  """The sinks after the first token and the chat template."""
  sinks = result.arrays["sinks"]
  return sinks[column(sinks, "position") > result.numbers["template"]]


def _delimiter(result: Result) -> np.ndarray:
  arrays = result.arrays
  return arrays[f"is {Kind.BREAK}"] | arrays[f"is {Kind.PUNCTUATION}"]


def _of_sinks(
  result: Result, value: Callable[..., np.ndarray], *, first: bool = False
) -> dict[int, float]:
  """{text: mean over its secondary sinks}, of texts that have any.

  Args:
    result: of the measurement.
    value: of sinks, their first token's life, and the number of layers.
    first: only of texts whose first token is a sink as well.
  """
  late = _late(result)
  life = result.arrays["life"][column(late, "text")]
  values = value(late, life, result.numbers["layers"])
  of, whole = column(late, "text"), _first_heads(result)
  return {
    int(t): float(values[of == t].mean())
    for t in np.unique(of)
    if t in whole or not first
  }


def _begin(sinks: np.ndarray, life: np.ndarray, layers: int) -> np.ndarray:
  return (column(sinks, "first_layer") - life[:, 0]) / layers


def _lasting(sinks: np.ndarray, life: np.ndarray, layers: int) -> np.ndarray:
  lived = column(sinks, "last_layer") - column(sinks, "first_layer") + 1
  return lived / (life[:, 1] - life[:, 0] + 1) - 1


def _value(sinks: np.ndarray, life: np.ndarray, layers: int) -> np.ndarray:
  # A value of zero is at most as small as float32 tells from the median.
  return np.log(np.maximum(column(sinks, "value"), 1e-7))


def _first_heads(result: Result) -> dict[int, float]:
  """{text: share of heads} of texts whose first token is a sink."""
  sinks = result.arrays["sinks"]
  share = column(sinks, "heads") / result.numbers["all_heads"]
  first = column(sinks, "position") == 0
  of = column(sinks, "text")[first].tolist()
  return dict(zip(of, share[first].tolist(), strict=True))


def _heads(result: Result) -> dict[int, float]:
  whole, heads = _first_heads(result), result.numbers["all_heads"]
  shares = _of_sinks(
    result, lambda sinks, *_: column(sinks, "heads") / heads, first=True
  )
  return {t: share - whole[t] for t, share in shares.items()}


def _against_all(result: Result, which: np.ndarray) -> dict[int, float]:
  """{text: share of its secondary sinks, less that of its tokens}."""
  late, start = _late(result), result.numbers["template"] + 1
  of, at, found = column(late, "text"), column(late, "position"), {}
  for t in np.unique(of):
    hits = which[t, at[of == t]].mean()
    found[int(t)] = float(hits - which[t, start:].mean())
  return found


def _number(result: Result) -> Claim:
  of = column(_late(result), "text")
  counts = np.bincount(of, minlength=result.numbers["texts"]).astype(float)
  values = by_template(counts, result.numbers)
  return Claim(
    id="secondary_sinks_exist",
    claim="Texts have sinks beside the first token.",
    source=SOURCE,
    paper=PAPER,
    ours=f"{mean_of(values).text('.2f')} of {result.config.tokens} tokens; "
    f"{int((counts > 0).sum())} of {len(counts)} texts have any",
    effect=effect(
      values, "sinks of a text beside its first token", TOKENS, Expect.MORE
    ),
    how="by the rule of find_sinks",
  )


def _claim(
  result: Result,
  id: str,
  claim: str,
  by_text: dict[int, float],
  what: str,
  unit: Unit,
  expect: Expect,
) -> Claim:
  head = (id, claim, SOURCE, PAPER)
  templates = result.numbers["templates"]
  units = {"templates": [templates[t] for t in by_text]}
  values = np.array(list(by_text.values()))
  if len(values):
    values = by_template(values, units)
  if len(values) < 2:
    why = "fewer than two texts have a secondary sink to compare"
    return Claim(*head, "not measured", None, untested=why)
  mean = mean_of(values)
  shown = format_ratio(mean)
  if unit is SHARE:
    shown = mean.scaled(100).text("+.1f", " percentage points")
  return Claim(
    *head,
    f"{shown} in {len(by_text)} texts",
    effect(values, what, unit, expect),
    "mean over a text's secondary sinks; texts that have any",
  )
