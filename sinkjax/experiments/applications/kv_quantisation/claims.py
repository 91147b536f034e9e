"""What the experiment `kv_quantisation` says of the methods' claims."""

from typing import Any

import numpy as np

from sinkjax.experiments.harness.api import (
  AGREES,
  DISAGREES,
  UNDECIDED,
  Claim,
  direction,
)
from sinkjax.experiments.harness.stats import Mean, mean_over

FAILS = 0.1
"""Loss increase in nats, 10 % of perplexity, from which a model has failed."""

KVQUANT, INTACT = "2401.18079", "2403.01241"
BONDARENKO, PREFIX = "2306.12929", "2410.05265"
STATIC, TOKEN = "tensor, static", "token"


def _over(values) -> Mean:
  return mean_over(values, range(len(values)))


def share_bought(nothing: np.ndarray, kept: np.ndarray) -> float | None:
  """Share of the mean loss increase that is gone with a token kept.

  Args:
    nothing: [P] loss increase with nothing kept.
    kept: [P] with the token kept.

  Returns:
    (mean nothing - mean kept) / mean nothing, or `None` where the interval of
    what rounding costs is not above 0: a share of nothing.

  >>> share_bought(np.array([1.0, 1.5, 2.0]), np.array([0.5, 0.5, 0.5]))
  0.6666666666666666
  """
  lost = _over(nothing)
  return None if lost.low <= 0 else float(np.mean(nothing - kept) / lost.value)


def _told(found, key) -> str:
  """Loss increase with nothing, the sink and the control kept."""
  none, sink, control = (
    found[(*key, kept)].loss for kept in ("nothing", "sink", "control")
  )
  share = share_bought(none, sink)
  told = (
    f"loss {_over(none).text('+.3f')} nats; with the first token kept "
    f"{_over(sink).text('+.3f')}; with the control token "
    f"{_over(control).text('+.3f')}"
  )
  if share is not None:
    told += f"; {100 * share:.0f} % bought back"
  return told


def _protects(claim, source, paper, found, key, note) -> Claim:
  """A claim that keeping the first token helps, more than the control does."""
  none, sink, control = (
    found[(*key, kept)].loss for kept in ("nothing", "sink", "control")
  )
  gain, more = _over(none - sink), _over(control - sink)
  verdicts = {direction(gain.low, gain.high), direction(more.low, more.high)}
  verdict = UNDECIDED
  if DISAGREES in verdicts:
    verdict = DISAGREES
  elif verdicts == {AGREES}:
    verdict = AGREES
  return Claim(
    claim,
    source,
    paper,
    _told(found, key),
    verdict,
    f"{note}; agrees if both falls, from nothing kept and from the control, "
    "are above 0",
  )


def claims(config: Any, found: dict[tuple, Any]) -> list[Claim]:
  """Six of them, by 95 % intervals over texts.

  Args:
    config: of the experiment.
    found: its costs, {("kv", layout, bits, kept) or ("linear", ranges,
      (weights, activations), kept): Cost}.
  """
  bits = config.claim_bits
  token = ("kv", "token", bits)
  none, sink = (found[(*token, kept)].loss for kept in ("nothing", "sink"))
  half = _over(none - sink - none / 2)
  eight = found["linear", STATIC, (8, 8), "nothing"].loss
  fails = _over(eight - FAILS)

  def pair(width):
    """(static with the sink kept, per token with nothing kept)."""
    return (
      found["linear", STATIC, width, "sink"].loss,
      found["linear", TOKEN, width, "nothing"].loss,
    )

  prefixed, dynamic = pair((8, 8))
  better = _over(dynamic - prefixed)
  both = "; ".join(
    f"W{w}A{a}: loss {_over(pair((w, a))[0]).text('+.3f')} nats against "
    f"{_over(pair((w, a))[1]).text('+.3f')}"
    for w, a in ((8, 8), (4, 4))
  )
  return [
    _protects(
      "The first token's keys and values in full precision lower the loss of "
      "few bits.",
      KVQUANT,
      "no number",
      found,
      ("kv", "before rotation", bits),
      f"{bits} bits, keys per channel before rotation",
    ),
    _protects(
      "Keys and values of the pivot token from the whole model lower the loss "
      "of few bits.",
      INTACT,
      "no number",
      found,
      token,
      f"{bits} bits, per token",
    ),
    Claim(
      "Most of the loss comes from that one token.",
      f"{INTACT}, our reading",
      "no number",
      _told(found, token),
      direction(half.low, half.high),
      f"{bits} bits, per token; agrees if more than half is bought back",
    ),
    Claim(
      "8-bit activations with one range for a tensor fail.",
      BONDARENKO,
      "W8A8 perplexity 1294 against 4.52 with clipped softmax (BERT); 21.18 "
      "against 16.02 gated (OPT-125m)",
      f"loss {_over(eight).text('+.3f')} nats",
      direction(fails.low, fails.high),
      f"static range, from least to greatest; agrees above +{FAILS:g} nats, "
      "10 % of perplexity",
    ),
    _protects(
      "With the outlier token kept apart, static ranges lose less.",
      PREFIX,
      "static W4A4KV4, +3.08 points over SpinQuant",
      found,
      ("linear", STATIC, (8, 8)),
      "W8A8, static range",
    ),
    Claim(
      "Static ranges with the outlier token kept apart are better than a range "
      "for each token without.",
      PREFIX,
      "static W4A4KV4, +3.08 points over SpinQuant",
      both,
      direction(better.low, better.high),
      "95 % interval of the difference at W8A8, since at W4A4 either has "
      "broken the model; one token apart, keys and values not rounded, "
      "activations not rotated, nothing trained",
    ),
  ]
