"""Whether there is a valley, and whether the first token makes it."""

import numpy as np

from sinkjax.experiments.harness.api import Claim, Result
from sinkjax.experiments.harness.effects import (
  COSINE,
  SHARE,
  Count,
  Expect,
  effect,
)
from sinkjax.experiments.harness.stats import mean_of, rank_correlation
from sinkjax.experiments.paper.compression_valley.experiment import (
  Edit,
  in_life,
)
from sinkjax.experiments.shared.text_batches import by_template

SOURCE = "2510.06477"
PAPER = "no number that was at hand"

ROUNDING = 1e-3
"""Of an entropy over its maximum: of the shares of a spectrum in float32, 1e-7
each is rounding, which of 64 makes 1e-4 nats."""


def claims(result: Result) -> list[Claim]:
  """Two on the valley, one law, one on layers, four on what makes it."""
  return [
    _valley(result),
    _first_token(result),
    _bound(result),
    _layers(result),
    _made(result, Edit.DIMS, Edit.OTHERS),
    _made(result, Edit.MLP, Edit.NEIGHBOUR),
    _sinks(result, Edit.DIMS, Edit.OTHERS),
    _sinks(result, Edit.MLP, Edit.NEIGHBOUR),
  ]


def _of(result: Result, name: str, edit: Edit = Edit.NONE) -> np.ndarray:
  return result.arrays[name][list(Edit).index(edit)].astype(float)


def _entropy(result: Result, edit: Edit, name: str = "entropy") -> np.ndarray:
  """[P] mean over the first token's life."""
  numbers = result.numbers
  return in_life(_of(result, name, edit), numbers["rise"], numbers["fall"])


def _units(result: Result, values: np.ndarray) -> np.ndarray:
  return by_template(values, result.numbers)


def _text(values: np.ndarray) -> str:
  return mean_of(values).text(".3f")


def _where(result: Result) -> str:
  numbers = result.numbers
  return (
    f"entropy over its maximum, mean over the states after layers "
    f"{numbers['rise']} to {numbers['fall'] - 1}, between the largest rise and "
    "the largest fall of the first token's norm"
  )


def _valley(result: Result) -> Claim:
  entropy, rise = _of(result, "entropy"), result.numbers["rise"]
  # The two sides of the valley: before the rise, and where the model ends.
  side = np.minimum(entropy[rise], entropy[-1])
  middle = _entropy(result, Edit.NONE)
  return Claim(
    id="valley",
    claim="The entropy of the residual stream's spectrum is lower in the "
    "middle layers than before and after them.",
    source=SOURCE,
    paper=PAPER,
    ours=f"{_text(_units(result, middle))} of its maximum in the middle, "
    f"{_text(_units(result, entropy[rise]))} before and "
    f"{_text(_units(result, entropy[-1]))} after the last layer",
    effect=effect(
      _units(result, middle - side),
      "entropy in the middle layers, less the lower of that before them and "
      "that after the last layer",
      COSINE,
      Expect.LESS,
    ),
    how=_where(result),
  )


def _first_token(result: Result) -> Claim:
  whole = _entropy(result, Edit.NONE)
  rest = _entropy(result, Edit.NONE, "entropy of the rest")
  return Claim(
    id="valley_is_first_token",
    claim="In the middle layers the spectrum has less entropy with the first "
    "token than without it.",
    source=SOURCE,
    paper=PAPER,
    ours=f"{_text(_units(result, whole))} of its maximum with all tokens, "
    f"{_text(_units(result, rest))} without the first",
    effect=effect(
      _units(result, whole - rest),
      "entropy of all tokens' states, less that of all but the first",
      COSINE,
      Expect.LESS,
    ),
    how=f"{_where(result)}; states of the unchanged model",
  )


def _bound(result: Result) -> Claim:
  entropy, bound = result.arrays["entropy"], result.arrays["bound"]
  gap = _entropy(result, Edit.NONE, "bound") - _entropy(result, Edit.NONE)
  return Claim(
    id="bound_holds",
    claim="The part of the squares along the first token's state bounds the "
    "entropy of the spectrum from above.",
    source=SOURCE,
    paper="proved; our reading",
    ours=f"in the middle layers the bound is {_text(_units(result, gap))} of "
    "the maximum above the entropy",
    effect=Count(
      "states have more entropy than the bound",
      int((entropy > bound + ROUNDING).sum()),
      entropy.size,
    ),
    how="every text, state and condition",
  )


