"""A page for every folder of docs/results."""

import json
import pathlib
from collections.abc import Sequence

from sitegen import markdown as md
from sitegen.claim_pages import link
from sitegen.experiment_pages import first_figure
from sitegen.recorded import RESULTS, Run, counted

CAPTIONS = {
  "sink_map.png": (
    "Mean attention on the first token, by layer and head. A dot marks a head "
    "above eps 0.3."
  ),
  "attention.png": "Attention maps of some heads.",
  "norms.png": "Norms of the first token and of the others, by layer.",
  "entropy.png": "Entropy of the attention rows, by layer.",
}
"""Figures of a report of launch.analyze, in the order of its page."""


def pages(runs: Sequence[Run]) -> dict[str, str]:
  """{name: page} of the folders, and of their list."""
  found = {}
  for folder in sorted(path for path in RESULTS.iterdir() if path.is_dir()):
    of = [run for run in runs if run.folder == folder.name]
    if of:
      found[folder.name] = _of_experiments(folder, of)
    elif (folder / "heads.csv").is_file():
      found[folder.name] = _of_analysis(folder)
  benches = sorted(RESULTS.glob("bench-*/bench.md"))
  if benches:
    found["speed"] = _speed(benches)
  return found | {"index": _index(found)}


def _index(found: dict[str, str]) -> str:
  listed = "\n".join(found)
  links = "".join(
    f"- [{text.splitlines()[0].lstrip('# ')}]({name}.md)\n"
    for name, text in found.items()
  )
  return (
    "# Results\n\nEverything that was recorded, by the command that made it. "
    "Figures and tables come from files in `docs/results`; "
    "`python -m launch.reproduce --report --out=FOLDER` draws the whole report "
    f"of a folder again without measuring.\n\n{links}\n"
    f"```{{toctree}}\n:hidden:\n\n{listed}\n```\n"
  )


def _summary(folder: pathlib.Path) -> dict:
  return json.loads((folder / "summary.json").read_text("utf-8"))


def _command(summary: dict) -> str:
  return f"```text\n{summary['command']}\n```\n\n"


def _of_experiments(folder: pathlib.Path, runs: Sequence[Run]) -> str:
  summary, group = _summary(folder), runs[0].recorded.entry.group
  claims = [claim for run in runs for claim in run.claims]
  text = (
    f"# {group.capitalize()}: {runs[0].subject}\n\n{_command(summary)}"
    f"{summary['seconds'] / 60:.0f} min of computing on "
    f"{summary['device']}. Of "
    f"{len(claims)} claims {counted(claims)}.\n\n"
  )
  rows = [
    [
      f"[{run.name}](../{link(run.name)})",
      md.text(run.recorded.entry.question),
      counted(run.claims),
    ]
    for run in runs
  ]
  text += md.table(["experiment", "question", "claims"], rows)
  for run in runs:
    text += f"\n## {run.name}\n{first_figure(run)}"
  return text


def _of_analysis(folder: pathlib.Path) -> str:
  """The headline numbers and the figures of a report of launch.analyze."""
  summary = _summary(folder)
  rates = ", ".join(
    f"{100 * rate:.1f} % at eps {eps}"
    for eps, rate in summary["sink_rate"].items()
  )
  token = summary["first_token"]["text"].strip()
  text = (
    f"# Sink report: {summary['model']}\n\n{_command(summary)}"
    f"{summary['tokens'][0]} tokens; position 0 is `{token}`. Share of heads "
    f"with a sink: {rates}. Mean attention on the first token: "
    f"{100 * summary['first_token_mass']:.1f} %. "
    f"{summary['seconds']:.0f} s on {summary['device']}. Files: "
    f"[summary.json](../results/{folder.name}/summary.json), "
    f"[heads.csv](../results/{folder.name}/heads.csv).\n"
  )
  for name, caption in CAPTIONS.items():
    if (folder / name).is_file():
      text += (
        f"\n![{caption}](../results/{folder.name}/{name})\n\n*{caption}*\n"
      )
  return text


def _speed(benches: Sequence[pathlib.Path]) -> str:
  text = (
    "# Speed\n\nEvery measurement is a process of its own, and processes take "
    "turns. A ratio is the median over rounds of another library's time over "
    "ours, so above 1 sinkjax is faster. `python -m launch.bench --help` says "
    "what is timed.\n"
  )
  for path in benches:
    text += f"\n## {path.parent.name}\n\n{path.read_text('utf-8')}"
  return text
