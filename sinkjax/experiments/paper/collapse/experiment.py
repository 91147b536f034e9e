"""Do representations collapse, and does the sink keep them apart? (section 3)

Rank collapse: texts, by layer and by length, with the sink and with position 0
hidden from a layer on. Representational collapse: a digit repeated ever longer
(Barbero et al. 2024, arXiv 2406.04267), where the next repetition changes less
and less, until rounding cannot tell it; and the comma that is said to help.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from sinkjax.experiments.harness.api import Claim, Result, Subject, direction
from sinkjax.experiments.harness.stats import mean_over
from sinkjax.experiments.shared.sink_removal import (
  CONDITIONS,
  texts_of,
  with_layer,
)
from sinkjax.experiments.shared.swap_texts import TEXTS
from sinkjax.metrics.collapse import COLLAPSE_MEASURES, collapse_measures
from sinkjax.models.transformer import forward
from sinkjax.transforms.capture import capture
from sinkjax.transforms.edits import knockout
from sinkjax.transforms.intervene import intervene

NAME, TITLE = "collapse", "Rank and representational collapse"
DTYPES = ("float32", "bfloat16", "float16")
DIGITS = "0123456789"


@dataclasses.dataclass(frozen=True)
class Config:
  """What is run.

  Attributes:
    texts: as `swaps.parse_swaps` takes them; the swaps are not used.
    tokens: T of each text.
    lengths: the first so many tokens of each are measured too.
    from_layer: the first layer at which position 0 is hidden; `None` for the
      one that leaves the fewest sinks, see `sink_removal`.
    prompt: put before the repeated digits.
    repeats: how often a digit is repeated; less where the context is short.
    group: digits between commas, in the remedy.
  """

  texts: str = TEXTS
  tokens: int = 46
  lengths: tuple[int, ...] = (8, 16, 32, 46)
  from_layer: int | None = None
  prompt: str = "How many digits are there?"
  repeats: int = 200
  group: int = 3


def repeated(subject: Subject, config: Config, commas: bool):
  """[10, T] each digit repeated after the prompt, and where to look.

  Returns:
    The ids, and the positions [N] of every digit that follows the same digit
    at once, with the number of digits up to it [N].

  Raises:
    ValueError: if a digit or the comma is no token, or the context is too
      short.
  """
  tokenizer = subject.tokenizer
  single = {mark: tokenizer.token_to_id(mark) for mark in (*DIGITS, ",")}
  missing = [mark for mark, found in single.items() if found is None]
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
      if commas and i and i % config.group == 0:
        row.append(single[","])
      elif i:
        places.append(len(row))
        counts.append(i + 1)
      row.append(single[digit])
    rows.append(row)
  return np.array(rows), np.array(places), np.array(counts)


def indistinct(x: np.ndarray, places: np.ndarray, dtype: str) -> np.ndarray:
  """[B, N] whether a vector [B, T, D] equals the one before, when rounded."""
  rounded = np.asarray(jnp.asarray(x).astype(dtype).astype(jnp.float32))
  return (rounded[:, places] == rounded[:, places - 1]).all(axis=-1)


def run(
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
  config = with_layer(subject, config)
  texts = jnp.asarray(texts_of(subject, config.texts, config.tokens))
  digits = [repeated(subject, config, commas) for commas in (False, True)]
  f = forward(subject.cfg)
  edit = {"scores": knockout(0, from_layer=config.from_layer)}
  by_layer, by_length, gaps, same = [], [], [], []
  done, steps = 0, 6
  for fn in (f, intervene(f, edit)):
    streams = np.asarray(_streams(fn)(subject.params, texts))
    by_layer.append(np.asarray(_measure(jnp.asarray(streams))))
    by_length.append(
      np.stack(
        [
          np.asarray(_measure(jnp.asarray(streams[-1][:, :n])))
          for n in config.lengths
        ]
      )
    )
    done += 1
    progress(done, steps)
    for ids, places, _ in digits:
      final = np.asarray(_final(fn)(subject.params, jnp.asarray(ids)))
      gap = np.abs(final[:, places] - final[:, places - 1]).max(axis=-1)
      gaps.append(gap)
      same.append([indistinct(final, places, dtype) for dtype in DTYPES])
      done += 1
      progress(done, steps)
  counts = [count for _, _, count in digits]
  return _result(config, by_layer, by_length, gaps, same, counts)


_measure = jax.jit(collapse_measures)


def _streams(fn):
  watched = capture(fn, {"x": ("resid_post", lambda x: x)})
  return jax.jit(lambda params, tokens: watched(params, tokens).trace["x"])


def _final(fn):
  watched = capture(fn, {"x": ("final", lambda x: x)})
  return jax.jit(lambda params, tokens: watched(params, tokens).trace["x"])


def _until(same: np.ndarray, counts: np.ndarray) -> list[int | None]:
  """For each digit the first count from which on vectors stay indistinct."""
  found = []
  for row in same:
    apart = np.flatnonzero(~row)
    first = 0 if not apart.size else int(apart[-1]) + 1
    found.append(int(counts[first]) if first < len(counts) else None)
  return found


def _result(config, by_layer, by_length, gaps, same, counts) -> Result:
  by_layer, by_length = np.stack(by_layer), np.stack(by_length)
  texts = list(range(by_layer.shape[2]))
  last = by_layer[:, -1]  # [2, P, measures]
  change = {
    name: mean_over(last[1, :, i] - last[0, :, i], texts)
    for i, name in enumerate(COLLAPSE_MEASURES)
  }
  plain, commas, hidden, _ = gaps
  digits, most = list(range(len(plain))), int(counts[0][-1])
  tail = max(1, plain.shape[1] // 10)
  logs = [np.log(g[:, -tail:].mean(axis=1)) for g in gaps]
  early = np.log(plain[:, :tail].mean(axis=1))
  means = {
    "shrinks": mean_over(early - logs[0], digits),
    "comma": mean_over(logs[1] - logs[0], digits),
    "hidden": mean_over(logs[0] - logs[2], digits),
  }
  until = {
    f"{condition}, {kind}, {dtype}": _until(same[2 * i + j][d], counts[j])
    for i, condition in enumerate(CONDITIONS)
    for j, kind in enumerate(("digits", "with commas"))
    for d, dtype in enumerate(DTYPES)
  }
  return Result(
    name=NAME,
    title=TITLE,
    claims=_claims(config, change, means, until, most),
    numbers={
      "texts": len(texts),
      "tokens": config.tokens,
      "from_layer": config.from_layer,
      "repeats": most,
      "change_without_sink": {k: v._asdict() for k, v in change.items()},
      "indistinct_from": until,
      **{name: mean._asdict() for name, mean in means.items()},
    },
    tables={
      "layers.csv": _table(
        "layer", range(by_layer.shape[1]), by_layer.mean(axis=2)
      ),
      "lengths.csv": _table("tokens", config.lengths, by_length.mean(axis=2)),
      "digits.csv": _digit_table(gaps, counts),
    },
    arrays={
      "by_layer": by_layer,
      "by_length": by_length,
      "gap": plain,
      "gap_commas": commas,
      "gap_hidden": hidden,
      "count": counts[0],
      "count_commas": counts[1],
      "lengths": np.array(config.lengths),
    },
  )


def _table(what, numbers, values):
  """`values` [2, N, measures]."""
  header = [what, *(f"{m}, {c}" for c in CONDITIONS for m in COLLAPSE_MEASURES)]
  rows = [
    [int(n), *map(float, values[:, i].ravel())] for i, n in enumerate(numbers)
  ]
  return header, rows


def _digit_table(gaps, counts):
  header = ["digits", "commas", "condition", "gap, mean of digits", "least"]
  rows = []
  for i, gap in enumerate(gaps):
    for n, column in zip(counts[i % 2], gap.T, strict=True):
      rows.append(
        [
          int(n),
          "with" if i % 2 else "without",
          CONDITIONS[i // 2],
          float(column.mean()),
          float(column.min()),
        ]
      )
  return header, rows


def _claims(config, change, means, until, most):
  def factor(name):
    value, low, high = (float(np.exp(x)) for x in means[name][:3])
    return f"{value:.2f} ({low:.2f} to {high:.2f}) times"

  def when(dtype):
    found = until[f"{CONDITIONS[0]}, digits, {dtype}"]
    known = [n for n in found if n is not None]
    if not known:
      return f"never in {dtype}"
    return (
      f"{len(known)} of {len(found)} digits in {dtype} from {min(known)} on"
    )

  cosine, rank = change["mean cosine"], change["effective rank"]
  hidden = f"position 0 hidden from layer {config.from_layer} on"
  source = "2406.04267, theorem 4.2"
  return [
    Claim(
      "Without the sink tokens become more alike.",
      "section 3, rank collapse",
      "no number",
      f"mean cosine {cosine.text('+.3f')} at the last layer; "
      f"effective rank {rank.text('+.3f')} of its maximum",
      direction(cosine.low, cosine.high),
      f"{cosine.groups} texts, {hidden}; position 0 left out",
    ),
    Claim(
      "A repeated token changes less the longer it is repeated.",
      source,
      "no number; differences fall to bfloat16's precision (Gemma 7B)",
      f"{factor('shrinks')} the change at first, against that near "
      f"{most} digits (largest entry after the final norm)",
      direction(means["shrinks"].low, means["shrinks"].high),
      "ten digits",
    ),
    Claim(
      "From about 50 repeated digits on, bfloat16 cannot tell the next one.",
      "2406.04267, section 4",
      "about 50 digits (Gemma 7B)",
      f"vectors equal when rounded: {when('bfloat16')}, {when('float16')}",
      "agrees"
      if any(
        n is not None and n <= 100
        for n in until[f"{CONDITIONS[0]}, digits, bfloat16"]
      )
      else "disagrees",
      f"up to {most} digits; float32 run, then rounded",
    ),
    Claim(
      f"A comma after every {config.group} digits keeps them apart.",
      "2406.04267, section 4",
      "no number",
      f"{factor('comma')} the change with commas, near {most} digits",
      direction(means["comma"].low, means["comma"].high),
      "ten digits",
    ),
    Claim(
      "Without the sink the repeated digit collapses further.",
      "section 3",
      "no number",
      f"the change is {factor('hidden')} greater with the sink",
      direction(means["hidden"].low, means["hidden"].high),
      hidden,
    ),
  ]
