"""Massive activations: which layers make them, and what hangs on them.

Sun et al. (2024, arXiv 2402.17762): a few dimensions of the first token's
residual stream are thousands of times the median. Set to zero, the model
breaks; set to their mean, it does not. Here also: does the sink need them?
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from sinkjax.experiments.harness.api import (
  AGREES,
  DISAGREES,
  UNTESTED,
  Claim,
  Result,
  Subject,
  direction,
)
from sinkjax.experiments.harness.stats import mean_over
from sinkjax.experiments.shared.sink_removal import texts_of
from sinkjax.experiments.shared.swap_texts import TEXTS
from sinkjax.metrics.sinks import sink_score
from sinkjax.models.transformer import forward
from sinkjax.transforms.capture import capture
from sinkjax.transforms.intervene import intervene

NAME, TITLE = "massive", "Massive activations and the sink"
SIZE, RATIO = 100.0, 1000.0
"""The paper's criterion: greater than both, the second times the median."""


@dataclasses.dataclass(frozen=True)
class Config:
  """What is run.

  Attributes:
    texts: as `swaps.parse_swaps` takes them; the swaps are not used.
    tokens: T of each text.
    eps: a head has a sink where its score exceeds this.
  """

  texts: str = TEXTS
  tokens: int = 46
  eps: float = 0.3


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class SetFirst:
  """Some dimensions of position 0 set to numbers, in one layer.

  Attributes:
    chosen: [D] bool.
    values: [D].
    layer: where; another layer's number than there is does nothing.
  """

  chosen: Any
  values: Any
  layer: Any

  def __call__(self, value, layer):
    """The residual stream [B, T, D] with its first token changed."""
    new = jnp.where(self.chosen, self.values, value[:, 0])
    new = jnp.where(layer == self.layer, new, value[:, 0])
    return value.at[:, 0].set(new.astype(value.dtype))


def run(
  subject: Subject,
  config: Config,
  *,
  progress: Callable[[int, int], Any] = lambda done, total: None,
) -> Result:
  """Finds the massive activations and changes them.

  Args:
    subject: the model; its weights in memory.
    config: what is run.
    progress: called with (steps done, steps in all).

  Raises:
    ValueError: for texts that are too short or too few.

  Cost: six forward passes a text.
  """
  tokens = jnp.asarray(texts_of(subject, config.texts, config.tokens))
  f, steps = forward(subject.cfg), 6
  seen = _look(f, subject.params, tokens)
  progress(1, steps)
  found = find(seen["resid_post"])
  conditions = _conditions(found, seen["resid_post"])
  after = {}
  for i, (name, edit) in enumerate(conditions.items()):
    after[name] = _after(f, edit, subject.params, tokens)
    progress(i + 2, steps)
  progress(steps, steps)
  return _result(config, seen, found, after)


def _look(f, params, tokens) -> dict[str, np.ndarray]:
  """Residual streams [L, B, T, D] and what is added to the first token."""
  watch = {
    "resid_post": ("resid_post", lambda x: x),
    "attn_out": ("attn_out", lambda x: x[:, 0]),
    "mlp_out": ("mlp_out", lambda x: x[:, 0]),
  }
  out = jax.jit(capture(f, watch))(params, tokens)
  return {name: np.asarray(value) for name, value in out.trace.items()}


@jax.jit
def _nll(logits, tokens):
  picked = jax.nn.log_softmax(logits[:, :-1].astype(jnp.float32))
  taken = jnp.take_along_axis(picked, tokens[:, 1:, None], -1)[..., 0]
  return -jnp.mean(taken, axis=-1)


@dataclasses.dataclass(frozen=True)
class Massive:
  """What was found.

  Attributes:
    dimensions: those massive at position 0 in the layer where most are, in
      more than half of the texts.
    made: the first layer after which the largest is massive.
    gone: the first layer after `made` after which it no longer is; the number
      of layers if that never happens.
    largest: [L, B] |x| of the largest at each layer.
    elsewhere: [L, B] the largest at any other position.
    ratio: [L, B] `largest` over the median |x| of the layer.
  """

  dimensions: list[int]
  made: int | None
  gone: int | None
  largest: np.ndarray
  elsewhere: np.ndarray
  ratio: np.ndarray


