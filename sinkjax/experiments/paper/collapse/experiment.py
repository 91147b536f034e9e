"""Texts and repeated digits: what is run and measured."""

import dataclasses
import enum
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from sinkjax.experiments.harness.api import Result, Subject
from sinkjax.experiments.harness.stats import mean_over
from sinkjax.experiments.shared.sink_removal import (
  Condition,
  hide,
  resolve_from_layer,
  texts_of,
)
from sinkjax.experiments.shared.swap_texts import SWAP_TEXTS
from sinkjax.metrics.collapse import COLLAPSE_MEASURES, collapse_measures
from sinkjax.models.transformer import forward
from sinkjax.transforms.capture import capture

DTYPES = ("float32", "bfloat16", "float16")
DIGITS = "0123456789"

TAIL = 10
"""The first and the last of so many parts of the repetitions are compared."""


class Digits(enum.StrEnum):
  """How digits are repeated; the values are in keys of recorded results."""

  PLAIN = "digits"
  COMMAS = "with commas"


def series_name(condition: Condition, kind: Digits, dtype: str) -> str:
  """The key of one series in the numbers."""
  return f"{condition}, {kind}, {dtype}"


@dataclasses.dataclass(frozen=True)
class Config:
  """What is run.

  Attributes:
    texts: as `swap_texts.parse_swaps` takes them; the swaps are not used.
    tokens: T of each text.
    lengths: of each text, so many first tokens are measured too.
    from_layer: the first layer at which position 0 is hidden; `None` for the
      one that leaves the fewest sinks, see `sink_removal`.
    prompt: put before the repeated digits.
    repeats: how often a digit is repeated; less where the context is short.
    group: digits between commas, where there are commas.
  """

  texts: str = SWAP_TEXTS
  tokens: int = 46
  lengths: tuple[int, ...] = (8, 16, 32, 46)
  from_layer: int | None = None
  prompt: str = "How many digits are there?"
  repeats: int = 200
  group: int = 3


class Repeated(NamedTuple):
  """Each digit repeated after the prompt.

  Attributes:
    ids: [10, T].
    places: [N] the positions of every digit that follows the same digit.
    counts: [N] the number of digits up to there.
  """

  ids: np.ndarray
  places: np.ndarray
  counts: np.ndarray


