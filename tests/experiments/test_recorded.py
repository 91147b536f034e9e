"""What is recorded of every experiment gives its claims and its report again,
without a model and without training."""

import functools
import json
import pathlib
import re
import shutil

import numpy as np
import pytest

from sinkjax.experiments import BY_NAME, named
from sinkjax.experiments.harness import compact, records, train_runs

RESULTS = pathlib.Path(__file__).parents[2] / "docs" / "results"
GROUPS = {
  path.parent: group
  for group in ("paper", "applications", "training")
  for name in named(group)
  for path in sorted(RESULTS.glob(f"*/{name}/result.json"))
}
FOLDERS = list(GROUPS)
NUMBER = re.compile(r"(?<![\w.])[-+]?\d[\d,]*\.?\d*(?:e[-+]?\d+)?")
QUICK = ("massive", "model_size", "prompts", "robustness", "streaming",
         "residual_peak", "sink_regulariser", "noise_training")  # fmt: skip
"""Experiments whose figures are drawn in every run of the tests."""

NEED_MORE = ("bigram_backcopy", "residual_peak", "trigger_mean", "model_family")
"""Experiments that read a corpus, draw data or load models of others, beside
the runs that they collect."""

RUNS = [
  folder
  for folder, group in GROUPS.items()
  if group == "training" and folder.name not in NEED_MORE
]


def names(folder):
  return f"{folder.parent.name}-{folder.name}"


def numbers(text):
  return sorted(NUMBER.findall(text))


@functools.cache
def claims_of(folder):
  return records.measured(folder).claims()


@pytest.mark.parametrize("group", ["paper", "applications", "training"])
def test_every_experiment_is_recorded(group):
  found = {folder.name for folder in FOLDERS if GROUPS[folder] == group}
  assert found == {name for name in named(group) if BY_NAME[name].recorded}


@pytest.mark.parametrize("folder", FOLDERS, ids=names)
def test_claims_follow_from_the_files(folder):
  """Verdicts and numbers are those recorded; wording is free."""
  recorded = json.loads((folder / "result.json").read_text("utf-8"))["claims"]
  claims = claims_of(folder)
  assert claims and len({claim.id for claim in claims}) == len(claims)
  for claim, old in zip(claims, recorded, strict=True):
    # Files recorded before claims had ids lack them.
    assert claim.id == old.get("id", claim.id)
    assert claim.verdict == old["verdict"], claim.id
    assert numbers(claim.ours) == numbers(old["ours"]), claim.id


@pytest.mark.parametrize("folder", FOLDERS, ids=names)
def test_claims_are_sentences(folder):
  claims = claims_of(folder)
  assert len({claim.claim for claim in claims}) == len(claims)
  for claim in claims:
    assert re.fullmatch(r"[A-Z0-9].*\.", claim.claim), claim.claim
    assert len(claim.claim.split()) > 5, claim.claim
    assert re.fullmatch(r"[a-z][a-z0-9_]+", claim.id), claim.id
    for text in (claim.source, claim.paper, claim.ours, claim.why):
      assert text and not re.search(r"\b(None|nan|inf)\b", text), text


@pytest.mark.thorough
@pytest.mark.parametrize(
  "folder",
  [
    pytest.param(f, marks=[] if f.name in QUICK else pytest.mark.slow)
    for f in FOLDERS
  ],
  ids=names,
)
def test_the_report_is_drawn_from_the_files(folder):
  recorded = records.measured(folder)
  experiment = recorded.entry.load()
  drawn = experiment.draw(recorded.result)
  assert drawn and all(png.startswith(b"\x89PNG") for png in drawn.values())
  sections = experiment.sections(recorded.result, drawn)
  shown = [section.figure for section in sections if section.figure]
  assert sections[0].title == experiment.title
  assert len(shown) == len(set(shown)) and set(shown) == set(drawn.values())


@pytest.mark.parametrize("folder", RUNS, ids=names)
def test_an_interrupted_command_goes_on_with_recorded_runs(
  folder, tmp_path, monkeypatch
):
  """All numbers are those recorded, and no run is made again."""
  training = "sinkjax.experiments.training"
  monkeypatch.setattr(train_runs, "train_and_measure", None)
  for name in ("noise_training", "mixing"):
    monkeypatch.setattr(f"{training}.{name}.experiment.forms", None)
  recorded, again = records.measured(folder), tmp_path / folder.name
  shutil.copytree(folder, again)
  config, experiment = recorded.result.config, recorded.entry.load()
  found = experiment.measure(config, folder=again).as_stored(config)
  assert found.numbers == recorded.result.numbers
  assert set(found.tables) == set(recorded.result.tables)
  assert set(found.arrays) == set(recorded.result.arrays)
  for name, values in found.arrays.items():
    # The compact form keeps at least compact.BITS[-1] significant bits of large
    # arrays and of the runs they are means of: two roundings, each at most half
    # a unit of the last bit; small arrays keep every digit.
    large = values.size >= compact.MATRIX
    rtol = 2.0 ** (1 - compact.BITS[-1]) if large else 0
    np.testing.assert_allclose(
      values, recorded.result.arrays[name], rtol=rtol, atol=0
    )
