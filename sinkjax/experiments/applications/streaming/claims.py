"""The claims of StreamingLLM (arXiv 2309.17453)."""

import dataclasses

import numpy as np

from sinkjax.experiments.applications.streaming.config import (
  KEPT,
  dense_end,
  fresh,
)
from sinkjax.experiments.applications.streaming.pairs import (
  Compared,
  gap_of,
  pairs_of,
)
from sinkjax.experiments.harness.api import Claim, Result
from sinkjax.experiments.harness.effects import (
  LOG_RATIO,
  NATS,
  Effect,
  Expect,
  effect,
)
from sinkjax.experiments.harness.stats import mean_of

FAILS = float(np.log(2))
"""Nats from which a cache has failed: the perplexity doubles."""

LIKE = 0.05
"""Margin in nats, 5 % of perplexity, within which another way counts as
comparable: the 4 % of the paper's newlines do."""

XIAO = "2309.17453"
BOOK = "Llama-2-13B on PG19's first book, perplexity"


def claims(result: Result) -> list[Claim]:
  """Eight of them, over blocks of the text or rounds of timing."""
  pairs = pairs_of(result)
  found = [
    _window_alone(result, pairs),
    _four_suffice(result, pairs),
    _one_not_enough(result, pairs),
    _past_context(result, pairs),
    _as_recomputed(result, pairs),
    _stable(result, pairs),
  ]
  if "\n" in result.config.starts:
    found.append(_newlines(result, pairs))
  return [*found, _faster(result)]


def _compared(
  result: Result,
  pairs: dict[str, Compared | None],
  of: str,
  text: tuple[str, str, str],
  names: tuple[str, str],
  expect: Expect,
  *,
  limit: float = 0.0,
  margin: float | None = None,
  how: str = "",
  provided: tuple[Effect, ...] = (),
) -> Claim:
  """A claim on the difference of two losses.

  Args:
    result: what was measured.
    pairs: of `pairs_of`.
    of: the name of the comparison.
    text: the claim's id, its sentence, and what is reported there.
    names: of the two ways, in words.
    expect: of the first loss less the second and the limit.
    limit: nats that the difference is compared with.
    margin: of equivalence, where it is not that of `NATS`.
    how: the values were made.
    provided: conditions.
  """
  id, claim, paper = text
  if of not in pairs:
    why = "this file was recorded before the comparison was kept; run it again"
    return Claim(id, claim, XIAO, paper, "not kept", None, untested=why)
  pair = pairs[of]
  if pair is None:
    why = "fewer than two blocks of text in this config"
    return Claim(id, claim, XIAO, paper, "not measured", None, untested=why)
  first, second = np.exp([pair.first, pair.second])
  what = f"the loss {names[0]} less that {names[1]}"
  if limit:
    what += f" and less {limit:.3f} nats, a doubled perplexity"
  made = effect(
    gap_of(result, pair.gap, of, limit),
    what,
    NATS,
    expect,
    per="text block",
    margin=margin,
  )
  blocks = f"blocks of {result.config.block} tokens of one text"
  return Claim(
    id,
    claim,
    XIAO,
    paper,
    f"perplexity {first:.4g} {names[0]} against {second:.4g} {names[1]} on "
    f"{pair.tokens} tokens, {pair.gap.text('+.3f')} nats",
    made,
    how=f"{blocks}; {how}" if how else blocks,
    provided=provided,
  )


def _four(result: Result) -> str:
  total = result.config.total
  return f"with {KEPT} first tokens and a window of {total - KEPT}"


def _needed(
  result: Result, pairs: dict[str, Compared | None]
) -> tuple[Effect, ...]:
  """That first tokens are needed at all, else nothing shows that four do."""
  alone = pairs.get("window_alone")
  if alone is None:
    return ()
  what = f"the loss with the window alone less that {_four(result)}"
  gap = gap_of(result, alone.gap, "window_alone")
  return (effect(gap, what, NATS, Expect.MORE, per="text block"),)


def _window_alone(result: Result, pairs: dict[str, Compared | None]) -> Claim:
  return _compared(
    result,
    pairs,
    "window_alone",
    (
      "window_alone",
      "A window without the text's first tokens more than doubles the "
      "perplexity.",
      f"{BOOK} 5158 (0 + 1024) against 5.40 (4 + 1020)",
    ),
    (f"with a window of {result.config.total}", _four(result)),
    Expect.MORE,
    limit=FAILS,
  )


def _four_suffice(result: Result, pairs: dict[str, Compared | None]) -> Claim:
  return _compared(
    result,
    pairs,
    "four_first",
    (
      "four_suffice",
      "With four first tokens beside the window, the loss is at most "
      f"{NATS.margin:g} nats higher than with eight.",
      "perplexity with 4 and 8: Llama-2-7B 9.59, 9.54; MPT-7B 14.99, 14.98; "
      "Falcon-7B 12.12, 12.12; Pythia-12B 12.09, 12.02",
    ),
    (_four(result), f"with 8 and {result.config.total - 8}"),
    Expect.NOT_MORE,
    provided=_needed(result, pairs),
  )


