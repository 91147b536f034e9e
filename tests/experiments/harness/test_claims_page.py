"""The page of claims: one scale for all effects, cells, columns, figure."""

import csv
import io
import math
import re

import numpy as np
import pytest

from sinkjax import artifacts
from sinkjax.experiments.harness import claims_figure, claims_page
from sinkjax.experiments.harness.api import Claim
from sinkjax.experiments.harness.effects import (
  LOG_RATIO,
  NATS,
  Count,
  Expect,
  effect,
)
from sinkjax.experiments.harness.protocol import judge

VALUES = np.array([0.1, 0.4, 0.2, 0.6, 0.3, 0.35])


def claims():
  def one(id, evidence, **more):
    text = (f"Claim {id} stands alone.", "section 2", "no number", f"said {id}")
    return Claim(id, *text, evidence, **more)

  found = judge(
    [
      one("more", effect(VALUES, "x", NATS, Expect.MORE), how="six texts"),
      one("less", effect(VALUES, "x", LOG_RATIO, Expect.LESS)),
      one("law", Count("pairs exceed it", 0, 9)),
      one("none", None, untested="the model has no BOS"),
    ]
  )
  return [("first", claim) for claim in found]


def page(found):
  return claims_page.page(
    found, [], model="m", seconds=60, command="run", details={"device": "CPU"}
  )


@pytest.mark.parametrize(
  ("expect", "sign"),
  [(Expect.MORE, 1), (Expect.NOT_LESS, 1), (Expect.SAME, 1),
   (Expect.LESS, -1), (Expect.NOT_MORE, -1)],
)  # fmt: skip
def test_right_is_as_the_claim_says(expect, sign):
  made = effect(VALUES, "x", NATS, expect)
  found = claims_figure.in_margins(made)
  assert found.value == pytest.approx(sign * VALUES.mean() / NATS.margin)
  assert found.low < found.value < found.high


def test_the_scale_rises_without_a_break():
  x = np.linspace(-50, 50, 2001)
  y = np.array([claims_figure.place(v) for v in x])
  assert (np.diff(y) > 0).all() and np.diff(y).max() < 0.051  # slope at most 1
  assert claims_figure.place(10.0) == pytest.approx(1 + math.log(10))


def test_every_claim_is_a_row_that_opens():
  text = page(claims())
  rows = re.findall(r"<tr>\s*<td>first</td>(.*?)</tr>", text, re.DOTALL)
  assert len(rows) == 4
  more, less, law, none = rows
  for row, id in zip(rows, ("more", "less", "law", "none"), strict=True):
    assert f"<summary>Claim {id} stands alone.</summary>" in row
    assert f"<dd>said {id}</dd>" in row
  assert "<dt>how</dt><dd>six texts</dd>" in more and "<dt>how" not in less
  assert "+0.325 (" in more and more.count("<svg") == 1
  assert law.count("<svg") == none.count("<svg") == 0
  assert "0 of 9 pairs exceed it" in law and "not testable" in none
  assert "the model has no BOS" in none


def test_an_interval_is_drawn_where_its_effect_is():
  def ends(expect):
    made = effect(VALUES, "x", NATS, expect)
    text = ("A claim stands alone.", "section 2", "no number", "said")
    (claim,) = judge([Claim("id", *text, made)])
    found = re.search(r'class="ends"[^>]*d="M([\d.]+) 5H([\d.]+)', page(
      [("a", claim)]))  # fmt: skip
    return [float(x) for x in found.groups()]

  low, high = ends(Expect.MORE)
  assert 50 < low < high <= 100
  turned = ends(Expect.LESS)
  assert turned == pytest.approx([100 - high, 100 - low])


def test_the_table_has_numbers_beside_words():
  header, rows = claims_page.table(claims())
  more, less, law, none = (dict(zip(header, row, strict=True)) for row in rows)
  assert more["value"] == pytest.approx(VALUES.mean()) and more["n"] == 6
  assert less["unit"] == "natural logarithm of a ratio"
  assert 0 < more["p"] <= more["adjusted p"] < 0.05
  for row in (law, none):
    assert all(row[name] is None for name in claims_page.NUMBERS)
  assert none["verdict"] == "not testable"


def test_the_file_reads_back(tmp_path):
  artifacts.write_csv(tmp_path / "claims.csv", *claims_page.table(claims()))
  text = (tmp_path / "claims.csv").read_text("utf-8")
  more, *_ = csv.DictReader(io.StringIO(text))
  assert float(more["margin"]) == NATS.margin
  assert more["per"] == "text"


def test_the_figure_needs_an_effect():
  found = claims()
  assert claims_figure.draw(found).startswith(b"\x89PNG")
  assert claims_figure.draw(found[2:]) is None
  assert "Effects at a glance" not in page(found[2:])