def find(resid: np.ndarray) -> Massive:
  """The massive activations of residual streams [L, B, T, D]."""
  size = np.abs(resid.astype(np.float64))
  median = np.median(size, axis=(2, 3))
  first = size[:, :, 0]
  massive = (first > SIZE) & (first >= RATIO * median[..., None])
  share = massive.mean(axis=1)  # [L, D]
  layer = int(np.argmax(share.sum(axis=-1)))
  dimensions = np.flatnonzero(share[layer] > 0.5).tolist()
  largest = first.max(axis=-1)
  held = massive.any(axis=-1).mean(axis=-1) > 0.5
  made = int(np.argmax(held)) if held.any() else None
  gone = None
  if made is not None:
    later = np.flatnonzero(~held[made:])
    gone = made + int(later[0]) if later.size else len(held)
  return Massive(
    dimensions,
    made,
    gone,
    largest,
    size[:, :, 1:].max(axis=(2, 3)),
    largest / median,
  )


def _conditions(found: Massive, resid: np.ndarray) -> dict[str, SetFirst]:
  """Edits of the residual stream after the layer that makes them."""
  width = resid.shape[-1]
  nothing = np.zeros(width, bool)
  chosen = nothing.copy()
  chosen[found.dimensions] = True
  made = 0 if found.made is None else found.made
  mean = resid[made, :, 0].mean(axis=0)
  other = nothing.copy()  # as many of the next largest dimensions
  order = np.argsort(-np.abs(mean) * ~chosen)
  other[order[: len(found.dimensions)]] = True
  zero = np.zeros(width, resid.dtype)

  def edit(chosen, values):
    return SetFirst(jnp.asarray(chosen), jnp.asarray(values), jnp.asarray(made))

  return {
    "as it is": edit(nothing, zero),
    "set to zero": edit(chosen, zero),
    "set to their mean": edit(chosen, mean),
    "next largest set to zero": edit(other, zero),
  }


@jax.jit
def _sinks(pattern):
  return sink_score(pattern)


def _after(f, edit, params, tokens):
  """(sink scores [L, B, H], loss [B]) of an edited model."""
  g = capture(
    intervene(f, {"resid_post": edit}), {"alpha": ("pattern", _sinks)}
  )
  out = g(params, tokens)
  return np.asarray(out.trace["alpha"]), np.asarray(_nll(out.logits, tokens))


def _result(config: Config, seen, found: Massive, after) -> Result:
  texts = list(range(found.largest.shape[1]))
  plain, plain_loss = after["as it is"]
  rates, numbers = {}, {}
  for name, (alpha, loss) in after.items():
    rates[name] = (alpha > config.eps).mean(axis=(0, 2))
    numbers[name] = {
      "sink_rate": mean_over(rates[name], texts)._asdict(),
      "sink_rate_change": mean_over(
        rates[name] - rates["as it is"], texts
      )._asdict(),
      "sink_rate_over_half": mean_over(
        rates[name] - rates["as it is"] / 2, texts
      )._asdict(),
      "loss": mean_over(loss, texts)._asdict(),
      "loss_change": mean_over(loss - plain_loss, texts)._asdict(),
    }
  added = {
    name: np.abs(seen[name][:, :, found.dimensions]).mean(axis=1)
    for name in ("attn_out", "mlp_out")
  }  # [L, dimensions]
  header = ["layer", "largest", "elsewhere", "over_median"]
  rows = [
    [
      layer,
      *(
        float(x[layer].mean())
        for x in (found.largest, found.elsewhere, found.ratio)
      ),
    ]
    for layer in range(len(found.largest))
  ]
  return Result(
    name=NAME,
    title=TITLE,
    claims=_claims(found, numbers),
    numbers={
      "texts": len(texts),
      "tokens": config.tokens,
      "eps": config.eps,
      "dimensions": found.dimensions,
      "made": found.made,
      "gone": found.gone,
      "conditions": numbers,
    },
    tables={"layers.csv": (header, rows), "edits.csv": _edit_table(numbers)},
    arrays={
      "largest": found.largest,
      "elsewhere": found.elsewhere,
      "ratio": found.ratio,
      "by_attention": added["attn_out"],
      "by_mlp": added["mlp_out"],
      "sink_rate_by_layer": np.stack(
        [(alpha > config.eps).mean(axis=(1, 2)) for alpha, _ in after.values()]
      ),
    },
  )


