"""What `robustness` says of the paper and of its critics."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from sinkjax.experiments.applications.robustness.defences import (
  CLIPPED,
  DEFENCES,
  FRONT,
  NONE,
  OTHER,
  SAME,
  SITES,
)
from sinkjax.experiments.harness.api import (
  AGREES,
  DISAGREES,
  UNDECIDED,
  Claim,
  direction,
)
from sinkjax.experiments.harness.stats import (
  Mean,
  format_ratio,
  logs,
  mean_over,
)
from sinkjax.experiments.shared.perturb import MEASURES, NOISE, SWAP, by_name

CONDITIONS = KEPT, HIDDEN, CONTROL, EMPTY = (
  "with the sink",
  "sink hidden",
  "next token hidden",
  "sink's value zero",
)
PAPER, CRITICS = "2504.02732", "2501.15269; 2510.17021"
KL, LOSS, SPREAD = (MEASURES.index(x) for x in ("kl", "loss", "spread"))
EXACT = 1e-5
"""Nats a token below which a divergence is rounding's."""

ONE, EVERY = ("middle", "last"), ("all but the first",)
CHANGES = {
  "noise on one token": (NOISE, ONE),
  "noise on all other tokens": (NOISE, EVERY),
  "a swapped token": (SWAP, ONE),
}
"""The changes that decide: (kind, places), the sink's own not among them."""

Levels = dict[str, np.ndarray]


def levels(noisy: np.ndarray, names: Sequence) -> dict[str, Levels]:
  """{change: {"kl", "spread": [P, C] logs, "loss": [P, C]}}, and by place.

  Means over draws and places, of logarithms but for the loss; and "sink",
  "next", ... of noise there.

  Args:
    noisy: [P, C, R, M].
    names: of the R.
  """
  found = by_name(noisy, names)
  groups = CHANGES | {
    place: (NOISE, (place,)) for kind, place in found if kind == NOISE
  }
  return {
    change: {
      name: np.mean([f(found[kind, x][..., m]).mean(-1) for x in some], axis=0)
      for name, m, f in (
        ("kl", KL, logs),
        ("spread", SPREAD, logs),
        ("loss", LOSS, np.asarray),
      )
    }
    for change, (kind, some) in groups.items()
  }


def over(level: np.ndarray, one: str, other: str) -> Mean:
  """Mean over texts of one condition minus another, from [P, C]."""
  a, b = (level[:, CONDITIONS.index(x)] for x in (one, other))
  return mean_over(a - b, range(len(a)))


def ratios(found: dict[str, Levels]) -> dict[str, Any]:
  """{change: {measure: {condition: log ratio to the sink as it is}}}."""
  return {
    change: {
      name: {x: over(level, x, KEPT)._asdict() for x in CONDITIONS[1:]}
      for name, level in one.items()
    }
    for change, one in found.items()
  }


def claims(config, texts: int, found, base, fought) -> list[Claim]:
  """Noise and swaps, then attacks and defences."""
  lost = mean_over(
    base[:, CONDITIONS.index(HIDDEN)] - base[:, 0], range(len(base))
  )
  said = [
    _sturdier(
      f"Without its sink, {change} changes the output more.",
      found[change],
      "kl",
      config,
      texts,
      lost,
    )
    for change in CHANGES
  ]
  for change in ("noise on one token", "a swapped token"):
    said.append(
      _sturdier(
        f"Without its sink, {change} changes later tokens more.",
        found[change],
        "spread",
        config,
        texts,
        lost,
      )
    )
  return [
    *said,
    *_what_it_writes(found, texts),
    _soft(found, texts),
    *_defended(config, texts, fought),
  ]


WHAT = {"kl": "KL", "spread": "relative change"}


def _sturdier(text, level: Levels, measure: str, config, texts, lost) -> Claim:
  more = over(level[measure], HIDDEN, KEPT)
  beyond = over(level[measure], HIDDEN, CONTROL)
  nats = over(level["loss"], HIDDEN, KEPT)
  return Claim(
    text,
    PAPER,
    "sturdier, no number",
    f"{WHAT[measure]} {format_ratio(more)} with token 0 hidden from layer "
    f"{config.from_layer} on; {format_ratio(beyond)} that with token 1 hidden "
    f"instead; loss {nats.text('+.3f')} nats more",
    _both(more, beyond),
    f"{texts} texts, sign-flip p = {more.p:.2g} and {beyond.p:.2g}; hiding "
    f"alone costs {lost.text('.2f')} nats",
  )


def _both(more: Mean, beyond: Mean) -> str:
  """More than with the sink, and more than with another token hidden."""
  if more.high < 0:
    return DISAGREES
  return AGREES if more.low > 0 and beyond.low > 0 else UNDECIDED


