"""A report as one HTML page that needs nothing but itself.

Numbers, figures and tables come in, a string goes out. All text is escaped,
whatever tokens it holds; pictures are embedded; the page asks nobody for
anything, and its content security policy says so.
"""

import base64
import dataclasses
import json
import math
import re
import struct
from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

from sinkjax.artifacts import plain

TEMPLATE = Path(__file__).with_name("report.html.j2")
PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_UNPRINTABLE = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\ud800-\udfff]")
_MARKS = str.maketrans({"\n": "↵", "\t": "⇥", "\r": "␍"})


@dataclasses.dataclass(frozen=True)
class Number:
  """A headline number.

  Attributes:
    label: what it is.
    value: the number; strings are shown as they are.
    note: one short line on how to read it.
  """

  label: str
  value: Any
  note: str = ""


class Fold(NamedTuple):
  """A cell that opens on a click.

  Attributes:
    text: what is always seen.
    inside: (name, text) of what is seen once it is open.
  """

  text: str
  inside: Sequence[tuple[str, str]]


class Bar(NamedTuple):
  """A cell with an interval drawn above its text.

  Attributes:
    text: the number, in words.
    sort: by which rows are sorted; `None` for no number.
    ends: low end, value and high end, each from 0 to 1 of the cell's width;
      `None` draws nothing.
    band: from and to, shaded, likewise.
    color: of the interval, as CSS has it.
  """

  text: str
  sort: float | None
  ends: tuple[float, float, float] | None
  band: tuple[float, float]
  color: str


@dataclasses.dataclass(frozen=True)
class Table:
  """A table whose columns the reader can sort.

  Attributes:
    header: one name a column.
    rows: cells; numbers stay numbers, the page formats and sorts them. A cell
      may be a `Fold` or a `Bar`.
    whole: shown at its full height, however long.
  """

  header: Sequence[str]
  rows: Sequence[Sequence[Any]]
  whole: bool = False

  def __post_init__(self):
    for i, row in enumerate(self.rows):
      if len(row) != len(self.header):
        raise ValueError(
          f"row {i} has {len(row)} cells, the header {len(self.header)}"
        )


@dataclasses.dataclass(frozen=True)
class Section:
  """A part of the page: text, then a figure, then a table.

  Attributes:
    title: its heading.
    body: plain text; an empty line starts a new paragraph.
    figure: a PNG.
    caption: what is seen; also the figure's text for those who do not see.
    table: the numbers.
  """

  title: str
  body: str = ""
  figure: bytes | None = None
  caption: str = ""
  table: Table | None = None


def show(value: Any) -> str:
  """A value as text: 4 digits of a float, thousands apart, "–" for nothing.

  >>> show(0.123456), show(25031), show(None), show("a\\nb")
  ('0.1235', '25,031', '–', 'a↵b')
  """
  value = plain(value)
  if value is None:
    return "–"
  # A bool is also an int in Python, so it is asked for first.
  if isinstance(value, bool):
    return "yes" if value else "no"
  if isinstance(value, int):
    return _signed(f"{value:,}")
  if isinstance(value, float):
    return _signed(_show_float(value))
  if isinstance(value, str):
    return value.translate(_MARKS)
  return json.dumps(value, ensure_ascii=False)


def _show_float(value: float) -> str:
  size = abs(value)
  # Outside this range, an exponent is shorter than plain notation.
  if size and not 1e-4 <= size < 1e7:
    return f"{value:.3e}"
  if size >= 1000:
    return f"{value:,.0f}"
  return f"{value:.4g}"


def _table(table: Table) -> dict[str, Any]:
  """What the template needs: columns as (name, is numeric), rows of cells.

  A cell is (text, number to sort by or `None`, is empty, is numeric, what it
  holds beside text: a `Fold`, a `Bar` or `None`). Numeric columns hold numbers
  or gaps only; they align right.
  """
  numeric, columns = [], []
  for i in range(len(table.header)):
    own = [row[i] for row in table.rows]
    if any(isinstance(cell, Fold | Bar) for cell in own):
      numeric.append(False)
      columns.append([_rich(cell) for cell in own])
      continue
    column = [plain(cell) for cell in own]
    kinds = {type(cell) for cell in column} - {type(None)}
    numeric.append(bool(kinds) and kinds <= {int, float})
    texts = _aligned(column) if kinds == {float} else map(show, column)
    columns.append(
      [
        (text, _sort_key(cell), cell is None, numeric[-1], None)
        for text, cell in zip(texts, column, strict=True)
      ]
    )
  return {
    "whole": table.whole,
    "columns": list(zip(table.header, numeric, strict=True)),
    "rows": list(zip(*columns, strict=True)),
  }


