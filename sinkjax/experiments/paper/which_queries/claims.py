"""Which queries attend to the sink, and what the loss says without it."""

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
from sinkjax.experiments.paper.which_queries.experiment import (
  FIRST,
  Hidden,
  Kind,
  of_units,
)
from sinkjax.experiments.shared.text_batches import by_template

SOURCE = "2609.08574"

SENTENCES = {
  Kind.SURPRISING: (
    "surprising_less_sink",
    "Tokens that the model did not expect give the first token less attention "
    "than others.",
    Expect.LESS,
  ),
  Kind.COPYABLE: (
    "copyable_less_sink",
    "Tokens that end a bigram which occurred before give the first token less "
    "attention than others.",
    Expect.LESS,
  ),
  Kind.WORD: (
    "word_start_more_sink",
    "Tokens that begin a word give the first token more attention than others.",
    Expect.MORE,
  ),
  Kind.PUNCTUATION: (
    "punctuation_more_sink",
    "Punctuation gives the first token more attention than other tokens.",
    Expect.MORE,
  ),
}
"""Identifier, sentence and expectation by kind, fixed before any run: heads
that find something to do leave the sink."""


def claims(result: Result) -> list[Claim]:
  """One claim a kind, then three on the loss without position 0."""
  return [_kind(result, kind) for kind in Kind] + [
    _answer(result),
    _equivalent(result),
    _vanishes(result),
    _after_start(result),
  ]


def _kind(result: Result, kind: Kind) -> Claim:
  id, sentence, expect = SENTENCES[kind]
  head = (id, sentence, SOURCE, "no number that was at hand")
  arrays, templates = result.arrays, result.numbers["templates"]
  values = of_units(
    arrays[f"matched, {kind}"], arrays[f"matched in, {kind}"], templates
  )
  if len(values) < 2:
    why = f"fewer than two texts have {kind} queries beside others"
    return Claim(*head, "not measured", None, untested=why)
  return Claim(
    *head,
    f"{format_ratio(mean_of(values))} the attention of other queries at equal "
    f"positions; {arrays[f'ratio, {kind}'].mean():.1f} times even attention, "
    f"all queries {arrays['ratio, all'].mean():.1f} times",
    effect(
      values,
      f"attention on the first token of {kind} queries, over that of others "
      f"within {result.config.width} positions",
      LOG_RATIO,
      expect,
    ),
    how=f"mean over layers and heads; queries from position {FIRST} on",
  )


def _answer(result: Result) -> Claim:
  head = (
    "answer_less_sink",
    "The token that an answer from the text follows gives the first token less "
    "attention than the same token of a question without an answer.",
    SOURCE,
    "no number that was at hand",
  )
  tokens = result.config.haystack_tokens
  if not result.numbers["haystacks"]:
    why = f"the model's context is shorter than the haystacks of {tokens}"
    return Claim(*head, "not measured", None, untested=why)
  answered, unanswered = (
    result.arrays[name].mean(axis=1) for name in ("answered", "unanswered")
  )
  values = np.log(answered / unanswered)
  return Claim(
    *head,
    f"{format_ratio(mean_of(values))} the attention at the end of questions "
    f"without an answer; {answered.mean():.1f} and {unanswered.mean():.1f} "
    "times even attention",
    effect(
      values,
      "attention on the first token from the last token of a question that the "
      "text answers, over that of questions that it does not",
      LOG_RATIO,
      Expect.LESS,
      per="haystack",
    ),
    how=f"passwords of places in texts of {tokens} tokens; places that are not "
    "in the text as the control; mean over layers and heads",
  )


def _change(result: Result, hidden: Hidden, part: slice) -> np.ndarray:
  """[n] nats a token by which a hidden position raises the loss."""
  nats = result.arrays
  change = nats[f"nats, {hidden}"] - nats[f"nats, {Hidden.NOTHING}"]
  values = change[:, part].astype(float).mean(axis=1)
  return by_template(values, {"templates": result.numbers["long_templates"]})


def _up_to(tokens: int) -> slice:
  """The losses of a text's first tokens, of which the first has none."""
  return slice(0, tokens - 1)


def _same(values: np.ndarray, what: str) -> Effect:
  return effect(
    values,
    f"{what} with position 0 hidden at every layer, less that of the unchanged "
    "model",
    NATS,
    Expect.SAME,
  )


def _equivalent(result: Result) -> Claim:
  longest = max(result.numbers["lengths"])
  first, other = (
    _change(result, which, _up_to(longest))
    for which in (Hidden.FIRST, Hidden.NEXT)
  )
  return Claim(
    id="loss_same_without_first",
    claim="With position 0 hidden at every layer from the start, the loss of a "
    "long text stays the same.",
    source=SOURCE,
    paper="2.557866 to 2.557901 nats, 16 texts of 2,048 tokens "
    "(Qwen3-0.6B-Base)",
    ours=f"at {longest} tokens the loss changes by "
    f"{mean_of(first).text('+.4f', ' nats')}, with position 1 hidden by "
    f"{mean_of(other).text('+.4f', ' nats')}",
    effect=_same(first, f"mean loss of {longest} tokens"),
    how="position 0 sees itself; all later tokens count",
  )


def _vanishes(result: Result) -> Claim:
  lengths = result.numbers["lengths"]
  head = (
    "cost_falls_with_length",
    "What hiding position 0 at every layer costs a token falls as the text "
    "grows.",
    "ours",
    "no number",
  )
  if len(lengths) < 2:
    why = "the texts or the model's context allow one length only"
    return Claim(*head, "not measured", None, untested=why)
  changes = [_change(result, Hidden.FIRST, _up_to(n)) for n in lengths]
  shown = ", ".join(
    f"{values.mean():+.3f} at {n}"
    for n, values in zip(lengths, changes, strict=True)
  )
  return Claim(
    *head,
    f"nats a token: {shown}",
    effect(
      changes[0] - changes[-1],
      f"what hiding position 0 adds to the loss of {lengths[0]} tokens, less "
      f"what it adds to that of {lengths[-1]}",
      NATS,
      Expect.MORE,
    ),
    how="the same texts, cut",
  )


def _after_start(result: Result) -> Claim:
  longest = max(result.numbers["lengths"])
  late = _change(result, Hidden.FIRST, slice(FIRST - 1, longest - 1))
  early = _change(result, Hidden.FIRST, _up_to(FIRST))
  return Claim(
    id="cost_is_at_the_start",
    claim="Hiding position 0 at every layer leaves the loss of all but the "
    "first tokens the same.",
    source="ours",
    paper="no number",
    ours=f"from position {FIRST} on the loss changes by "
    f"{mean_of(late).text('+.4f', ' nats')}, before by "
    f"{mean_of(early).text('+.3f', ' nats')}",
    effect=_same(late, f"mean loss from position {FIRST} on"),
    how=f"texts of {longest} tokens",
  )