def repeated(subject: Subject, config: Config, kind: Digits) -> Repeated:
  """The rows of repeated digits, and where to look.

  Raises:
    ValueError: if a digit or the comma is no token, or the context is too
      short.
  """
  tokenizer = subject.tokenizer
  single = {mark: tokenizer.token_to_id(mark) for mark in (*DIGITS, ",")}
  missing = [mark for mark, token in single.items() if token is None]
  if missing:
    raise ValueError(f"{missing[0]!r} is not a token of {subject.name}")
  start = subject.prefix + tokenizer.encode(config.prompt)
  room = (subject.cfg.max_len - len(start)) * config.group
  repeats = min(config.repeats, room // (config.group + 1))
  if repeats <= config.group:
    raise ValueError(
      f"a context of {subject.cfg.max_len} tokens has no room for more than "
      f"{config.group} digits"
    )
  rows, places, counts = [], [], []
  for digit in DIGITS:
    row, places, counts = list(start), [], []
    for i in range(repeats):
      comma = kind is Digits.COMMAS and i % config.group == 0
      if i and comma:
        row.append(single[","])
      elif i:
        places.append(len(row))
        counts.append(i + 1)
      row.append(single[digit])
    rows.append(row)
  return Repeated(np.array(rows), np.array(places), np.array(counts))


def indistinct(x: np.ndarray, places: np.ndarray, dtype: str) -> np.ndarray:
  """[B, N] whether a vector [B, T, D] equals the one before, when rounded."""
  rounded = np.asarray(jnp.asarray(x).astype(dtype).astype(jnp.float32))
  return (rounded[:, places] == rounded[:, places - 1]).all(axis=-1)


class Measured(NamedTuple):
  """What one condition gives. P texts, L layers, M measures.

  Attributes:
    by_layer: [L, P, M].
    by_length: [lengths, P, M], after the last layer.
    gaps: [10, N] for each of `Digits`: the largest change of an entry.
    same: [10, N] bool for each of `Digits` and each of `DTYPES`.
  """

  by_layer: np.ndarray
  by_length: np.ndarray
  gaps: dict[Digits, np.ndarray]
  same: dict[Digits, dict[str, np.ndarray]]


def measure(
  subject: Subject,
  config: Config,
  *,
  progress: Callable[[int, int], Any] = lambda done, total: None,
) -> Result:
  """Texts by layer and length, and repeated digits, under both conditions.

  Args:
    subject: the model; its weights in memory.
    config: what is run.
    progress: called with (steps done, steps in all).

  Raises:
    ValueError: for texts that are too short or too few, a length that is too
      long, or as `repeated`.

  Cost: two forward passes a text, four of ten rows of digits.
  """
  if not all(2 < n <= config.tokens for n in config.lengths):
    raise ValueError(
      f"lengths must be above 2 and at most {config.tokens}: {config.lengths}"
    )
  if config.repeats <= config.group:
    raise ValueError(f"repeats must exceed {config.group}: {config.repeats}")
  config = resolve_from_layer(subject, config)
  texts = jnp.asarray(texts_of(subject, config.texts, config.tokens))
  digits = {kind: repeated(subject, config, kind) for kind in Digits}
  f = forward(subject.cfg)
  functions = {Condition.SINK: f, Condition.HIDDEN: hide(f, config.from_layer)}
  measured = {}
  for i, (condition, fn) in enumerate(functions.items()):
    measured[condition] = _measure_one(
      fn, subject.params, config.lengths, texts, digits
    )
    progress(i + 1, len(functions))
  counts = {kind: rows.counts for kind, rows in digits.items()}
  return _result(config, measured, counts)


def _measure_one(
  fn: Callable,
  params: Any,
  lengths: Sequence[int],
  texts: jax.Array,
  digits: Mapping[Digits, Repeated],
) -> Measured:
  streams = np.asarray(_watched(fn, "resid_post")(params, texts))
  by_length = [
    np.asarray(_measures(jnp.asarray(streams[-1][:, :n]))) for n in lengths
  ]
  gaps, same = {}, {}
  for kind, (ids, places, _) in digits.items():
    final = np.asarray(_watched(fn, "final")(params, jnp.asarray(ids)))
    gaps[kind] = np.abs(final[:, places] - final[:, places - 1]).max(axis=-1)
    same[kind] = {dtype: indistinct(final, places, dtype) for dtype in DTYPES}
  by_layer = np.asarray(_measures(jnp.asarray(streams)))
  return Measured(by_layer, np.stack(by_length), gaps, same)


_measures = jax.jit(collapse_measures)


def _watched(fn: Callable, site: str) -> Callable:
  """`f(params, tokens)`: what is seen at a site."""
  watched = capture(fn, {"x": (site, lambda x: x)})
  return jax.jit(lambda params, tokens: watched(params, tokens).trace["x"])


def _merged_from(same: np.ndarray, counts: np.ndarray) -> list[int | None]:
  """For each digit, the first count from which on vectors stay indistinct."""
  merged = []
  for row in same:
    apart = np.flatnonzero(~row)
    first = 0 if not apart.size else int(apart[-1]) + 1
    merged.append(int(counts[first]) if first < len(counts) else None)
  return merged


def _log_ratios(
  measured: Mapping[Condition, Measured],
) -> dict[str, np.ndarray]:
  """[10] each: what the claims on digits say is above zero."""
  plain = measured[Condition.SINK].gaps[Digits.PLAIN]
  commas = measured[Condition.SINK].gaps[Digits.COMMAS]
  hidden = measured[Condition.HIDDEN].gaps[Digits.PLAIN]
  tail = max(1, plain.shape[1] // TAIL)
  early = np.log(plain[:, :tail].mean(axis=1))
  late, late_commas, late_hidden = (
    np.log(gap[:, -tail:].mean(axis=1)) for gap in (plain, commas, hidden)
  )
  return {
    "shrinks": early - late,
    "comma": late_commas - late,
    "hidden": late - late_hidden,
  }


def _result(
  config: Config,
  measured: Mapping[Condition, Measured],
  counts: Mapping[Digits, np.ndarray],
) -> Result:
  by_layer = np.stack([one.by_layer for one in measured.values()])
  by_length = np.stack([one.by_length for one in measured.values()])
  last = by_layer[:, -1]  # [2, P, M]
  texts = range(last.shape[1])
  sink, hidden = (measured[condition].gaps for condition in Condition)
  return Result(
    numbers={
      "texts": len(texts),
      "tokens": config.tokens,
      "from_layer": config.from_layer,
      "repeats": int(counts[Digits.PLAIN][-1]),
      "change_without_sink": {
        name: mean_over(last[1, :, i] - last[0, :, i], texts)
        for i, name in enumerate(COLLAPSE_MEASURES)
      },
      "indistinct_from": {
        series_name(condition, kind, dtype): _merged_from(same, counts[kind])
        for condition, one in measured.items()
        for kind in Digits
        for dtype, same in one.same[kind].items()
      },
      **{
        name: mean_over(logs, range(len(logs)))
        for name, logs in _log_ratios(measured).items()
      },
    },
    tables={
      "layers.csv": _table(
        "layer", range(by_layer.shape[1]), by_layer.mean(axis=2)
      ),
      "lengths.csv": _table("tokens", config.lengths, by_length.mean(axis=2)),
      "digits.csv": _digit_table(measured, counts),
    },
    arrays={
      "by_layer": by_layer,
      "by_length": by_length,
      "gap": sink[Digits.PLAIN],
      "gap_commas": sink[Digits.COMMAS],
      "gap_hidden": hidden[Digits.PLAIN],
      "count": counts[Digits.PLAIN],
      "count_commas": counts[Digits.COMMAS],
      "lengths": np.array(config.lengths),
    },
  )


def _table(
  what: str, numbers: Iterable[int], values: np.ndarray
) -> tuple[list[str], list[list[Any]]]:
  """`values` [2, N, M]."""
  header = [what, *(f"{m}, {c}" for c in Condition for m in COLLAPSE_MEASURES)]
  rows = [
    [int(n), *map(float, values[:, i].ravel())] for i, n in enumerate(numbers)
  ]
  return header, rows


def _digit_table(
  measured: Mapping[Condition, Measured], counts: Mapping[Digits, np.ndarray]
) -> tuple[list[str], list[list[Any]]]:
  header = ["digits", "commas", "condition", "gap, mean of digits", "least"]
  words = {Digits.PLAIN: "without", Digits.COMMAS: "with"}
  rows = [
    [int(n), words[kind], condition, float(gap.mean()), float(gap.min())]
    for condition, one in measured.items()
    for kind, gaps in one.gaps.items()
    for n, gap in zip(counts[kind], gaps.T, strict=True)
  ]
  return header, rows
