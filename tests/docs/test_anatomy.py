"""The page that walks through one sink says what was recorded."""

import json
import pathlib
import re

import pytest

ROOT = pathlib.Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "anatomy.md").read_text("utf-8")
LINK = re.compile(r"\[(\w+)\]\(experiments/(\w+)\.md#(\w+)\)")
# Decimals, and whole numbers of two digits or more: texts' own words are left.
NUMBER = re.compile(r"(?<![\w.])\d[\d,]*\.\d+|(?<![\w.])\d[\d,]*\d(?![\w.]\d)")
WINGS = "paper-smollm2-135m", "uses-smollm2-135m"
PARAGRAPHS = [part for part in PAGE.split("\n\n") if LINK.search(part)]


def recorded(experiment, claim):
  """What was measured, as the claim says it."""
  for wing in WINGS:
    path = ROOT / "docs" / "results" / wing / experiment / "result.json"
    if path.exists():
      claims = json.loads(path.read_text("utf-8"))["claims"]
      return next(one["ours"] for one in claims if one["id"] == claim)
  raise AssertionError(f"{experiment} is not recorded")


@pytest.mark.parametrize("paragraph", PARAGRAPHS)
def test_numbers_are_those_of_the_claims_it_links_to(paragraph):
  found = LINK.findall(paragraph)
  assert all(name == claim for name, _, claim in found)
  said = " ".join(recorded(experiment, claim) for _, experiment, claim in found)
  known = set(NUMBER.findall(said))
  numbers = set(NUMBER.findall(LINK.sub("", paragraph)))
  assert numbers and numbers <= known, numbers - known


def test_every_figure_is_there():
  figures = re.findall(r"!\[[^]]+\]\(([^)]+)\)", PAGE)
  assert len(figures) >= 4
  assert all((ROOT / "docs" / at).exists() for at in figures)
  assert len(PARAGRAPHS) >= 12
