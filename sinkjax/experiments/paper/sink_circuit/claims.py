"""What builds the sink, and what later queries see in it."""

import numpy as np

from sinkjax.experiments.harness.api import Claim, Result
from sinkjax.experiments.harness.effects import (
  AUROC,
  COSINE,
  LOG_RATIO,
  SHARE,
  Expect,
  effect,
)
from sinkjax.experiments.harness.stats import format_ratio, mean_of
from sinkjax.experiments.shared.text_batches import by_template

SOURCE = "2503.08908"
PAPER = "no number that was at hand"
NAMED = "neurons 7890 and 10411 of layer 1 (Llama 2 7B)"
HALF = 0.5
"""A few neurons carry the output if they have more than half of it."""


def claims(result: Result) -> list[Claim]:
  """The layer, its neurons, ablation, repeated tokens, scores, gates."""
  return [
    _range(result),
    _few(result),
    _ablated(result),
    _derivative(result),
    _repeated(result),
    _content(result),
    _bias(result),
    _told(result),
    _alone(result),
    _averaged(result),
  ]


def _of(result: Result, name: str) -> np.ndarray:
  return by_template(result.arrays[name], result.numbers)


def _where(result: Result) -> str:
  return f"layer {result.numbers['chosen_layer']}"


def _neurons(result: Result) -> str:
  some = result.numbers["neurons"][: result.numbers["few"]]
  return f"neurons {', '.join(map(str, some))} of {_where(result)}"


def _range(result: Result) -> Claim:
  numbers, layer = result.numbers, result.numbers["chosen_layer"]
  values = np.log(by_template(result.arrays["over"][layer], numbers))
  first = numbers["first_out"]
  shown = "no layer builds it on other texts"
  if first is not None:
    shown = f"the first layer that builds it out of range is {first}"
  deviations = result.config.deviations
  return Claim(
    id="mlp_leaves_range",
    claim="In some layer the first token's MLP output leaves the range of the "
    "other tokens'.",
    source=SOURCE,
    paper="layer 1 (Llama 2 7B)",
    ours=f"in {_where(result)} it has {format_ratio(mean_of(values))} the norm "
    f"at which the range ends; {shown}",
    effect=effect(
      values,
      "norm of the first token's MLP output, over mean + "
      f"{deviations:g} sd of the others",
      LOG_RATIO,
      Expect.MORE,
    ),
    how="the layer chosen on other texts: out of range, and where the residual "
    "stream grows most",
  )


def _few(result: Result) -> Claim:
  values = _of(result, "carried")
  few = result.numbers["few"]
  return Claim(
    id="few_neurons_carry",
    claim="A few neurons carry more than half of the first token's MLP output.",
    source=SOURCE,
    paper=NAMED,
    ours=f"{_neurons(result)} have "
    f"{mean_of(values).scaled(100).text('.1f', ' %')} of its squared norm",
    effect=effect(
      values - HALF,
      f"share of the squared norm that {few} neurons carry, less half",
      SHARE,
      Expect.MORE,
    ),
    how="ranked on other texts by activation times the norm of their output",
  )


def _ablated(result: Result) -> Claim:
  plain, few, random = (
    _of(result, f"rate, ordinary, {name}") for name in ("none", "few", "random")
  )
  shown = [
    mean_of(x).scaled(100).text(".1f", " %") for x in (plain, few, random)
  ]
  loss = _of(result, "loss, ordinary, few") - _of(
    result, "loss, ordinary, none"
  )
  head = (
    "ablation_removes_sink",
    "Without the two neurons that write the first token's MLP output, it is "
    "the sink of less than half as many heads of the later layers.",
    SOURCE,
    NAMED,
  )
  if result.numbers["chosen_layer"] + 1 >= len(result.arrays["over"]):
    why = f"no layer follows {_where(result)}"
    return Claim(*head, "not measured", None, untested=why)
  return Claim(
    *head,
    f"sink rate after {_where(result)}: {shown[0]}, {shown[1]} with "
    f"{_neurons(result)} at zero, {shown[2]} with as many random ones; the "
    f"loss changes by {mean_of(loss).text('+.3f', ' nats')}",
    effect(
      few - plain / 2,
      "sink rate of later layers without the neurons, less half of that of the "
      "unchanged model",
      SHARE,
      Expect.LESS,
    ),
    how="at position 0 alone",
    provided=(
      effect(
        few - random,
        "sink rate without the neurons, less that without random ones",
        SHARE,
        Expect.LESS,
      ),
    ),
  )


