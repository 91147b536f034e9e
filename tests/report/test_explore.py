"""The page to explore holds what was measured, fits its limit, and is safe."""

import dataclasses
import html
import json
import re
from html.parser import HTMLParser

import explored
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import sinkjax
from sinkjax.analysis import exploration
from sinkjax.report import explore
from sinkjax.report.explore import page as page_module
from sinkjax.transforms.jacobian import jacobian_norms

HALF = {"rtol": 2.0**-11, "atol": 2.0**-25}
"""Half a unit in the last place of float16, and of its smallest numbers."""


@pytest.fixture(scope="module")
def seen(tiny, tokens):
  """The tiny model on one text, with an edit that leaves a trace anywhere."""
  params, cfg = tiny
  edits = {"scores": sinkjax.knockout(0, from_layer=1)}
  functions = exploration.conditions(sinkjax.forward(cfg), edits, "hidden")
  return exploration.measure(functions, params, tokens[0].tolist())


def triangles(array, length):
  """[..., T, T] of a page's array, zero in the future."""
  packed = explore.unpacked(array).astype(np.float64)
  out = np.zeros((*packed.shape[:-1], length, length))
  out[..., *np.tril_indices(length)] = packed
  return out


@pytest.mark.thorough
def test_numbers_are_those_of_capture(tiny, tokens, seen):
  params, cfg = tiny
  page = explore.render(seen, ["x"] * 12, title="t")
  found = explore.read(page.html)["conditions"]
  assert [one["name"] for one in found] == ["as it is", "hidden"]
  f = sinkjax.forward(cfg)
  g = sinkjax.intervene(f, {"scores": sinkjax.knockout(0, from_layer=1)})
  for fn, one in zip((f, g), found, strict=True):
    h = jax.jit(
      sinkjax.capture(
        fn,
        {
          "pattern": ("pattern", lambda p: p),
          "v": ("v", lambda v: v),
          "z": ("z", lambda z: z),
          "x": ("resid_mid", lambda x: x),
        },
      )
    )
    out = h(params, tokens[:1])
    trace = {k: np.asarray(v, np.float64)[:, 0] for k, v in out.trace.items()}
    arrays = one["arrays"]
    pattern = triangles(arrays["pattern"], 12)
    np.testing.assert_allclose(pattern, trace["pattern"], **HALF)
    # In float64, and of heads taken apart by hand.
    values = np.linalg.norm(trace["v"], axis=-1).swapaxes(1, 2)
    np.testing.assert_allclose(
      explore.unpacked(arrays["values"]), values, rtol=2.0**-10
    )
    kernel = np.asarray(params["blocks"]["attn"]["o"]["kernel"], np.float64)
    written = np.einsum("lthk,lhkd->lhtd", trace["z"], kernel)
    size = np.linalg.norm(trace["x"], axis=-1)[:, None]
    outputs = np.linalg.norm(written, axis=-1) / size
    np.testing.assert_allclose(
      explore.unpacked(arrays["outputs"]), outputs, rtol=2.0**-10
    )
    scores = explore.unpacked(arrays["scores"])
    np.testing.assert_allclose(scores, trace["pattern"][..., 0].mean(-1), 1e-5)
    shares = explore.unpacked(arrays["shares"])
    np.testing.assert_allclose(shares, outputs[..., 1:].mean(-1), rtol=1e-5)
    logs = jax.nn.log_softmax(out.logits[0, :-1])
    loss = -float(logs[jnp.arange(11), tokens[0, 1:]].mean())
    assert one["loss"] == pytest.approx(loss, rel=1e-5)


def test_the_edit_by_default_hides_the_first_token(tiny):
  _, cfg = tiny
  functions = exploration.conditions(sinkjax.forward(cfg), None)
  edit = functions[exploration.EDIT].taps.edits["scores"]
  changed = np.asarray(edit(jnp.zeros((1, 1, 3, 3)), 0))[0, 0]
  assert (changed[1:, 0] < -1e29).all() and (changed[:, 1:] == 0).all()
  assert list(exploration.conditions(sinkjax.forward(cfg), {})) == ["as it is"]


