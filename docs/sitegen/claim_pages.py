"""The claims as one table a wing, and the README's scoreboard."""

import re
from collections.abc import Sequence

from sinkjax.experiments import GROUPS, REGISTRY
from sinkjax.experiments.harness.protocol import Judged, Verdict
from sitegen import markdown as md
from sitegen.recorded import Run, counted

WINGS = {
  "paper": (
    "Claims of Barbero et al. and of close relatives, measured on models that "
    "were trained by others."
  ),
  "applications": "What sinks are good and bad for, on such a model.",
  "training": (
    "Sinks in models trained for this. These models are small and see few "
    "tokens: compare signs with the papers, not sizes. Three seeds decide "
    "nothing, so nearly all rows are inconclusive until more are trained."
  ),
}
"""What stands above each wing's table."""

SCOREBOARD = (
  ("massive", "smollm2-135m", "sink_needs_massive"),
  ("streaming", "smollm2-135m", "window_alone"),
  ("collapse", "smollm2-135m", "digits_merge_in_bfloat16"),
  ("prompts", "smollm2-135m", "first_token_hardly_matters"),
  (
    "sink_circuit",
    "qwen2.5-coder-0.5b-instruct-q4_k_m.gguf",
    "sink_is_content",
  ),
  ("massive", "qwen2.5-coder-0.5b-instruct-q4_k_m.gguf", "sink_needs_massive"),
  ("physical_first", "smollm2-135m", "sink_is_first_not_bos"),
  ("streaming_heads", "smollm2-135m", "by_head_finds_more"),
  ("sink_circuit", "smollm2-135m", "ablation_removes_sink"),
  ("jacobian", "smollm2-135m", "exact_mixing"),
)
"""(experiment, subject, claim) of the README's findings, those that contradict
their source first."""

SHORT = 125
"""Characters of an effect that stay in one look at a cell or a line."""

INTRODUCTION = """\
# Claims

Each row is a claim, under an id that stays when the wording is improved; each
column is a model, or a scale of models trained for this. A cell holds the
verdict and what was measured, with its 95 % interval. The tests that decided,
what the source reports, and the figures are on the experiment's page. One rule
decides all of them: [the protocol](protocol.md).

Verdicts are exploratory but those on new texts, which nobody had looked at when
a claim and its margin were written down: they confirm it or do not. All but
Qwen's column and new texts were measured before that rule was written; Qwen's
was measured after it, on the same texts.
"""


def effect(claim: Judged) -> str:
  """What was measured: the first clause, and the next ones that fit `SHORT`.

  A semicolon in brackets ends no clause.
  """
  clauses, depth = [""], 0
  for char in claim.ours:
    depth += (char == "(") - (char == ")")
    if char == ";" and depth == 0:
      clauses.append("")
    else:
      clauses[-1] += char
  text = clauses[0]
  for clause in clauses[1:]:
    if len(text) + len(clause) >= SHORT:
      break
    text += f";{clause}"
  return text


def link(name: str, claim: str = "") -> str:
  """The address of an experiment's page, relative to docs.

  A heading's anchor keeps letters, digits, "_" and "-" of an id.
  """
  anchor = re.sub(r"[^\w-]", "", claim)
  return f"experiments/{name}.md" + (f"#{anchor}" if claim else "")


def page(runs: Sequence[Run]) -> str:
  """docs/claims.md."""
  claims = [claim for run in runs for claim in run.claims]
  text = f"{INTRODUCTION}\nOf {len(claims)} verdicts: {counted(claims)}.\n"
  if new := [claim for claim in claims if claim.confirmatory]:
    text += f"Of them {len(new)} are confirmatory: {counted(new)}. "
    text += f"{_repeated(runs)}\n"
  for group in GROUPS:
    inside = [run for run in runs if run.recorded.entry.group == group]
    if inside:
      text += f"\n## {group.capitalize()}\n\n{WINGS[group]}\n\n{_table(inside)}"
  return text


def beside(
  runs: Sequence[Run], others: Sequence[Run]
) -> list[tuple[Run, Judged, Judged]]:
  """(other run, its claim on the first texts, its claim) where there are both.

  Args:
    runs: of which those on the first texts are compared with.
    others: on the same models, in another way.
  """
  first = {
    (run.name, run.measured_on, claim.id): claim
    for run in runs
    if not run.has_new_texts
    for claim in run.claims
  }
  return [
    (run, first[key], claim)
    for run in others
    for claim in run.claims
    if (key := (run.name, run.measured_on, claim.id)) in first
  ]


def _repeated(runs: Sequence[Run]) -> str:
  """How often new texts say what the first ones of the same model said."""
  decided = [
    (before.verdict, after.verdict)
    for _, before, after in beside(runs, runs)
    if after.confirmatory and before.verdict != Verdict.INCONCLUSIVE
  ]
  same = sum(before == after for before, after in decided)
  return (
    f"{len(decided)} of these claims had been decided on the first texts: "
    f"{same} have the same verdict on new ones."
  )


def _table(runs: Sequence[Run]) -> str:
  """A row a claim, a column a subject."""
  subjects = list(dict.fromkeys(run.measured_on for run in runs))
  rows = []
  for entry in REGISTRY:
    cells: dict[str, dict[str, list[tuple[bool, Judged]]]] = {}
    # New texts after those that were read first, in the model's cell.
    for run in sorted(runs, key=lambda run: run.has_new_texts):
      if run.name == entry.name:
        for claim in run.claims:
          of = cells.setdefault(claim.id, {}).setdefault(run.measured_on, [])
          of.append((run.has_new_texts, claim))
    for name, by_subject in cells.items():
      _, shown = next(iter(by_subject.values()))[0]
      rows.append(
        [
          named(entry.name, name),
          md.text(shown.claim),
          *(_cell(by_subject.get(subject, [])) for subject in subjects),
        ]
      )
  return md.table(["experiment, id", "claim", *subjects], rows)


def _cell(claims: Sequence[tuple[bool, Judged]]) -> str:
  return "<br>".join("New texts: " * new + said(claim) for new, claim in claims)


def named(experiment: str, claim: str) -> str:
  """A cell with the names of an experiment and its claim, which is a link."""
  return f"{experiment}<br>[`{claim}`]({link(experiment, claim)})"


def said(claim: Judged) -> str:
  """A cell with a verdict and what was measured."""
  return f"**{claim.verdict}** {md.text(effect(claim))}"


def scoreboard(runs: Sequence[Run]) -> str:
  """The README's findings, with links relative to the repository.

  Raises:
    ValueError: for a finding that no recorded run has.
  """
  claims = [claim for run in runs for claim in run.claims]
  text = (
    f"Of {len(claims)} verdicts {counted(claims)} "
    "([all of them](docs/claims.md)), by [one rule](docs/protocol.md); "
    f"{sum(claim.confirmatory for claim in claims)} are confirmatory. "
    "Intervals are 95 %.\n\n"
  )
  known = {
    (run.name, run.subject, claim.id): claim
    for run in runs
    for claim in run.claims
  }
  for name, subject, which in SCOREBOARD:
    claim = known.get((name, subject, which))
    if claim is None:
      raise ValueError(f"no claim {which} of {name} on {subject} is recorded")
    at = f"docs/{link(name, which)}"
    text += (
      f"- **{claim.verdict}**: {md.text(claim.claim)} "
      f"{md.sentence(md.text(effect(claim)))} "
      f"([{name}]({at}), {subject})\n"
    )
  return text