def _derivative(result: Result) -> Claim:
  values = _of(result, "agreement")
  falls, slopes = (result.arrays[x].mean(axis=0) for x in ("falls", "slopes"))
  best = int(np.argmax(np.abs(falls)))
  return Claim(
    id="derivative_ranks_neurons",
    claim="The exact derivative of the first token's norm by a neuron ranks "
    "neurons as ablating them one by one does.",
    source="ours",
    paper="no number",
    ours=f"rank correlation {mean_of(values).text('+.2f')} over "
    f"{falls.size} neurons; without neuron "
    f"{result.numbers['neurons'][best]} the norm falls by {falls[best]:,.1f}, "
    f"its derivative says {slopes[best]:,.1f}",
    effect=effect(
      values,
      "rank correlation of derivative and ablation over neurons",
      COSINE,
      Expect.MORE,
    ),
    how="half of the neurons of the greatest output, half random; the norm "
    f"after layer {result.numbers['peak']}",
  )


def _repeated(result: Result) -> Claim:
  ordinary, same = (
    _of(result, f"later, {kind}") for kind in ("ordinary", "repeated")
  )
  # An activation may be exactly zero: 1e-9 is far below any that counts.
  values = np.log(np.maximum(same, 1e-9) / np.maximum(ordinary, 1e-9))
  rows = {
    (row["text"], row["ablated"]): row for row in result.records("ablation.csv")
  }
  norms = [rows["repeated", name]["others"] for name in ("none", "few")]
  return Claim(
    id="repeated_tokens_fire",
    claim="On a repeated token the neurons that build the sink fire at later "
    "positions too.",
    source=SOURCE,
    paper="repeated tokens become sinks (Llama 2, Mistral, Gemma, Pythia)",
    ours=f"mean activation after the first token "
    f"{format_ratio(mean_of(values))} that on ordinary text; the later tokens' "
    f"norm is {norms[0]:,.0f}, without these neurons {norms[1]:,.0f}",
    effect=effect(
      values,
      f"mean |activation| of {_neurons(result)} after position 0 on a repeated "
      "token, over that on ordinary text",
      LOG_RATIO,
      Expect.MORE,
    ),
    how="one token of each text, as long as the text",
  )


def _shown(result: Result) -> str:
  names = ("content", "query_bias", "position", "total")
  parts = [f"{_of(result, f'score, {n}').mean():+.2f}" for n in names]
  content, bias, position, total = parts
  return (
    f"of {total} logits by which the first key exceeds the others, content "
    f"{content}, query bias {bias}, position {position}"
  )


HOW = (
  "key biases add the same to every key of a row, but for rotation, which "
  "counts as position: our reading"
)


def _content(result: Result) -> Claim:
  head = (
    "sink_is_content",
    "Later queries give the first key its score by content rather than by "
    "bias or position.",
    "2603.06591, 2604.14722",
    PAPER,
  )
  if not result.numbers["parts"]:
    why = "scores of this model are no sum of biases and content"
    return Claim(*head, "not measured", None, untested=why)
  content, bias, position = (
    _of(result, f"score, {n}") for n in ("content", "query_bias", "position")
  )
  return Claim(
    *head,
    _shown(result),
    effect(
      content - bias - position,
      "attention odds of the first key by content, over those by query bias "
      "and position",
      LOG_RATIO,
      Expect.MORE,
    ),
    how=f"{result.numbers['sink_heads']} heads with a sink; {HOW}",
    # Where the first key has no higher score than others, nothing gives it one.
    provided=(
      effect(
        _of(result, "score, total"),
        "attention odds of the first key over the others",
        LOG_RATIO,
        Expect.MORE,
      ),
    ),
  )


