"""What git keeps of results stays small, and nothing in it is a page.

A folder that is too large: `python -m launch.reproduce --report --compact
--out=docs/results/NAME`.
"""

import pathlib
import subprocess

import pytest
from PIL import Image

from sinkjax import artifacts
from sinkjax.experiments.harness import compact

ROOT = pathlib.Path(__file__).parents[2]
RESULTS = ROOT / "docs" / "results"

pytestmark = pytest.mark.skipif(
  not list(RESULTS.rglob(artifacts.ARCHIVE)),
  reason="docs/results is from before there was a compact form",
)


@pytest.fixture(scope="module")
def kept():
  """The files of docs/results that git has, or all where there is no git."""
  if not (ROOT / ".git").exists():
    return [path for path in RESULTS.rglob("*") if path.is_file()]
  listed = subprocess.run(
    ["git", "-C", ROOT, "ls-files", "-z", "docs/results"],
    capture_output=True,
    text=True,
    check=True,
  ).stdout
  return [ROOT / name for name in listed.split("\0") if name]


def test_all_of_it_is_at_most_8_mb(kept):
  assert len(kept) > 50
  assert sum(path.stat().st_size for path in kept) <= 8_000_000
  assert not [path for path in kept if path.suffix == ".html"]


def test_an_experiment_is_at_most_six_files_and_300_kb(kept):
  folders = {path.parent for path in kept if path.name == "result.json"}
  assert len(folders) > 20
  for folder in folders:
    own = [path for path in kept if folder in path.parents]
    assert len(own) <= compact.FILES == 6, folder
    size = sum(path.stat().st_size for path in own)
    assert size <= compact.BYTES == 300_000, folder


def test_a_figure_has_few_colours_and_80_kb(kept):
  figures = [path for path in kept if path.suffix == ".png"]
  assert figures
  for path in figures:
    assert path.stat().st_size <= compact.FIGURE_BYTES == 80_000, path
    assert len(Image.open(path).getcolors() or range(999)) <= 256, path
