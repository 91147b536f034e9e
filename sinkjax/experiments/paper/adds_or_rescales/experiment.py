"""A sink, and large dimensions, without content, without size or both."""

import dataclasses
import enum
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from sinkjax.experiments.harness.api import Result, Subject
from sinkjax.experiments.harness.stats import ends_of
from sinkjax.experiments.shared.edited_loss import EditedLoss
from sinkjax.experiments.shared.large_dimensions import next_largest
from sinkjax.experiments.shared.prompt_corpus import Text
from sinkjax.experiments.shared.steps import Steps
from sinkjax.experiments.shared.text_batches import (
  by_template,
  templates_of,
  texts_of_length,
)
from sinkjax.experiments.shared.watched import watched
from sinkjax.metrics.sink_parts import large_dimensions, sink_parts
from sinkjax.transforms.sink_edits import SplitSink, split_norms

MOST = 0.9
"""A dimension is always large if it is on this share of tokens: on all but one
token in ten, so that it says nothing about a token."""


class Part(enum.StrEnum):
  """What is left of the sink, or of dimensions; keys of recorded results."""

  BOTH = "as it is"
  SIZE = "content removed"
  CONTENT = "size removed"
  NEITHER = "both removed"


SWITCHES = {
  Part.BOTH: (1.0, 1.0),
  Part.SIZE: (0.0, 1.0),
  Part.CONTENT: (1.0, 0.0),
  Part.NEITHER: (0.0, 0.0),
}
"""(adds, rescales) of the edits, by what is left."""


class What(enum.StrEnum):
  """Whose parts are removed; keys of recorded results."""

  SINK = "sink"
  LARGE = "large dimensions"
  OTHERS = "next largest dimensions"


@dataclasses.dataclass(frozen=True)
class Config:
  """What is run.

  Attributes:
    count: texts of each domain, as in the experiment `prompts`.
    tokens: T of each; shorter texts are left out.
    ratio: a dimension is large on a token where it exceeds so many times the
      median of the token's dimensions.
    seed: of the choice of texts.
  """

  count: int = 5
  tokens: int = 64
  # Of a normal distribution one number in ten million exceeds 8 medians.
  ratio: float = 10.0
  seed: int = 0


def measure(
  subject: Subject,
  config: Config,
  *,
  texts: Sequence[Text] | None = None,
  progress: Callable[[int, int], Any] = lambda done, total: None,
) -> Result:
  """Norms of both parts, and the loss without each.

  Args:
    subject: the model; its weights in memory.
    config: what is run.
    texts: other texts than those of `gather`.
    progress: called with (texts done, in all).

  Raises:
    ValueError: for fewer than two texts that are long enough, or a model
      without norms before its layers.

  Cost: eleven forward passes.
  """
  ids = texts_of_length(
    subject, texts, config.count, config.tokens, config.seed, fewest=2
  )
  step = Steps(progress, len(ids) * (1 + 2 + 2 * len(Part)))
  seen = _look(subject, ids, config.ratio, step)
  dims = {What.LARGE: seen["large"].mean(axis=1) >= MOST}
  dims[What.OTHERS] = next_largest(seen["size"].mean(axis=1), dims[What.LARGE])
  losses = _losses(subject, ids, dims, step)
  templates = templates_of(ids, subject.template)
  units = {"templates": templates}
  adds, takes = (seen[name].sum(axis=2) for name in ("adds", "takes"))
  return Result(
    numbers={
      "texts": len(ids),
      "templates": templates,
      "large": [np.flatnonzero(x).tolist() for x in dims[What.LARGE]],
    },
    tables={
      "parts.csv": _loss_table(losses, units),
      "layers.csv": _layer_table(seen, dims[What.LARGE]),
    },
    arrays={
      # Over layers and heads, by text: large heads count as they write.
      "adds": adds.sum(axis=0),
      "takes": takes.sum(axis=0),
      "adds by layer": adds.mean(axis=1),
      "takes by layer": takes.mean(axis=1),
      **{
        f"loss, {what}, {part}": value for (what, part), value in losses.items()
      },
    },
  )


def _look(
  subject: Subject, ids: np.ndarray, ratio: float, step: Steps
) -> dict[str, np.ndarray]:
  """Norms [L, P, H], shares of large tokens [L, P, D], sizes [L, P, D]."""

  def parts(pattern: jax.Array, v: jax.Array) -> tuple[jax.Array, jax.Array]:
    return tuple(x[..., 1:].mean(axis=-1) for x in sink_parts(pattern, v))

  def size(x: jax.Array) -> tuple[jax.Array, jax.Array]:
    return large_dimensions(x, ratio), jnp.abs(x[:, 1:]).mean(axis=1)

  watch = {"parts": (("pattern", "v"), parts), "size": ("resid_pre", size)}
  out = watched(subject, ids, watch, step)
  names = ("adds", "takes", "large", "size")
  return dict(zip(names, (*out["parts"], *out["size"]), strict=True))


def _losses(
  subject: Subject, ids: np.ndarray, dims: dict[What, np.ndarray], step: Steps
) -> dict[tuple[What, Part], np.ndarray]:
  """[P] mean loss by what is changed and what is left of it."""
  loss = EditedLoss(subject, ids, step)
  found = {}
  for part, (adds, rescales) in SWITCHES.items():
    edit = SplitSink(jnp.asarray(adds), jnp.asarray(rescales))
    found[What.SINK, part] = loss({"pattern": edit}).mean(axis=1)
  # Position 0, where these dimensions may be massive, is left as it is.
  late = jnp.arange(ids.shape[1]) > 0
  for what, mask in dims.items():
    for part, (adds, rescales) in SWITCHES.items():
      if part is Part.BOTH and what is What.OTHERS:
        found[what, part] = found[What.LARGE, part]
        continue
      if what is What.OTHERS and part is Part.CONTENT:
        continue
      edits = split_norms(
        subject.cfg,
        subject.params,
        jnp.asarray(mask),
        adds=jnp.asarray(adds),
        rescales=jnp.asarray(rescales),
        positions=late,
      )
      found[what, part] = loss(edits).mean(axis=1)
  return found


def _loss_table(
  losses: dict[tuple[What, Part], np.ndarray], units: dict[str, Any]
) -> tuple[list[str], list[list[Any]]]:
  rows = []
  for (what, part), loss in losses.items():
    change = by_template(loss - losses[what, Part.BOTH], units)
    rows.append([what, part, float(loss.mean()), *ends_of(change)])
  return ["of", "left", "loss", "change", "change_low", "change_high"], rows


def _layer_table(
  seen: dict[str, np.ndarray], large: np.ndarray
) -> tuple[list[str], list[list[Any]]]:
  rows = [
    [
      layer,
      float(seen["adds"][layer].mean()),
      float(seen["takes"][layer].mean()),
      int(large[layer].sum()),
    ]
    for layer in range(len(large))
  ]
  return ["layer", "sink_adds", "sink_takes", "large_dimensions"], rows
