"""The page to explore as a person uses it: clicks, hovers and keys."""

import dataclasses

import browser
import explored
import numpy as np
import pytest

from sinkjax.report import explore

pytestmark = [
  pytest.mark.thorough,
  pytest.mark.skipif(not browser.PROGRAM, reason="needs Chromium"),
]

READY = "globalThis.sinkjax"
PLAIN, EDITED = (
  np.asarray(one.pattern, np.float16).astype(np.float64)
  for one in explored.exploration().conditions
)


@pytest.fixture(scope="module")
def tab(tmp_path_factory):
  """A window of the usual size."""
  one = browser.Browser(tmp_path_factory.mktemp("profile"))
  one.size(1280, 800)
  one.prefers("light")
  yield one
  one.close()


@pytest.fixture(scope="module")
def address(tmp_path_factory):
  """Of the made-up page."""
  page = explore.render(
    explored.exploration(),
    explored.TEXTS,
    title="A page",
    command="python -m launch.explore",
    carriers=explored.carriers(),
  )
  path = page.save(tmp_path_factory.mktemp("page") / "explore.html")
  return path.as_uri()


@pytest.fixture
def page(tab, address):
  """The page as it opens; whatever it then does raises no error."""

  def open_at(view=""):
    tab.open(f"{address}#{view}", READY)
    return tab

  tab.size(1280, 800)
  tab.prefers("light")
  tab.errors.clear()
  yield open_at
  assert not tab.errors


def cell(tab, t, s, number=0):
  """The middle of a cell of a large map, in view."""
  tab.run(
    f"document.querySelectorAll('.over')[{number}].scrollIntoView("
    "{block: 'center'})"
  )
  return tab.run(
    f"""(() => {{
      const one = sinkjax.large[{number}], {{ left, top, cell }} = one.plan;
      const box = one.over.getBoundingClientRect();
      return [box.left + left + ({s} + 0.5) * cell,
        box.top + top + ({t} + 0.5) * cell];
    }})()"""
  )


def head(tab, layer, number):
  """The middle of a small map, in view."""
  return tab.run(
    f"""(() => {{
      const grid = sinkjax.grid, {{ image, height }} = grid.plan;
      const at = grid.order.indexOf({layer} * grid.heads + {number});
      const [x, y] = grid.corner(at);
      grid.box.scrollIntoView({{ block: "nearest" }});
      grid.box.scrollTop = Math.max(0, y - 60);
      const box = grid.canvas.getBoundingClientRect();
      return [box.left + x + image / 2, box.top + y + image / 2];
    }})()"""
  )


def four(x):
  """A number as the page writes it."""
  return f"{float(f'{x:.4g}'):.4g}".replace("-", "\N{MINUS SIGN}")


def test_every_number_arrives(page):
  tab = page()
  for i, one in enumerate(explored.exploration().conditions):
    rows = np.tril_indices(explored.LENGTH)
    given = {
      "pattern": np.float16(one.pattern[:, :, *rows]),
      "values": np.float16(one.value_norms),
      "outputs": np.float16(one.output_norms),
      "jacobian": np.float32(one.jacobian[:, *rows]),
      "scores": np.float32(one.sink_scores()),
    }
    for name, array in given.items():
      found = tab.run(
        f"Array.from(sinkjax.maps.conditions[{i}].arrays.{name}.data)"
      )
      assert (np.asarray(found) == array.ravel().astype(np.float64)).all(), name


def test_a_click_opens_a_head_and_the_pointer_reads_its_numbers(page):
  tab = page()
  assert tab.text("#head-title") == "Mean over all heads"
  tab.click(*head(tab, 1, 2))
  assert tab.text("#head-title") == "Layer 1, head 2"
  assert tab.run("location.hash") == "#head=1.2"
  for t, s in ((5, 1), (6, 6), (3, 0)):
    tab.hover(*cell(tab, t, s))
    plain, edited = PLAIN[1, 2, t, s], EDITED[1, 2, t, s]
    said = tab.text("#readout")
    names = [x.strip() or "↵" for x in (explored.TEXTS[t], explored.TEXTS[s])]
    assert said.startswith(f"{names[0]} ({t}) reads {names[1]} ({s}): ")
    assert f"{four(plain)} as it is, {four(edited)} edited" in said
    assert said.endswith(f"difference {four(edited - plain)}")
    assert tab.text("#tip") == four(plain)
  # The future has no numbers.
  tab.hover(*cell(tab, 2, 5))
  assert "Point at a cell" in tab.text("#readout")
  assert tab.run("document.getElementById('tip').hidden")


