"""What is committed of the site is what its generator writes."""

import doctest
import importlib
import json
import pathlib
import re

import generate
import pytest
import yaml
from sitegen import claim_pages, docstrings, markdown, picture, recorded

import sinkjax
from sinkjax.experiments import BY_NAME
from sinkjax.experiments.harness.protocol import Verdict

ROOT = pathlib.Path(__file__).parents[2]
DOCS = ROOT / "docs"
NOTEBOOKS = sorted(DOCS.glob("notebooks/*.ipynb"))


@pytest.fixture(scope="module")
def written():
  return generate.pages()


@pytest.mark.thorough
def test_pages_are_what_the_generator_writes(written):
  """`python docs/generate.py` has nothing to write, and nothing to remove."""
  for name, text in written.items():
    assert (ROOT / name).read_text("utf-8") == text, name
  assert generate.stale(written) == []


def test_every_promise_names_a_test_that_is_there():
  text = (DOCS / "promises.md").read_text("utf-8")
  named = re.findall(r"`(tests/\S+\.py)(?:::(\w+))?`", text)
  assert len(named) == text.count("`tests/")
  for path, name in named:
    code = (ROOT / path).read_text("utf-8")
    assert not name or f"def {name}(" in code, (path, name)


def test_every_recorded_folder_is_a_known_experiment(written):
  folders = {path.parent.name for path in DOCS.glob("results/*/*/result.json")}
  assert folders <= set(BY_NAME)
  assert all(f"docs/experiments/{name}.md" in written for name in folders)


def test_the_scoreboard_has_what_is_contradicted_first(written):
  lines = re.findall(r"^- \*\*(.*?)\*\*", written["README.md"], re.MULTILINE)
  assert 8 <= len(lines) <= 12
  assert lines == sorted(lines, key=lambda verdict: verdict != "contradicted")


def test_a_claim_that_is_not_recorded_is_an_error(monkeypatch):
  missing = ("massive", "smollm2-135m", "no_such_claim")
  monkeypatch.setattr(claim_pages, "SCOREBOARD", (missing,))
  with pytest.raises(ValueError, match="no_such_claim"):
    claim_pages.scoreboard([])


def test_an_effect_is_the_first_clauses():
  def effect(ours):
    return claim_pages.effect(type("Claim", (), {"ours": ours}))

  long = "x" * claim_pages.SHORT
  assert effect("1 % before; 2 % after") == "1 % before; 2 % after"
  assert effect(f"1 (0 to 2) nats; {long}; 3") == "1 (0 to 2) nats"
  assert effect(f"1 (0; {long}) nats; 3") == f"1 (0; {long}) nats"


def test_counts_in_words():
  assert recorded.counted([]) == ""
  claim = type("Claim", (), {"verdict": Verdict.SUPPORTED})
  other = type("Claim", (), {"verdict": Verdict.INCONCLUSIVE})
  assert recorded.counted([claim, other, other]) == (
    "1 supported, 2 inconclusive"
  )


@pytest.mark.parametrize("module", [docstrings, markdown])
def test_examples(module):
  result = doctest.testmod(importlib.import_module(module.__name__))
  assert result.attempted > 0
  assert result.failed == 0


def test_docstrings_become_restructured_text():
  """Code, tensors and formulas; a section's text is no formula."""
  lines = [
    "Norms |x| of `v[*B]` with shape *B:",
    "",
    "    y = |x| * 2",
    "",
    "Args:",
    "  x: a `name_` and",
    "    more_.",
    "",
    ">>> 1 * 2",
    "2",
  ]
  assert docstrings.converted(lines) == [
    r"Norms \|x\| of ``v[*B]`` with shape \*B:",
    "",
    "::",
    "",
    "    y = |x| * 2",
    "",
    "Args:",
    "  x: a ``name_`` and",
    r"    more\_.",
    "",
    ">>> 1 * 2",
    "2",
    "",
  ]


def test_fields_of_a_docstring():
  doc = """What.

  Attributes:
    a: one
      and more.
    b: two.

  Raises:
    c: no field.
  """
  assert markdown.fields(doc) == {"a": "one and more.", "b": "two."}


def test_every_site_is_told_and_drawn():
  page = (DOCS / "concepts.md").read_text("utf-8")
  drawn = (DOCS / "_static" / "taps.svg").read_text("utf-8")
  for site in sinkjax.SITES:
    assert f"`{site}`" in page
    assert f">{site}<" in drawn


def test_the_picture_is_drawn_from_results():
  """Its numbers are the recorded ones, and nothing changes before a swap."""
  import numpy as np

  assert np.mean(picture.attention() > 0.3) == pytest.approx(0.767, abs=5e-4)
  assert np.all(picture.aligned()[:, :, : picture.BEFORE] == 0)
  with_sink, without = picture.spread()
  # At the last layer the swap spreads further without the sink.
  assert without[-1, 1:].mean() > 1.3 * with_sink[-1, 1:].mean()
  drawn = picture.draw()
  assert drawn.startswith(b"\x89PNG")
  assert len(drawn) < 80_000


def test_the_citation_is_complete():
  cff = yaml.safe_load((ROOT / "CITATION.cff").read_text("utf-8"))
  assert cff["cff-version"] == "1.2.0"
  assert cff["license"] == "Apache-2.0"
  assert str(cff["version"]) == sinkjax.__version__
  assert cff["authors"] == [{"name": "The sinkjax authors"}]
  assert cff["references"][0]["identifiers"][0]["value"] == "arXiv:2504.02732"


def test_there_are_three_notebooks():
  assert [path.stem for path in NOTEBOOKS] == ["jacobian", "sinks", "training"]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_outputs_of_notebooks_are_cleared(path):
  cells = json.loads(path.read_text("utf-8"))["cells"]
  code = [cell for cell in cells if cell["cell_type"] == "code"]
  assert code
  assert all(not cell["outputs"] for cell in code)
  assert all(cell["execution_count"] is None for cell in code)
  assert "Colab" in "".join(cells[0]["source"])


@pytest.mark.slow
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebooks_run_from_clean(path, smollm2_path, monkeypatch):
  import nbclient
  import nbformat

  # A reader's kernel compiles with optimisation, which tests turn off.
  monkeypatch.delenv("XLA_FLAGS")
  notebook = nbformat.read(path, as_version=4)
  client = nbclient.NotebookClient(notebook, timeout=900)
  client.execute()
  code = [cell for cell in notebook.cells if cell.cell_type == "code"]
  assert any("image/png" in str(cell.outputs) for cell in code)