@pytest.mark.thorough
@pytest.mark.parametrize("gate", ["none", "element"])
def test_a_head_s_output_is_what_it_alone_adds(gate, tokens):
  """With a gate and a bias, against a pass in which only that head writes."""
  cfg = sinkjax.TINY.replace(gate=gate, out_bias=True, n_layers=2)
  params = sinkjax.init_params(cfg, jax.random.key(3))
  bias = params["blocks"]["attn"]["o"]["bias"]
  params["blocks"]["attn"]["o"]["bias"] = bias + 0.3
  f, ids = sinkjax.forward(cfg), tokens[:1]
  seen = exploration.measure({"f": f}, params, ids[0].tolist()).conditions[0]

  @jax.jit
  def run(mask):
    """What attention adds in layer 0, of the heads in the mask."""
    g = sinkjax.intervene(f, {"z": sinkjax.scale(mask[None, None, :, None])})
    h = sinkjax.capture(
      g, {"out": ("attn_out", lambda x: x), "in": ("resid_pre", lambda x: x)}
    )
    trace = h(params, ids).trace
    return trace["out"][0, 0], trace["in"][0, 0]

  nothing, pre = run(jnp.zeros(4))
  whole, _ = run(jnp.ones(4))
  size = np.linalg.norm(pre + whole, axis=-1)
  for head in range(4):
    alone, _ = run(jnp.eye(4)[head])
    norms = np.linalg.norm(alone - nothing, axis=-1) / size
    np.testing.assert_allclose(seen.output_norms[0, head], norms, rtol=1e-4)


@pytest.mark.thorough
def test_the_jacobian_is_the_exact_one(tiny, tokens):
  params, cfg = tiny
  f, ids = sinkjax.forward(cfg), tokens[0, :5]
  f = sinkjax.intervene(f, {"scores": sinkjax.knockout(0, from_layer=1)})
  page = sinkjax.explore(f, params, ids.tolist(), edits={}, jacobian=True)
  (one,) = explore.read(page.html)["conditions"]
  maps = triangles(one["arrays"]["jacobian"], 5)
  assert maps.shape == (cfg.n_layers, 5, 5)
  # That of a layer in the middle, so that layers cannot be mixed up.
  reference = jacobian_norms(
    f, params, ids, target=("resid_post", 1), method="reference"
  )
  np.testing.assert_allclose(maps[1], reference, rtol=1e-4)


@pytest.mark.thorough
def test_an_edit_that_needs_all_rows_is_shown_without_sinks(tiny, tokens):
  params, cfg = tiny
  functions = exploration.conditions(
    sinkjax.forward(cfg), {"pattern": lambda p, layer: p * 0.5}, "halved"
  )
  del functions["as it is"]
  (one,) = exploration.measure(functions, params, tokens[0]).conditions
  assert one.sinks is None
  np.testing.assert_allclose(one.pattern.sum(-1), 0.5, rtol=1e-5)


@pytest.mark.parametrize("dtype", [np.float16, np.float32])
def test_packing_loses_nothing(dtype):
  random = np.random.default_rng(0)
  values = random.standard_normal((3, 5, 7)).astype(dtype)
  values[0, 0, :4] = [0, np.finfo(dtype).tiny, np.finfo(dtype).max, -1]
  found = explore.unpacked(explore.packed(values, dtype))
  assert found.dtype == dtype and (found == values).all()
  # What is too large is the largest number, not infinite.
  large = explore.unpacked(explore.packed([1e39, -1e39], dtype))
  assert large.tolist() == [np.finfo(dtype).max, -np.finfo(dtype).max]


def test_what_fits_is_known_before_anything_runs():
  small = sinkjax.TINY.replace(n_layers=30, n_heads=9, n_kv_heads=3)
  for jacobian in (False, True):
    most = explore.most_tokens(small, 2, jacobian)
    assert most >= 64
    assert explore.page_bytes(small, most, 2, jacobian) <= explore.LIMIT
    assert explore.page_bytes(small, most + 1, 2, jacobian) > explore.LIMIT
  assert explore.most_tokens(small, 1) > explore.most_tokens(small, 2)
  with pytest.raises(ValueError, match=r"take at most \d\d, or leave out the"):
    explore.require_room(small, 500)


def test_too_long_a_text_is_refused_before_it_is_run():
  cfg = sinkjax.TINY.replace(n_layers=80, n_heads=64, n_kv_heads=64)
  most = explore.most_tokens(cfg)
  with pytest.raises(ValueError, match=f"take at most {most}, or"):
    sinkjax.explore(sinkjax.forward(cfg), None, [1] * (most + 1))


def test_a_function_that_is_not_ours_is_refused():
  with pytest.raises(TypeError, match="made by sinkjax.forward"):
    sinkjax.explore(lambda params, tokens: None, None, [1, 2])