def _rich(cell: Any) -> tuple[str, float | None, bool, bool, Any]:
  """A cell of a column in which some open or have an interval."""
  if isinstance(cell, Fold):
    return show(cell.text), None, False, False, cell
  if isinstance(cell, Bar):
    return show(cell.text), cell.sort, cell.sort is None, False, cell
  return show(cell), _sort_key(plain(cell)), cell is None, False, None


def percent(value: float) -> str:
  """A share as text.

  >>> percent(0.1234)
  '12.3 %'
  """
  return f"{100 * value:.1f} %"


def _aligned(column: Sequence[float | None]) -> list[str]:
  """Floats with as many decimals as give the largest 4 digits."""
  # Decimals of the largest: columns line up, and no digit is invented.
  largest = max(abs(cell) for cell in column if cell is not None)
  if not 1e-2 <= largest < 1e7:
    return [show(cell) for cell in column]
  places = max(0, 3 - math.floor(math.log10(largest)))
  return [
    # With "z" a small negative number that rounds to 0 has no sign.
    show(cell) if cell is None else _signed(f"{cell:z,.{places}f}")
    for cell in column
  ]


def _signed(text: str) -> str:
  return text.replace("-", "\N{MINUS SIGN}")


def _sort_key(value: Any) -> int | float | None:
  return value + 0 if isinstance(value, int | float) else None  # True is 1


def _picture(png: bytes) -> dict[str, Any]:
  """Data and pixel size of a PNG, the size so that the page does not jump."""
  # The first chunk of a PNG, IHDR, has width and height in bytes 16 to 23.
  if png[:8] != PNG_SIGNATURE or len(png) < 24:
    raise ValueError("a section's figure must be PNG bytes")
  width, height = struct.unpack(">II", png[16:24])
  data = base64.b64encode(png).decode("ascii")
  return {
    "data": data,
    "width": width,
    "height": height,
    # below this its labels are too small to read: it scrolls instead
    "least": math.ceil(0.62 * width),
  }


def _paragraphs(text: str) -> list[str]:
  return [part.strip() for part in re.split(r"\n\s*\n", text) if part.strip()]


def _groups(details: Mapping[str, Any]) -> list[tuple[str, list]]:
  """Details as (heading, [(name, text)]): one group for each nested dict."""
  loose, groups = [], []
  for name, value in plain(details).items():
    if isinstance(value, dict):
      groups.append((name, [(k, _detail(v)) for k, v in value.items()]))
    else:
      loose.append((name, _detail(value)))
  return ([("", loose)] if loose else []) + groups


def _detail(value: Any) -> str:
  """Exact, unlike `show`: a config must be readable back."""
  if isinstance(value, str):
    return value
  return json.dumps(value, ensure_ascii=False)


@lru_cache(maxsize=1)
def _template() -> Any:
  import jinja2

  environment = jinja2.Environment(
    autoescape=True,
    # By default a misspelt name would leave a gap in the page.
    undefined=jinja2.StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
  )
  environment.filters |= {
    "show": show,
    "table": _table,
    "picture": _picture,
    "paragraphs": _paragraphs,
  }
  return environment.from_string(TEMPLATE.read_text("utf-8"))


def edited(edit: str | None) -> str:
  """What a title adds of an edit of the model; nothing without.

  >>> edited("knockout key=0"), edited("none"), edited(None)
  (', edited: knockout key=0', '', '')
  """
  return "" if edit in (None, "none") else f", edited: {edit}"


def render_report(
  *,
  title: str,
  subtitle: str,
  numbers: Sequence[Number],
  sections: Sequence[Section],
  warnings: Sequence[str],
  command: str,
  details: Mapping[str, Any],
) -> str:
  """The page, self-contained.

  Args:
    title: heading and window title.
    subtitle: one line below it.
    numbers: what matters, shown first.
    sections: figures and tables, in order.
    warnings: what the reader must know before trusting the numbers.
    command: what reproduces the page; shown in full, with a button to copy.
    details: versions, config, device; nested dicts become groups.

  Returns:
    HTML. Control characters and half surrogate pairs are replaced.

  Raises:
    ValueError: for a figure that is no PNG.
    TypeError: for a value that has no text form, see `artifacts.plain`.
  """
  html = _template().render(
    title=title,
    subtitle=subtitle,
    numbers=numbers,
    sections=sections,
    warnings=warnings,
    command=command,
    groups=_groups(details),
  )
  return printable(html)


def printable(page: str) -> str:
  """A page without what HTML and UTF-8 cannot hold: U+FFFD stands for it."""
  # HTML allows no control characters, and UTF-8 has no half surrogates.
  return _UNPRINTABLE.sub("\N{REPLACEMENT CHARACTER}", page)