def _edit_table(numbers):
  header = ["edit"]
  for what in ("sink_rate", "loss"):
    header += [what, f"{what}_low", f"{what}_high"]
  rows = [
    [
      name,
      *(
        one[what][end]
        for what in ("sink_rate", "loss")
        for end in ("value", "low", "high")
      ),
    ]
    for name, one in numbers.items()
  ]
  return header, rows


def _claims(found: Massive, numbers):
  criterion = f"|x| above {SIZE:g} and {RATIO:g} times the median"
  where = "2402.17762"
  if found.made is None:
    return [
      Claim(
        "A few dimensions of the first token are massive.",
        where,
        "dimensions 1415 and 2533 (Llama 2 7B)",
        f"none: {criterion}",
        DISAGREES,
        f"largest {found.largest.max():.0f}",
      ),
      Claim(
        "The model needs them.",
        where,
        "perplexity 5.47 to infinity",
        "not measured",
        UNTESTED,
        "this model has none",
      ),
    ]

  def text(name, what, form=".2f", scale=1.0, unit=""):
    one = {k: scale * numbers[name][what][k] for k in ("value", "low", "high")}
    return (
      f"{one['value']:{form}} ({one['low']:{form}} to "
      f"{one['high']:{form}}){unit}"
    )

  zero, mean = "set to zero", "set to their mean"
  loss, same = numbers[zero]["loss_change"], numbers[mean]["loss_change"]
  left = numbers[zero]["sink_rate_over_half"]
  layers = f"after layers {found.made} to {found.gone - 1}"
  return [
    Claim(
      "A few dimensions of the first token are massive in the middle layers.",
      where,
      "dimensions 1415 and 2533, layers 2 to 30 (Llama 2 7B)",
      f"dimensions {', '.join(map(str, found.dimensions))}, {layers}; up to "
      f"{found.largest.max():,.0f}, {found.ratio.max():,.0f} times the median",
      AGREES,
      criterion,
    ),
    Claim(
      "Set to zero where they are made, the model breaks.",
      where,
      "perplexity 5.47 to infinity (Llama 2 7B)",
      f"loss {text(zero, 'loss_change', '+.2f', unit=' nats')}",
      direction(loss["low"], loss["high"]),
      "95 % interval over texts",
    ),
    Claim(
      "Set to their mean, it does not.",
      where,
      "perplexity 5.47 to 5.47 (Llama 2 7B)",
      f"loss {text(mean, 'loss_change', '+.4f', unit=' nats')}",
      AGREES if abs(same["value"]) < 0.05 * abs(loss["value"]) else DISAGREES,
      "agrees below 5 % of what setting them to zero does",
    ),
    Claim(
      "Without them there is no sink.",
      where,
      "attention no longer goes there",
      f"sink rate {text('as it is', 'sink_rate', '.1f', 100, ' %')} to "
      f"{text(zero, 'sink_rate', '.1f', 100, ' %')}; with as many others set "
      "to zero "
      f"{text('next largest set to zero', 'sink_rate', '.1f', 100, ' %')}",
      direction(-left["high"], -left["low"]),
      "agrees below half of the rate as it is; layers up to the one that makes "
      "them keep their sinks",
    ),
  ]
