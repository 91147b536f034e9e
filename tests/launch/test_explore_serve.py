"""The page to explore as it is served: texts and weights, by whom."""

import http.client
import json
import threading

import browser
import jax
import numpy as np
import pytest

import sinkjax
from launch import explore_serve
from sinkjax.data.corpus import train_tokenizer
from sinkjax.experiments.shared.swap_texts import SWAP_TEXTS
from sinkjax.report import explore
from sinkjax.weights.registry import Model

pytestmark = pytest.mark.thorough

CFG = sinkjax.TINY.replace(vocab_size=300, n_layers=2)
TEXT = "the king sat"


@pytest.fixture(scope="module")
def live():
  tokenizer = train_tokenizer([SWAP_TEXTS], 300)
  params = sinkjax.init_params(CFG, jax.random.key(0))
  return explore_serve.Live(Model(params, CFG, tokenizer), "tiny", "none", 6)


@pytest.fixture(scope="module")
def port(live):
  with explore_serve.server(live, TEXT, 0) as here:
    thread = threading.Thread(target=here.serve_forever)
    thread.start()
    yield here.server_address[1]
    here.shutdown()
    thread.join()


def ask(port, method="POST", path="/measure", body="{}", **headers):
  """(status, text) of a request."""
  given = {"Content-Type": "application/json"}
  given |= {name.replace("_", "-"): value for name, value in headers.items()}
  line = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
  line.request(method, path, body, given)
  answer = line.getresponse()
  return answer.status, answer.read().decode()


@pytest.mark.slow
@pytest.mark.parametrize(
  "more", [{}, {"layer": 1}, {"layer": 1, "head": 2}], ids=str
)
def test_numbers_are_the_library_s(live, more):
  data = json.loads(live.answer({"text": TEXT, "by": 2.5, **more}))
  ids = live.model.tokenizer.encode(TEXT)[:6]
  assert [token["id"] for token in data["tokens"]] == ids
  heads = np.zeros((2, 4), bool)
  heads[more.get("layer", slice(None)), more.get("head", slice(None))] = True
  edit = sinkjax.graded(0, 2.5, heads=heads)
  f = sinkjax.forward(CFG)
  for fn, one in zip(
    (f, sinkjax.intervene(f, {"scores": edit})), data["conditions"], strict=True
  ):
    h = jax.jit(sinkjax.capture(fn, {"p": ("pattern", lambda p: p)}))
    wanted = np.asarray(h(live.model.params, np.array([ids])).trace["p"])[:, 0]
    kept = explore.unpacked(one["arrays"]["pattern"])
    rows = np.tril_indices(len(ids))
    np.testing.assert_allclose(kept, wanted[..., *rows], rtol=1e-3)


@pytest.mark.parametrize(
  ("request_", "what"),
  [
    ([], "a text is missing"),
    ({"text": " "}, "a text is missing"),
    ({"text": "a king", "by": 5}, "from 0 to 4, got 5"),
    ({"text": "a king", "by": float("nan")}, "from 0 to 4, got nan"),
    ({"text": "a king", "by": 1, "layer": 2}, "from 0 to 1, got 2"),
    ({"text": "a king", "by": 1, "head": -1}, "from 0 to 3, got -1"),
  ],
)
def test_what_is_no_request_is_refused(port, request_, what):
  status, said = ask(port, body=json.dumps(request_))
  assert status == 400 and what in said and "\n" not in said


def test_only_this_page_may_ask(port):
  assert ask(port, "GET", "/", Host="evil.example")[0] == 403
  assert ask(port, Host=f"evil.example:{port}")[0] == 403
  assert ask(port, Origin="http://evil.example")[0] == 403
  assert ask(port, Origin="null")[0] == 403
  # What a form of another page can send without being asked.
  assert ask(port, Content_Type="text/plain")[0] == 415
  assert ask(port, "GET", "/etc/passwd")[0] == 404
  assert ask(port, path="/other")[0] == 404
  assert ask(port, Content_Length=str(1 << 30))[0] == 413
  assert ask(port, body="{")[0] == 400
  assert ask(port, body="[" * 100_000)[0] == 400


def test_a_port_that_is_taken_is_an_error(live, port):
  with pytest.raises(ValueError, match=f"--port={port}: .*choose another"):
    explore_serve.server(live, TEXT, port)


@pytest.mark.skipif(not browser.PROGRAM, reason="needs Chromium")
def test_a_text_is_typed_and_the_slider_moved(port, tmp_path):
  tab = browser.Browser(tmp_path / "profile")
  idle = "!served.busy && !served.again"
  try:
    tab.size(1280, 800)
    tab.prefers("light")
    tab.open(f"http://localhost:{port}/#head=1.2", "globalThis.served")
    assert tab.text("#title") == "Attention of tiny"
    assert tab.text("#live-said").endswith("+0. Edit: graded key=0 by=1")
    shown = "[...document.querySelectorAll('.token')].map((x) => x.innerText)"
    before = tab.run(shown)
    # Keys are text in the field, not commands.
    tab.click(*tab.place("#live-text"))
    tab.run("document.getElementById('live-text').select()")
    for letter in "vest 4":
      tab.key(letter)
    assert tab.run("document.getElementById('live-text').value") == "vest 4"
    assert tab.run("sinkjax.store.state.view") == "plain"
    tab.key("Enter")
    tab.wait(idle)
    assert "".join(tab.run(shown)) == "vest␣4" != "".join(before)
    assert tab.text("#head-title") == "Layer 1, head 2"
    # To the right end of the slider, in the open head alone.
    tab.run("document.getElementById('live-where').value = 'head'")
    at = "document.getElementById('live-by').getBoundingClientRect()"
    left, right, top, bottom = tab.run(
      f"(({{ left, right, top, bottom }}) => [left, right, top, bottom])({at})"
    )
    assert top < 800
    tab.click(right - 3, (top + bottom) / 2)
    tab.wait(idle)
    assert tab.text("#live-value") == "4"
    assert tab.run("sinkjax.store.state.view") == "edited"
    assert tab.text("#live-said").endswith("graded key=0 by=4 layer=1 head=2")
    plain, edited = tab.run(
      "sinkjax.maps.conditions.map((x) => [...x.arrays.scores.data])"
    )
    more = np.array(edited) - plain
    # Later layers alone could change besides.
    assert more[6] > 0.01 and (more[[0, 1, 2, 3, 4, 5, 7]] == 0).all()
    tab.click(left + 3, (top + bottom) / 2)
    tab.wait(idle)
    score = tab.run("sinkjax.maps.conditions[1].arrays.scores.data[6]")
    length = len(tab.run(shown))
    assert score == pytest.approx(1 / length, rel=1e-5)
    # Another head is another edit.
    tab.run("document.getElementById('grid').focus()")
    tab.key("ArrowRight")
    tab.wait(idle)
    assert tab.text("#live-said").endswith("by=0 layer=1 head=3")
    assert not tab.errors
  finally:
    tab.close()
