"""The README and the guide are true: their code runs, their files are there."""

import pathlib
import re
import runpy
import subprocess
import sys

import pytest
from quick import quick

ROOT = pathlib.Path(__file__).parents[1]
DOCS = {
  name: (ROOT / name).read_text() for name in ("README.md", "docs/guide.md")
}
PAGES = [f"docs/{path.name}" for path in (ROOT / "docs").glob("*.md")]


def blocks(name, language):
  return re.findall(rf"```{language}\n(.*?)```", DOCS[name], re.DOTALL)


@pytest.mark.parametrize("name", quick(DOCS, "README.md"))
def test_python_runs(name, smollm2_path, glassllm_path):
  code = "\n".join(blocks(name, "python"))
  done = subprocess.run(
    [sys.executable, "-c", code],
    cwd=ROOT,
    capture_output=True,
    text=True,
    check=False,
  )
  assert done.returncode == 0, done.stderr
  if name == "README.md":
    plain, hidden = (line.split() for line in done.stdout.splitlines())
    assert float(plain[-1]) > 2 * float(hidden[-1])


def test_commands_are_the_launchers_own(tmp_path, glassllm_path):
  """Every `python -m launch...` of the README, as a dry run or for its help."""
  commands = re.findall(
    r"python -m (launch\.[a-z]+)([^`&\n]*)", DOCS["README.md"]
  )
  assert len(commands) >= 4
  for module, flags in commands:
    flags = flags.replace("NAME", "glassllm-en").replace("DIR", str(tmp_path))
    words = flags.split() + ([] if "--help" in flags else ["--dry_run"])
    done = subprocess.run(
      [sys.executable, "-m", module, *words],
      cwd=ROOT,
      capture_output=True,
      text=True,
      check=False,
    )
    assert done.returncode == 0, (module, flags, done.stderr)


@pytest.mark.parametrize("name", ["README.md", *PAGES])
def test_links_lead_somewhere(name):
  folder = (ROOT / name).parent
  for target in re.findall(r"\]\(([^)#]+)\)", (ROOT / name).read_text()):
    if not target.startswith("http"):
      assert (folder / target).exists(), target


def test_set_up_is_two_commands():
  commands = blocks("README.md", "sh")
  assert len(commands) == 2
  assert all(len(command.strip().splitlines()) == 1 for command in commands)
  assert "launch.analyze" in commands[0]
  assert "pytest" in commands[1]


def test_the_guide_names_every_site():
  import sinkjax

  for site in sinkjax.SITES:
    assert f"`{site}`" in DOCS["docs/guide.md"]


@pytest.mark.parametrize(
  "run",
  ["paper-smollm2-135m", "uses-smollm2-135m", "training-gpu", "training-cpu"],
)
def test_the_claims_are_the_recorded_run_s(run):
  """The README's tables are what `launch.reproduce` wrote, to the letter."""
  recorded = ROOT / "docs" / "results" / run / "claims.md"
  assert recorded.read_text("utf-8") in DOCS["README.md"]


@pytest.mark.parametrize("name", PAGES)
def test_tables_are_the_recorded_files(name):
  """`python docs/tables.py` has nothing to write."""
  page = (ROOT / name).read_text("utf-8")
  assert runpy.run_path(ROOT / "docs" / "tables.py")["written"](page) == page
