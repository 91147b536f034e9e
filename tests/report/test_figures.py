"""Figures of any shape draw without a warning; what they show is tested too."""

import struct
import subprocess
import sys

import numpy as np
import pytest

from sinkjax.report import figures

pytestmark = pytest.mark.filterwarnings("error")


def size(png):
  """(width, height) in pixels, after a look at signature and end."""
  assert png[:8] == b"\x89PNG\r\n\x1a\n"
  assert png[-8:-4] == b"IEND"
  return struct.unpack(">II", png[16:24])


def causal(count, length, sink=0.0):
  """Patterns with that share on the first key, the rest uniform."""
  rows = np.tril(np.ones((length, length)))
  rows /= rows.sum(axis=1, keepdims=True)
  first = np.eye(1, length)
  return np.tile(sink * first + (1 - sink) * rows, (count, 1, 1))


@pytest.fixture
def drawn(monkeypatch):
  """Figures drawn in the test, as matplotlib objects."""
  found = []
  original = figures.png

  def png(figure):
    found.append(figure)
    return original(figure)

  monkeypatch.setattr(figures, "png", png)
  return found


# Values of one kind and shapes of one kind are independent of each other: each
# value is drawn in the smallest shape, each shape with random values.
@pytest.mark.parametrize(
  ("layers", "heads", "value"),
  [
    *((1, 1, value) for value in (0.0, 1.0)),
    *((2, 3, value) for value in (0.0, 1.0)),
    *((*shape, None) for shape in ((1, 1), (1, 40), (30, 9), (2, 3))),
    *((*shape, None) for shape in ((120, 2), (80, 64))),
  ],
)
def test_sink_map(layers, heads, value):
  rng = np.random.default_rng(0)
  alpha = rng.uniform(size=(layers, heads))
  alpha = alpha if value is None else np.full_like(alpha, value)
  width, height = size(figures.sink_map(alpha, 0.3))
  assert 500 < width < 1300 and 300 < height < 1300


def test_sink_map_dots_heads_over_eps(drawn):
  alpha = np.array([[0.1, 0.9], [0.5, 0.3], [np.nan, 0.31]])
  figures.sink_map(alpha, 0.3)
  ax, bar = drawn[0].axes
  (image,) = ax.images
  assert image.get_clim() == (0, 1)
  assert image.get_array().mask.tolist() == [[False] * 2] * 2 + [[True, False]]
  dots = ax.collections[-1].get_offsets().tolist()
  assert sorted(dots) == [[0, 1], [1, 0], [1, 2]]
  assert ax.yaxis_inverted()
  assert bar.get_ylim() == (0, 1)


@pytest.mark.parametrize(
  ("layers", "kv_heads", "value"),
  [
    *((1, 1, value) for value in (0.0, 7.0, 1e-30, 1e30, np.inf)),
    *((30, 3, value) for value in (0.0, 7.0, 1e-30, 1e30, np.inf)),
    (1, 3, 7.0),
    (30, 1, 7.0),
  ],
)
def test_norms_of_constants(layers, kv_heads, value):
  hidden = np.full(layers, value)
  values = np.full((layers, kv_heads), value)
  png = figures.norms_by_layer(hidden, hidden, values, values)
  assert size(png) == (1040, 429)


def test_norms_show_means_and_ranges(drawn):
  first = np.array([10.0, 25_000, 0])
  median = np.array([10.0, 240, 300])
  value_first = np.array([[1.0, 2, 3], [2, 2, 2], [4, 5, 9]])
  figures.norms_by_layer(first, median, value_first, value_first + 5)
  left, right = drawn[0].axes
  assert left.get_yscale() == "log" and right.get_yscale() == "linear"
  shown = left.lines[0].get_ydata()
  assert shown.tolist() == [10, 25_000, None]  # no zero on a log axis
  assert right.lines[0].get_ydata().tolist() == [2, 2, 6]
  band = right.collections[0].get_paths()[0].get_extents()
  assert (band.ymin, band.ymax) == (1, 9)
  assert left.get_ylim()[0] < 10 and left.get_ylim()[1] > 25_000


@pytest.mark.parametrize(
  ("length", "count"),
  [(1, 1), (2, 1), (32, 3), (33, 3), (512, 3), (1, 8), (33, 8), (512, 8)],
)
def test_attention_maps(length, count):
  tokens = [f" t{i}" for i in range(length)]
  png = figures.attention_maps(causal(count, length), ["a"] * count, tokens)
  width, height = size(png)
  assert 400 < width < 2200 and 300 < height < 1300


def test_attention_maps_leave_the_future_blank(drawn):
  figures.attention_maps(causal(2, 4), ["a", "b"], list("abcd"))
  image = drawn[0].axes[0].images[0]
  mask = np.ma.getmaskarray(image.get_array())
  np.testing.assert_array_equal(mask, ~np.tri(4, dtype=bool))


def test_attention_maps_put_the_second_half_below(drawn):
  figures.attention_maps(causal(4, 3), list("abcd"), ["x", "y", "z"])
  panels = drawn[0].axes[:4]
  rows = [ax.get_subplotspec().rowspan.start for ax in panels]
  assert rows == [0, 0, 1, 1]
  assert [ax.get_title(loc="left") for ax in panels] == list("abcd")
  norms = [ax.images[0].norm for ax in panels]
  assert {(norm.vmin, norm.vmax, norm.gamma) for norm in norms} == {(0, 1, 0.5)}


