"""Massive activations found, and changed: what is run and measured."""

import dataclasses
import enum
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from sinkjax.config import ModelConfig
from sinkjax.experiments.harness.api import Result, Subject
from sinkjax.experiments.harness.stats import Mean, ends_columns, mean_over
from sinkjax.experiments.shared.large_dimensions import next_largest
from sinkjax.experiments.shared.sink_removal import loss_from, texts_of
from sinkjax.experiments.shared.swap_texts import SWAP_TEXTS
from sinkjax.metrics.norms import LEAST, LEAST_RATIO
from sinkjax.metrics.sinks import sink_score
from sinkjax.models.transformer import forward
from sinkjax.transforms.capture import capture
from sinkjax.transforms.edit_indices import chosen, place_index
from sinkjax.transforms.intervene import intervene


class Edit(enum.StrEnum):
  """What is done to position 0; the values are keys of recorded results."""

  NONE = "as it is"
  ZERO = "set to zero"
  MEAN = "set to their mean"
  OTHERS = "next largest set to zero"


@dataclasses.dataclass(frozen=True)
class Config:
  """What is run.

  Attributes:
    texts: as `swap_texts.parse_swaps` takes them; the swaps are not used.
    tokens: T of each text.
    eps: a head has a sink where its score exceeds this.
  """

  texts: str = SWAP_TEXTS
  tokens: int = 46
  eps: float = 0.3


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class SetFirst:
  """Some dimensions of position 0 set to numbers, in one layer.

  Attributes:
    chosen: the dimensions, [D] bool or indices.
    values: [D].
    layer: the layer after which they are set.
  """

  chosen: Any
  values: Any
  layer: Any

  def placed(self, cfg: ModelConfig, length: int, site: str) -> Any:
    """The same with its layer and dimensions checked."""
    layer = place_index("layer", self.layer, cfg.n_layers)
    which = place_index("dimension", self.chosen, cfg.d_model)
    return dataclasses.replace(self, chosen=which, layer=layer)

  def __call__(self, value: jax.Array, layer: Any) -> jax.Array:
    """The residual stream [B, T, D] with its first token changed."""
    which = chosen(self.chosen, jnp.arange(value.shape[-1]))
    new = jnp.where(which, self.values, value[:, 0])
    new = jnp.where(layer == self.layer, new, value[:, 0])
    return value.at[:, 0].set(new.astype(value.dtype))


def measure(
  subject: Subject,
  config: Config,
  *,
  progress: Callable[[int, int], Any] = lambda done, total: None,
) -> Result:
  """Finds the massive activations and changes them.

  Args:
    subject: the model; its weights in memory.
    config: what is run.
    progress: called with (forward passes done, in all).

  Raises:
    ValueError: for texts that are too short or too few.

  Cost: five forward passes a text.
  """
  tokens = jnp.asarray(texts_of(subject, config.texts, config.tokens))
  f, steps = forward(subject.cfg), 1 + len(Edit)
  seen = _observe(f, subject.params, tokens)
  progress(1, steps)
  massive = find(seen["resid_post"])
  after = {}
  for i, (name, edit) in enumerate(_edits(massive, seen["resid_post"]).items()):
    after[name] = _after(f, edit, subject.params, tokens)
    progress(i + 2, steps)
  return _result(config, seen, massive, after)


def _observe(
  f: Callable, params: Any, tokens: jax.Array
) -> dict[str, np.ndarray]:
  """Residual streams [L, B, T, D] and what is added to the first token."""
  watch = {
    "resid_post": ("resid_post", lambda x: x),
    "attn_out": ("attn_out", lambda x: x[:, 0]),
    "mlp_out": ("mlp_out", lambda x: x[:, 0]),
  }
  out = jax.jit(capture(f, watch))(params, tokens)
  return {name: np.asarray(value) for name, value in out.trace.items()}


