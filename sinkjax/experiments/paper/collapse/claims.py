"""What texts and repeated digits say about collapse."""

from collections.abc import Mapping
from typing import Any

from sinkjax.experiments.harness.api import Claim, Result
from sinkjax.experiments.harness.effects import (
  COSINE,
  LOG_RATIO,
  SHARE,
  Expect,
  effect,
)
from sinkjax.experiments.harness.stats import Mean, format_ratio
from sinkjax.experiments.paper.collapse.experiment import Digits, series_name
from sinkjax.experiments.shared.sink_removal import Condition

SOURCE = "2406.04267, section 4"

SOON = 100
"""Digits that merge after at most so many do so after "about 50"."""


def claims(result: Result) -> list[Claim]:
  """Collapse of texts, then of repeated digits."""
  numbers = result.numbers
  most = numbers["repeats"]
  return [
    _text_claim(numbers),
    _claim(
      numbers,
      "shrinks",
      "change by the first repetitions over that by the last",
      id="repetition_changes_less",
      claim="The more often a digit is repeated, the less one more repetition "
      "changes.",
      source="2406.04267, theorem 4.2",
      paper="no number; differences fall to bfloat16's precision (Gemma 7B)",
      ours="the first repetitions change {} as much as those near "
      f"{most} digits (largest entry after the final norm)",
    ),
    _rounding_claim(numbers),
    _claim(
      numbers,
      "comma",
      "change by one more digit with commas over that without",
      id="commas_prevent_collapse",
      claim=f"A comma after every {result.config.group} digits keeps repeated "
      "digits apart.",
      source=SOURCE,
      paper="no number",
      ours="one more digit changes {} as much with commas, near "
      f"{most} digits",
    ),
    _claim(
      numbers,
      "hidden",
      "change by one more digit with the sink over that without",
      id="digits_collapse_without_sink",
      claim="Repeated digits collapse further without the sink.",
      source="section 3",
      paper="no number",
      ours="one more digit changes {} as much with the sink as without",
    ),
  ]


def _claim(
  numbers: Mapping[str, Any],
  name: str,
  what: str,
  *,
  id: str,
  claim: str,
  source: str,
  paper: str,
  ours: str,
) -> Claim:
  """A claim that holds where a mean log ratio over digits is above zero."""
  mean = Mean.read(numbers[name])
  hidden = f"position 0 hidden from layer {numbers['from_layer']} on"
  return Claim(
    id=id,
    claim=claim,
    source=source,
    paper=paper,
    ours=ours.format(format_ratio(mean, ".2f")),
    effect=effect(mean, what, LOG_RATIO, Expect.MORE, per="digit"),
    how="one prompt; the largest entry after the final norm"
    + (f"; {hidden}" if name == "hidden" else ""),
  )


def _text_claim(numbers: Mapping[str, Any]) -> Claim:
  # The cosine measures what the claim says; the rank is reported beside it.
  cosine, rank = (
    Mean.read(numbers["change_without_sink"][name])
    for name in ("mean cosine", "effective rank")
  )
  return Claim(
    id="tokens_alike_without_sink",
    claim="Without the sink, the tokens of a text become more similar to each "
    "other.",
    source="section 3, rank collapse",
    paper="no number",
    ours=f"at the last layer, the mean cosine changes by {cosine.text('+.3f')} "
    f"and the effective rank by {rank.text('+.3f')} of its maximum",
    effect=effect(
      cosine,
      "mean cosine of two tokens at the last layer without the sink, less that "
      "with it",
      COSINE,
      Expect.MORE,
    ),
    how=f"position 0 hidden from layer {numbers['from_layer']} on; position 0 "
    "itself is left out",
  )


def _rounding_claim(numbers: Mapping[str, Any]) -> Claim:
  merged = {
    dtype: numbers["indistinct_from"][
      series_name(Condition.SINK, Digits.PLAIN, dtype)
    ]
    # float16 has three bits more than bfloat16 and shows what precision does;
    # the claim, like the paper, is about bfloat16 alone.
    for dtype in ("bfloat16", "float16")
  }
  soon = [n is not None and n <= SOON for n in merged["bfloat16"]]
  return Claim(
    id="digits_merge_in_bfloat16",
    claim="After about 50 repetitions of most digits, bfloat16 cannot "
    "distinguish the next one.",
    source=SOURCE,
    paper="about 50 digits (Gemma 7B)",
    ours="vectors equal when rounded: "
    + ", ".join(_when(dtype, counts) for dtype, counts in merged.items()),
    effect=effect(
      [float(one) - 0.5 for one in soon],
      f"share of the digits that have merged after at most {SOON} repetitions, "
      "less one half",
      SHARE,
      Expect.MORE,
      per="digit",
    ),
    how=f"up to {numbers['repeats']} digits, run in float32, then rounded",
  )


def _when(dtype: str, counts: list[int | None]) -> str:
  known = [n for n in counts if n is not None]
  if not known:
    return f"never in {dtype}"
  share = f"{len(known)} of {len(counts)} digits"
  return f"{share} in {dtype}, the first from {min(known)} on"