def test_attention_maps_count_tokens_where_patterns_are_averaged(drawn):
  figures.attention_maps(causal(1, 128), ["a"], ["x"] * 512)
  ax = drawn[0].axes[0]
  assert ax.get_xlim() == (-0.5, 511.5)
  assert ax.get_xticks().tolist() == [0, 200, 400]


def test_tokens_of_any_text_become_labels():
  tokens = [
    " the",
    "\n",
    "\t",
    "  ",
    "",
    "$x_2$",
    "日本",
    "\x00",
    "\ud800",
    "a" * 40,
  ]
  labels = figures.token_labels(tokens)
  assert labels[:6] == ["the", "↵", "⇥", "␣", "␣", "$x_2$"]
  assert labels[6:9] == ["\ufffd\ufffd", "\ufffd", "\ufffd"]
  assert labels[9] == "a" * 10 + "…"


def test_tokens_and_titles_are_no_formulas(drawn):
  tokens = ["$x^2$", "$\\bad{$", "日本", "<b>", "\n"]
  size(figures.attention_maps(causal(1, 5), ["$\\frac{$"], tokens))
  ax = drawn[0].axes[0]
  labels = [label.get_text() for label in ax.get_yticklabels()]
  assert labels == ["$x^2$", "$\\bad{$", "\ufffd\ufffd", "<b>", "↵"]


def test_no_label_of_any_axis_is_a_formula(drawn):
  from matplotlib.text import Text

  size(figures.sink_map(np.ones((2, 2)), 0.3, "$$"))
  shown = [text for text in drawn[0].findobj(Text) if "$$" in text.get_text()]
  assert shown and not any(text.get_parse_math() for text in shown)


@pytest.mark.parametrize("shape", [(1, 1), (2, 1), (30, 9)])
@pytest.mark.parametrize("value", [0.0, 1.0, np.nan])
def test_entropy_of_constants(shape, value):
  entropy = np.full(shape, value)
  assert size(figures.entropy_by_layer(entropy, entropy)) == (1040, 429)


def test_entropy_shows_every_head_and_the_mean(drawn):
  entropy = np.array([[1.0, 3.0], [np.nan, 2.0]])
  figures.entropy_by_layer(entropy, entropy / 4)
  left, right = drawn[0].axes
  assert left.lines[0].get_ydata().tolist() == [2, 2]
  assert left.collections[0].get_offsets()[:, 0].tolist() == [0, 0, None, 1]
  assert right.get_ylim()[0] == 0 and right.get_ylim()[1] >= 1


@pytest.mark.parametrize(
  "draw",
  [
    lambda: figures.sink_map(np.ones(3), 0.3),
    lambda: figures.sink_map(np.ones((0, 3)), 0.3),
    lambda: figures.attention_maps(np.ones((2, 3, 4)), ["a", "b"], []),
    lambda: figures.attention_maps(np.ones((2, 3, 3)), ["a"], []),
    lambda: figures.entropy_by_layer(np.ones((2, 2)), np.ones(2)),
  ],
)
def test_wrong_shapes_are_told(draw):
  with pytest.raises(ValueError, match=r"\("):
    draw()


@pytest.mark.parametrize("count", [1, 2, 9, 10, 11, 30, 64, 513, 4096])
def test_ticks_are_few_and_inside(count):
  found = figures.ticks(count)
  assert found[0] == 0 and found[-1] < count and len(found) <= 10


def test_same_arrays_same_bytes():
  alpha = np.linspace(0, 1, 12).reshape(3, 4)
  assert figures.sink_map(alpha, 0.3) == figures.sink_map(alpha, 0.3)


def test_no_text_is_read_as_mathematics():
  """Not a title with one dollar sign, nor the ticks of a logarithmic axis."""
  with figures.drawing(4, 3) as figure:
    left, right = figure.subplots(1, 2)
    left.plot([1, 1000], [1e-5, 3e4], label="$\\bad{")
    left.set(xscale="log", yscale="log")
    figures.legend_above(left, "cost in $, $\\frac")
    right.plot([3, 8], [2, 4])
    right.set_xscale("log", base=2)
    right.set_yscale("log")
    figures.png(figure)
    for ax in (left, right):
      texts = [ax.title, *ax.get_legend().get_texts()] if ax is left else []
      assert not any(text.get_parse_math() for text in texts)
      for axis in (ax.xaxis, ax.yaxis):
        labels = [
          tick.label1.get_text()
          for tick in (*axis.get_major_ticks(), *axis.get_minor_ticks())
        ]
        assert any(labels) and not any("$" in label for label in labels)
    shown = {tick.label1.get_text() for tick in left.xaxis.get_major_ticks()}
    assert {"1", "10", "100", "1000"} <= shown


def test_style_does_not_leak():
  import matplotlib

  before = dict(matplotlib.rcParams)
  figures.sink_map(np.ones((2, 2)), 0.3)
  assert dict(matplotlib.rcParams) == before


@pytest.mark.thorough
def test_matplotlib_is_lazy_and_pyplot_stays_out():
  code = """
import sys, numpy as np
from sinkjax.report import figures
assert "matplotlib" not in sys.modules
figures.sink_map(np.ones((1, 1)), 0.3)
assert "matplotlib.pyplot" not in sys.modules
"""
  subprocess.run([sys.executable, "-c", code], check=True)