@dataclasses.dataclass(frozen=True)
class Massive:
  """The massive activations of a model.

  Attributes:
    dimensions: those massive at position 0 in the layer where most are, in
      more than half of the texts.
    made: the first layer after which any is massive in more than half of the
      texts; `None` if there is none.
    gone: the first layer after `made` after which none is; the number of
      layers if that never happens.
    largest: [L, B] |x| of the largest at position 0.
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
  massive = (first > LEAST) & (first >= LEAST_RATIO * median[..., None])
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


def _edits(massive: Massive, resid: np.ndarray) -> dict[Edit, SetFirst]:
  """Edits of the residual stream after the layer that makes them."""
  width = resid.shape[-1]
  large = np.zeros(width, bool)
  large[massive.dimensions] = True
  # A model without massive activations runs every edit on no dimension at all;
  # its claims are then untested.
  made = 0 if massive.made is None else massive.made
  mean = resid[made, :, 0].mean(axis=0)
  zero = np.zeros(width, resid.dtype)
  changes = {
    Edit.NONE: (np.zeros(width, bool), zero),
    Edit.ZERO: (large, zero),
    Edit.MEAN: (large, mean),
    Edit.OTHERS: (next_largest(np.abs(mean), large), zero),
  }
  return {
    name: SetFirst(*map(jnp.asarray, (which, values, made)))
    for name, (which, values) in changes.items()
  }


# Compiled once each, while the edited forward pass runs layer by layer.
_sink_scores = jax.jit(sink_score)
_loss = jax.jit(loss_from, static_argnames="start")


def _after(
  f: Callable, edit: SetFirst, params: Any, tokens: jax.Array
) -> tuple[np.ndarray, np.ndarray]:
  """(sink scores [L, B, H], loss [B]) of an edited model."""
  g = capture(
    intervene(f, {"resid_post": edit}), {"alpha": ("pattern", _sink_scores)}
  )
  out = g(params, tokens)
  loss = _loss(out.logits, tokens, start=1)
  return np.asarray(out.trace["alpha"]), np.asarray(loss)


def _by_edit(
  config: Config, after: Mapping[Edit, tuple[np.ndarray, np.ndarray]]
) -> dict[Edit, dict[str, Mean]]:
  """Sink rates and losses of every edit, and their changes."""
  rates = {
    name: (alpha > config.eps).mean(axis=(0, 2))
    for name, (alpha, _) in after.items()
  }
  plain, (_, plain_loss) = rates[Edit.NONE], after[Edit.NONE]
  by_text = {
    name: {
      "sink_rate": rates[name],
      "sink_rate_change": rates[name] - plain,
      "sink_rate_over_half": rates[name] - plain / 2,
      "loss": loss,
      "loss_change": loss - plain_loss,
    }
    for name, (_, loss) in after.items()
  }
  return {
    name: {what: mean_over(x, range(len(x))) for what, x in values.items()}
    for name, values in by_text.items()
  }


def _result(
  config: Config,
  seen: Mapping[str, np.ndarray],
  massive: Massive,
  after: Mapping[Edit, tuple[np.ndarray, np.ndarray]],
) -> Result:
  conditions = _by_edit(config, after)
  added = {
    name: np.abs(seen[name][:, :, massive.dimensions]).mean(axis=1)
    for name in ("attn_out", "mlp_out")
  }  # [L, dimensions]
  by_layer = {
    "largest": massive.largest,
    "elsewhere": massive.elsewhere,
    "over_median": massive.ratio,
  }
  rows = [
    [layer, *(float(x[layer].mean()) for x in by_layer.values())]
    for layer in range(len(massive.largest))
  ]
  return Result(
    numbers={
      "texts": massive.largest.shape[1],
      "tokens": config.tokens,
      "eps": config.eps,
      "dimensions": massive.dimensions,
      "made": massive.made,
      "gone": massive.gone,
      "conditions": conditions,
    },
    tables={
      "layers.csv": (["layer", *by_layer], rows),
      "edits.csv": _edit_table(conditions),
    },
    arrays={
      "largest": massive.largest,
      "elsewhere": massive.elsewhere,
      "ratio": massive.ratio,
      "by_attention": added["attn_out"],
      "by_mlp": added["mlp_out"],
      "sink_rate_by_text": np.stack(
        [(alpha > config.eps).mean(axis=(0, 2)) for alpha, _ in after.values()]
      ),
      "sink_rate_by_layer": np.stack(
        [(alpha > config.eps).mean(axis=(1, 2)) for alpha, _ in after.values()]
      ),
    },
  )


def _edit_table(
  conditions: Mapping[Edit, Mapping[str, Mean]],
) -> tuple[list[str], list[list[Any]]]:
  header = ["edit"]
  header += ends_columns("sink_rate", "loss")
  rows = [
    [name, *means["sink_rate"][:3], *means["loss"][:3]]
    for name, means in conditions.items()
  ]
  return header, rows
