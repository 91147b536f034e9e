"""What the experiment `streaming` says of the claims of StreamingLLM."""

import dataclasses

import numpy as np

from sinkjax.experiments.applications.streaming.config import (
  DENSE,
  KEPT,
  RECOMPUTE,
  Config,
  Pair,
  Run,
  Times,
  compare,
  fresh,
)
from sinkjax.experiments.harness.api import (
  AGREES,
  DISAGREES,
  UNDECIDED,
  UNTESTED,
  Claim,
  direction,
)
from sinkjax.experiments.harness.stats import mean_over

FAILS = float(np.log(2))
"""Nats from which a cache has failed: the perplexity doubles."""
MORE = 0.02
"""Nats, 2 % of perplexity: what is less is the same."""
LIKE = 0.05
"""Nats, 5 % of perplexity: what is less is comparable."""

END = 4
"""Blocks at the end of what is dense, told apart: failing may take a while."""

XIAO = "2309.17453"
BOOK = "Llama-2-13B on PG19's first book, perplexity"


def claims(config: Config, found, long, times: Times, context: int):
  """Eight of them, by 95 % intervals over blocks of text or rounds.

  Args:
    config: of the experiment.
    found: its losses.
    long: those over the whole text, by first tokens kept.
    times: what a token takes.
    context: tokens of the text that fit the model's context.
  """
  total, rest = config.total, config.total - KEPT
  four = f"{KEPT} first and {rest}"
  alone = compare(long[0], long[KEPT], config, total)
  needed = alone is None or alone.gap.low > 0
  return [
    _more_than(
      "With the window alone the loss explodes once the first tokens are gone.",
      f"{BOOK} 5158 (0 + 1024) against 5.40 (4 + 1020)",
      (f"{total} alone", four),
      alone,
      FAILS,
    ),
    _where(
      needed,
      _at_most(
        "Four first tokens suffice.",
        "perplexity with 4 and 8: Llama-2-7B 9.59, 9.54; MPT-7B 14.99, 14.98; "
        "Falcon-7B 12.12, 12.12; Pythia-12B 12.09, 12.02",
        (four, f"8 first and {total - 8}"),
        compare(long[KEPT], long[8], config, total),
        MORE,
      ),
    ),
    _more_than(
      "One first token is not enough.",
      "perplexity with 1 and 4: Llama-2-7B 11.88, 9.59; but MPT-7B 14.99, "
      "14.99; Falcon-7B 12.12, 12.12; Pythia-12B 11.95, 12.09",
      (f"1 first and {total - 1}", four),
      compare(long[1], long[KEPT], config, total),
      MORE,
    ),
    _past_context(config, found[DENSE], long[KEPT], four, context),
    _at_most(
      "First tokens and a window are as good as the window computed anew.",
      f"{BOOK} 5.40 against 5.43",
      (four, f"{total} anew"),
      compare(long[KEPT], found[RECOMPUTE], config, total),
      LIKE,
    ),
    _stable(config, found, long[KEPT]),
    *(_where(needed, x) for x in _newlines(config, found, long[KEPT])),
    _faster(times),
  ]


def _where(needed: bool, claim: Claim) -> Claim:
  """No test of what first tokens do where the window needs none."""
  if needed:
    return claim
  return dataclasses.replace(
    claim, verdict=UNTESTED, why="the window alone does as well here"
  )


def _ours(pair: Pair, names: tuple[str, str]) -> str:
  first, second = np.exp([pair.first, pair.second])
  return (
    f"perplexity {first:.4g} ({names[0]}) against {second:.4g} ({names[1]}) "
    f"on {pair.tokens} tokens, {pair.gap.text('+.3f')} nats"
  )


def _claim(sentence, paper, names, pair, verdict, why) -> Claim:
  if pair is None:
    return Claim(
      sentence,
      XIAO,
      paper,
      "not measured",
      UNTESTED,
      "fewer than two blocks of text in this config",
    )
  return Claim(sentence, XIAO, paper, _ours(pair, names), verdict, why)


