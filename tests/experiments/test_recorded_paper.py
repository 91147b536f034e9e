"""What is recorded of the paper's experiments gives its claims and its report
again, without a model."""

import json
import pathlib
import re

import pytest

from sinkjax.experiments import named
from sinkjax.experiments.harness import runner

RESULTS = pathlib.Path(__file__).parents[2] / "docs" / "results"
FOLDERS = sorted(
  path.parent
  for name in named("paper")
  for path in RESULTS.glob(f"*/{name}/result.json")
)
NUMBER = re.compile(r"(?<![\w.])[-+]?\d[\d,]*\.?\d*(?:e[-+]?\d+)?")
QUICK = ("massive", "model_size", "prompts")
"""Experiments whose figures are drawn in every run of the tests."""


def numbers(text):
  return sorted(NUMBER.findall(text))


def names(folder):
  return f"{folder.parent.name}-{folder.name}"


def test_every_experiment_is_recorded():
  assert {folder.name for folder in FOLDERS} == set(named("paper"))


@pytest.mark.parametrize("folder", FOLDERS, ids=names)
def test_claims_are_those_recorded(folder):
  recorded = json.loads((folder / "result.json").read_text("utf-8"))["claims"]
  claims = runner.measured(folder).claims()
  assert len({claim.id for claim in claims}) == len(claims)
  for claim, old in zip(claims, recorded, strict=True):
    # Files recorded before claims had ids lack them.
    assert claim.id == old.get("id", claim.id)
    assert claim.verdict == old["verdict"], claim.id
    assert numbers(claim.ours) == numbers(old["ours"]), claim.id


@pytest.mark.parametrize("folder", FOLDERS, ids=names)
def test_claims_are_sentences(folder):
  for claim in runner.measured(folder).claims():
    assert re.fullmatch(r"[A-Z].*\.", claim.claim), claim.claim
    assert re.fullmatch(r"[a-z][a-z0-9_]+", claim.id), claim.id
    for text in (claim.source, claim.paper, claim.ours, claim.why):
      assert text and not re.search(r"\b(None|nan|inf)\b", text), text


@pytest.mark.parametrize(
  "folder",
  [
    pytest.param(f, marks=[] if f.name in QUICK else pytest.mark.slow)
    for f in FOLDERS
  ],
  ids=names,
)
def test_the_report_is_drawn_from_the_files(folder):
  recorded = runner.measured(folder)
  experiment = recorded.entry.load()
  drawn = experiment.draw(recorded.result)
  assert drawn and all(png.startswith(b"\x89PNG") for png in drawn.values())
  sections = experiment.sections(recorded.result, drawn)
  shown = [section.figure for section in sections if section.figure]
  assert sections[0].title == experiment.title
  assert len(shown) == len(set(shown)) == len(drawn)
