"""The Jacobian lens with and without the sink: what is run and measured.

Axes: P texts, S skips, N layers, R directions, T tokens, D width.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
import numpy as np

from sinkjax.analysis.lens_quality import LensQuality, lens_quality
from sinkjax.experiments.harness.api import Result, Subject
from sinkjax.experiments.harness.stats import ends_columns, ends_of
from sinkjax.experiments.shared.jacobian_runs import CONTROL_KEY
from sinkjax.experiments.shared.sink_removal import (
  Condition,
  hide,
  resolve_from_layer,
  texts_of,
)
from sinkjax.experiments.shared.steps import Steps
from sinkjax.experiments.shared.swap_texts import SWAP_TEXTS
from sinkjax.models.transformer import forward
from sinkjax.transforms.lens import Lens, fit_lenses, mean_lens
from sinkjax.transforms.lens_shares import LensProbes, lens_probes

CONTROL = "control hidden"
"""The third condition, of shares only: a fit of its own would cost a third of
the whole."""

LOGIT = "logit lens"

METRICS = LensQuality._fields

FEWEST = 2
"""Texts that are held out, at least: an interval over texts needs two."""


@dataclasses.dataclass(frozen=True)
class Config:
  """What is measured.

  Attributes:
    texts: as `swap_texts.parse_swaps` takes them; the swaps are not used.
    fit: so many first texts are those of the fit; the others are held out.
    tokens: T of each text.
    skips: numbers of first tokens that are no sources.
    every: of so many layers one is looked at; never the last, whose lens is
      the identity.
    samples: R, directions in which shares are measured.
    from_layer: the first layer at which position 0 is hidden; `None` for the
      one that leaves the fewest sinks, see `sink_removal`.
  """

  texts: str = SWAP_TEXTS
  # The fit is nearly all of the time: 576 backward passes of each text.
  fit: int = 4
  tokens: int = 40
  skips: tuple[int, ...] = (0, 1, 16)
  every: int = 3
  samples: int = 8
  from_layer: int | None = None


def measure(
  subject: Subject,
  config: Config,
  *,
  progress: Callable[[int, int], Any] = lambda done, total: None,
) -> Result:
  """Shares of every text's lens, and how well the fitted lenses read.

  Args:
    subject: the model; its weights in memory.
    config: what is measured.
    progress: called with (parts done, parts in all).

  Raises:
    ValueError: for texts that are too short or too few, or a model of one
      layer.

  Cost: two fits of `fit` texts, and 2 R backward passes of every text in each
    of three conditions.
  """
  control = CONTROL_KEY + len(subject.prefix)
  layers = _layers(subject.cfg.n_layers, config.every)
  _check(config, control)
  config = resolve_from_layer(subject, config)
  ids = texts_of(subject, config.texts, config.tokens)
  if not 1 <= config.fit <= len(ids) - FEWEST:
    raise ValueError(
      f"fit must be 1 to {len(ids) - FEWEST}, so that {FEWEST} of {len(ids)} "
      f"texts are held out, got {config.fit}"
    )
  f, layer = forward(subject.cfg), jnp.asarray(config.from_layer)
  # Behind the last layer hides nothing. As arrays, which are no part of the
  # program: all conditions share one.
  nowhere = jnp.asarray(subject.cfg.n_layers)
  functions = {
    Condition.SINK: hide(f, nowhere, jnp.asarray(0)),
    Condition.HIDDEN: hide(f, layer, jnp.asarray(0)),
    CONTROL: hide(f, layer, jnp.asarray(control)),
  }
  read = config.fit + len(readings(config.skips))
  step = Steps(progress, 3 * len(ids) + 2 * read)
  arrays = {}
  for name, fn in functions.items():
    arrays |= _shares(subject, config, (name, fn), ids, layers, step)
  for name in Condition:
    arrays |= _read(subject, config, (name, functions[name]), ids, layers, step)
  numbers = {
    "texts": len(ids),
    "fitted": config.fit,
    "held_out": len(ids) - config.fit,
    "tokens": config.tokens,
    "layers": list(layers),
    "of_layers": subject.cfg.n_layers,
    "from_layer": config.from_layer,
    "control_position": control,
  }
  tables = {
    "shares.csv": _share_table(arrays, config, layers),
    "quality.csv": _quality_table(arrays, config, layers),
  }
  return Result(numbers=numbers, tables=tables, arrays=arrays)


def _layers(many: int, every: int) -> tuple[int, ...]:
  if every < 1:
    raise ValueError(f"every must be at least 1, got {every}")
  found = tuple(range(every - 1, many - 1, every))
  if not found:
    raise ValueError(
      f"every={every} leaves no layer of {many}: the last one's lens is the "
      "identity"
    )
  return found


def _check(config: Config, control: int) -> None:
  fewest = max(max(config.skips, default=0), control) + 2
  if config.tokens < fewest:
    raise ValueError(
      f"tokens must be at least {fewest}, so that two tokens stand behind the "
      f"skipped ones and the control, got {config.tokens}"
    )
  if 0 not in config.skips or 1 not in config.skips or len(config.skips) < 3:
    raise ValueError(
      "skips must have 0, 1 and a larger number, which claims compare, got "
      f"{config.skips}"
    )
  if config.samples < 2:
    raise ValueError(f"samples must be at least 2, got {config.samples}")


def readings(skips: tuple[int, ...]) -> dict[str, tuple[int, bool] | None]:
  """{name: (index of the skip, centred)} of all lenses; `None`: no map."""
  found: dict[str, tuple[int, bool] | None] = {LOGIT: None}
  for i, skip in enumerate(skips):
    found[f"skip {skip}"] = (i, False)
    found[f"skip {skip}, centred"] = (i, True)
  return found


def _shares(
  subject: Subject,
  config: Config,
  condition: tuple[str, Callable],
  ids: np.ndarray,
  layers: tuple[int, ...],
  step: Steps,
) -> dict[str, np.ndarray]:
  """ "across" and "left out" [P, S, N] of texts, and [S, N] of all of them."""
  name, fn = condition
  across, left, total = [], [], None
  for row in ids:
    # The same directions for every text: their rows are averaged below.
    found = LensProbes(
      *subject.kept(
        "probes",
        lens_probes,
        fn,
        subject.params,
        jnp.asarray(row),
        skips=config.skips,
        layers=layers,
        samples=config.samples,
      )
    )
    across.append(found.across().value)
    left.append(found.left_out().value)
    parts = found if total is None else zip(total, found, strict=True)
    total = [np.sum(part, axis=0) if total else part for part in parts]
    step()
  pooled = LensProbes(*(part / len(ids) for part in total))
  whole = pooled.across()
  return {
    f"across, {name}": np.stack(across),
    f"left out, {name}": np.stack(left),
    f"across, all texts, {name}": whole.value,
    f"across, all texts, error, {name}": whole.stderr,
    f"left out, all texts, {name}": pooled.left_out().value,
  }


def _read(
  subject: Subject,
  config: Config,
  condition: tuple[str, Callable],
  ids: np.ndarray,
  layers: tuple[int, ...],
  step: Steps,
) -> dict[str, np.ndarray]:
  """{"metric, condition, reading": [N, P]} on the texts held out."""
  name, fn = condition
  by_text = []
  for row in ids[: config.fit]:
    parts = subject.kept(
      "fit", _fit, fn, subject.params, row[None], config.skips, layers
    )
    by_text.append(_unpacked(parts, config, layers))
    step()
  lenses = [mean_lens(of) for of in zip(*by_text, strict=True)]
  held, found = jnp.asarray(ids[config.fit :]), {}
  for reading, how in readings(config.skips).items():
    lens = None if how is None else lenses[how[0]]
    quality = subject.kept(
      "quality",
      lens_quality,
      fn,
      subject.params,
      lens,
      held,
      layers=layers if lens is None else None,
      centred=how is not None and how[1],
    )
    for metric, values in zip(METRICS, quality, strict=True):
      # What follows on the first token alone is the same guess in most texts.
      found[f"{metric}, {name}, {reading}"] = values[..., 1:].mean(axis=-1)
    step()
  return found


def _fit(
  fn: Callable,
  params: Any,
  tokens: np.ndarray,
  skips: tuple[int, ...],
  layers: tuple[int, ...],
) -> tuple[np.ndarray, ...]:
  """(maps, means, final means), [S, ...] each, of one text."""
  lenses = fit_lenses(fn, params, tokens, skips=skips, layers=layers)
  return tuple(
    np.stack([getattr(lens, name) for lens in lenses])
    for name in ("maps", "means", "final_mean")
  )


def _unpacked(
  parts: tuple[np.ndarray, ...], config: Config, layers: tuple[int, ...]
) -> list[Lens]:
  return [
    Lens(*arrays, layers=layers, skip=skip, texts=1, tokens=config.tokens)
    for skip, *arrays in zip(config.skips, *parts, strict=True)
  ]


def _share_table(
  arrays: dict[str, np.ndarray], config: Config, layers: tuple[int, ...]
) -> tuple[list[str], list[list[Any]]]:
  header = ["condition", "skip", "layer"]
  for what in ("across", "left_out"):
    header += [what, f"{what}_low", f"{what}_high", f"{what}_all_texts"]
  rows = []
  for name in (*Condition, CONTROL):
    for i, skip in enumerate(config.skips):
      for j, layer in enumerate(layers):
        row: list[Any] = [str(name), skip, layer]
        for what in ("across", "left out"):
          row += ends_of(arrays[f"{what}, {name}"][:, i, j])
          row.append(float(arrays[f"{what}, all texts, {name}"][i, j]))
        rows.append(row)
  return header, rows


def _quality_table(
  arrays: dict[str, np.ndarray], config: Config, layers: tuple[int, ...]
) -> tuple[list[str], list[list[Any]]]:
  header = ["condition", "lens", "layer"]
  header += ends_columns(*METRICS)
  rows = []
  for name in Condition:
    for reading in readings(config.skips):
      for j, layer in enumerate(layers):
        row: list[Any] = [str(name), reading, layer]
        for metric in METRICS:
          row += ends_of(arrays[f"{metric}, {name}, {reading}"][j])
        rows.append(row)
  return header, rows
