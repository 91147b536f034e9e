"""On which texts the first token is a sink."""

from collections.abc import Mapping
from typing import Any

from sinkjax.experiments.harness.api import (
  AGREES,
  DISAGREES,
  UNTESTED,
  Claim,
  Result,
  direction,
)
from sinkjax.experiments.harness.stats import Mean
from sinkjax.experiments.paper.prompts.experiment import Condition

TABLE = "2410.10781, table 2"

MARGIN = 0.1
"""Equivalence margin of a sink rate: a tenth of all heads is little beside the
paper's rates, which are 65 %."""


def claims(result: Result) -> list[Claim]:
  """Natural and other texts, lengths, and the token that is first.

  They are about the first threshold of the config.
  """
  numbers = result.numbers
  made = [
    _domains(numbers),
    _condition(
      numbers,
      Condition.RANDOM,
      "random",
      id="sink_on_random_tokens",
      claim="The first token is a sink on random tokens too.",
      paper="90.13 % (Llama 2 7B), 91.23 (Llama 3 8B), 70.29 (GPT-2 XL)",
      rule="agrees above half of the rate on natural text",
    ),
    _condition(
      numbers,
      Condition.REPEATED,
      "repeated",
      id="no_sink_on_repeated_token",
      claim="In a model with rotary positions, a single repeated token has no "
      "sink.",
      paper="0 % (Llama 2 7B, Llama 3 8B, Mistral 7B); GPT-2 XL 62.28",
      rule="agrees below half of the rate on natural text",
    ),
  ]
  if numbers["by_length"]:
    made.append(_lengths(numbers))
  return [*made, _special(numbers)]


def _key(numbers: Mapping[str, Any]) -> str:
  """The threshold that the claims are about, as a key."""
  return f"{numbers['eps'][0]:g}"


def _percent(stored: Mapping[str, Any], form: str = ".1f") -> str:
  return Mean.read(stored).scaled(100).text(form, " %")


def _texts(numbers: Mapping[str, Any]) -> str:
  return (
    f"{numbers['prompts']} prompts of {numbers['tokens']} tokens, eps "
    f"{_key(numbers)}"
  )


def _domains(numbers: Mapping[str, Any]) -> Claim:
  eps = _key(numbers)
  rates = {name: one[eps] for name, one in numbers["by_domain"].items()}
  least = min(rates, key=lambda name: rates[name]["value"])
  most = max(rates, key=lambda name: rates[name]["value"])
  natural = _percent(numbers["by_condition"][Condition.NATURAL][eps])
  return Claim(
    id="sink_in_every_domain",
    claim="The first token is a sink on natural text of every domain.",
    source=TABLE,
    paper="92.47 % (Llama 2 7B), 99.02 (Llama 3 8B), 77.00 (GPT-2 XL)",
    ours=f"sink rate {natural}; lowest {_percent(rates[least])} on {least}, "
    f"highest {_percent(rates[most])} on {most}",
    verdict=AGREES if Mean.read(rates[least]).low > 0 else DISAGREES,
    why=f"{_texts(numbers)}, {len(rates)} domains; agrees if no domain's "
    "interval contains 0",
  )


def _condition(
  numbers: Mapping[str, Any],
  condition: Condition,
  name: str,
  *,
  id: str,
  claim: str,
  paper: str,
  rule: str,
) -> Claim:
  """A claim on the sink rate of texts that are not natural."""
  mean = Mean.read(numbers[name])
  rate = numbers["by_condition"][condition][_key(numbers)]
  return Claim(
    id=id,
    claim=claim,
    source=TABLE,
    paper=paper,
    ours=f"sink rate {_percent(rate)}",
    verdict=direction(mean.low, mean.high),
    why=f"{_texts(numbers)}; {rule}",
  )


def _lengths(numbers: Mapping[str, Any]) -> Claim:
  mean, eps = Mean.read(numbers["length"]), _key(numbers)
  rates = ", ".join(
    f"{_percent(one[eps])} at {name}"
    for name, one in numbers["by_length"].items()
  )
  return Claim(
    id="rate_falls_with_length",
    claim="The sink rate falls with the length of the measured text.",
    source="2410.10781, section 4.1",
    paper="no number",
    ours=f"sink rate {rates}",
    verdict=direction(mean.low, mean.high),
    why=f"eps {eps}; the same {mean.groups} texts at every length, paired",
  )


def _special(numbers: Mapping[str, Any]) -> Claim:
  ours, verdict = "not measured", UNTESTED
  why = "the model has no special token, or its texts start with one anyway"
  if "special" in numbers:
    change = Mean.read(numbers["special"])
    rate = numbers["by_condition"][Condition.SPECIAL][_key(numbers)]
    ours = (
      f"sink rate {_percent(rate)} with the special token first, a change of "
      f"{change.scaled(100).text('+.1f', ' percentage points')}"
    )
    within = max(abs(change.low), abs(change.high)) < MARGIN
    verdict = AGREES if within else DISAGREES
    why = f"equivalence margin: {100 * MARGIN:g} percentage points"
  return Claim(
    id="first_token_hardly_matters",
    claim="Which token is first hardly changes the sink rate, unless training "
    "always put BOS first.",
    source="section 5, table 2",
    paper="65.10 % with BOS, 65.15 without (120M)",
    ours=ours,
    verdict=verdict,
    why=why,
  )