def test_a_page_is_no_larger_than_foretold():
  """Of numbers that cannot be deflated."""
  random = np.random.default_rng(0)
  length, layers, heads = 24, 4, 8
  bits = random.integers(0, 1 << 15, (layers, heads, length, length), np.uint16)
  noise = bits.view(np.float16).astype(np.float64)
  noise = np.nan_to_num(noise, posinf=0)
  one = dataclasses.replace(
    explored.condition("noise", 0, 1.0),
    pattern=noise,
    value_norms=noise[:, :, 0],
    output_norms=noise[:, :, 1],
    jacobian=random.standard_normal((layers, length, length)),
  )
  cfg = sinkjax.TINY.replace(n_layers=layers, n_heads=heads, n_kv_heads=heads)
  arrays = page_module._condition(one)["arrays"].values()
  data = sum(len(array["data"]) for array in arrays)
  empty = explore.page_bytes(cfg, 0, 1, True) + page_module.A_TOKEN * length
  foretold = explore.page_bytes(cfg, length, 1, True) - empty
  # Beside the scores and shares, which a page without tokens counts already.
  assert 0.9 * foretold < data < foretold + 8 * layers * heads * 1.34
  page = explore.render(explored.exploration(), explored.TEXTS, title="t").html
  found = explore.read(page)["conditions"]
  rest = len(page.encode()) - sum(
    len(array["data"]) for one in found for array in one["arrays"].values()
  )
  assert rest < page_module.OVERHEAD


class Tags(HTMLParser):
  """Names of the tags of a page that a browser would see."""

  def __init__(self, page):
    super().__init__()
    self.tags, self.attributes = [], []
    self.feed(page)

  def handle_starttag(self, tag, attrs):
    self.tags.append(tag)
    self.attributes += attrs


HOSTILE = [
  "</script><img src=x onerror=alert(1)>",
  "<!--<script>",
  "{{ 7 * 7 }}",
  '"&lt;\u2028',
  "\x00\x1b[31m",
  "\ud800",
  "]]>",
]


def test_hostile_text_stays_text():
  seen = explored.exploration()
  seen.conditions[1] = dataclasses.replace(seen.conditions[1], name=HOSTILE[0])
  clean = explore.render(explored.exploration(), explored.TEXTS, title="t")
  page = explore.render(
    seen,
    HOSTILE,
    title=HOSTILE[0],
    subtitle=HOSTILE[0],
    notes=HOSTILE,
    command=HOSTILE[1],
    details={HOSTILE[0]: HOSTILE[1]},
  ).html
  assert Tags(page).tags == Tags(clean.html).tags
  assert "onerror" not in dict(Tags(page).attributes)
  page.encode("utf-8")
  data = explore.read(page)
  texts = [token["text"] for token in data["tokens"]]
  assert texts[:5] == HOSTILE[:5] and texts[6] == HOSTILE[6]
  assert texts[5] == "\ufffd"  # which UTF-8 cannot hold
  assert data["conditions"][1]["name"] == HOSTILE[0]


def test_nothing_comes_from_outside():
  page = explore.render(explored.exploration(), explored.TEXTS, title="t").html
  for name, value in Tags(page).attributes:
    if name in ("src", "href", "action"):
      assert value.startswith("data:")
  assert "default-src 'none'" in page
  code = page.partition('id="data">')[0] + page.rpartition("<script>")[2]
  assert not re.search(r"url\(|@import|https?://|\bfetch\(|innerHTML", code)


def test_a_notebook_gets_the_same_page(tmp_path):
  page = explore.render(explored.exploration(), explored.TEXTS, title="<t>")
  (source,) = re.findall(r'srcdoc="([^"]*)"', page._repr_html_())
  assert html.unescape(source) == page.html
  assert page.save(tmp_path / "p.html").read_text("utf-8") == page.html


def test_carriers_are_kept():
  given = explored.carriers()
  page = explore.render(
    explored.exploration(), explored.TEXTS, title="t", carriers=given
  )
  found = explore.read(page.html)["carriers"]
  heads = [f"head {i}, values" for i in range(explored.HEADS)]
  assert found["names"] == ["mlp", *heads] and found["rows"] == [5, 6]
  for one, array in zip(given["conditions"], found["conditions"], strict=True):
    kept = explore.unpacked(array)
    np.testing.assert_allclose(kept[0], one["mlp"], rtol=2.0**-11)
    for head in range(explored.HEADS):
      np.testing.assert_allclose(
        kept[1 + head], one["values"][:, head], rtol=2.0**-11
      )


def test_data_of_a_page_is_strict_json():
  """A loss that is not finite is null: NaN is no JSON."""
  seen = explored.exploration()
  seen.conditions[0] = dataclasses.replace(seen.conditions[0], loss=np.nan)
  page = explore.render(seen, explored.TEXTS, title="t").html
  text = page.partition('id="data">')[2].partition("</script>")[0]
  data = json.loads(text, parse_constant=lambda name: pytest.fail(name))
  assert data["conditions"][0]["loss"] is None