def _bias(result: Result) -> Claim:
  head = (
    "sink_is_query_bias",
    "The query's bias gives the first key a higher score than other keys.",
    "2603.06591, 2604.14722",
    PAPER,
  )
  if not (result.numbers["parts"] and result.numbers["biases"]):
    why = "queries of this model have no bias"
    return Claim(*head, "not measured", None, untested=why)
  return Claim(
    *head,
    _shown(result),
    effect(
      _of(result, "score, query_bias"),
      "attention odds that the query's bias gives the first key over others",
      LOG_RATIO,
      Expect.MORE,
    ),
    how=HOW,
  )


def _gates(result: Result) -> str:
  return (
    f"{len(result.tables['gates.csv'][1])} gates of layer "
    f"{result.config.gates_layer}"
  )


def _told(result: Result) -> Claim:
  values = _of(result, "gates, told")
  best = result.records("gates.csv")[0]
  return Claim(
    id="gates_tell_first",
    claim="Gates of the first layer tell the first token from the others.",
    source=SOURCE,
    paper=PAPER,
    ours=f"{_gates(result)}, averaged, are higher at the first token than at "
    f"{mean_of(values).scaled(100).text('.1f', ' %')} of the others; the best "
    f"gate, {best['gate']}, at {100 * best['auroc_on_other_texts']:.1f} %",
    effect=effect(
      values - HALF,
      "share of a text's other tokens above which the first token's gates are, "
      "less half",
      AUROC,
      Expect.MORE,
    ),
    how="gates chosen on other texts by their distance from the other tokens' "
    "mean, in standard deviations",
  )


def _moved(result: Result, case: str) -> np.ndarray:
  """[P] how far the token is taken for the first; 1 at the first's own score.

  Over the mean distance of all texts: in a single text the two may be close.
  """
  token, first = (_of(result, f"gates, {x}") for x in ("token", "first"))
  return (_of(result, f"gates, {case}") - token) / (first - token).mean()


def _shares(values: np.ndarray) -> str:
  return mean_of(values).scaled(100).text("+.1f", " %")


def _alone(result: Result) -> Claim:
  alone, index = (_moved(result, x) for x in ("token alone", "token indexed"))
  return Claim(
    id="first_by_lack_of_mixing",
    claim="Gates of the first layer take a token for the first if it sees "
    "itself alone, rather than if it has the first one's position index.",
    source=SOURCE,
    paper=PAPER,
    ours=f"of its distance from the first token, the token at "
    f"{result.config.at} crosses {_shares(alone)} if it sees itself alone in "
    f"layer {result.config.gates_layer}, {_shares(index)} with the index of "
    "the first",
    effect=effect(
      alone - index,
      "share of the distance in gates from the first token that a token "
      "crosses if it sees itself alone, less that with the first one's index",
      SHARE,
      Expect.MORE,
    ),
    how="where positions rotate keys and queries, a token that sees itself "
    "alone is computed as if it stood first",
    provided=(
      effect(
        alone - HALF,
        "share of the distance that it crosses if it sees itself alone, less "
        "half",
        SHARE,
        Expect.MORE,
      ),
    ),
  )


def _averaged(result: Result) -> Claim:
  first, others, now = (
    _of(result, f"gates, {x}") for x in ("first", "others", "first averaged")
  )
  left = (now - others) / (first - others).mean()
  return Claim(
    id="mixing_hides_first",
    claim="Gates of the first layer no longer tell the first token once "
    "attention gives it what it gives other tokens on average.",
    source=SOURCE,
    paper=PAPER,
    ours=f"{_shares(left)} of its distance from the other tokens is left",
    effect=effect(
      left - HALF,
      "share of the first token's distance in gates from the others that is "
      "left with the others' mean attention output, less half",
      SHARE,
      Expect.LESS,
    ),
    how=f"the output of the attention of layer {result.config.gates_layer}, "
    "its mean over the other tokens of other texts",
  )