def test_the_pointer_on_a_token_lights_what_it_reads_and_what_reads_it(page):
  tab = page("head=0.1")
  tab.hover(*tab.place(".token:nth-child(5)"))
  map_ = PLAIN[0, 1]
  expected = [float(map_[max(4, i), min(4, i)]) for i in range(7)]
  colors = tab.run(
    "[...document.querySelectorAll('.token')].map((x) => x.style.background)"
  )
  wanted = tab.run(
    f"""{expected}.map((x) => {{
      const color = colorOf(scaleOf("root", 1), x, "light");
      return `rgb(${{color.join(", ")}})`;
    }})"""
  )
  assert colors == wanted and len(set(colors)) > 4
  said = tab.text("#strip-caption")
  first = max(range(5), key=lambda s: map_[4, s])
  name = explored.TEXTS[first].strip()
  assert said.startswith(f"flat (4) reads {name} {four(map_[4, first])}")
  assert f"again {four(map_[5, 4])}" in said.partition("is read by")[2]
  tab.hover(5, 790)
  assert "Point at a token" in tab.text("#strip-caption")


def test_a_token_is_chosen_and_forgotten(page):
  tab = page()
  tab.click(*tab.place(".token:nth-child(3)"))
  chosen = "[...document.querySelectorAll('.token[aria-selected=true]')]"
  assert tab.run(f"{chosen}.map((x) => x.dataset.at)") == ["2"]
  assert tab.run("location.hash") == "#token=2"
  # Heads by what they give to it.
  tab.run("document.getElementById('sort').value = 'token'")
  tab.run("document.getElementById('sort').dispatchEvent(new Event('change'))")
  given = PLAIN[:, :, 2:, 2].mean(-1).ravel()
  assert tab.run("sinkjax.grid.order") == np.argsort(-given).tolist()
  tab.key("Escape")
  assert tab.run(f"{chosen}.length") == 0
  assert tab.run("location.hash") == ""


def test_sinks_are_marked_in_their_condition(page):
  tab = page()
  marked = (
    "[...document.querySelectorAll('.token.sink')].map((x) => x.dataset.at)"
  )
  assert tab.run(marked) == ["0", "4"]
  label = tab.run("document.querySelector('.token.sink').ariaLabel")
  assert label == "The, token 0, lasting sink"
  tab.key("2")
  assert tab.run(marked) == []


def test_orders_of_heads(page):
  tab = page()
  one = explored.exploration().conditions[0]
  tab.key("s")
  scores = PLAIN[..., 0].mean(-1).ravel()
  assert tab.run("sinkjax.grid.order") == np.argsort(-scores).tolist()
  tab.key("s")
  shares = one.output_shares().ravel()
  assert tab.run("sinkjax.grid.order") == np.argsort(shares).tolist()
  assert tab.run("location.hash") == "#sort=output"
  # What is opened is what is seen there.
  layer, number = divmod(int(np.argmin(shares)), explored.HEADS)
  tab.click(*head(tab, layer, number))
  assert tab.text("#head-title") == f"Layer {layer}, head {number}"


def test_both_conditions_and_their_difference(page):
  tab = page("head=2.3")
  tab.click(*tab.place("#choose-view label:nth-child(3)"))
  names = "[...document.querySelectorAll('.map h3')].map((x) => x.innerText)"
  assert tab.run(names) == ["as it is", explored.EDIT]
  tab.hover(*cell(tab, 4, 2, 1))
  assert tab.text("#tip") == four(EDITED[2, 3, 4, 2])
  tab.click(*tab.place("#choose-view label:nth-child(4)"))
  assert tab.run("document.querySelectorAll('.map').length") == 1
  tab.hover(*cell(tab, 4, 0))
  change = EDITED[2, 3, 4, 0] - PLAIN[2, 3, 4, 0]
  assert tab.text("#tip") == four(change)
  # What is drawn there is the colour of that difference.
  found, wanted = tab.run(
    f"""(() => {{
      const one = sinkjax.large[0], {{ left, top, cell }} = one.plan;
      const pixels = devicePixelRatio, at = (x) => Math.round(x * pixels);
      const pen = one.base.getContext("2d");
      const seen = pen.getImageData(
        at(left + 0.5 * cell), at(top + 4.5 * cell), 1, 1).data;
      return [[...seen].slice(0, 3),
        colorOf(scaleOf("signed", 1), {change}, "light")];
    }})()"""
  )
  assert np.abs(np.subtract(found, wanted)).max() <= 1


def test_values_weigh_attention(page):
  tab = page("head=1.3")
  tab.click(*tab.place("#weighted"))
  tab.hover(*cell(tab, 5, 3))
  values = explored.exploration().conditions[0].value_norms
  # Heads 2 and 3 share the second head of keys and values.
  wanted = PLAIN[1, 3, 5, 3] * float(np.float16(values[1, 1, 3]))
  assert float(tab.text("#tip")) == pytest.approx(wanted, rel=2e-4)
  assert tab.run("location.hash") == "#head=1.3&values=1"


