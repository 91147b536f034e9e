"""Claims as tables, and the page that compares measurements with papers."""

from collections.abc import Mapping, Sequence
from typing import Any

from sinkjax.experiments.harness.protocol import Judged, Verdict
from sinkjax.report import html

COLUMNS = ("claim", "where", "there", "here", "verdict", "why")


def _cells(claim: Judged) -> list[str]:
  return [
    claim.claim,
    claim.source,
    claim.paper,
    claim.ours,
    claim.verdict,
    claim.why,
  ]


def table(
  claims: Sequence[tuple[str, Judged]],
) -> tuple[list[str], list[list[str]]]:
  """(header, rows) of every claim with the name of its experiment."""
  rows = [[name, claim.id, *_cells(claim)] for name, claim in claims]
  return ["experiment", "id", *COLUMNS], rows


def markdown(claims: Sequence[tuple[str, Judged]]) -> str:
  """The claims as a Markdown table."""
  lines = [
    "| claim | where | there | here | verdict |",
    "| --- | --- | --- | --- | --- |",
  ]
  for _, claim in claims:
    # A bar would end the cell, and a line break would end the row.
    cells = [" ".join(x.replace("|", "\\|").split()) for x in _cells(claim)]
    lines.append(f"| {' | '.join(cells[:-1])} |")
  return "\n".join(lines) + "\n"


def page(
  claims: Sequence[Judged],
  parts: Sequence[html.Section],
  *,
  model: str | None,
  seconds: float,
  command: str,
  details: Mapping[str, Any],
) -> str:
  """The self-contained report of all experiments.

  Args:
    claims: in the order of the page.
    parts: the experiments' sections.
    model: its name, `None` where the experiments trained their own models.
    seconds: the time that all experiments took.
    command: the command line.
    details: versions, device and commit.
  """
  counts = {
    verdict: sum(c.verdict == verdict for c in claims) for verdict in Verdict
  }
  numbers = [html.Number(verdict, n, "claims") for verdict, n in counts.items()]
  numbers.append(
    html.Number("time", f"{seconds / 60:.1f} min", str(details["device"]))
  )
  sections = [
    html.Section(
      "Claims and measurements",
      body="Intervals are 95 % confidence intervals over the units that the "
      "last column names: texts, blocks of a text, seeds of training, rounds "
      "of timing.",
      table=html.Table(COLUMNS, [_cells(c) for c in claims], whole=True),
    ),
    *parts,
  ]
  title = "Sinks that appear and vanish"
  if model:
    title = f"Attention sinks of {model}"
  return html.render_report(
    title=title,
    subtitle=(
      "Claims of Barbero et al. (2025), Why do LLMs attend to the first "
      "token?, arXiv 2504.02732, where no other paper is named"
    ),
    numbers=numbers,
    sections=sections,
    warnings=[],
    command=command,
    details=dict(details),
  )
