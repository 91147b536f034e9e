"""Whether sink heads carry less, and what hiding the sink does to them."""

import numpy as np

from sinkjax.experiments.harness.api import Claim, Result
from sinkjax.experiments.harness.effects import (
  LOG_RATIO,
  Effect,
  Expect,
  effect,
)
from sinkjax.experiments.harness.stats import format_ratio, mean_of

SOURCE = "section 3.2"


def claims(result: Result) -> list[Claim]:
  """Sink heads beside others, with the sink hidden, and what they carry by."""
  return [_less(result), _freed(result), _values(result)]


def sink_heads(result: Result) -> np.ndarray:
  """[L, H] whether a head has a sink, by its mean score over texts."""
  return result.arrays["alpha"].mean(axis=0) > result.config.eps


def _log_mean(sizes: np.ndarray, chosen: np.ndarray) -> np.ndarray:
  """Log of the root mean square of [..., H] over the chosen heads."""
  return 0.5 * np.log((sizes[..., chosen] ** 2).mean(axis=-1))


def beside_others(sizes: np.ndarray, sinks: np.ndarray) -> np.ndarray:
  """Log ratio of sink heads to the other heads of their layer.

  Args:
    sizes: [..., L, H].
    sinks: [L, H]; layers that lack one of both kinds do not count.

  Returns:
    [...], the mean over layers.
  """
  both = sinks.any(axis=1) & ~sinks.all(axis=1)
  gaps = [
    _log_mean(sizes[..., at, :], sinks[at])
    - _log_mean(sizes[..., at, :], ~sinks[at])
    for at in np.flatnonzero(both)
  ]
  return np.mean(gaps, axis=0)


def _about(result: Result) -> str:
  numbers = result.numbers
  return (
    f"{numbers['texts']} texts of {numbers['tokens']} tokens; the exact map "
    "from the embedding of each token but position 0, the control and the last "
    "one to the last one's residual stream after the last layer; of a head, "
    "all that it writes, directly and by the MLP, root mean square over pairs "
    "and heads; a sink head has a mean score above "
    f"{result.config.eps:g} on {numbers['long_tokens']} tokens: "
    f"{numbers['sink_heads']} of {numbers['heads']}"
  )


def _less(result: Result) -> Claim:
  sinks, sizes = sink_heads(result), result.arrays["head"]
  made, provided = None, ()
  ours = "no layer has both kinds of heads"
  if (sinks.any(axis=1) & ~sinks.all(axis=1)).any():
    sink, hidden, control = beside_others(sizes, sinks).T
    ours = (
      f"{format_ratio(mean_of(sink), '.2f')} the other heads' norm; "
      f"{format_ratio(mean_of(hidden), '.2f')} with position 0 hidden"
    )
    what = "what sink heads carry over what the layer's other heads do"
    made = effect(sink, f"{what}, with the sink", LOG_RATIO, Expect.LESS)
    # That these heads are small whatever they attend to is another finding.
    provided = (
      _change(hidden - sink, f"{what}, with position 0 hidden over the sink"),
      _change(
        hidden - control, f"{what}, with position 0 hidden over the control"
      ),
    )
  return Claim(
    id="sink_heads_carry_less",
    claim="Because of the sink, heads that have one carry less of the map "
    "between other tokens than the other heads of their layer.",
    source=SOURCE,
    paper="no number: such heads are said to approximate a no-op",
    ours=ours,
    effect=made,
    how=f"{_about(result)}; the mean over layers that have both kinds",
    provided=provided,
    untested="" if made else "no layer has heads with and without a sink",
  )


def _freed(result: Result) -> Claim:
  numbers, sizes = result.numbers, result.arrays["size"]
  sinks = sink_heads(result)
  # Before that layer nothing is hidden.
  sinks[: numbers["from_layer"]] = False
  made, provided, ours = None, (), "no sink heads from there on"
  if sinks.any():
    flat = sizes.reshape(*sizes.shape[:2], -1)
    sink, hidden, control = _log_mean(flat, sinks.ravel()).T
    ours = f"{format_ratio(mean_of(hidden - sink), '.2f')} the norm"
    what = "what sink heads carry, with position 0 hidden over that"
    made = _change(hidden - sink, f"{what} with the sink")
    provided = (
      _change(
        hidden - control, f"{what} with {numbers['control_position']} hidden"
      ),
    )
  return Claim(
    id="hidden_sink_frees_heads",
    claim="With the sink hidden, heads that had one carry more of the map "
    "between other tokens.",
    source=SOURCE,
    paper="no number",
    ours=ours,
    effect=made,
    how=f"{_about(result)}; position 0 hidden from layer "
    f"{numbers['from_layer']} on, heads from there on, absolute norms",
    provided=provided,
    untested="" if made else "no head from there on has a sink",
  )


def _values(result: Result) -> Claim:
  values, scores = (
    np.sqrt((result.arrays[name][:, 0] ** 2).mean(axis=(1, 2)))
    for name in ("values", "scores")
  )
  made, ours = None, "nothing by scores"
  if (scores > 0).all() and (values > 0).all():
    ratio = np.log(values / scores)
    ours = f"{format_ratio(mean_of(ratio), '.2f')} as much"
    made = _change(ratio, "what heads carry by values over that by scores")
  return Claim(
    id="values_over_scores",
    claim="Heads carry the map between tokens by the values that they copy "
    "more than by the scores that tokens move.",
    source="theorem 3.2",
    paper="no number: the bound counts weights and values alone",
    ours=ours,
    effect=made,
    how=f"{_about(result)}; all heads, before the MLP, with the sink",
    untested="" if made else "nothing is carried by scores, or by values",
  )


def _change(values: np.ndarray, what: str) -> Effect:
  return effect(values, what, LOG_RATIO, Expect.MORE)
