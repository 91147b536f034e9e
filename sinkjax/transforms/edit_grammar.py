"""Edits as text: what `--edit` of every launcher takes.

    knockout key=0 from=8; scale head=3.2 by=0; graded key=0 by=2

`parse_edits` reads such a text. Each word is the Python edit of the same name;
`WORDS` has all of them. Layers, heads, neurons and keys count from 0.
"""

import re
from collections.abc import Sequence
from typing import Any

from sinkjax.config import ModelConfig
from sinkjax.transforms.edits import chain
from sinkjax.transforms.written_edits import WORDS, Edits, Written

MOST = 256
"""Edits of a model: each is compiled into every site that it is of. One edit
takes any number of heads or neurons."""


def usage() -> str:
  """All words with their keys, in a line.

  >>> usage().partition(";")[0]
  'knockout key= [from=] [head=]'
  """
  return "; ".join(f"{word} {cls.usage}" for word, cls in WORDS.items())


def parse_edits(text: str) -> tuple[Written, ...]:
  """The edits of a text, in its order; none for "none".

  Args:
    text: as the module says. `knockout:KEY@LAYER`, an earlier form, is read,
      too.

  Raises:
    ValueError: for anything else, in a line that says what is valid.

  >>> [str(edit) for edit in parse_edits("scale by=.5 head=3.2; knockout:0@8")]
  ['scale head=3.2 by=0.5', 'knockout key=0 from=8']
  """
  if text.strip() in ("", "none"):
    return ()
  parts = [part.strip() for part in text.split(";") if part.strip()]
  if not 0 < len(parts) <= MOST:
    raise ValueError(
      f"edit {text[:40]!r} names {len(parts)} edits: give from 1 to {MOST}, "
      "or none"
    )
  return tuple(map(_one, parts))


def _one(text: str) -> Written:
  """One edit."""
  earlier = re.fullmatch(r"knockout:(\d{1,9})(?:@(\d{1,9}))?", text, re.ASCII)
  if earlier:
    text = f"knockout key={earlier[1]} from={earlier[2] or 0}"
  word, *pairs = text.split()
  if word not in WORDS:
    raise ValueError(f"edit {text[:40]!r}: valid are {usage()}")
  cls, given = WORDS[word], {}
  keys = cls.keys()
  takes = f"{word} takes {cls.usage}, as in {cls.example!r}"
  for pair in pairs:
    key, equals, value = pair.partition("=")
    if key not in keys or not equals or keys[key].name in given:
      raise ValueError(f"edit {text[:70]!r}: {pair[:30]!r}, but {takes}")
    field = keys[key]
    try:
      given[field.name] = field.metadata["read"].parse(value)
    except ValueError as error:
      raise ValueError(
        f"edit {text[:70]!r}: {key}={value[:30]} should be {error}"
      ) from None
  for key, field in keys.items():
    if field.metadata["needed"] and field.name not in given:
      raise ValueError(f"edit {text[:70]!r}: {key}= is missing; {takes}")
  return cls(**given)


def written(edits: Sequence[Written]) -> str:
  """The text of some edits, the same however they were written; or "none"."""
  return "; ".join(map(str, edits)) or "none"


def combined(edits: Sequence[Written], cfg: ModelConfig) -> Edits:
  """All edits by site, in their order.

  Raises:
    ValueError: for what the model does not have, naming the edit.
  """
  by_site: dict[str, list[Any]] = {}
  for edit in edits:
    for site, one in edit.edits(cfg).items():
      by_site.setdefault(site, []).append(one)
  return {
    site: some[0] if len(some) == 1 else chain(*some)
    for site, some in by_site.items()
  }


def check(
  edits: Sequence[Written], cfg: ModelConfig, tokens: int | None = None
) -> None:
  """Raises ValueError for edits that a model, or a text, has no place for.

  Args:
    edits: of `parse_edits`.
    cfg: the model.
    tokens: of the shortest text, `None` where it is not known.
  """
  combined(edits, cfg)
  for edit in edits:
    if tokens is not None and edit.tokens_needed() > tokens:
      raise edit.fail(
        f"key {edit.tokens_needed() - 1} is not among the {tokens} tokens of "
        "the shortest text, which count from 0"
      )
