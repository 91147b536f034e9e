"""The page as a widget: its traits, and its front end in a browser."""

import json
import sys

import browser
import explored
import pytest

import sinkjax
from sinkjax.report import explore
from sinkjax.report.explore import notebook


@pytest.fixture(scope="module")
def html():
  return explore.render(explored.exploration(), explored.TEXTS, title="t").html


@pytest.fixture
def shown(html):
  """A widget of the made-up page."""
  pytest.importorskip("anywidget")
  return explore.widget(explore.Page(html))


def test_what_is_chosen_can_be_read_and_set(shown):
  told = []
  shown.observe(lambda change: told.append(change["new"]), "view")
  # As the front end sends it.
  shown.set_state({"view": "head=2.1&view=both&token=3&pair=5.3"})
  assert (shown.head, shown.token, shown.pair) == ((2, 1), 3, (5, 3))
  shown.head = 0, 3
  shown.token = None
  assert shown.view == "view=both&pair=5.3&head=0.3"
  assert shown.get_state("view") == {"view": shown.view}
  assert told[-1] == shown.view and len(told) == 3
  shown.view = "#token=0"  # as it is copied
  assert (shown.head, shown.token, shown.pair) == (None, 0, None)


@pytest.mark.parametrize("view", ["heads=1.2", "head=1", "token=-1", "a b"])
def test_what_is_no_view_is_refused_and_changes_nothing(shown, view):
  shown.view = "token=1"
  with pytest.raises(ValueError, match="is no part of a view"):
    shown.view = view
  assert shown.view == "token=1"


def test_a_widget_has_the_page_itself(shown, html, tmp_path):
  assert {"html", "view", "height", "_esm"} <= set(shown.traits(sync=True))
  assert shown.html == html
  assert shown.save(tmp_path / "p.html").read_text("utf-8") == html
  data, _ = shown._repr_mimebundle_()
  assert "application/vnd.jupyter.widget-view+json" in data
  # What shows no widgets shows the page, as it does without anywidget.
  assert data["text/html"] == explore.Page(html)._repr_html_()


def explored_by_call(monkeypatch):
  made = explored.exploration()
  monkeypatch.setattr(
    notebook.exploration, "measure", lambda *args, **more: made
  )
  return sinkjax.explore(sinkjax.forward(sinkjax.TINY), None, made.ids)


def test_a_call_gives_the_widget(shown, monkeypatch):
  assert hasattr(explored_by_call(monkeypatch), "traits")


def test_without_anywidget_the_page_alone(monkeypatch, html):
  monkeypatch.setitem(sys.modules, "anywidget", None)
  notebook._widget_class.cache_clear()
  page = explored_by_call(monkeypatch)
  assert type(page) is explore.Page
  message = r"pip install 'sinkjax\[notebooks\]'"
  with pytest.raises(ImportError, match=message):
    explore.widget(page)
  with pytest.raises(ImportError, match=message):
    page.view  # noqa: B018
  with pytest.raises(ImportError, match=message):
    page.view = "token=1"


MODEL = """
const model = {
  state: STATE, told: [], saved: 0, listeners: new Set(),
  get(name) { return this.state[name]; },
  set(name, value) {
    this.state[name] = value;
    this.told.push(value);
    for (const [event, f] of [...this.listeners]) {
      if (event === `change:${name}`) f();
    }
  },
  save_changes() { this.saved += 1; },
  on(event, f) { this.listeners.add([event, f]); },
  off(event, f) {
    for (const one of this.listeners) {
      if (one[0] === event && one[1] === f) this.listeners.delete(one);
    }
  },
};
const url = URL.createObjectURL(new Blob([ESM], { type: "text/javascript" }));
import(url).then((module) => {
  globalThis.display = () => module.default.render(
    { model, el: document.body.appendChild(document.createElement("div")) });
  globalThis.model = model;
});
globalThis.page = (i) => frames[i]?.sinkjax;
"""
"""What anywidget gives a front end, without a kernel behind it."""


