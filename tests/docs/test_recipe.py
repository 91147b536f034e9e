"""CONTRIBUTING's recipe for an experiment is enough to add one."""

import csv
import json
import os
import pathlib
import re
import shutil
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parents[2]
NAME = "growing_text"


def blocks():
  text = (ROOT / "CONTRIBUTING.md").read_text("utf-8")
  section = text.split("## Recipe: an experiment")[1].split("\n## ")[0]
  return re.findall(r"```(?:python|text)\n(.*?)```", section, re.DOTALL)


@pytest.fixture(scope="module")
def code(tmp_path_factory):
  """A copy of the code with the recipe's file and registry line, no more."""
  root = tmp_path_factory.mktemp("code")
  for name in ("sinkjax", "launch", "configs"):
    ignore = shutil.ignore_patterns("__pycache__")
    shutil.copytree(ROOT / name, root / name, ignore=ignore)
  experiment, line = blocks()
  group = root / "sinkjax" / "experiments" / "paper"
  (group / f"{NAME}.py").write_text(experiment, "utf-8")
  registry = root / "sinkjax" / "experiments" / "__init__.py"
  text = registry.read_text("utf-8")
  opening = "REGISTRY = (\n"
  assert text.count(opening) == 1
  registry.write_text(text.replace(opening, f"{opening}  {line}"), "utf-8")
  return root


def launch(root, *words):
  done = subprocess.run(
    [sys.executable, "-m", "launch.reproduce", *words],
    cwd=root,
    env={**os.environ, "PYTHONPATH": str(root)},
    capture_output=True,
    text=True,
    check=False,
  )
  assert done.returncode == 0, done.stderr
  return done.stdout


@pytest.mark.thorough
def test_help_and_dry_run_know_it(code):
  question = "Does the sink score fall as a text grows?"
  assert re.search(rf"{NAME} +{re.escape(question)}", launch(code, "--help"))
  plan = launch(
    code, f"--experiment={NAME}", "--model=glassllm-en", "--dry_run"
  )
  assert "Attention on the first token of a growing text" in plan


@pytest.mark.slow
@pytest.mark.thorough
def test_it_runs_and_is_reported(code, tmp_path, glassllm_path):
  out = tmp_path / "out"
  flags = (f"--experiment={NAME}", "--model=glassllm-en", f"--out={out}")
  printed = launch(code, *flags)
  assert "The sink score is lower on a longer text." in printed
  stored = json.loads((out / NAME / "result.json").read_text("utf-8"))
  assert stored["complete"] is True
  with open(out / "claims.csv", newline="", encoding="utf-8") as stream:
    (row,) = csv.DictReader(stream)
  # A first token has all attention of its own row, so 4 tokens give it more
  # than 10 in any model.
  assert (row["id"], row["verdict"]) == ("score_falls", "supported")
  assert (out / NAME / "scores.png").is_file()
  assert "growing text" in (out / "report.html").read_text("utf-8")
  assert "already done" in launch(code, *flags)
