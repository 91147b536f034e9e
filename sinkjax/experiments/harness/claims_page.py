"""Claims as tables, and the page that compares measurements with papers."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from sinkjax.experiments.harness import claims_figure
from sinkjax.experiments.harness.claims_figure import in_margins, place
from sinkjax.experiments.harness.effects import Effect
from sinkjax.experiments.harness.protocol import Judged, Verdict
from sinkjax.report import html

COLUMNS = ("claim", "where", "there", "here", "verdict", "why", "status")
NUMBERS = (
  "value",
  "low",
  "high",
  "unit",
  "margin",
  "n",
  "per",
  "p",
  "adjusted p",
)
"""Columns of claims.csv beside the words; empty for what is no effect."""


def _cells(claim: Judged) -> list[str]:
  return [
    claim.claim,
    claim.source,
    claim.paper,
    claim.ours,
    str(claim.verdict),
    claim.why,
    status(claim),
  ]


def status(claim: Judged) -> str:
  """What a verdict is worth: see docs/protocol.md."""
  return "confirmatory" if claim.confirmatory else "exploratory"


def _numbers(claim: Judged) -> list[Any]:
  if not isinstance(claim.effect, Effect):
    return [None] * len(NUMBERS)
  one = claim.effect
  return [
    *one.mean[:3],
    one.unit.scale,
    one.margin,
    one.n,
    one.per,
    None if math.isnan(claim.p) else claim.p,
    None if math.isnan(claim.adjusted) else claim.adjusted,
  ]


def table(
  claims: Sequence[tuple[str, Judged]],
) -> tuple[list[str], list[list[Any]]]:
  """(header, rows) of every claim with the name of its experiment."""
  rows = [
    [name, claim.id, *_cells(claim), *_numbers(claim)] for name, claim in claims
  ]
  return ["experiment", "id", *COLUMNS, *NUMBERS], rows


def markdown(claims: Sequence[tuple[str, Judged]]) -> str:
  """The claims as a Markdown table."""
  lines = [
    "| claim | where | there | here | verdict |",
    "| --- | --- | --- | --- | --- |",
  ]
  for _, claim in claims:
    # A bar would end the cell, and a line break would end the row.
    cells = [" ".join(x.replace("|", "\\|").split()) for x in _cells(claim)]
    lines.append(f"| {' | '.join(cells[:-2])} |")
  return "\n".join(lines) + "\n"


def page(
  claims: Sequence[tuple[str, Judged]],
  parts: Sequence[html.Section],
  *,
  model: str | None,
  edit: str | None = None,
  seconds: float,
  command: str,
  details: Mapping[str, Any],
) -> str:
  """The self-contained report of all experiments.

  Args:
    claims: (experiment, claim), in the order of the page.
    parts: the experiments' sections.
    model: its name, `None` where the experiments trained their own models.
    edit: of the model, in words, where all experiments have the same one.
    seconds: the time that all experiments took.
    command: the command line.
    details: versions, device and commit.
  """
  counts = {
    verdict: sum(claim.verdict == verdict for _, claim in claims)
    for verdict in Verdict
  }
  numbers = [
    html.Number(str(verdict), n, "claims") for verdict, n in counts.items()
  ]
  numbers.append(
    html.Number("time", f"{seconds / 60:.1f} min", str(details["device"]))
  )
  glance = claims_figure.draw(claims)
  sections = [
    *([] if glance is None else [_glance(glance)]),
    html.Section(
      "Claims and measurements",
      body="A click on a claim opens its source, what was measured and the "
      "tests that decided. Verdicts are made by one rule from paired effects: "
      "t tests with Holm's correction over an experiment's claims, and two "
      "one-sided tests against the margin.",
      table=html.Table(
        ("experiment", "claim", "effect", "n", "verdict"),
        [_row(name, claim) for name, claim in claims],
        whole=True,
      ),
    ),
    *parts,
  ]
  title = "Sinks that appear and vanish"
  if model:
    title = f"Attention sinks of {model}{html.edited(edit)}"
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


def _glance(figure: bytes) -> html.Section:
  return html.Section(
    "Effects at a glance",
    figure=figure,
    caption="Each line is a claim's effect with its 95 % interval over "
    "independent units, divided by the margin below which it would not matter "
    "(grey band). Right of 0 is as the claim says. Colours are verdicts.",
  )


def _row(name: str, claim: Judged) -> list[Any]:
  inside = [
    ("source", claim.source),
    ("reported there", claim.paper),
    ("measured here", claim.ours),
    ("how", claim.how),
    ("decided by", claim.why),
    ("status", status(claim)),
  ]
  units = claim.effect.n if isinstance(claim.effect, Effect) else None
  return [
    name,
    html.Fold(claim.claim, [(what, text) for what, text in inside if text]),
    _bar(claim),
    units,
    str(claim.verdict),
  ]


def _bar(claim: Judged) -> html.Bar:
  """The effect, drawn in margins; 100 margins reach the cell's edge."""
  if not isinstance(claim.effect, Effect):
    text = "" if claim.effect is None else claim.effect.text()
    return html.Bar(text, None, None, (0, 0), "")
  found = in_margins(claim.effect)
  reach = place(100.0)

  def across(x: float) -> float:
    return min(max(0.5 + place(x) / reach / 2, 0.0), 1.0)

  ends = (across(found.low), across(found.value), across(found.high))
  color = claims_figure.COLORS[claim.verdict]
  band = (across(-1.0), across(1.0))
  return html.Bar(claim.effect.text(), found.value, ends, band, color)