def _what_it_writes(found, texts: int) -> list[Claim]:
  """The sink's value set to zero: it takes attention, and writes nothing."""
  level = found["noise on one token"]["kl"]
  empty, gap = over(level, EMPTY, KEPT), over(level, HIDDEN, EMPTY)
  zero = "its own row, and so its later keys, change with it"
  return [
    Claim(
      "What the sink writes makes the model sturdy, too: without its value "
      "noise does more.",
      "our question",
      "no number",
      f"KL of noise on one token {format_ratio(empty)} with its value set to "
      "zero",
      direction(empty.low, empty.high),
      f"{texts} texts, sign-flip p = {empty.p:.2g}; {zero}",
    ),
    Claim(
      "Without the attention that it takes noise does more than without what "
      "it writes.",
      "our question",
      "no number",
      f"KL of noise on one token with the sink hidden {format_ratio(gap)} "
      "that with "
      "its value set to zero",
      direction(gap.low, gap.high),
      f"{texts} texts, sign-flip p = {gap.p:.2g}; {zero}",
    ),
  ]


def _soft(found, texts: int) -> Claim:
  sink = found["sink"]["kl"][:, 0]
  ends = {
    name: mean_over(sink - found[name]["kl"][:, 0], range(len(sink)))
    for name in ("next", "middle", "last")
  }
  near = ends["next"]
  return Claim(
    "Noise on the sink's embedding does more than on the next token's.",
    CRITICS,
    "soft spot; numbers not comparable",
    f"KL {format_ratio(near)} that on the token next to it; "
    f"{format_ratio(ends['middle'])} "
    f"the middle token's, {format_ratio(ends['last'])} the last one's",
    direction(near.low, near.high),
    f"{texts} texts; the token next to the sink is as far from what is "
    f"measured; sign-flip p = {near.p:.2g}",
  )


def balance(fought: np.ndarray) -> dict[str, dict[str, Any]]:
  """{defence: {"cost", "gain", "gain, SITE", "kl", "most"}}, in nats.

  `cost` is what the guard adds to the loss where nothing attacks, `gain` what
  it takes from the loss under attack, mean of sites; `kl` the KL of the attack
  beside the guarded model over that on the plain one, as a mean of logs;
  `left` the greatest KL of the guarded model under attack beside the plain one
  without.

  Args:
    fought: [P, S, D, 3, M].
  """
  texts = range(len(fought))
  hurt, found = fought[:, :, DEFENCES.index(NONE), 1, LOSS], {}
  for d, name in enumerate(DEFENCES):
    gain = hurt - fought[:, :, d, 1, LOSS]
    own = fought[:, :, d, 2, KL]
    less = logs(own) - logs(fought[:, :, DEFENCES.index(NONE), 2, KL])
    found[name] = {
      "cost": mean_over(fought[:, 0, d, 0, LOSS], texts)._asdict(),
      "gain": mean_over(gain.mean(axis=1), texts)._asdict(),
      "kl": mean_over(less.mean(axis=1), texts)._asdict(),
      "left": float(np.abs(fought[:, :, d, 1, KL]).max()),
    } | {
      f"gain, {site}": mean_over(gain[:, s], texts)._asdict()
      for s, site in enumerate(SITES)
    }
  return found


WORDS = {
  OTHER: "Another token's keys and values, pinned in the sink's place, are a "
  "defence.",
  FRONT: "A fixed token in front, its keys and values pinned, is a defence.",
  **{
    name: f"Clipping the {'embeddings' if site == 'embed' else 'residual'} at "
    f"the {'median' if share == 0.5 else 'greatest'} norm in other texts is a "
    "defence."
    for name, (site, share) in CLIPPED.items()
  },
}


def _defended(config, texts: int, fought) -> list[Claim]:
  found = balance(fought)
  hurt = mean_over(
    fought[:, :, DEFENCES.index(NONE), 1, LOSS].mean(axis=1), range(texts)
  )
  left = found[SAME]["left"]
  said = [
    Claim(
      "The sink's keys and values, computed before from its token alone and "
      "pinned, undo any attack on it.",
      CRITICS,
      "our question",
      f"at most {left:.1g} nats of KL left beside the model without an attack; "
      f"{hurt.text('+.3f')} nats of loss without the defence",
      AGREES if left < EXACT else DISAGREES,
      f"{texts} texts; exact by causality: position 0 sees only itself. It "
      "protects a first token that is known beforehand, and no other token",
    )
  ]
  for name, text in WORDS.items():
    one = {
      key: Mean(**value) for key, value in found[name].items() if key != "left"
    }
    gain, cost = one["gain"], one["cost"]
    sites = "; ".join(
      f"{site} {one[f'gain, {site}'].text('+.3f')}" for site in SITES
    )
    said.append(
      Claim(
        text,
        CRITICS,
        "our question",
        f"takes {gain.text('.3f')} nats from the loss under attack ({sites}) "
        f"of {hurt.value:+.3f}, and costs {cost.text('+.3f')} nats without one"
        + (
          ""
          if name == OTHER
          else f"; KL of the attack {format_ratio(one['kl'])}"
        ),
        direction(gain.low, gain.high),
        f"{texts} texts; by the loss under an attack that knows of the "
        f"defence, mean of the three sites; sign-flip p = {gain.p:.2g}"
        + (
          "; the attack is as large beside the token that now is attacked, "
          "the second"
          if name == FRONT
          else ""
        ),
      )
    )
  return said
