"""What gates are worth, and what heads of low gates are."""

import numpy as np

from sinkjax.experiments.applications.streaming_heads.experiment import (
  ALL,
  FULL,
  Order,
)
from sinkjax.experiments.applications.streaming_heads.memory import Cached
from sinkjax.experiments.harness.api import Claim, Result
from sinkjax.experiments.harness.effects import (
  NATS,
  RANKS,
  SHARE,
  Effect,
  Expect,
  effect,
)
from sinkjax.experiments.harness.stats import mean_of, rank_correlation

SOURCE = "2410.10819"
PAPER = "25 % of heads stay full (Llama 2 7B), 50 % (Llama 3 8B)"


def claims(result: Result) -> list[Claim]:
  """Three on answers, three on what heads are, and one on memory."""
  return [
    _kept(result),
    _over(
      result,
      "gates_over_random",
      "Closing the heads of the lowest learned gates costs answers less than "
      "closing as many at random.",
      Order.RANDOM,
    ),
    _over(
      result,
      "gates_over_sinks",
      "Closing the heads of the lowest learned gates costs answers less than "
      "closing those that attend to the sink most.",
      Order.SINK,
    ),
    _heads(
      result,
      "streaming_heads_are_sink_heads",
      "Heads of low learned gates attend to the sink more than others.",
      "sink",
      Expect.LESS,
      "attention on position 0",
    ),
    _heads(
      result,
      "streaming_heads_read_little",
      "Heads of low learned gates have smaller values at the sink than others.",
      "value",
      Expect.MORE,
      "the norm of the sink's value over that of others",
    ),
    _heads(
      result,
      "streaming_heads_reach_less",
      "Heads of low learned gates attend less to tokens beyond the window than "
      "others.",
      "reach",
      Expect.MORE,
      "attention beyond the sinks and the window",
    ),
    *on_caches(result),
  ]


def _nats(result: Result, order: Order | str) -> np.ndarray:
  name = order
  if isinstance(order, Order):
    name = f"{order}, {result.config.share:g}"
  return result.arrays[f"nats, {name}"]


def _found(result: Result, name: str) -> str:
  values = result.arrays[f"found, {name}"]
  return mean_of(values).scaled(100).text(".0f", " %")


def _closed(result: Result) -> str:
  return f"{100 * result.config.share:g} % of KV heads closed"


def _how(result: Result) -> str:
  config = result.config
  return (
    f"closed heads see {config.sinks} first tokens and {config.window} last; "
    "nats of the right password among all of the text; gates of one training "
    "on other haystacks"
  )


def _kept(result: Result) -> Claim:
  values = _nats(result, Order.GATE) - _nats(result, FULL)
  name = f"{Order.GATE}, {result.config.share:g}"
  return Claim(
    id="half_can_stream",
    claim="With half of the KV heads streaming, those of the lowest learned "
    "gates, answers are no worse.",
    source=SOURCE,
    paper=PAPER,
    ours=f"{100 * result.numbers['full']:.0f} % of "
    f"{result.numbers['heads']} gates stay above 0.5; with {_closed(result)} "
    f"{_found(result, name)} of needles are found, all full "
    f"{_found(result, FULL)}, all closed {_found(result, ALL)}; "
    f"{mean_of(values).text('+.3f', ' nats')} an answer",
    effect=effect(
      values,
      f"nats of an answer with {_closed(result)}, less those of the unchanged "
      "model",
      NATS,
      Expect.NOT_MORE,
      per="haystack",
    ),
    how=_how(result),
    # Where nothing is found, or nothing is lost by all, nothing is kept.
    provided=(
      effect(
        result.arrays[f"found, {FULL}"] - 1 / result.config.needles,
        "share of needles that the unchanged model finds, less chance",
        SHARE,
        Expect.MORE,
        per="haystack",
      ),
      effect(
        _nats(result, ALL) - _nats(result, FULL),
        "nats of an answer with all KV heads closed, less those of the "
        "unchanged model",
        NATS,
        Expect.MORE,
        per="haystack",
      ),
    ),
  )


def _over(result: Result, id: str, sentence: str, other: Order) -> Claim:
  values = _nats(result, other) - _nats(result, Order.GATE)
  shown = [
    mean_of(_nats(result, x) - _nats(result, FULL)).text("+.3f", " nats")
    for x in (Order.GATE, other)
  ]
  return Claim(
    id,
    sentence,
    SOURCE,
    "no number that was at hand",
    f"{shown[0]} by {Order.GATE}, {shown[1]} by {other}",
    effect(
      values,
      f"nats of an answer with heads closed by {other}, less those by "
      f"{Order.GATE}",
      NATS,
      Expect.MORE,
      per="haystack",
    ),
    how=f"{_closed(result)}; {_how(result)}",
  )


def _heads(
  result: Result, id: str, sentence: str, name: str, expect: Expect, what: str
) -> Claim:
  gate = result.arrays["gate"]
  seen = result.arrays[name].reshape(-1, gate.size)
  if np.ptp(gate) == 0:
    return Claim(
      id,
      sentence,
      "ours",
      "no number",
      "not measured",
      None,
      untested="all gates are equal",
    )
  gates = np.broadcast_to(gate.ravel(), seen.shape)
  values = np.nan_to_num(rank_correlation(gates, seen))
  return Claim(
    id,
    sentence,
    "ours",
    "no number",
    f"rank correlation {mean_of(values).text('+.3f')} over {gate.size} KV "
    "heads",
    effect(
      values,
      f"rank correlation, over KV heads, of the gate and {what}",
      RANKS,
      expect,
      per="haystack",
    ),
    how="within each haystack; gates of one training",
  )


def on_caches(result: Result) -> list[Claim]:
  """The claim on caches; none where a file was recorded before they were."""
  sizes = result.numbers.get("memory")
  if sizes is None:
    return []
  text = (
    "by_head_finds_more",
    "At equal memory, full attention in the KV heads of the highest gates "
    "finds more needles than first tokens and a window in all heads.",
    SOURCE,
    "no number that was at hand",
  )
  if sizes["refused"]:
    untested = f"a cache of the comparison refuses: {sizes['refused']}"
    return [Claim(*text, "not measured", None, untested=untested)]
  mine = result.arrays[f"found, {Cached.HEADS}"]
  shown = [f"{_found(result, name)} {name}" for name in Cached]

  def more(other: Cached, what: str) -> Effect:
    return effect(
      mine - result.arrays[f"found, {other}"],
      "share of needles found with full caches in the heads of the highest "
      f"gates, less that with {what}",
      SHARE,
      Expect.MORE,
      per="haystack",
    )

  config, heads = result.config, result.numbers["heads"]
  return [
    Claim(
      *text,
      f"{'; '.join(shown)}; all full {_found(result, FULL)}",
      more(Cached.SINKS, "first tokens and a window in all heads"),
      how=f"{sizes['full']} of {heads} KV heads keep up to "
      f"{sizes['capacity']} tokens and the others {config.sinks} first and "
      f"{config.window} last; against {sizes['each']} tokens in all heads, "
      "rounded up and without what a chunk or a score takes; questions are "
      "asked one by one behind the text",
      # Not any heads will do.
      provided=(more(Cached.RANDOM, "as many heads at random"),),
    )
  ]