def _layers(result: Result) -> Claim:
  head = (
    "entropy_follows_norm",
    "Over layers, the spectrum has less entropy where the first token's norm "
    "is larger relative to others.",
    SOURCE,
    PAPER,
  )
  entropy, norm = (_of(result, name)[1:].T for name in ("entropy", "norm"))
  rates = _of(result, "sink rate").T
  if entropy.shape[1] < 4:
    why = "a correlation over layers needs four"
    return Claim(*head, "not measured", None, untested=why)
  found = rank_correlation(entropy, norm)
  with_sinks = np.nan_to_num(rank_correlation(entropy[:, :-1], rates[:, 1:]))
  return Claim(
    *head,
    f"rank correlation {_text(_units(result, found))}; with the sink rate of "
    f"the layer that reads the state {_text(_units(result, with_sinks))}",
    effect(
      _units(result, found),
      "rank correlation over layers of entropy and the first token's norm over "
      "the median",
      COSINE,
      Expect.LESS,
    ),
    "Spearman's, in each text",
  )


NAMES = {Edit.DIMS: "dimensions", Edit.MLP: "mlp"}
"""In identifiers of claims."""

TAKEN = {
  Edit.DIMS: "Without the first token's largest dimensions",
  Edit.MLP: "Without what the MLP with the largest rise writes to the first "
  "token",
}


def _none_found(result: Result, edit: Edit) -> str:
  if edit is Edit.DIMS and not result.numbers["dimensions"]:
    return (
      "no dimension holds a large share of the first token's norm in this model"
    )
  return ""


def _details(result: Result, edit: Edit) -> str:
  numbers = result.numbers
  if edit is Edit.MLP:
    return (
      f"MLP of layer {numbers['rise']}; control: the same at position "
      f"{numbers['control_position']}"
    )
  return (
    f"dimensions {', '.join(map(str, numbers['dimensions']))}, "
    f"{100 * numbers['share']:.0f} % of the first token's squares, set to zero "
    f"after layer {numbers['rise']} and all later ones; control: as many of "
    "the next largest"
  )


def _made(result: Result, edit: Edit, control: Edit) -> Claim:
  head = (
    f"{NAMES[edit]}_make{'s' * (edit is Edit.MLP)}_valley",
    f"{TAKEN[edit]}, the spectrum has more entropy in the middle layers.",
    SOURCE,
    PAPER,
  )
  if why := _none_found(result, edit):
    return Claim(*head, "not measured", None, untested=why)
  plain, without, other = (
    _entropy(result, x) for x in (Edit.NONE, edit, control)
  )
  return Claim(
    *head,
    f"entropy {_text(_units(result, plain))} of its maximum, "
    f"{_text(_units(result, without))} without, "
    f"{_text(_units(result, other))} with the control taken away",
    effect(
      _units(result, without - plain),
      "entropy without, less that of the unchanged model",
      COSINE,
      Expect.MORE,
    ),
    f"{_where(result)}; {_details(result, edit)}",
    (
      effect(
        _units(result, without - other),
        "entropy without, less that with the control taken away",
        COSINE,
        Expect.MORE,
      ),
    ),
  )


def _sinks(result: Result, edit: Edit, control: Edit) -> Claim:
  head = (
    f"{NAMES[edit]}_make{'s' * (edit is Edit.MLP)}_sinks",
    f"{TAKEN[edit]}, fewer heads have a sink there.",
    SOURCE,
    PAPER,
  )
  if why := _none_found(result, edit):
    return Claim(*head, "not measured", None, untested=why)
  plain, without, other = (
    _of(result, "sink rate", x).mean(axis=0) for x in (Edit.NONE, edit, control)
  )
  nats = _of(result, "loss", edit) - _of(result, "loss")
  shown = (
    mean_of(_units(result, 100 * x)).text(".1f", " %")
    for x in (plain, without, other)
  )
  return Claim(
    *head,
    "sink rate {}, {} without, {} with the control taken away".format(*shown)
    + "; the loss changes by "
    + mean_of(_units(result, nats)).text("+.2f", " nats"),
    effect(
      _units(result, without - plain),
      "sink rate without, less that of the unchanged model",
      SHARE,
      Expect.LESS,
    ),
    _details(result, edit),
    (
      effect(
        _units(result, without - other),
        "sink rate without, less that with the control taken away",
        SHARE,
        Expect.LESS,
      ),
    ),
  )
