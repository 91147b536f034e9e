"""Whether a few experts of large outputs carry the sink."""

import numpy as np

from sinkjax.experiments.harness.api import Claim, Result
from sinkjax.experiments.harness.effects import (
  LOG_RATIO,
  NATS,
  SHARE,
  Effect,
  Expect,
  Unit,
  effect,
)
from sinkjax.experiments.harness.stats import format_ratio, mean_of
from sinkjax.experiments.paper.experts.experiment import ranked
from sinkjax.experiments.shared.text_batches import by_template

SOURCE = "2507.23279"
NO_NUMBER = "no number that was at hand"


def claims(result: Result) -> list[Claim]:
  """Three on what these experts do, three on the model without them."""
  return [
    _at_first(result),
    _first_is_routed(result),
    _same_in_texts(result),
    _sinks(result),
    _norm(result),
    _loss(result),
  ]


def _effect(
  result: Result, values: np.ndarray, what: str, unit: Unit, expect: Expect
) -> Effect:
  return effect(by_template(values, result.numbers), what, unit, expect)


def _found(result: Result, name: str) -> np.ndarray:
  """[P] mean over the found experts of an array [L, P, E]."""
  order = result.numbers["order"][: result.numbers["found"]]
  values = result.arrays[name].astype(float)
  return np.mean([values[layer, :, expert] for layer, expert in order], axis=0)


def _names(result: Result) -> str:
  order = result.numbers["order"][: result.numbers["found"]]
  named = ", ".join(f"{layer}.{expert}" for layer, expert in order)
  return f"experts {named} (layer.expert) of {result.numbers['experts']:,}"


def _percent(result: Result, values: np.ndarray) -> str:
  return mean_of(by_template(100 * values, result.numbers)).text(".1f", " %")


def _at_first(result: Result) -> Claim:
  at_first = _found(result, "at_first")
  return Claim(
    id="largest_at_first",
    claim="The experts with the largest outputs have them at the first token.",
    source=SOURCE,
    paper=NO_NUMBER,
    ours=f"in {_percent(result, at_first)} of texts",
    effect=_effect(
      result,
      at_first - 0.5,
      "share of these experts whose largest output is at the first token, less "
      "a half",
      SHARE,
      Expect.MORE,
    ),
    how=_names(result),
  )


def _first_is_routed(result: Result) -> Claim:
  first, rest = _found(result, "first"), _found(result, "elsewhere")
  return Claim(
    id="first_is_routed",
    claim="First tokens are routed to the experts with the largest outputs "
    "more often than other tokens are.",
    source=SOURCE,
    paper=NO_NUMBER,
    ours=f"{_percent(result, first)} of first tokens, "
    f"{_percent(result, rest)} of the others",
    effect=_effect(
      result,
      first - rest,
      "share of these experts that the first token uses, less that of a text's "
      "other tokens",
      SHARE,
      Expect.MORE,
    ),
    how=_first_tokens(result),
  )


def _first_tokens(result: Result) -> str:
  count = result.numbers["first_tokens"]
  if count == 1:
    return (
      "all texts begin with one token, which sees nothing else and is so "
      "routed alike in all; --prefix=none has others"
    )
  return f"texts begin with {count} different tokens"


def agreement(peak: np.ndarray, count: int) -> np.ndarray:
  """[P] share of each text's `count` largest that are the other texts'.

  Args:
    peak: [L, P, E].
    count: experts.

  >>> agreement(np.array([[[1.0, 9.0], [1.0, 8.0], [7.0, 2.0]]]), 1).tolist()
  [1.0, 1.0, 0.0]
  """
  shares = []
  for text in range(peak.shape[1]):
    others = np.delete(peak, text, axis=1).max(axis=1)
    own = set(ranked(peak[:, text])[:count])
    shares.append(len(own & set(ranked(others)[:count])) / count)
  return np.array(shares)