def _more_than(sentence, paper, names, pair, limit) -> Claim:
  verdict = pair and direction(pair.gap.low - limit, pair.gap.high - limit)
  return _claim(
    sentence,
    paper,
    names,
    pair,
    verdict,
    f"agrees if the whole interval has the first above the second by more than "
    f"{limit:.2g} nats, {_percent(limit)} of perplexity; over {_blocks(pair)} "
    "blocks",
  )


def _at_most(sentence, paper, names, pair, limit) -> Claim:
  verdict = pair and direction(limit - pair.gap.high, limit - pair.gap.low)
  return _claim(
    sentence,
    paper,
    names,
    pair,
    verdict,
    f"agrees if the whole interval has the first above the second by less than "
    f"{limit:.2g} nats, {_percent(limit)} of perplexity; over {_blocks(pair)} "
    "blocks",
  )


def _percent(nats: float) -> str:
  return f"{100 * np.expm1(nats):.0f} %"


def _blocks(pair: Pair | None) -> int:
  return 0 if pair is None else pair.gap.groups


def _past_context(config: Config, dense, stream, four, context) -> Claim:
  """Failing may take a while: the last blocks decide, where they are past."""
  low = max(context, config.dense - END * config.block)
  claim = _more_than(
    "With everything kept the loss explodes past the context of training.",
    f"{BOOK} 5641 against 5.40 (4 + 1020)",
    (f"everything, after {low}", four),
    compare(dense, stream, config, low),
    FAILS,
  )
  whole = compare(dense, stream, config, context)
  if claim.verdict == UNTESTED or low == context:
    return claim
  return dataclasses.replace(
    claim,
    ours=f"{claim.ours}; on all {whole.tokens} after {context} "
    + whole.gap.text("+.3f", " nats"),
    why=f"{claim.why}, the last of {config.dense} tokens: as far as it was "
    "tried",
  )


def _stable(config: Config, found, stream) -> Claim:
  """The end of the text, and the same as if it began there."""
  one = fresh(config)
  return _at_most(
    "The loss stays what it was, however long the text.",
    "no change over 4 million tokens",
    (f"after {one.begin} tokens", "the same text begun there"),
    compare(stream, found[one], config, one.begin + config.total),
    MORE,
  )


def _newlines(config: Config, found, stream) -> list[Claim]:
  """Four newlines in place of the text's own first tokens."""
  if "\n" not in config.starts:
    return []
  one = Run(KEPT, config.total, config.fewer, "\n")
  return [
    _at_most(
      "Four newlines in place of the first tokens do as well.",
      f"{BOOK} 5.60 (newlines) against 5.40",
      (f"{KEPT} newlines", "the text's own"),
      compare(found[one], stream, config, config.total),
      LIKE,
    )
  ]


def _faster(times: Times) -> Claim:
  """How often longer a token takes when its window is computed anew."""
  ratios = times.anew / times.cached
  rounds = range(ratios.shape[1])
  told = ", ".join(
    f"{mean_over(one, rounds).text('.3g')} at {total}"
    for total, one in zip(times.totals, ratios, strict=True)
  )
  least = mean_over(ratios.min(axis=0), rounds)
  grows = mean_over(ratios[-1] - ratios[0], rounds)
  verdicts = {direction(least.low - 1, least.high - 1)}
  if len(times.totals) > 1:
    verdicts.add(direction(grows.low, grows.high))
  verdict = UNDECIDED
  if DISAGREES in verdicts:
    verdict = DISAGREES
  elif verdicts == {AGREES}:
    verdict = AGREES
  return Claim(
    "A token takes less time than with its window computed anew, the more so "
    "the larger the cache.",
    XIAO,
    "up to 22.2 times (7B and 13B on one GPU, up to 4096 kept)",
    f"times as long anew: {told}",
    verdict,
    "agrees if all are above 1 and the largest cache gains more than the "
    "smallest; over interleaved rounds, on this machine's processor",
  )
