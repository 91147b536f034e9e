"""The page to explore in the dark, on a phone, in a notebook, of any text."""

import dataclasses

import browser
import explored
import pytest
from explored import READY, cell, head

from sinkjax.report import explore

pytestmark = [
  pytest.mark.thorough,
  pytest.mark.skipif(not browser.PROGRAM, reason="needs Chromium"),
]


def test_light_and_dark(page):
  tab = page()
  ground = "getComputedStyle(document.body).backgroundColor"
  light = tab.run(ground)
  tab.click(*tab.place("#theme"))
  dark = tab.run(ground)
  assert light == "rgb(251, 251, 250)" and dark == "rgb(21, 24, 28)"
  assert tab.run("document.getElementById('theme').ariaPressed") == "true"
  tab.key("t")
  assert tab.run(ground) == light
  tab.run("localStorage.clear()")
  tab.prefers("dark")
  page()
  assert tab.run(ground) == dark
  assert tab.run("sinkjax.theme.name") == "dark"


@pytest.mark.parametrize("view", ["", "head=1.1&view=both", "map=jacobian"])
def test_a_phone(page, view):
  tab = page()
  tab.size(390, 844, phone=True)
  page(view)
  assert tab.run("document.scrollingElement.scrollWidth") <= 390
  tab.tap(*head(tab, 2, 0))
  tab.wait("sinkjax.store.state.layer === 2")
  # The map is in sight, above the small ones.
  assert tab.run(
    "document.getElementById('head').getBoundingClientRect().top < innerHeight"
  )
  tab.tap(*cell(tab, 6, 0))
  tab.wait("sinkjax.store.state.pair !== null")
  assert ". (6) " in tab.text("#readout")


def test_larger_cells(page):
  tab = page()
  tab.size(390, 844, phone=True)
  tab = page("head=0.0")
  tab.run("sinkjax.maps.length = 7")
  before = tab.run("sinkjax.large[0].plan.cell")
  tab.key("z")
  assert tab.run("sinkjax.large[0].plan.cell") >= max(before, 15)
  assert tab.run("document.scrollingElement.scrollWidth") <= 390


def test_hostile_tokens_are_only_seen(tab, tmp_path):
  texts = [
    "</script><script>globalThis.hacked = 1</script>",
    "<img src=x onerror='globalThis.hacked = 1'>",
    "<!--<script>",
    "\u202eabc",
    "\x1b",
    "${globalThis.hacked = 1}",
    "  ",
  ]
  seen = explored.exploration()
  seen.conditions[1] = dataclasses.replace(seen.conditions[1], name=texts[1])
  page = explore.render(
    seen, texts, title=texts[0], subtitle=texts[1], notes=[texts[1]]
  )
  tab.errors.clear()
  path = page.save(tmp_path / "page.html")
  tab.open(f"{path.as_uri()}#head=0.0&view=both&pair=3.1&token=0", READY)
  assert tab.run("document.title") == texts[0]
  shown = "[...document.querySelectorAll('.token')].map((x) => x.textContent)"
  assert tab.run(shown) == [*texts[:3], "\ufffdabc", "\ufffd", texts[5], "␣␣"]
  tab.hover(*tab.place(".token:nth-child(2)"))
  assert texts[1] in tab.text("#strip-caption")
  assert tab.run("globalThis.hacked === undefined")
  assert tab.run("document.images.length") == 0
  assert not tab.errors


def test_one_condition_has_no_choice(tab, tmp_path):
  seen = explored.exploration()
  one = dataclasses.replace(seen, conditions=seen.conditions[:1])
  page = explore.render(one, explored.TEXTS, title="t")
  tab.errors.clear()
  path = page.save(tmp_path / "page.html")
  tab.open(f"{path.as_uri()}#view=edited&map=jacobian", READY)
  assert tab.run("document.getElementById('choose-view').innerText") == ""
  tab.key("4")
  assert tab.run("sinkjax.store.state.view") == "plain"
  assert not tab.errors


def test_a_frame_of_a_notebook(tab, tmp_path):
  """Without an address or a place to keep the colours."""
  page = explore.render(explored.exploration(), explored.TEXTS, title="t")
  frame = page._repr_html_().replace("<iframe", "<iframe sandbox=allow-scripts")
  path = tmp_path / "notebook.html"
  tab.errors.clear()
  for text in (page._repr_html_(), frame):
    path.write_text(f"<!DOCTYPE html><p>Out[1]:</p>{text}", "utf-8")
    tab.open(path.as_uri())
    tab.size(1280, 1000)
    tab.picture(tmp_path / "before.png")
    tab.click(1200, 110)
    tab.key("t")
    tab.picture(tmp_path / "after.png")
    before, after = (
      (tmp_path / f"{x}.png").read_bytes() for x in ("before", "after")
    )
    assert before != after
  assert not tab.errors
