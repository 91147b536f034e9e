"""On which texts the first token is a sink."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from sinkjax.experiments.harness.api import Claim, Result
from sinkjax.experiments.harness.effects import SHARE, Effect, Expect, effect
from sinkjax.experiments.harness.stats import Mean
from sinkjax.experiments.paper.prompts.experiment import Condition
from sinkjax.experiments.shared.text_batches import by_template

TABLE = "2410.10781, table 2"


def claims(result: Result) -> list[Claim]:
  """Natural and other texts, lengths, and the token that is first.

  They are about the first threshold of the config.
  """
  made = [_domains(result), _random(result), _repeated(result)]
  if result.numbers["by_length"]:
    made.append(_lengths(result))
  return [*made, _special(result)]


def _key(numbers: Mapping[str, Any]) -> str:
  """The threshold that the claims are about, as a key."""
  return f"{numbers['eps'][0]:g}"


def _percent(stored: Mapping[str, Any], form: str = ".1f") -> str:
  return Mean.read(stored).scaled(100).text(form, " %")


def _texts(numbers: Mapping[str, Any]) -> str:
  return (
    f"{numbers['prompts']} prompts of {numbers['tokens']} tokens, eps "
    f"{_key(numbers)}; prompts of one template count as one"
  )


def _rates(result: Result) -> dict[str, np.ndarray]:
  """The sink rate of each prompt, [P] by condition."""
  # Arrays are in the order in which conditions are listed.
  conditions = result.numbers["by_condition"]
  return dict(zip(conditions, result.arrays["rates"][:, 0], strict=True))


def _by_text(
  result: Result, values: np.ndarray, at: Sequence[int] | None = None
) -> np.ndarray:
  """[n] values of independent texts, from those of the prompts `at`."""
  # Files recorded before have the origins, which tell pages of one template.
  templates = result.numbers.get("templates")
  name = "origins" if templates is None else "templates"
  known = templates or [row["origin"] for row in result.records("prompts.csv")]
  at = range(len(known)) if at is None else at
  return by_template(np.asarray(values), {name: [known[i] for i in at]})


def _effect(values: np.ndarray | Mean, what: str, expect: Expect) -> Effect:
  return effect(values, what, SHARE, expect)


def _domains(result: Result) -> Claim:
  numbers, eps = result.numbers, _key(result.numbers)
  rates = {name: one[eps] for name, one in numbers["by_domain"].items()}
  least = min(rates, key=lambda name: rates[name]["value"])
  most = max(rates, key=lambda name: rates[name]["value"])
  natural = _percent(numbers["by_condition"][Condition.NATURAL][eps])
  rate, domain = _rates(result)[Condition.NATURAL], result.arrays["domain"]
  effects, alone = [], []
  for name in rates:
    at = np.flatnonzero(domain == name)
    values = _by_text(result, rate[at], at)
    if len(values) > 1:
      effects.append(_effect(values, f"sink rate on {name}", Expect.MORE))
    else:
      alone.append(name)
  # It must hold in every domain: the lowest rate and the least certain one
  # decide for all.
  lowest = min(effects, key=lambda one: one.mean.value, default=None)
  unsure = max(effects, key=lambda one: one.p_holds(), default=None)
  return Claim(
    id="sink_in_every_domain",
    claim="The first token is a sink on natural text of every domain.",
    source=TABLE,
    paper="92.47 % (Llama 2 7B), 99.02 (Llama 3 8B), 77.00 (GPT-2 XL)",
    ours=f"sink rate {natural}; lowest {_percent(rates[least])} on {least}, "
    f"highest {_percent(rates[most])} on {most}",
    effect=lowest,
    how=f"{_texts(numbers)}; {len(effects)} domains, of which the lowest rate "
    "and the least certain one decide for all"
    + "".join(f"; {name} is one template and not tested" for name in alone),
    provided=() if unsure is lowest else (unsure,),
    untested="" if effects else "no domain has two independent texts",
  )


def _random(result: Result) -> Claim:
  numbers, rates = result.numbers, _rates(result)
  rate = numbers["by_condition"][Condition.RANDOM][_key(numbers)]
  above = rates[Condition.RANDOM] - rates[Condition.NATURAL] / 2
  return Claim(
    id="sink_on_random_tokens",
    claim="The first token is a sink on random tokens too.",
    source=TABLE,
    paper="90.13 % (Llama 2 7B), 91.23 (Llama 3 8B), 70.29 (GPT-2 XL)",
    ours=f"sink rate {_percent(rate)}",
    effect=_effect(
      _by_text(result, above),
      "sink rate on random tokens, less half of that on natural text",
      Expect.MORE,
    ),
    how=_texts(numbers),
  )


def _repeated(result: Result) -> Claim:
  numbers, rates = result.numbers, _rates(result)
  rate = numbers["by_condition"][Condition.REPEATED][_key(numbers)]
  return Claim(
    id="no_sink_on_repeated_token",
    claim="In a model with rotary positions, a single repeated token has no "
    "sink.",
    source=TABLE,
    paper="0 % (Llama 2 7B, Llama 3 8B, Mistral 7B); GPT-2 XL 62.28",
    ours=f"sink rate {_percent(rate)}",
    effect=_effect(
      _by_text(result, rates[Condition.REPEATED]),
      "sink rate on one token repeated",
      Expect.NOT_MORE,
    ),
    how=_texts(numbers),
    # Without sinks on natural text there is nothing to miss.
    provided=(
      _effect(
        _by_text(result, rates[Condition.NATURAL]),
        "sink rate on natural text",
        Expect.MORE,
      ),
    ),
  )


def _lengths(result: Result) -> Claim:
  numbers, eps = result.numbers, _key(result.numbers)
  mean = Mean.read(numbers["length"])
  rates = ", ".join(
    f"{_percent(one[eps])} at {name}"
    for name, one in numbers["by_length"].items()
  )
  kept = result.arrays.get("rates_by_length")
  # Files recorded before keep the mean over prompts alone.
  values: np.ndarray | Mean = mean
  if kept is not None:
    sizes = [int(name.removeprefix("T=")) for name in numbers["by_length"]]
    short, long = kept[np.argmin(sizes)], kept[np.argmax(sizes)]
    values = _by_text(result, short - long, numbers["long_prompts"])
  return Claim(
    id="rate_falls_with_length",
    claim="The sink rate falls with the length of the measured text.",
    source="2410.10781, section 4.1",
    paper="no number",
    ours=f"sink rate {rates}",
    effect=effect(
      values,
      "sink rate at the least length, less that at the greatest",
      SHARE,
      Expect.MORE,
      per="prompt" if kept is None else "text",
    ),
    how=f"eps {eps}; the same {mean.groups} texts at every length, paired"
    + ("; each prompt counts, those of one template too" * (kept is None)),
  )


def _special(result: Result) -> Claim:
  numbers, rates = result.numbers, _rates(result)
  ours, made = "not measured", None
  if "special" in numbers:
    change = Mean.read(numbers["special"])
    rate = numbers["by_condition"][Condition.SPECIAL][_key(numbers)]
    ours = (
      f"sink rate {_percent(rate)} with the special token first, a change of "
      f"{change.scaled(100).text('+.1f', ' percentage points')}"
    )
    made = _effect(
      _by_text(result, rates[Condition.SPECIAL] - rates[Condition.NATURAL]),
      "sink rate with the special token first, less that without it",
      Expect.SAME,
    )
  return Claim(
    id="first_token_hardly_matters",
    claim="Which token is first hardly changes the sink rate, unless training "
    "always put BOS first.",
    source="section 5, table 2",
    paper="65.10 % with BOS, 65.15 without (120M)",
    ours=ours,
    effect=made,
    how=_texts(numbers),
    untested=""
    if made
    else "the model has no special token, or its texts start with one anyway",
  )
