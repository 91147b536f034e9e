"""The claims of StreamingLLM (arXiv 2309.17453)."""

import dataclasses
from typing import Any, NamedTuple

import numpy as np

from sinkjax.experiments.applications.streaming.config import (
  KEPT,
  dense_end,
  fresh,
)
from sinkjax.experiments.applications.streaming.tables import (
  fresh_name,
  start_name,
)
from sinkjax.experiments.harness.api import (
  AGREES,
  DISAGREES,
  UNDECIDED,
  UNTESTED,
  Claim,
  Result,
  direction,
)
from sinkjax.experiments.harness.stats import Mean, mean_of

FAILS = float(np.log(2))
"""Nats from which a cache has failed: the perplexity doubles."""

SAME = 0.02
"""Equivalence margin in nats, 2 % of perplexity: about four times the 0.5 % by
which four first tokens and eight differ in the paper."""

LIKE = 0.05
"""Margin in nats, 5 % of perplexity, within which another way counts as
comparable: the 4 % of the paper's newlines do."""

XIAO = "2309.17453"
BOOK = "Llama-2-13B on PG19's first book, perplexity"


class Compared(NamedTuple):
  """Two ways to see the same tokens, as the files hold them."""

  gap: Mean
  first: float
  second: float
  tokens: int


def claims(result: Result) -> list[Claim]:
  """Eight of them, by 95 % intervals over blocks of text or rounds."""
  total = result.config.total
  four = f"with {KEPT} first tokens and a window of {total - KEPT}"
  pairs = pairs_of(result)
  alone = pairs.get("window_alone")
  # A model that needs no first tokens cannot show that four of them do.
  needed = alone is None or alone.gap.low > 0
  said = [
    _window_alone(pairs, total, four),
    _four_suffice(pairs, total, four),
    _one_not_enough(pairs, total, four),
    _past_context(result, pairs, four),
    _as_recomputed(pairs, total, four),
    _stable(result, pairs),
  ]
  if "\n" in result.config.starts:
    said.append(_newlines(pairs))
  # Nothing tests what first tokens do where the window does without them.
  said = [
    dataclasses.replace(
      x, verdict=UNTESTED, why="the window alone does as well here"
    )
    if x.id in ("four_suffice", "newlines") and not needed
    else x
    for x in said
  ]
  return [*said, _faster(result)]


def pairs_of(result: Result) -> dict[str, Compared | None]:
  """The comparisons by name; `None` for fewer than two blocks of text.

  Files recorded before they were kept have most of them in their tables.
  """
  stored = result.numbers.get("pairs")
  if stored is None:
    return _pairs_of_tables(result)
  return {
    name: None
    if one is None
    else Compared(**one | {"gap": Mean.read(one["gap"])})
    for name, one in stored.items()
  }


def _pairs_of_tables(result: Result) -> dict[str, Compared | None]:
  config = result.config
  whole = {
    row["first"]: row
    for row in result.records("sinks.csv")
    if (row["total"], row["to"]) == (config.total, config.tokens)
  }
  own = whole[KEPT]["loss"]

  def above(sinks: int) -> Compared:
    row = whole[sinks]
    ends = [row[f"above_{x}"] for x in ("kept", "low", "high")]
    return _pair(config.block, row, row["loss"], own, ends)

  found = {
    "window_alone": above(0),
    "one_first": above(1),
    "four_first": _swapped(above(8)),
  }
  for row in result.records("starts.csv"):
    ends = [row[x] for x in ("difference", "low", "high")]
    one = _pair(config.block, row, row["loss"], row["loss_own"], ends)
    if row["first tokens"] == fresh_name(config):
      found["fresh"] = _swapped(one)
    elif row["first tokens"] == start_name("\n"):
      found["newlines"] = one
  return found


def _pair(
  block: int,
  row: dict[str, Any],
  first: float,
  second: float,
  ends: list[float],
) -> Compared:
  """Of a table's row, whose tokens have more than `from` before them."""
  # As `losses.compare` counts them, the first and the last cut off.
  blocks = (row["to"] - 1) // block - row["from"] // block + 1
  gap = Mean(*ends, blocks, np.nan)
  return Compared(gap, first, second, row["to"] - row["from"])


def _swapped(pair: Compared) -> Compared:
  gap = pair.gap
  gap = gap._replace(value=-gap.value, low=-gap.high, high=-gap.low)
  return Compared(gap, pair.second, pair.first, pair.tokens)


def _compared(
  id: str,
  claim: str,
  paper: str,
  pairs: dict[str, Compared | None],
  of: str,
  names: tuple[str, str],
  limit: float,
  *,
  less: bool,
) -> Claim:
  """A claim on the difference of two losses.

  Args:
    id: of the claim.
    claim: its sentence.
    paper: what is reported there.
    pairs: of `pairs_of`.
    of: the name of the comparison.
    names: of the two ways, in words.
    limit: nats that the difference is compared with.
    less: whether it is claimed to be below the limit, not above.
  """
  head = (id, claim, XIAO, paper)
  if of not in pairs:
    why = "this file was recorded before the comparison was kept; run it again"
    return Claim(*head, "not kept", UNTESTED, why)
  pair = pairs[of]
  if pair is None:
    why = "fewer than two blocks of text in this config"
    return Claim(*head, "not measured", UNTESTED, why)
  first, second = np.exp([pair.first, pair.second])
  low, high = pair.gap.low - limit, pair.gap.high - limit
  if less:
    low, high = -high, -low
  side = "below" if less else "above"
  return Claim(
    *head,
    f"perplexity {first:.4g} {names[0]} against {second:.4g} {names[1]} on "
    f"{pair.tokens} tokens, {pair.gap.text('+.3f')} nats",
    direction(low, high),
    f"agrees if the 95 % interval of the difference is {side} {limit:.2g} nats "
    f"({100 * np.expm1(limit):.0f} % of perplexity); over {pair.gap.groups} "
    "blocks of text",
  )


