"""The claims about perturbations without the sink, and about defences."""

from collections.abc import Mapping

import numpy as np

from sinkjax.experiments.applications.robustness.config import (
  SITES,
  Change,
  Condition,
  Defence,
)
from sinkjax.experiments.applications.robustness.results import (
  LOSS,
  Levels,
  between,
  effects_of,
  levels,
)
from sinkjax.experiments.harness.api import (
  AGREES,
  DISAGREES,
  UNDECIDED,
  Claim,
  Result,
  direction,
)
from sinkjax.experiments.harness.stats import Mean, format_ratio, mean_of
from sinkjax.experiments.shared.attack_sites import SITES as SITE_WORDS

PAPER, CRITICS = "2504.02732", "2501.15269; 2510.17021"

EXACT = 1e-5
"""Nats a token up to which a divergence counts as rounding: float32 leaves
about 1e-7, an attack that gets through a hundredth or more."""


def claims(result: Result) -> list[Claim]:
  """Noise and swaps with and without the sink, then attacks and defences."""
  found = levels(effects_of(result))
  return [
    *(_without_sink(result, found, *of) for of in WITHOUT_SINK),
    *_empty_sink(result, found),
    _noise_at_sink(result, found),
    _pinned_own(result),
    *(_defence(result, defence) for defence in DEFENCES),
  ]


WITHOUT_SINK = (
  (
    "noise_one",
    Change.NOISE_ONE,
    "kl",
    "noise on one token changes the output",
  ),
  (
    "noise_all",
    Change.NOISE_ALL,
    "kl",
    "noise on all other tokens changes the output",
  ),
  ("swap", Change.SWAP, "kl", "swapping one token changes the output"),
  (
    "noise_one_spread",
    Change.NOISE_ONE,
    "spread",
    "noise on one token changes the residual stream of later tokens",
  ),
  (
    "swap_spread",
    Change.SWAP,
    "spread",
    "swapping one token changes the residual stream of later tokens",
  ),
)
"""End of the id, change, measure, and what is compared."""

MEASURE = {"kl": "KL divergence", "spread": "relative change"}


def _without_sink(
  result: Result,
  found: Mapping[str, Levels],
  name: str,
  change: Change,
  measure: str,
  what: str,
) -> Claim:
  """A perturbation with the sink hidden, with the next token hidden, or not."""
  level, loss = found[change], result.arrays["loss"]
  hidden, control = Condition.HIDDEN, Condition.CONTROL
  # Hiding any token may make a model fragile, so both are asked.
  more = between(level[measure], hidden, Condition.SINK)
  beyond = between(level[measure], hidden, control)
  nats = between(level["loss"], hidden, Condition.SINK)
  cost = between(loss, hidden, Condition.SINK)
  return Claim(
    f"without_sink_{name}",
    f"With the sink hidden, {what} more.",
    PAPER,
    "the sink makes models more robust; no number",
    f"{MEASURE[measure]} {format_ratio(more)} as large with position 0 hidden "
    f"from layer {result.numbers['from_layer']} on as with the sink, and "
    f"{format_ratio(beyond)} as large as with position 1 hidden instead; the "
    f"change of the loss is larger by {nats.text('+.3f')} nats",
    verdict_of_both(more, beyond),
    f"agrees if both ratios are above 1; 95 % intervals over "
    f"{result.numbers['texts']} texts, sign-flip tests p = {more.p:.2g} and "
    f"{beyond.p:.2g}; hiding the sink alone raises the loss by "
    f"{cost.text('.2f')} nats",
  )


def verdict_of_both(more: Mean, beyond: Mean) -> str:
  """More than with the sink, and more than with another token hidden."""
  if more.high < 0:
    return DISAGREES
  return AGREES if more.low > 0 and beyond.low > 0 else UNDECIDED


def _empty_sink(result: Result, found: Mapping[str, Levels]) -> list[Claim]:
  """The sink's value set to zero: it takes attention, but writes nothing."""
  level = found[Change.NOISE_ONE]["kl"]
  empty = between(level, Condition.EMPTY, Condition.SINK)
  gap = between(level, Condition.HIDDEN, Condition.EMPTY)
  # Zeroing the value is no pure removal, which the reader should know.
  note = (
    "the first row also loses its own value, so later keys of the sink change"
  )

  def over_texts(mean: Mean) -> str:
    return (
      f"95 % interval over {result.numbers['texts']} texts, sign-flip test "
      f"p = {mean.p:.2g}; {note}"
    )

  return [
    Claim(
      "empty_sink_noise_one",
      "Setting the sink's value to zero makes noise on one token change the "
      "output more.",
      "our question",
      "no number",
      f"KL divergence {format_ratio(empty)} as large with the sink's value set "
      "to zero",
      direction(empty.low, empty.high),
      over_texts(empty),
    ),
    Claim(
      "hidden_more_than_empty",
      "Hiding the sink makes noise on one token change the output more than "
      "setting the sink's value to zero does.",
      "our question",
      "no number",
      f"KL divergence {format_ratio(gap)} as large with the sink hidden as "
      "with its value set to zero",
      direction(gap.low, gap.high),
      over_texts(gap),
    ),
  ]


