"""Tables of hand-written pages, cut from recorded CSV files.

A table follows such a comment:

  <!-- table: results/RUN/EXPERIMENT/FILE.csv
  where bits = 4 | 8
  sort by loss
  bits = {bits:g}
  loss, nats = {loss:+.3f} ({low:+.3f} to {high:+.3f})
  -->

`where` keeps rows in which a column is one of the values, `sort by` orders them
by a number; then come the columns, each a heading and a template of the row's
fields.
"""

import pathlib
import re

from sinkjax import artifacts

DOCS = pathlib.Path(__file__).parents[1]
TABLE = re.compile(
  r"<!-- table: (?P<file>\S+)\n(?P<spec>.*?)-->\n(?P<rows>(?:\|[^\n]*\n)*)",
  re.DOTALL,
)


def _value(text: str):
  for kind in (int, float):
    try:
      return kind(text)
    except ValueError:
      pass
  return text


def table(file: str, spec: str) -> str:
  """The Markdown table of one comment.

  Raises:
    KeyError: for a column that the file does not have.
    ValueError: where no row is left.
  """
  header, found = artifacts.read_csv(DOCS / file)
  rows = [dict(zip(header, row, strict=True)) for row in found]
  heads, cells = [], []
  for line in spec.strip().splitlines():
    head, _, text = line.partition(" = ")
    if line.startswith("sort by "):
      rows.sort(key=lambda row, by=line[8:]: row[by])
    elif line.startswith("where "):
      kept = [_value(x.strip()) for x in text.split("|")]
      rows = [row for row in rows if row[head[6:]] in kept]
    else:
      heads.append(head)
      cells.append(text)
  if not rows:
    raise ValueError(f"no rows of {file} for:\n{spec}")
  lines = [heads, ["---"] * len(heads)]
  lines += [[cell.format(**row) for cell in cells] for row in rows]
  return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def written(page: str) -> str:
  """The page with every table as the files have it now."""
  return TABLE.sub(
    lambda m: (
      f"<!-- table: {m['file']}\n{m['spec']}-->\n" + table(m["file"], m["spec"])
    ),
    page,
  )


def has_any(page: str) -> bool:
  """Whether a page has such a table."""
  return TABLE.search(page) is not None