def _one_not_enough(result: Result, pairs: dict[str, Compared | None]) -> Claim:
  window = result.config.total - 1
  return _compared(
    result,
    pairs,
    "one_first",
    (
      "one_not_enough",
      "With one first token beside the window, the loss is higher than with "
      "four.",
      "perplexity with 1 and 4: Llama-2-7B 11.88, 9.59; but MPT-7B 14.99, "
      "14.99; Falcon-7B 12.12, 12.12; Pythia-12B 11.95, 12.09",
    ),
    (f"with 1 first token and a window of {window}", _four(result)),
    Expect.MORE,
  )


def _past_context(result: Result, pairs: dict[str, Compared | None]) -> Claim:
  """Failing may take a while: the last blocks decide, where they are past."""
  config, numbers = result.config, result.numbers
  context = numbers["context"] - len(numbers["prefix"])
  low = dense_end(config, context)
  how = ""
  if low != context:
    how = f"the last of the {config.dense} tokens that were tried"
  claim = _compared(
    result,
    pairs,
    "dense_end",
    (
      "past_context",
      "With every token kept, the perplexity more than doubles past the "
      "context of training.",
      f"{BOOK} 5641 against 5.40 (4 + 1020)",
    ),
    (f"with every token kept, after {low} tokens,", _four(result)),
    Expect.MORE,
    limit=FAILS,
    how=how,
  )
  if claim.effect is None or low == context:
    return claim
  whole = pairs["dense"]
  gap = whole.gap.text("+.3f", " nats")
  more = f"{claim.ours}; on all {whole.tokens} after {context} {gap}"
  return dataclasses.replace(claim, ours=more)


def _as_recomputed(result: Result, pairs: dict[str, Compared | None]) -> Claim:
  return _compared(
    result,
    pairs,
    "recomputed",
    (
      "as_recomputed",
      f"With first tokens and a window, the loss is at most {LIKE:g} nats "
      "higher than with the window recomputed for every token.",
      f"{BOOK} 5.40 against 5.43",
    ),
    (_four(result), f"with the last {result.config.total} recomputed"),
    Expect.NOT_MORE,
    margin=LIKE,
    how="at a sample of the tokens, one in each of as many equal parts",
  )


def _stable(result: Result, pairs: dict[str, Compared | None]) -> Claim:
  """The end of the text, and the same as if it began there."""
  begin = fresh(result.config).begin
  return _compared(
    result,
    pairs,
    "fresh",
    (
      "stable",
      "With first tokens and a window, the loss grows by less than "
      f"{NATS.margin:g} nats with the length of the text.",
      "no change over 4 million tokens",
    ),
    (f"after {begin} tokens", "with the text begun there"),
    Expect.NOT_MORE,
  )


def _newlines(result: Result, pairs: dict[str, Compared | None]) -> Claim:
  return _compared(
    result,
    pairs,
    "newlines",
    (
      "newlines",
      "With four newlines kept in place of the text's first tokens, the loss "
      f"is at most {LIKE:g} nats higher.",
      f"{BOOK} 5.60 (newlines) against 5.40",
    ),
    (f"with {KEPT} newlines kept", "with the text's own first tokens"),
    Expect.NOT_MORE,
    margin=LIKE,
    provided=_needed(result, pairs),
  )


def _faster(result: Result) -> Claim:
  """How often longer a token takes when its window is computed anew."""
  ratios = result.arrays["seconds_anew"] / result.arrays["seconds_cached"]
  totals = result.numbers["totals"]
  each = ", ".join(
    f"{mean_of(one).text('.3g')} with {total}"
    for total, one in zip(totals, ratios, strict=True)
  )
  # Ratios within a round: what slows the machine slows both.
  logs, per = np.log(ratios), "timing round"
  least = effect(
    logs.min(axis=0),
    "the time of recomputing over that of the cache, the least ratio of any "
    "size in a round",
    LOG_RATIO,
    Expect.MORE,
    per=per,
  )
  grows = effect(
    logs[-1] - logs[0],
    f"the ratio with {totals[-1]} tokens over the ratio with {totals[0]}",
    LOG_RATIO,
    Expect.MORE,
    per=per,
  )
  return Claim(
    "faster",
    "A token from the cache takes less time than recomputing its window, and "
    "the gain grows with the size of the cache.",
    XIAO,
    "up to 22.2 times (7B and 13B on one GPU, up to 4096 kept)",
    f"recomputing takes this many times as long, by tokens kept: {each}",
    least,
    how="interleaved rounds on this machine's processor",
    provided=(grows,) if len(totals) > 1 else (),
  )