def _noise_at_sink(result: Result, found: Mapping[str, Levels]) -> Claim:
  at = list(Condition).index(Condition.SINK)
  sink = found["sink"]["kl"][:, at]
  gap = {
    name: mean_of(sink - found[name]["kl"][:, at])
    for name in ("next", "middle", "last")
  }
  near = gap["next"]
  return Claim(
    "noise_at_sink",
    "Noise on the sink's embedding changes the output more than noise on the "
    "second token's.",
    CRITICS,
    "the sink is a vulnerability; numbers not comparable",
    f"KL divergence from noise on the sink is {format_ratio(near)} that from "
    f"noise on the second token, {format_ratio(gap['middle'])} that on the "
    f"middle token and {format_ratio(gap['last'])} that on the last one",
    direction(near.low, near.high),
    f"95 % interval over {result.numbers['texts']} texts for the ratio to the "
    "second token, which is as far from the measured tokens as the sink; "
    f"sign-flip test p = {near.p:.2g}",
  )


def _damage(result: Result) -> Mean:
  """What attacks add to the loss without a defence, mean of sites."""
  none = list(Defence).index(Defence.NONE)
  attacks = result.arrays["defences"]  # [P, S, D, 3, M]
  return mean_of(np.mean(attacks[:, :, none, 1, LOSS], axis=1))


def _pinned_own(result: Result) -> Claim:
  left = result.numbers["defences"][Defence.OWN]["left"]
  return Claim(
    "pinned_own",
    "Pinning the sink's keys and values to those computed from its own token "
    "undoes every attack on it.",
    CRITICS,
    "our question",
    f"KL divergence from the unattacked model at most {left:.1g} nats with the "
    f"defence; without it attacks raise the loss by "
    f"{_damage(result).text('+.3f')} nats",
    AGREES if left < EXACT else DISAGREES,
    f"agrees below {EXACT:g} nats, the level of rounding, in all "
    f"{result.numbers['texts']} texts; exact by causality, since position 0 "
    "attends only to itself; protects a first token that is known beforehand, "
    "and no other token",
  )


DEFENCES = {
  Defence.OTHER: (
    "pinned_other",
    "Pinning the sink's keys and values to those of another token lowers the "
    "loss under attacks on it.",
  ),
  Defence.FRONT: (
    "pinned_front",
    "Putting a fixed token with pinned keys and values in front lowers the "
    "loss under attacks on the text's first token.",
  ),
  Defence.CLIP_EMBED_MEDIAN: (
    "clip_embed_median",
    "Clipping embeddings at the median norm of other texts lowers the loss "
    "under attacks on the sink.",
  ),
  Defence.CLIP_EMBED_MAX: (
    "clip_embed_max",
    "Clipping embeddings at the greatest norm of other texts lowers the loss "
    "under attacks on the sink.",
  ),
  Defence.CLIP_RESID_MEDIAN: (
    "clip_resid_median",
    "Clipping the residual stream at the median norm of other texts lowers "
    "the loss under attacks on the sink.",
  ),
  Defence.CLIP_RESID_MAX: (
    "clip_resid_max",
    "Clipping the residual stream at the greatest norm of other texts lowers "
    "the loss under attacks on the sink.",
  ),
}
"""Id and sentence of each defence that is judged by its gain."""


def _defence(result: Result, defence: Defence) -> Claim:
  id, sentence = DEFENCES[defence]
  one = {
    key: Mean.read(value)
    for key, value in result.numbers["defences"][defence].items()
    if key != "left"
  }
  gain, cost = one["gain"], one["cost"]
  sites = "; ".join(
    f"{SITE_WORDS[site]} {one[f'gain, {site}'].text('+.3f')}" for site in SITES
  )
  ours = (
    f"lowers the loss under attack by {gain.text('.3f')} nats, of "
    f"{_damage(result).value:+.3f} that attacks add ({sites}); changes the "
    f"loss without an attack by {cost.text('+.3f')} nats"
  )
  if defence != Defence.OTHER:  # nothing gets through a pin: no ratio
    ratio = format_ratio(one["kl"])
    ours += f"; KL divergence of the attack {ratio} as large as without it"
  why = (
    f"95 % interval over {result.numbers['texts']} texts, mean of the three "
    f"sites, of attacks that know the defence; sign-flip test p = {gain.p:.2g}"
  )
  if defence == Defence.FRONT:
    why += "; the attack has the same relative norm on the token at position 1"
  return Claim(
    id,
    sentence,
    CRITICS,
    "our question",
    ours,
    direction(gain.low, gain.high),
    why,
  )