@pytest.fixture
def front(tab, shown, tmp_path):
  """A document with the widget's front end, and nothing displayed yet."""
  state = {"html": shown.html, "view": "head=1.2", "height": 700}
  script = MODEL.replace("STATE", json.dumps(state).replace("<", "\\u003c"))
  script = script.replace("ESM", json.dumps(str(shown._esm)))
  path = tmp_path / "widget.html"
  path.write_text(f"<!DOCTYPE html><script>{script}</script>", "utf-8")
  tab.size(1280, 1500)
  tab.errors.clear()
  tab.open(path.as_uri(), "globalThis.model")
  yield tab
  assert not tab.errors


@pytest.mark.thorough
@pytest.mark.skipif(not browser.PROGRAM, reason="needs Chromium")
def test_the_page_and_the_trait_follow_each_other(front):
  front.run("void (globalThis.close1 = display())")
  # It opens as Python has chosen, which is no choice of the page's.
  front.wait("page(0)?.store.state.layer === 1")
  assert front.run("page(0).store.state.head") == 2
  front.run("page(0).grid.open(3, true)")  # layer 0, head 3
  front.wait("model.get('view') === 'head=0.3'")
  assert front.run("model.saved") >= 1
  # A real click, on a token of the frame's.
  place = front.run(
    """(() => {
      const frame = document.querySelector("iframe").getBoundingClientRect();
      const token = frames[0].document.querySelectorAll(".token")[4];
      const box = token.getBoundingClientRect();
      return [frame.left + box.left + 5, frame.top + box.top + 5];
    })()"""
  )
  front.click(*place)
  front.wait("model.get('view') === 'head=0.3&token=4'")
  saved = front.run("model.saved")
  front.hover(place[0] + 60, place[1])  # what is pointed at is not chosen
  # Python's choice, and one that this page does not have.
  front.run("model.set('view', 'view=difference&token=1')")
  front.wait("page(0).store.state.token === 1")
  assert front.run("page(0).store.state.view") == "difference"
  assert front.run("page(0).store.state.layer === null")
  assert front.run("model.saved") == saved
  front.run("model.set('view', 'head=99.0&token=2')")
  front.wait("model.get('view') === 'token=2'")


@pytest.mark.thorough
@pytest.mark.skipif(not browser.PROGRAM, reason="needs Chromium")
def test_two_displays_show_the_same(front):
  front.run("void (globalThis.closers = [display(), display()])")
  both = "[0, 1].every((i) => page(i)?.store.address() === model.get('view'))"
  front.wait(both)
  for i, cell in ((0, 5), (1, 7), (0, 2)):
    front.run(f"page({i}).grid.open({cell}, true)")
    layer, head = divmod(cell, explored.HEADS)
    front.wait(f"model.get('view') === 'head={layer}.{head}'")
    front.wait(both)
  count = front.run("model.told.length")
  front.run("new Promise((done) => setTimeout(done, 200))")
  assert front.run("model.told.length") == count  # they do not go on answering
  # A display that is closed neither hears nor is heard.
  front.run("closers[0]()")
  front.run("model.set('view', 'token=6')")
  front.wait("page(1).store.state.token === 6")
  assert front.run("page(0).store.state.token === null")
  front.run("page(0).store.set({ token: 1 })")
  front.run("new Promise((done) => setTimeout(done, 200))")
  assert front.run("model.get('view')") == "token=6"


CELLS = (
  """
import jax, sinkjax
params = sinkjax.init_params(sinkjax.TINY, jax.random.key(0))
shown = sinkjax.explore(sinkjax.forward(sinkjax.TINY), params, range(9))
shown
""",
  "shown.head = 1, 2",
)


@pytest.mark.slow
def test_a_notebook_s_kernel_has_the_widget():
  pytest.importorskip("anywidget")
  import nbclient
  import nbformat

  book = nbformat.v4.new_notebook(
    cells=list(map(nbformat.v4.new_code_cell, CELLS))
  )
  nbclient.NotebookClient(book, timeout=600).execute()
  (out,) = book.cells[0].outputs
  view = out["data"]["application/vnd.jupyter.widget-view+json"]
  # What the kernel has sent to the widget's front end.
  (kept,) = book.metadata["widgets"].values()
  state = kept["state"][view["model_id"]]["state"]
  assert state["view"] == "head=1.2"
  assert state["html"].startswith("<!DOCTYPE html>")
  assert "iframe" in state["_esm"]
