"""The page to explore as a person uses it: clicks, hovers and keys."""

import browser
import explored
import numpy as np
import pytest
from explored import cell, head

pytestmark = [
  pytest.mark.thorough,
  pytest.mark.skipif(not browser.PROGRAM, reason="needs Chromium"),
]

PLAIN, EDITED = (
  np.asarray(one.pattern, np.float16).astype(np.float64)
  for one in explored.exploration().conditions
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
