"""A page an experiment."""

import dataclasses
import importlib
from collections.abc import Sequence

from sinkjax.experiments import GROUPS, REGISTRY, Entry
from sinkjax.experiments.harness.effects import Effect
from sinkjax.experiments.harness.protocol import Judged
from sinkjax.report.html import Section
from sitegen import markdown as md
from sitegen.recorded import Run, counted

LONGEST = 60
"""Characters of a default value that a table shows."""


def index(runs: Sequence[Run]) -> str:
  """docs/experiments/index.md: the experiments, by wing."""
  text = (
    "# Experiments\n\nEach experiment asks one question, measures, and ends in "
    "claims with verdicts. `python -m launch.reproduce --experiment=NAME "
    "--out=DIR` runs one; `--help` lists them all. How to add one is in "
    "[Contributing](../contributing.md).\n"
  )
  for group, about in GROUPS.items():
    entries = {
      run.name: run.recorded.entry
      for run in runs
      if run.recorded.entry.group == group
    }
    rows = []
    for name, entry in entries.items():
      of = [run for run in runs if run.name == name]
      verdicts = "; ".join(f"{r.subject}: {counted(r.claims)}" for r in of)
      rows.append([f"[{name}]({name}.md)", md.text(entry.question), verdicts])
    rows += [
      [entry.name, md.text(entry.question), "not recorded yet"]
      for entry in REGISTRY
      if entry.group == group and not entry.recorded
    ]
    if rows:
      header = ["experiment", "question", "claims"]
      text += f"\n## {group.capitalize()}\n\nThese {about}.\n\n"
      text += md.table(header, rows)
  names = list(dict.fromkeys(run.name for run in runs))
  return text + _toctree(names)


def _toctree(names: Sequence[str]) -> str:
  listed = "\n".join(names)
  return f"\n```{{toctree}}\n:hidden:\n\n{listed}\n```\n"


def _about(entry: Entry) -> str:
  """The docstring that tells of an experiment: its file's or its folder's."""
  module = f"sinkjax.experiments.{entry.group}.{entry.name}"
  return importlib.import_module(module).__doc__


def page(runs: Sequence[Run]) -> str:
  """docs/experiments/NAME.md, of one experiment's runs."""
  entry = runs[0].recorded.entry
  text = f"# {entry.name}\n\n{md.from_docstring(_about(entry))}"
  text += "\n## Claims\n"
  order: dict[str, list[tuple[Run, Judged]]] = {}
  for run in runs:
    for claim in run.claims:
      order.setdefault(claim.id, []).append((run, claim))
  for name, verdicts in order.items():
    text += f"\n### {name}\n\n{_claim(verdicts)}"
  for run in runs:
    text += f"\n## Results: {run.subject}\n\n{_origin(run)}{_figures(run)}"
  return text + _settings(runs[0])


def _claim(verdicts: Sequence[tuple[Run, Judged]]) -> str:
  """One claim: the sentence, the source, what was measured on what."""
  first = verdicts[0][1]
  text = (
    f"**{md.text(first.claim)}**\n\nSource: {md.text(first.source)}. Reported "
    f"there: {md.text(first.paper)}.\n\n"
  )
  for run, claim in verdicts:
    said = md.sentence(md.text(claim.ours))
    why = md.text(claim.why)
    text += f"- **{run.subject}: {claim.verdict}.** {said}{_evidence(claim)} "
    text += f"*Decided by:* {why}.\n"
  return text


def _evidence(claim: Judged) -> str:
  """The effect that decides, and how its values were made."""
  text = ""
  if isinstance(claim.effect, Effect):
    one = claim.effect
    text += f" *Effect:* {md.text(one.what)}, {md.text(one.text())}."
  if claim.how:
    text += f" *How:* {md.text(claim.how)}."
  return text


def _origin(run: Run) -> str:
  """What computed a run, for how long, and where its files are."""
  about = run.recorded.about
  listed = sorted(
    path.name
    for path in run.recorded.folder.iterdir()
    if path.is_file() and path.suffix != ".png"
  )
  links = ", ".join(f"[{name}](../{run.files}/{name})" for name in listed)
  return (
    f"{_minutes(about['seconds'])} of computing on {about['device']}; part of "
    f"[{run.folder}](../runs/{run.folder}.md). Files: {links}.\n"
  )


def _minutes(seconds: float) -> str:
  return f"{seconds / 60:.0f} min" if seconds >= 90 else f"{seconds:.0f} s"


def _figures(run: Run) -> str:
  """The sections of the report that have a figure in the folder."""
  text = ""
  for section in _drawn(run):
    text += f"\n### {md.text(section.title)}\n"
    if section.body:
      text += f"\n{md.text(section.body)}\n"
    text += f"\n{_picture(run, section)}\n"
  return text


def _drawn(run: Run) -> list[Section]:
  """The sections whose figure is a file; a figure is a file's name here."""
  return [
    section
    for section in run.sections()
    if section.figure and (run.recorded.folder / _name(section)).is_file()
  ]


def _name(section: Section) -> str:
  return (section.figure or b"").decode()


def _picture(run: Run, section: Section) -> str:
  """A figure with its caption below."""
  image = f"![{md.text(section.title)}](../{run.files}/{_name(section)})"
  caption = md.text(" ".join(section.caption.split()))
  return f"{image}\n\n*{caption}*" if caption else image


def _settings(run: Run) -> str:
  """The config: every field with its default and meaning."""
  config = run.recorded.entry.load().config
  meanings: dict[str, str] = {}
  for kind in reversed(config.__mro__[:-1]):
    meanings |= md.fields(kind.__doc__)
  rows = []
  for field in dataclasses.fields(config):
    value = repr(field.default)
    shown = value if len(value) <= LONGEST else f"{value[: LONGEST - 1]}…"
    meaning = md.text(meanings.get(field.name, ""))
    rows.append([f"`{field.name}`", f"`{shown}`", meaning])
  table = md.table(["field", "default", "meaning"], rows)
  return f"\n## Settings\n\n{table}" if rows else ""


def first_figure(run: Run) -> str:
  """The first figure of a run that is in its folder, with its caption."""
  drawn = _drawn(run)
  return f"\n{_picture(run, drawn[0])}\n" if drawn else ""