def test_the_jacobian_and_who_carries_a_pair(page):
  tab = page()
  tab.click(*tab.place("#choose-map label:nth-child(2)"))
  assert tab.text("#head-title") == "Jacobian, embedding to after layer 2"
  tab.click(*head(tab, 1, 0))
  assert tab.text("#head-title") == "Jacobian, embedding to after layer 1"
  maps = [np.float32(one.jacobian) for one in explored.exploration().conditions]
  tab.click(*cell(tab, 5, 2))
  said = tab.text("#readout")
  plain, edited = (float(one[1, 5, 2]) for one in maps)
  assert f"{four(plain)} as it is, {four(edited)} edited" in said
  assert said.endswith(f"× {four(edited / plain)}")
  said = tab.text("#carriers")
  assert said.startswith("Who carries the pair in layer 1")
  for one in explored.carriers()["conditions"]:
    assert four(np.float16(one["mlp"][1, 0, 2])) in said
    assert four(np.float16(one["values"][1, 3, 0, 2])) in said
  assert tab.run("location.hash") == "#map=jacobian&head=1.0&pair=5.2"
  tab.click(*cell(tab, 4, 2))  # whose carriers are not there
  assert tab.run("document.getElementById('carriers').hidden")
  tab.click(*cell(tab, 6, 2))
  tab.key("4")
  tab.hover(*cell(tab, 4, 1))
  assert tab.run("sinkjax.large[0].map[place(4, 1)]") == pytest.approx(
    np.log2(maps[1][1, 4, 1] / maps[0][1, 4, 1]), rel=1e-5
  )
  tab.key("m")
  assert tab.text("#head-title") == "Layer 1, head 0"
  assert tab.run("document.getElementById('carriers').hidden")


def test_an_address_opens_its_view_and_back_goes_back(page):
  view = "head=2.1&view=difference&sort=sink&values=1&token=3&pair=5.3"
  tab = page(view)
  assert tab.text("#head-title") == "Layer 2, head 1"
  for x in (
    "sinkjax.store.state.view === 'difference'",
    "document.getElementById('weighted').checked",
    "document.getElementById('sort').value === 'sink'",
    "document.querySelector('[value=difference]').checked",
    "document.querySelectorAll('.token')[3].ariaSelected === 'true'",
  ):
    assert tab.run(x), x
  assert tab.text("#readout").startswith("again (5) reads ↵ (3): ")
  tab.click(*head(tab, 0, 0))
  assert tab.text("#head-title") == "Layer 0, head 0"
  tab.run("history.back()")
  tab.wait("document.getElementById('head-title').innerText.includes('2')")
  assert tab.run("location.hash") == f"#{view}"


@pytest.mark.parametrize(
  "view", ["head=9.0", "head=1", "token=99&sort=token", "pair=2.5", "a=%zz&=="]
)
def test_an_address_of_another_page_is_no_error(page, view):
  tab = page(view)
  assert tab.text("#head-title") == "Mean over all heads"
  assert tab.run("sinkjax.store.state.token === null")


def test_keys(page):
  tab = page()
  tab.key("ArrowRight")
  assert tab.text("#head-title") == "Layer 0, head 0"
  tab.key("ArrowDown")
  tab.key("ArrowRight")
  assert tab.text("#head-title") == "Layer 1, head 1"
  assert tab.text("#said").startswith("layer 1, head 1: sink score ")
  tab.key("?")
  assert tab.run("document.getElementById('help').open")
  tab.key("Escape")
  assert not tab.run("document.getElementById('help').open")
  assert tab.text("#head-title") == "Layer 1, head 1"
  # On the map arrows choose a pair, in the text a token.
  tab.run("document.querySelector('.over').focus()")
  tab.key("ArrowRight")
  tab.key("ArrowUp")
  assert tab.run("sinkjax.store.state.pair") == [5, 1]
  assert tab.text("#said").startswith("again (5) reads sea (1)")
  tab.run("document.querySelector('.token').focus()")
  tab.key("ArrowRight")
  assert tab.run("document.activeElement.dataset.at") == "1"
  tab.key("Enter")
  assert tab.run("sinkjax.store.state.token") == 1
  for left in ([None, 1, 1], [None, None, 1], [None, None, None]):
    tab.key("Escape")
    found = tab.run(
      "(({ pair, token, layer }) => [pair, token, layer])(sinkjax.store.state)"
    )
    assert found == left


def test_everything_can_be_reached_by_tab(page):
  tab = page()
  seen = []
  for _ in range(20):
    tab.key("Tab")
    seen.append(
      tab.run(
        "document.activeElement.id || document.activeElement.classList[0]"
      )
    )
  wanted = {"theme", "ask", "token", "weighted", "sort", "grid", "over", "next"}
  assert wanted <= set(seen)


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
