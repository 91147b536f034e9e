"""Experiments as files, and one page of what they say of the paper."""

import json
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

from sinkjax.experiments.result import VERDICTS, Claim, Result
from sinkjax.report import files, html

CLAIMS = ["claim", "where", "there", "here", "verdict", "why"]


def write(
  folder: pathlib.Path,
  result: Result,
  drawn: Mapping[str, bytes],
  sections: Sequence[html.Section],
  extra: Mapping[str, Any],
) -> None:
  """One experiment's files, `result.json` last.

  Args:
    folder: where to.
    result: what was found.
    drawn: figures by file name.
    sections: its part of the page.
    extra: what else `result.json` says: request, seconds, commit, ...
  """
  files.write_npz(folder / "arrays.npz", result.arrays)
  for name, table in result.tables.items():
    files.write_csv(folder / name, *table)
  for name, png in drawn.items():
    files.write_bytes(folder / name, png)
  figures = {png: name for name, png in drawn.items()}
  page = [
    {
      "title": section.title, "body": section.body,
      "figure": figures.get(section.figure), "caption": section.caption,
      "table": section.table,
    }
    for section in sections
  ]  # fmt: skip
  files.write_json(
    folder / "result.json",
    {"name": result.name, "title": result.title, "claims": result.claims,
     "numbers": result.numbers, "page": page, **extra, "complete": True},
  )  # fmt: skip


def read(folder: pathlib.Path) -> dict[str, Any] | None:
  """What `result.json` holds; `None` for none or one that is not complete."""
  try:
    found = json.loads((folder / "result.json").read_text("utf-8"))
  except (OSError, ValueError):
    return None
  return found if found.get("complete") is True else None


def claims_of(data: Mapping[str, Any]) -> list[Claim]:
  """The claims in what `read` gave."""
  return [Claim(**claim) for claim in data["claims"]]


def claims_table(results: Sequence[Mapping[str, Any]]):
  """(header, rows) of every claim of every experiment."""
  rows = [
    [data["name"], c.claim, c.source, c.paper, c.ours, c.verdict, c.why]
    for data in results
    for c in claims_of(data)
  ]
  return ["experiment", *CLAIMS], rows


def claims_markdown(results: Sequence[Mapping[str, Any]]) -> str:
  """The claims as a Markdown table, as the README shows them."""
  lines = [
    "| claim | where | there | here | verdict |",
    "| --- | --- | --- | --- | --- |",
  ]
  for data in results:
    for c in claims_of(data):
      cells = (c.claim, c.source, c.paper, c.ours, c.verdict)
      text = " | ".join(" ".join(x.replace("|", "\\|").split()) for x in cells)
      lines.append(f"| {text} |")
  return "\n".join(lines) + "\n"


def _sections_of(folder: pathlib.Path, data) -> list[html.Section]:
  found = []
  for part in data["page"]:
    figure = part["figure"] and (folder / part["figure"]).read_bytes()
    table = part["table"] and html.Table(**part["table"])
    found.append(
      html.Section(part["title"], part["body"], figure, part["caption"], table)
    )
  return found


def page(
  folder: pathlib.Path,
  results: Sequence[Mapping[str, Any]],
  *,
  model: str | None,
  seconds: float,
  command: str,
  details: Mapping[str, Any],
) -> str:
  """The self-contained report of all experiments.

  Args:
    folder: that holds a folder for each experiment.
    results: what `read` gave, in the order of the page.
    model: its name, `None` where all models were trained for this.
    seconds: what all of it took.
    command: the command line.
    details: versions, device, commit and config.
  """
  claims = [claim for data in results for claim in claims_of(data)]
  counts = {
    verdict: sum(c.verdict == verdict for c in claims) for verdict in VERDICTS
  }
  numbers = [html.Number(verdict, n, "claims") for verdict, n in counts.items()]
  numbers.append(
    html.Number("time", f"{seconds / 60:.1f} min", str(details["device"]))
  )
  rows = [
    [c.claim, c.source, c.paper, c.ours, c.verdict, c.why] for c in claims
  ]
  sections = [
    html.Section(
      "Claims and what was found",
      body="Intervals are 95 %, over what the last column says: texts, blocks "
      "of a text, seeds of training, rounds of timing.",
      table=html.Table(CLAIMS, rows, whole=True),
    )
  ]
  for data in results:
    sections += _sections_of(folder / data["name"], data)
  return html.render_report(
    title=f"Attention sinks of {model}" if model
    else "Sinks that appear and vanish",
    subtitle=(
      "Claims of Barbero et al. (2025), Why do LLMs attend to the first "
      "token?, arXiv 2504.02732, where no other paper is named"
    ),
    numbers=numbers, sections=sections, warnings=[], command=command,
    details=dict(details),
  )  # fmt: skip