def _window_alone(
  pairs: dict[str, Compared | None], total: int, four: str
) -> Claim:
  return _compared(
    "window_alone",
    "A window without the text's first tokens more than doubles the "
    "perplexity.",
    f"{BOOK} 5158 (0 + 1024) against 5.40 (4 + 1020)",
    pairs,
    "window_alone",
    (f"with a window of {total}", four),
    FAILS,
    less=False,
  )


def _four_suffice(
  pairs: dict[str, Compared | None], total: int, four: str
) -> Claim:
  return _compared(
    "four_suffice",
    "With four first tokens beside the window, the loss is at most "
    f"{SAME:g} nats higher than with eight.",
    "perplexity with 4 and 8: Llama-2-7B 9.59, 9.54; MPT-7B 14.99, 14.98; "
    "Falcon-7B 12.12, 12.12; Pythia-12B 12.09, 12.02",
    pairs,
    "four_first",
    (four, f"with 8 and {total - 8}"),
    SAME,
    less=True,
  )


def _one_not_enough(
  pairs: dict[str, Compared | None], total: int, four: str
) -> Claim:
  return _compared(
    "one_not_enough",
    "With one first token beside the window, the loss is more than "
    f"{SAME:g} nats higher than with four.",
    "perplexity with 1 and 4: Llama-2-7B 11.88, 9.59; but MPT-7B 14.99, "
    "14.99; Falcon-7B 12.12, 12.12; Pythia-12B 11.95, 12.09",
    pairs,
    "one_first",
    (f"with 1 first token and a window of {total - 1}", four),
    SAME,
    less=False,
  )


def _past_context(
  result: Result, pairs: dict[str, Compared | None], four: str
) -> Claim:
  """Failing may take a while: the last blocks decide, where they are past."""
  config, numbers = result.config, result.numbers
  context = numbers["context"] - len(numbers["prefix"])
  low = dense_end(config, context)
  claim = _compared(
    "past_context",
    "With every token kept, the perplexity more than doubles past the context "
    "of training.",
    f"{BOOK} 5641 against 5.40 (4 + 1020)",
    pairs,
    "dense_end",
    (f"with every token kept, after {low} tokens,", four),
    FAILS,
    less=False,
  )
  if claim.verdict == UNTESTED or low == context:
    return claim
  whole = pairs["dense"]
  gap = whole.gap.text("+.3f", " nats")
  return dataclasses.replace(
    claim,
    ours=f"{claim.ours}; on all {whole.tokens} after {context} {gap}",
    why=f"{claim.why}, the last of the {config.dense} tokens that were tried",
  )


def _as_recomputed(
  pairs: dict[str, Compared | None], total: int, four: str
) -> Claim:
  return _compared(
    "as_recomputed",
    f"With first tokens and a window, the loss is at most {LIKE:g} nats higher "
    "than with the window recomputed for every token.",
    f"{BOOK} 5.40 against 5.43",
    pairs,
    "recomputed",
    (four, f"with the last {total} recomputed"),
    LIKE,
    less=True,
  )


def _stable(result: Result, pairs: dict[str, Compared | None]) -> Claim:
  """The end of the text, and the same as if it began there."""
  return _compared(
    "stable",
    "With first tokens and a window, the loss grows by less than "
    f"{SAME:g} nats with the length of the text.",
    "no change over 4 million tokens",
    pairs,
    "fresh",
    (f"after {fresh(result.config).begin} tokens", "with the text begun there"),
    SAME,
    less=True,
  )


def _newlines(pairs: dict[str, Compared | None]) -> Claim:
  return _compared(
    "newlines",
    f"With four newlines kept in place of the text's first tokens, the loss is "
    f"at most {LIKE:g} nats higher.",
    f"{BOOK} 5.60 (newlines) against 5.40",
    pairs,
    "newlines",
    (f"with {KEPT} newlines kept", "with the text's own first tokens"),
    LIKE,
    less=True,
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
  least, grows = mean_of(ratios.min(axis=0)), mean_of(ratios[-1] - ratios[0])
  verdicts = {direction(least.low - 1, least.high - 1)}
  if len(totals) > 1:
    verdicts.add(direction(grows.low, grows.high))
  verdict = UNDECIDED
  if DISAGREES in verdicts:
    verdict = DISAGREES
  elif verdicts == {AGREES}:
    verdict = AGREES
  return Claim(
    "faster",
    "A token from the cache takes less time than recomputing its window, and "
    "the gain grows with the size of the cache.",
    XIAO,
    "up to 22.2 times (7B and 13B on one GPU, up to 4096 kept)",
    f"recomputing takes this many times as long, by tokens kept: {each}",
    verdict,
    "agrees if every ratio is above 1 and that of the largest cache above that "
    "of the smallest; 95 % intervals over interleaved rounds on this machine's "
    "processor",
  )
