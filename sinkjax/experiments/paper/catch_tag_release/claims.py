"""Whether sinks tag tokens, what tags are worth, and what they tell."""

import numpy as np

from sinkjax.experiments.harness.api import Claim, Result
from sinkjax.experiments.harness.effects import (
  AUROC,
  LOG_RATIO,
  NATS,
  RANKS,
  SHARE,
  Effect,
  Expect,
  effect,
)
from sinkjax.experiments.harness.stats import format_ratio, logs, mean_of
from sinkjax.experiments.paper.catch_tag_release.experiment import (
  Removed,
  of_role,
  role_of,
)
from sinkjax.experiments.paper.catch_tag_release.roles import START, Role
from sinkjax.experiments.shared.text_batches import by_template

SOURCE = "2502.00919"
PAPER = "no number that was at hand"


def claims(result: Result) -> list[Claim]:
  """Three on shares, four on what is lost, two on what coefficients tell."""
  return [
    _share(
      result,
      "sink_tags_attention",
      "Along what position 0 writes, later tokens' attention outputs differ "
      "more than along what another early token writes.",
      "attention",
      (Role.FIRST, Role.OTHER),
    ),
    _share(
      result,
      "sink_tags_stream",
      "Along what position 0 writes, the residual stream of later tokens "
      "differs more than along what another early token writes.",
      "stream",
      (Role.FIRST, Role.OTHER),
    ),
    _share(
      result,
      "found_sinks_tag_attention",
      "Along what a sink in the middle of a text writes, later tokens' "
      "attention outputs differ more than along what a token beside it writes.",
      "attention",
      (Role.FOUND, Role.NEAR),
    ),
    _loss(
      result,
      "tag_is_used",
      "Without the tag of position 0 in later tokens' attention outputs the "
      "loss is higher than with these outputs moved as far at random.",
      (Removed.FIRST, Removed.RANDOM),
    ),
    _divergence(result),
    _loss(
      result,
      "tag_differences_are_used",
      "Without what later tokens' attention outputs differ in along the tag of "
      "position 0 the loss is higher than with these outputs moved as far at "
      "random.",
      (Removed.DIFFERENCES, Removed.DIFFERENCES_RANDOM),
    ),
    _loss(
      result,
      "found_tag_is_used",
      "Without the tag of a sink in the middle of a text in later tokens' "
      "attention outputs the loss is higher than with these outputs moved as "
      "far at random.",
      (Removed.FOUND, Removed.FOUND_RANDOM),
    ),
    _ranks(result),
    _area(result),
  ]


def _untested(id: str, sentence: str) -> Claim:
  why = "fewer than two texts that begin apart have a sink behind position 0"
  return Claim(id, sentence, SOURCE, PAPER, "not measured", None, untested=why)


def _share(
  result: Result, id: str, sentence: str, what: str, roles: tuple[Role, Role]
) -> Claim:
  sink, other = (
    of_role(result.arrays[f"{what}, {role}"], role, result.numbers)
    for role in roles
  )
  if len(sink) < 2:
    return _untested(id, sentence)
  shown = [
    mean_of(values).scaled(100).text(".2f", " %") for values in (sink, other)
  ]
  whole = ""
  if what == "attention":
    squared = result.arrays[f"attention squared, {roles[0]}"]
    values = of_role(squared, roles[0], result.numbers)
    whole = (
      ", of the squared norm, what all have in common counted, "
      f"{mean_of(values).scaled(100).text('.2f', ' %')}"
    )
  return Claim(
    id,
    sentence,
    SOURCE,
    PAPER,
    f"{shown[0]} of the variance{whole}; {roles[1]} {shown[1]}; a direction "
    f"at random {100 / result.numbers['width']:.2f} %",
    effect(
      sink - other,
      f"share of the variance along the tag of {_the(roles[0])}, less that "
      f"along the tag of {_the(roles[1])}",
      SHARE,
      Expect.MORE,
    ),
    how="mean over layers; the tag is what the key's value becomes in the "
    "output, weighted by the mean attention on it, summed over heads",
  )


def _the(role: Role) -> str:
  return {Role.FOUND: "a found sink", Role.NEAR: "a token beside it"}.get(
    role, str(role)
  )


def _change(
  result: Result, removed: Removed, what: str = "change"
) -> np.ndarray:
  values = result.arrays[f"{what}, {removed}"]
  return of_role(values, role_of(removed), result.numbers)


