"""Where the sink goes when it is removed, and what that costs."""

from collections.abc import Mapping
from typing import Any

from sinkjax.experiments.harness.api import Claim, Result, direction
from sinkjax.experiments.harness.stats import Mean, format_ratio
from sinkjax.experiments.shared.sink_removal import KEYS


def claims(result: Result) -> list[Claim]:
  """Where the sink goes, and what it costs."""
  return [*_moved_claims(result.numbers), *_late_claims(result)]


def _verdict(numbers: Mapping[str, Any], name: str) -> str:
  mean = Mean.read(numbers[name])
  return direction(mean.low, mean.high)


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
      verdict=_verdict(numbers, "evenness_removed"),
      why="entropy of attention rows over its maximum, mean of heads; a sink "
      "that moves to the new first token leaves it as it was",
    ),
    Claim(
      id="sink_of_first_position",
      claim="The sink belongs to the first position, not to the token that "
      "stands there.",
      source="section 5",
      paper="sink rate 65.15 % without and 65.10 % with BOS, in a model whose "
      "training did not fix BOS at the start (120M)",
      ours=f"sink rate {_percent(numbers, 'sink_rate_new_first')} at the new "
      f"first token, {_percent(numbers, 'sink_rate')} at the original one",
      verdict=_verdict(numbers, "moved_removed"),
      why="agrees if more than half of the original sink rate is at the new "
      "first token",
    ),
    Claim(
      id="sink_moves_when_hidden",
      claim="Hiding position 0 at every layer moves the sink to the next "
      "token.",
      source="not in the paper",
      paper="no number",
      ours="sink rate "
      f"{_percent(numbers, 'sink_rate_next_hidden_everywhere')} at position 1",
      verdict=_verdict(numbers, "moved_hidden"),
      why="agrees if more than half of the original sink rate is at position 1",
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
      verdict=_verdict(numbers, "evenness_late"),
      why="the layer is the one from which hiding leaves the fewest sinks",
    ),
    Claim(
      id="loss_without_sink",
      claim="Removing the sink in the later layers raises the loss.",
      source="section 5, table 2",
      paper="validation loss from 2.69 to 7.56 without BOS, in a model whose "
      "training fixed BOS at the start (120M)",
      ours=f"loss changes by {loss.text('+.2f', ' nats')}",
      verdict=_verdict(numbers, "loss_late"),
      why=f"tokens from position {KEYS} on",
    ),
  ]
  if "log_mixing_late" in numbers:
    mixing = Mean.read(numbers["log_mixing_late"])
    made.append(
      Claim(
        id="mixing_without_sink",
        claim="Removing the sink in the later layers increases the total "
        "mixing of tokens.",
        source="theorem 3.2",
        paper="no number",
        ours=f"{format_ratio(mixing, '.2f')} the total mixing of the exact "
        f"Jacobian, {len(numbers['total_mixing'])} texts of "
        f"{result.config.jacobian_tokens} tokens",
        verdict=_verdict(numbers, "log_mixing_late"),
        why=f"position 0 hidden from layer {late} on",
      )
    )
  return made
