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
  gains_of,
  gap,
  left_of,
  levels,
)
from sinkjax.experiments.harness.api import Claim, Result
from sinkjax.experiments.harness.effects import (
  LOG_RATIO,
  NATS,
  Count,
  Effect,
  Expect,
  effect,
)
from sinkjax.experiments.harness.stats import Mean, format_ratio, mean_of
from sinkjax.experiments.shared.attack_sites import SITES as SITE_WORDS
from sinkjax.experiments.shared.text_batches import by_template

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


def _larger(result: Result, logs: np.ndarray, what: str) -> Effect:
  """Log ratios [P] that are expected to be above 0, over independent texts."""
  values = by_template(logs, result.numbers)
  return effect(values, what, LOG_RATIO, Expect.MORE)


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
  more = between(level[measure], hidden, Condition.SINK)
  beyond = between(level[measure], hidden, control)
  nats = between(level["loss"], hidden, Condition.SINK)
  cost = between(loss, hidden, Condition.SINK)
  over = f"the {MEASURE[measure]} with the sink hidden over that with "
  return Claim(
    f"without_sink_{name}",
    f"With the sink hidden, {what} more.",
    PAPER,
    "the sink makes models more robust; no number",
    f"{MEASURE[measure]} {format_ratio(more)} as large with position 0 hidden "
    f"from layer {result.numbers['from_layer']} on as with the sink, and "
    f"{format_ratio(beyond)} as large as with position 1 hidden instead; the "
    f"change of the loss is larger by {nats.text('+.3f')} nats",
    _larger(
      result, gap(level[measure], hidden, Condition.SINK), f"{over}the sink"
    ),
    how=f"hiding the sink alone raises the loss by {cost.text('.2f')} nats",
    # Hiding any token may make a model fragile, so both are asked.
    provided=(
      _larger(
        result,
        gap(level[measure], hidden, control),
        f"{over}position 1 hidden instead",
      ),
    ),
  )


def _empty_sink(result: Result, found: Mapping[str, Levels]) -> list[Claim]:
  """The sink's value set to zero: it takes attention, but writes nothing."""
  level = found[Change.NOISE_ONE]["kl"]
  pairs = (
    (Condition.EMPTY, Condition.SINK),
    (Condition.HIDDEN, Condition.EMPTY),
  )
  empty, more = (between(level, *pair) for pair in pairs)
  of_empty, of_more = (gap(level, *pair) for pair in pairs)
  # Zeroing the value is no pure removal, which the reader should know.
  how = (
    "the first row also loses its own value, so later keys of the sink change"
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
      _larger(
        result,
        of_empty,
        "the KL divergence with the sink's value set to zero over that with "
        "the sink",
      ),
      how=how,
    ),
    Claim(
      "hidden_more_than_empty",
      "Hiding the sink makes noise on one token change the output more than "
      "setting the sink's value to zero does.",
      "our question",
      "no number",
      f"KL divergence {format_ratio(more)} as large with the sink hidden as "
      "with its value set to zero",
      _larger(
        result,
        of_more,
        "the KL divergence with the sink hidden over that with its value set "
        "to zero",
      ),
      how=how,
    ),
  ]


def _noise_at_sink(result: Result, found: Mapping[str, Levels]) -> Claim:
  at = list(Condition).index(Condition.SINK)
  sink = found["sink"]["kl"][:, at]
  logs = {
    name: sink - found[name]["kl"][:, at] for name in ("next", "middle", "last")
  }
  near, middle, last = (format_ratio(mean_of(x)) for x in logs.values())
  return Claim(
    "noise_at_sink",
    "Noise on the sink's embedding changes the output more than noise on the "
    "second token's.",
    CRITICS,
    "the sink is a vulnerability; numbers not comparable",
    f"KL divergence from noise on the sink is {near} that from noise on the "
    f"second token, {middle} that on the middle token and {last} that on the "
    "last one",
    _larger(
      result,
      logs["next"],
      "the KL divergence from noise on the sink over that from noise on the "
      "second token",
    ),
    how="the second token is as far from the measured tokens as the sink",
  )


def _damage(result: Result) -> Mean:
  """What attacks add to the loss without a defence, mean of sites."""
  none = list(Defence).index(Defence.NONE)
  attacks = result.arrays["defences"]  # [P, S, D, 3, M]
  return mean_of(np.mean(attacks[:, :, none, 1, LOSS], axis=1))


def _pinned_own(result: Result) -> Claim:
  left = left_of(result.arrays["defences"], Defence.OWN)
  return Claim(
    "pinned_own",
    "Pinning the sink's keys and values to those computed from its own token "
    "undoes every attack on it.",
    CRITICS,
    "our question",
    f"KL divergence from the unattacked model at most {left.max():.1g} nats "
    "with the defence; without it attacks raise the loss by "
    f"{_damage(result).text('+.3f')} nats",
    Count(
      f"attacks change the output by more than {EXACT:g} nats of KL divergence",
      int((left >= EXACT).sum()),
      left.size,
    ),
    how=f"up to {EXACT:g} nats are rounding; exact by causality, since "
    "position 0 attends only to itself; protects a first token that is known "
    "beforehand, and no other token",
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
  how = "mean of the three sites, of attacks that know the defence"
  if defence == Defence.FRONT:
    how += "; the attack has the same relative norm on the token at position 1"
  gains = gains_of(result.arrays["defences"], defence).mean(axis=1)
  return Claim(
    id,
    sentence,
    CRITICS,
    "our question",
    ours,
    effect(
      by_template(gains, result.numbers),
      "the loss under attack without a defence, less that with it",
      NATS,
      Expect.MORE,
    ),
    how=how,
  )
