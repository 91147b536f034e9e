"""Where the sink goes when it is removed, and what that costs."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from sinkjax.experiments.harness.api import Claim, Result
from sinkjax.experiments.harness.effects import (
  COSINE,
  LOG_RATIO,
  NATS,
  SHARE,
  Effect,
  Expect,
  Unit,
  effect,
)
from sinkjax.experiments.harness.stats import Mean, format_ratio, mean_of
from sinkjax.experiments.shared.jacobian_runs import mixing_of, others
from sinkjax.experiments.shared.sink_removal import KEYS

EVENNESS = COSINE._replace(
  name="of the maximum", scale="share of the greatest entropy"
)
"""Of normalized entropy, with the margin of what runs from 0 to 1."""


def claims(result: Result) -> list[Claim]:
  """Where the sink goes, and what it costs."""
  return [*_moved_claims(result.numbers), *_late_claims(result)]


def _more(
  numbers: Mapping[str, Any], name: str, what: str, unit: Unit
) -> Effect:
  """A stored mean over texts that is expected above zero."""
  return effect(Mean.read(numbers[name]), what, unit, Expect.MORE)


def _percent(numbers: Mapping[str, Any], name: str) -> str:
  return Mean.read(numbers[name]).scaled(100).text(".1f", " %")


def _moved_claims(numbers: Mapping[str, Any]) -> list[Claim]:
  """Without the first token, and with position 0 hidden everywhere."""
  # Files recorded before lack this; none of their texts started with BOS.
  bos = numbers.get("first_position_is_bos", False)
  entropy = Mean.read(numbers["evenness_removed"])
  return [
    Claim(
      id="entropy_without_first_token",
      claim="Removing the first token of a text raises the entropy of "
      "attention.",
      source="section 3.1, figure 3",
      paper="no number; visible in some heads (Gemma 7B)",
      ours=f"normalized entropy changes by {entropy.text('+.3f')} without "
      f"{'BOS' if bos else 'the first word'}",
      effect=_more(
        numbers,
        "evenness_removed",
        "normalized entropy of attention without the first token, less that of "
        "the whole text",
        EVENNESS,
      ),
      how="entropy of attention rows over its maximum, mean of heads; a sink "
      "that moves to the new first token leaves it as it was",
    ),
    Claim(
      id="sink_of_first_position",
      claim="The sink belongs to the first position rather than to the token "
      "that stands there.",
      source="section 5",
      paper="sink rate 65.15 % without and 65.10 % with BOS, in a model whose "
      "training did not fix BOS at the start (120M)",
      ours=f"sink rate {_percent(numbers, 'sink_rate_new_first')} at the new "
      f"first token, {_percent(numbers, 'sink_rate')} at the original one",
      effect=_more(
        numbers,
        "moved_removed",
        "sink rate at the new first token, less half of that at the original "
        "one",
        SHARE,
      ),
      how="a sink of the position would be wholly at the new first token, one "
      "of the token not at all: half lies between",
    ),
    Claim(
      id="sink_moves_when_hidden",
      claim="Hiding position 0 at every layer moves most of the sink to the "
      "next token.",
      source="not in the paper",
      paper="no number",
      ours="sink rate "
      f"{_percent(numbers, 'sink_rate_next_hidden_everywhere')} at position 1",
      effect=_more(
        numbers,
        "moved_hidden",
        "sink rate at position 1 with position 0 hidden, less half of that at "
        "position 0 in the unchanged model",
        SHARE,
      ),
    ),
  ]


def _late_claims(result: Result) -> list[Claim]:
  """With position 0 hidden from the layer where that removes the sink."""
  numbers, late = result.numbers, result.numbers["late"]
  entropy, loss = (
    Mean.read(numbers[name]) for name in ("evenness_late", "loss_late")
  )
  made = [
    Claim(
      id="entropy_without_sink",
      claim="Removing the sink in the later layers raises the entropy of "
      "attention.",
      source="section 3.1",
      paper="no number",
      ours=f"normalized entropy changes by {entropy.text('+.3f')} with the "
      f"sink hidden from layer {late} on; sinks left at any position "
      f"{_percent(numbers, 'sink_rate_anywhere_late')}",
      effect=_more(
        numbers,
        "evenness_late",
        "normalized entropy of attention with the sink hidden, less that of "
        "the unchanged model",
        EVENNESS,
      ),
      how="the layer is the one from which hiding leaves the fewest sinks",
    ),
    Claim(
      id="loss_without_sink",
      claim="Removing the sink in the later layers raises the loss.",
      source="section 5, table 2",
      paper="validation loss from 2.69 to 7.56 without BOS, in a model whose "
      "training fixed BOS at the start (120M)",
      ours=f"loss changes by {loss.text('+.2f', ' nats')}",
      effect=_more(
        numbers,
        "loss_late",
        "loss with the sink hidden, less that of the unchanged model",
        NATS,
      ),
      how=f"tokens from position {KEYS} on",
    ),
  ]
  # A single text has no interval, and then there is no such number.
  if "log_mixing_late" in numbers:
    made.append(_mixing(result))
  return made


def _mixing(result: Result) -> Claim:
  """By the blocks of all tokens but the sink and the control."""
  numbers = result.numbers
  mixing, norms = (
    Mean.read(numbers["log_mixing_late"]),
    result.arrays.get("norms"),
  )
  where = f"position 0 hidden from layer {numbers['late']} on"
  what = "total mixing with the sink hidden over that of the unchanged model"
  ours = (
    f"{format_ratio(mixing, '.2f')} the total mixing of the exact "
    f"Jacobian, {len(numbers['total_mixing'])} texts of "
    f"{result.config.jacobian_tokens} tokens"
  )
  # Files recorded before lack the blocks.
  made, provided = effect(mixing, what, LOG_RATIO, Expect.MORE), ()
  if norms is not None:
    position = numbers["control_position"]
    logs = np.log(mixing_of(others(norms, position)))
    plain, hidden, control = logs.T
    where += (
      f"; the blocks of positions 0 and {position} do not count, since hiding "
      "cannot change the block of position 0 on itself"
    )
    shown = format_ratio(mean_of(hidden - plain), ".2f")
    ours += (
      f"; {shown} without the rows and columns of positions 0 and {position}"
    )
    made = effect(hidden - plain, what, LOG_RATIO, Expect.MORE)
    provided = (
      effect(
        hidden - control,
        f"total mixing with the sink hidden over that with position {position} "
        "hidden",
        LOG_RATIO,
        Expect.MORE,
      ),
    )
  return Claim(
    id="mixing_without_sink",
    claim="Removing the sink in the later layers increases the total mixing of "
    "tokens.",
    source="theorem 3.2",
    paper="no number",
    ours=ours,
    effect=made,
    how=where,
    provided=provided,
  )
