"""The README and the guides are true: their code runs, their links lead."""

import pathlib
import re
import subprocess
import sys

import launcher
import pytest
from quick import quick

ROOT = pathlib.Path(__file__).parents[2]
PAGES = ["README.md", "CONTRIBUTING.md"] + sorted(
  path.relative_to(ROOT).as_posix() for path in (ROOT / "docs").rglob("*.md")
)
SECTIONS = [
  "Start",
  "In Python",
  "What was found",
  "Speed",
  "Models",
  "How to cite",
  "Where to go next",
]


def text(name):
  return (ROOT / name).read_text("utf-8")


def blocks(name, language):
  return re.findall(rf"```{language}\n(.*?)```", text(name), re.DOTALL)


WITH_CODE = [
  name for name in PAGES if name != "CONTRIBUTING.md" and blocks(name, "python")
]


def run(words):
  return subprocess.run(
    words, cwd=ROOT, capture_output=True, text=True, check=False
  )


@pytest.mark.parametrize("name", quick(WITH_CODE, "README.md"))
def test_python_runs(name, smollm2_path, glassllm_path):
  """What needs other libraries than ours is marked as `py`."""
  done = run([sys.executable, "-c", "\n".join(blocks(name, "python"))])
  assert done.returncode == 0, done.stderr
  if name == "README.md":
    plain, hidden = (line.split() for line in done.stdout.splitlines())
    assert float(plain[-1]) > 2 * float(hidden[-1])


def test_the_guides_have_code():
  assert len(WITH_CODE) >= 7


def test_commands_are_the_launchers_own(tmp_path, glassllm_path):
  """Every `python -m launch...` of the README, as a dry run or for its help."""
  commands = re.findall(
    r"python -m launch\.([a-z]+)([^`&\n]*)", text("README.md")
  )
  assert len({name for name, _ in commands}) >= 6
  runs = set()
  for name, flags in commands:
    words = flags.split()
    if "--out" not in flags:
      words = ["--help"]
    elif "--help" not in flags:
      words.append("--dry_run")
    runs.add((name, *words))
  for words in sorted(runs):
    done = launcher.run(*words)
    assert done.returncode == 0, (words, done.stderr)


@pytest.mark.parametrize("name", PAGES)
def test_links_lead_somewhere(name):
  """Links between pages, and to files of the repository."""
  folder = (ROOT / name).parent
  # Sphinx writes the API pages when it builds the site.
  made = ROOT / "docs" / "api"
  for target in re.findall(r"\]\(([^)#\s]+)[^)]*\)", text(name)):
    path = (folder / target).resolve()
    if not target.startswith("http") and made not in path.parents:
      assert path.exists(), target


def test_set_up_is_two_commands():
  commands = blocks("README.md", "sh")
  assert len(commands) == 2
  assert all(len(command.strip().splitlines()) == 1 for command in commands)
  assert "launch.analyze" in commands[0]
  assert "pytest" in commands[1]


def test_the_readme_is_one_page():
  assert len(text("README.md").encode()) <= 8192
  assert re.findall("^## (.*)$", text("README.md"), re.MULTILINE) == SECTIONS
  (code,) = blocks("README.md", "python")
  assert len(code.splitlines()) <= 12
  # What is found, and the page on which one finds it.
  pictures = re.findall(r"!\[[^]]+\]\(([^)]+)\)", text("README.md"))
  assert len(pictures) == 2
  assert all((ROOT / at).stat().st_size < 80_000 for at in pictures)


def test_speeds_are_recorded():
  """Every ratio of the README's table is in a benchmark's file, rounded."""
  section = text("README.md").split("## Speed")[1].split("\n## ")[0]
  rows = section.splitlines()
  ratios = re.findall(r"(\d+\.\d+) (?:to|with) ", section)
  assert len(ratios) == 9
  recorded = [
    float(cell)
    for path in (ROOT / "docs" / "results").glob("bench-*/bench.md")
    for cell in re.findall(r"\| (\d+\.\d\d) \|", path.read_text("utf-8"))
  ]
  for ratio in ratios:
    digits = len(ratio.split(".")[1])
    assert float(ratio) in [round(x, digits) for x in recorded], ratio
  assert sum(row.startswith("| ") for row in rows) == 7  # head, rule, five rows
