"""Writes every generated page, from the recorded results and the registry.

  python docs/generate.py

  README.md               the scoreboard, between its two comments
  docs/claims.md          every claim on every model
  docs/bfloat16.md        the claims that were also measured in bfloat16
  docs/experiments/*.md   a page an experiment that is recorded
  docs/runs/*.md          a page a folder of docs/results
  sinkjax/experiments/harness/spreads.json
                          how much effects vary between units, for --dry_run
  sinkjax/experiments/harness/costs.json
                          how long the experiments took, likewise
  docs/gallery.md         the gallery of models, from docs/models
  docs/**/*.md            tables that follow a comment, see sitegen/tables.py

A test compares what is committed with what this writes. The pages of the API
reference are not kept: Sphinx has them written when it builds the site.
"""

import json
import pathlib
import re
import sys

DOCS = pathlib.Path(__file__).parent
ROOT = DOCS.parent
# The code beside this file, whatever else is installed.
sys.path[:0] = [str(DOCS), str(ROOT)]

from sitegen import (  # noqa: E402
  claim_pages,
  experiment_pages,
  gallery,
  half_pages,
  recorded,
  report_pages,
  tables,
)

from sinkjax.experiments.harness import costs, power  # noqa: E402

BOARD = re.compile(
  r"(<!-- scoreboard: python docs/generate.py -->\n).*?(<!-- end -->)",
  re.DOTALL,
)
WHOLE = ("experiments", "runs")
"""Folders of docs in which every page is generated."""


def pages() -> dict[str, str]:
  """{path from the repository's root: text} of every generated page.

  Raises:
    ValueError: where README.md has no scoreboard's comments.
  """
  runs = recorded.runs()
  out = {"docs/claims.md": claim_pages.page(runs)}
  out["docs/bfloat16.md"] = half_pages.page(runs, recorded.runs("bfloat16"))
  out["docs/experiments/index.md"] = experiment_pages.index(runs)
  for name in dict.fromkeys(run.name for run in runs):
    of = [run for run in runs if run.name == name]
    out[f"docs/experiments/{name}.md"] = experiment_pages.page(of)
  of_name: dict[str, list] = {}
  for run in runs:
    of_name.setdefault(run.name, []).append(run.claims)
  out[power.FILE.relative_to(ROOT).as_posix()] = (
    json.dumps(power.spreads(of_name), indent=1) + "\n"
  )
  took = [
    (
      run.name,
      run.measured_on,
      run.recorded.about["seconds"],
      run.recorded.about["device"],
    )
    for run in runs
  ]
  out[costs.FILE.relative_to(ROOT).as_posix()] = (
    json.dumps(costs.costs(took), indent=1) + "\n"
  )
  out |= {
    f"docs/runs/{name}.md": text
    for name, text in report_pages.pages(runs).items()
  }
  out["docs/gallery.md"] = gallery.page()
  for path in sorted(DOCS.rglob("*.md")):
    name = path.relative_to(ROOT).as_posix()
    if name not in out and path.parent.name not in WHOLE:
      page = path.read_text("utf-8")
      if (written := tables.written(page)) != page or tables.has_any(page):
        out[name] = written
  readme, count = BOARD.subn(
    lambda m: f"{m[1]}{claim_pages.scoreboard(runs)}{m[2]}",
    (ROOT / "README.md").read_text("utf-8"),
  )
  if count != 1:
    raise ValueError("README.md needs one pair of scoreboard comments")
  return out | {"README.md": readme}


def stale(wanted: dict[str, str]) -> list[str]:
  """Generated pages that are not, or no longer, to be there."""
  there = {
    path.relative_to(ROOT).as_posix()
    for folder in WHOLE
    for path in (DOCS / folder).glob("*.md")
  }
  return sorted(there - set(wanted))


def main() -> None:
  """Writes what differs, and removes what is stale."""
  wanted = pages()
  for name, text in wanted.items():
    path = ROOT / name
    if not path.is_file() or path.read_text("utf-8") != text:
      path.parent.mkdir(exist_ok=True)
      path.write_text(text, "utf-8")
      print(f"wrote {name}")
  for name in stale(wanted):
    (ROOT / name).unlink()
    print(f"removed {name}")


if __name__ == "__main__":
  main()
