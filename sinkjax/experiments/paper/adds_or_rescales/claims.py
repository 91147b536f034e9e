"""Does the sink add, or does it rescale? And do large dimensions?"""

import numpy as np

from sinkjax.experiments.harness.api import Claim, Result
from sinkjax.experiments.harness.effects import (
  LOG_RATIO,
  NATS,
  Effect,
  Expect,
  effect,
)
from sinkjax.experiments.harness.stats import format_ratio, mean_of
from sinkjax.experiments.paper.adds_or_rescales.experiment import (
  MOST,
  Part,
  What,
)
from sinkjax.experiments.shared.text_batches import by_template

SOURCES = "2606.07604, 2601.22966"
PAPER = "no number that was at hand"


def claims(result: Result) -> list[Claim]:
  """Four on the sink, three on dimensions."""
  return [
    _norms(result),
    _without_value(result),
    _without_size(result),
    _rescaling_first(result),
    *_dimensions(result),
  ]


def _change(
  result: Result, what: What, part: Part, less: Part = Part.BOTH
) -> np.ndarray:
  """[n] nats by which one condition's loss exceeds another's."""
  values = [result.arrays[f"loss, {what}, {x}"] for x in (part, less)]
  return by_template(np.subtract(*values), result.numbers)


def _text(values: np.ndarray) -> str:
  return mean_of(values).text("+.3f", " nats")


def _nats(values: np.ndarray, what: str, expect: Expect) -> Effect:
  return effect(values, what, NATS, expect)


def _norms(result: Result) -> Claim:
  values = by_template(
    np.log(result.arrays["takes"] / result.arrays["adds"]), result.numbers
  )
  return Claim(
    id="takes_more_than_it_adds",
    claim="The sink changes what heads write more by the weight that it takes "
    "from other tokens than by its own value.",
    source=SOURCES,
    paper=PAPER,
    ours=f"what it takes has {format_ratio(mean_of(values))} the norm of what "
    "it adds",
    effect=effect(
      values,
      "norm of what the sink's weight takes from the rest, over that of what "
      "its value adds",
      LOG_RATIO,
      Expect.MORE,
    ),
    how="exactly z = r + p v - p r of a row renormalised without the sink to "
    "r; sums of norms over layers, heads and queries",
  )


def _without_value(result: Result) -> Claim:
  values = _change(result, What.SINK, Part.SIZE)
  return Claim(
    id="value_is_not_needed",
    claim="Without the sink's value, its weight kept, the loss stays the same.",
    source=SOURCES,
    paper=PAPER,
    ours=f"the loss changes by {_text(values)}",
    effect=_nats(
      values,
      "loss with the sink's value removed in all heads, less that of the "
      "unchanged model",
      Expect.SAME,
    ),
    how="all layers and heads; queries from position 1 on",
  )


def _without_size(result: Result) -> Claim:
  both = _change(result, What.SINK, Part.NEITHER)
  value = _change(result, What.SINK, Part.SIZE)
  return Claim(
    id="rows_need_the_sink",
    claim="Rows renormalised without the sink raise the loss.",
    source=SOURCES,
    paper=PAPER,
    ours=f"the loss changes by {_text(both)}, with the value alone removed by "
    f"{_text(value)}",
    effect=_nats(
      both,
      "loss with rows renormalised without the sink, less that of the "
      "unchanged model",
      Expect.MORE,
    ),
    how="the value is removed too: what is left is attention as it would be "
    "had the sink no weight",
    provided=(
      _nats(
        _change(result, What.SINK, Part.NEITHER, Part.SIZE),
        "the same, less the loss with the sink's value removed and its weight "
        "kept",
        Expect.MORE,
      ),
    ),
  )


def _rescaling_first(result: Result) -> Claim:
  values = _change(result, What.SINK, Part.CONTENT, Part.SIZE)
  content = _change(result, What.SINK, Part.CONTENT)
  return Claim(
    id="sink_rescales",
    claim="The sink's normalisation matters more to the loss than its value.",
    source=SOURCES,
    paper=PAPER,
    ours=f"with its normalisation removed and its value kept the loss changes "
    f"by {_text(content)}, {_text(values)} more than without its value",
    effect=_nats(
      values,
      "loss with rows renormalised and the sink's value kept, less that with "
      "the value removed and rows kept",
      Expect.MORE,
    ),
    how="renormalised rows, to which the sink's value is added with its weight",
  )


def _dimensions(result: Result) -> list[Claim]:
  sentences = (
    (
      "dimensions_rescale",
      "Zeroing the dimensions that are large on most tokens before the norm "
      "raises the loss more than zeroing them after it.",
    ),
    (
      "dimensions_are_not_read",
      "Zeroing the dimensions that are large on most tokens after the norm "
      "leaves the loss the same.",
    ),
    (
      "large_over_next_largest",
      "Zeroing the dimensions that are large on most tokens before the norm "
      "raises the loss more than zeroing as many of the next largest.",
    ),
  )
  large = result.numbers["large"]
  layers = sum(map(bool, large))
  if not layers:
    why = (
      f"no dimension is above {result.config.ratio:g} times the median on "
      f"{100 * MOST:.0f} % of tokens"
    )
    return [
      Claim(id, sentence, SOURCES, PAPER, "not measured", None, untested=why)
      for id, sentence in sentences
    ]
  before = _change(result, What.LARGE, Part.NEITHER)
  after = _change(result, What.LARGE, Part.SIZE)
  others = _change(result, What.OTHERS, Part.NEITHER)
  size = _change(result, What.LARGE, Part.CONTENT)
  shown = ", ".join(map(str, sorted({d for one in large for d in one})[:6]))
  how = (
    f"in what attention and MLP read at {layers} of {len(large)} layers, from "
    f"position 1 on; dimensions {shown}"
  )
  effects = (
    (
      f"zeroed before the norm {_text(before)}, after it {_text(after)}; not "
      f"counted in the norm, but read, {_text(size)}",
      _nats(
        before - after,
        "loss with the dimensions zeroed before the norm, less that with them "
        "zeroed after it",
        Expect.MORE,
      ),
    ),
    (
      f"the loss changes by {_text(after)}",
      _nats(
        after,
        "loss with the dimensions zeroed after the norm, less that of the "
        "unchanged model",
        Expect.SAME,
      ),
    ),
    (
      f"{_text(before)}, as many of the next largest {_text(others)}",
      _nats(
        before - others,
        "loss with the dimensions zeroed before the norm, less that with as "
        "many of the next largest zeroed",
        Expect.MORE,
      ),
    ),
  )
  return [
    Claim(id, sentence, SOURCES, PAPER, ours, made, how)
    for (id, sentence), (ours, made) in zip(sentences, effects, strict=True)
  ]