def _nats(values: np.ndarray, what: str) -> Effect:
  return effect(values, what, NATS, Expect.MORE)


def _loss(
  result: Result, id: str, sentence: str, pair: tuple[Removed, Removed]
) -> Claim:
  tag, random = (_change(result, removed) for removed in pair)
  if len(tag) < 2:
    return _untested(id, sentence)
  text = (
    f"the loss changes by {mean_of(tag).text('+.3f', ' nats')}, by "
    f"{mean_of(random).text('+.3f', ' nats')} where as much is moved at random"
  )
  if pair[0] is Removed.FIRST:
    other = mean_of(_change(result, Removed.OTHER))
    text += f", by {other.text('+.3f', ' nats')} without another token's tag"
  return Claim(
    id,
    sentence,
    SOURCE,
    PAPER,
    text,
    _nats(
      tag - random,
      f"loss with the {pair[0]} taken out of attention outputs, less that with "
      "these moved by as much along a random direction",
    ),
    how="at every layer, by the tags of the unchanged model; the tokens behind "
    + ("the sink" if pair[0] is Removed.FOUND else f"position {START}"),
    provided=(_nats(tag, "the same, less the loss of the unchanged model"),),
  )


def _divergence(result: Result) -> Claim:
  tag, random = (
    logs(_change(result, removed, "kl"))
    for removed in (Removed.FIRST, Removed.RANDOM)
  )
  return Claim(
    "tag_changes_predictions",
    "Without the tag of position 0 in later tokens' attention outputs the "
    "predictions change more than with these outputs moved as far at random.",
    SOURCE,
    PAPER,
    f"KL {format_ratio(mean_of(tag - random))} that of as much at random",
    effect(
      tag - random,
      "KL of the unchanged model to that without the tag, over KL to that with "
      "attention outputs moved as far at random",
      LOG_RATIO,
      Expect.MORE,
    ),
    how="mean over the tokens; at every layer, by the tags of the unchanged "
    "model",
  )


def _told(result: Result, what: str, where: str, role: Role) -> np.ndarray:
  """[n] the mean over layers."""
  values = result.arrays[f"{what}, {where}, {role}"].mean(axis=0)
  return by_template(values, result.numbers)


def _pair(result: Result, what: str) -> tuple[np.ndarray, np.ndarray, str]:
  first, other = (
    _told(result, what, "stream", role) for role in (Role.FIRST, Role.OTHER)
  )
  output = _told(result, what, "attention", Role.FIRST)
  text = (
    f"{mean_of(first).text('+.3f')} in the residual stream, "
    f"{mean_of(output).text('+.3f')} in the attention's output; along another "
    f"early token's tag {mean_of(other).text('+.3f')}"
  )
  return first, other, text


HOW = (
  "by text and layer, mean over layers: the stream behind the layer, the "
  "attention on position 0 as the mean over the layer's heads; the direction "
  "is the mean tag of the other half of the texts"
)


def _ranks(result: Result) -> Claim:
  id, sentence = (
    "coefficient_follows_attention",
    "On held-out texts the coefficient along the tag of position 0 is the "
    "higher, the more a token attended to it.",
  )
  first, other, text = _pair(result, "rank")
  return Claim(
    id,
    sentence,
    SOURCE,
    PAPER,
    f"rank correlation {text}",
    effect(
      first,
      "rank correlation of the stream's coefficient along the tag of position "
      "0 with the attention on it",
      RANKS,
      Expect.MORE,
    ),
    how=HOW,
    provided=(
      effect(
        first - other,
        "the same, less that along the tag of another early token",
        RANKS,
        Expect.MORE,
      ),
    ),
  )


def _area(result: Result) -> Claim:
  id, sentence = (
    "coefficient_tells_who_attended",
    "On held-out texts the coefficient along the tag of position 0 tells the "
    "half of the tokens that attended to it more.",
  )
  first, _, text = _pair(result, "auroc")
  return Claim(
    id,
    sentence,
    SOURCE,
    PAPER,
    f"AUROC {text.replace('+', '')}",
    effect(
      first - 0.5,
      "AUROC by which the stream's coefficient along the tag of position 0 "
      "tells the tokens of more than median attention on it, less 0.5, chance",
      AUROC,
      Expect.MORE,
    ),
    how=HOW,
  )