def _same_in_texts(result: Result) -> Claim:
  count = result.numbers["found"]
  peak = result.arrays["peak"].astype(float)
  same = agreement(peak, count)
  return Claim(
    id="same_in_all_texts",
    claim="The experts with the largest outputs are the same in every text.",
    source=SOURCE,
    paper="the same ones whatever the data",
    ours=f"{_percent(result, same)} are those of the other texts",
    effect=_effect(
      result,
      same - 1,
      "share of a text's experts with the largest outputs that have the "
      "largest in the other texts, less one",
      SHARE,
      Expect.NOT_LESS,
    ),
    how=f"the {count} largest of each; {_first_tokens(result)}",
  )


def _series(result: Result, what: str) -> tuple[np.ndarray, ...]:
  """[P] as it is, without the found experts, and without others."""
  at = result.numbers["found"]
  largest, others = (
    result.arrays[f"{what}, {name}"] for name in ("largest", "others")
  )
  if what == "norm":
    layer = result.numbers["layer"]
    largest, others = largest[:, layer], others[:, layer]
  return largest[0], largest[at], others[at]


def _how(result: Result) -> str:
  return (
    f"{_names(result)}; mean over {result.config.draws} draws of others of the "
    "same layers that about as many tokens use; the routing stays"
  )


def _sinks(result: Result) -> Claim:
  plain, without, others = _series(result, "rate")
  head = (
    "ablation_lowers_sinks",
    "Ablating the few experts with the largest outputs lowers the share of "
    "heads with a sink more than ablating as many other experts.",
    SOURCE,
    "sinks collapse; no number that was at hand",
  )
  if not plain.any():
    why = "no head of this model has a sink that could go"
    return Claim(*head, "not measured", None, untested=why)
  return Claim(
    *head,
    ours=f"sink rate {_percent(result, plain)} as it is, "
    f"{_percent(result, without)} without them, {_percent(result, others)} "
    "without others",
    effect=_effect(
      result,
      without - others,
      "sink rate without the experts of the largest outputs, less that without "
      "as many others",
      SHARE,
      Expect.LESS,
    ),
    how=_how(result),
    provided=(
      _effect(
        result,
        without - plain,
        "sink rate without these experts, less that of the unchanged model",
        SHARE,
        Expect.LESS,
      ),
    ),
  )


def _norm(result: Result) -> Claim:
  plain, without, others = map(np.log, _series(result, "norm"))
  ratios = [
    mean_of(by_template(x - plain, result.numbers)) for x in (without, others)
  ]
  return Claim(
    id="ablation_lowers_norm",
    claim="Ablating the few experts with the largest outputs lowers the first "
    "token's norm more than ablating as many other experts.",
    source=SOURCE,
    paper="massive activations vanish; no number that was at hand",
    ours=f"{format_ratio(ratios[0])} the norm without them, "
    f"{format_ratio(ratios[1])} without others",
    effect=_effect(
      result,
      without - others,
      "log norm of the first token without the experts of the largest outputs, "
      "less that without as many others",
      LOG_RATIO,
      Expect.LESS,
    ),
    how=f"after layer {result.numbers['layer']}, where it is largest; "
    f"{_how(result)}",
    provided=(
      _effect(
        result,
        without - plain,
        "log norm of the first token without these experts, less that of the "
        "unchanged model",
        LOG_RATIO,
        Expect.LESS,
      ),
    ),
  )


def _loss(result: Result) -> Claim:
  plain, without, others = _series(result, "loss")
  more = [
    mean_of(by_template(x - plain, result.numbers)).text("+.3f")
    for x in (without, others)
  ]
  return Claim(
    id="ablation_costs_loss",
    claim="Ablating the few experts with the largest outputs costs more loss "
    "than ablating as many other experts.",
    source=SOURCE,
    paper="three of 6,144 experts, and the model repeats itself "
    "(Qwen3-30B-A3B)",
    ours=f"{more[0]} nats without them, {more[1]} without others",
    effect=_effect(
      result,
      without - others,
      "loss without the experts of the largest outputs, less that without as "
      "many others",
      NATS,
      Expect.MORE,
    ),
    how=_how(result),
  )
