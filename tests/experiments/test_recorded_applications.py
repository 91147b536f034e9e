"""Claims and figures of the recorded applications, made from the files."""

import functools
import json
import pathlib
import re

import pytest

from sinkjax.experiments import named
from sinkjax.experiments.harness import runner

RESULTS = pathlib.Path(__file__).parents[2] / "docs" / "results"
FOLDERS = [
  folder
  for folder in sorted(RESULTS.glob("*/*"))
  if folder.name in named("applications") and (folder / "result.json").exists()
]
QUICK = ("robustness", "streaming")
"""Whose figures take less than a second; the others are drawn in slow tests."""

NUMBER = re.compile(r"(?<![\w.])[-+]?\d[\d,]*\.?\d*(?:e[-+]?\d+)?")


@functools.cache
def claims_of(folder):
  return runner.measured(folder).claims()


def test_every_application_is_recorded():
  assert {folder.name for folder in FOLDERS} == set(named("applications"))


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda x: x.name)
def test_claims_follow_from_the_files(folder):
  """Verdicts and numbers are those recorded; wording is free."""
  recorded = json.loads((folder / "result.json").read_text("utf-8"))["claims"]
  claims = claims_of(folder)
  assert len({claim.id for claim in claims}) == len(claims) == len(recorded)
  for old, claim in zip(recorded, claims, strict=True):
    assert re.fullmatch(r"[a-z0-9_]+", claim.id)
    assert old.get("id", claim.id) == claim.id
    assert old["verdict"] == claim.verdict, claim.id
    numbers = sorted(NUMBER.findall(old["ours"]))
    assert numbers == sorted(NUMBER.findall(claim.ours)), claim.id


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda x: x.name)
def test_claims_are_sentences(folder):
  claims = claims_of(folder)
  assert len({claim.claim for claim in claims}) == len(claims)
  for claim in claims:
    assert claim.claim[0].isupper() or claim.claim[0].isdigit(), claim.id
    assert claim.claim.endswith(".") and len(claim.claim.split()) > 5, claim.id


@pytest.mark.parametrize(
  "folder",
  [
    pytest.param(
      folder,
      id=folder.name,
      marks=[] if folder.name in QUICK else pytest.mark.slow,
    )
    for folder in FOLDERS
  ],
)
def test_figures_and_sections_are_drawn_from_the_files(folder):
  one = runner.measured(folder)
  drawn = one.entry.load().draw(one.result)
  assert all(png.startswith(b"\x89PNG") for png in drawn.values())
  sections = one.entry.load().sections(one.result, drawn)
  shown = {section.figure for section in sections} - {None}
  assert shown == set(drawn.values())
