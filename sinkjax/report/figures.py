"""The figures of a report: arrays in, PNG bytes out.

Matplotlib is imported inside the functions and used without pyplot, so that
no figure outlives its call and nothing needs a display. Dark is high on every
map. Axes: L layers, H heads, N KV heads, T positions. Not thread-safe.
"""

import io
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np

from sinkjax.metrics.table import METRICS

DPI = 130
FIRST, REST = "#c8501e", "#1f6fad"  # vermilion and blue: for every eye
INK, MUTED, RULE = "#22272e", "#69727d", "#d9dde2"
SERIES = (FIRST, REST, INK, MUTED, "#7a4f9a", "#3f8f5b", "#c79a1b", "#8c3b3b")
"""Colours of lines that stand for members of a series."""
SCALE = ("#eef2f7", "#c3d9ea", "#7fb2d6", "#3a82bb", "#15548f", "#0a2a52")
LABELLED = 32  # beyond this many tokens their labels would overlap

STYLE = {
  "font.family": "DejaVu Sans",
  "font.size": 9,
  "text.usetex": False,
  "text.parse_math": False,  # a token may be "$x$", and is shown as it is
  "text.color": INK,
  "axes.titlesize": 9.5,
  "axes.titlelocation": "left",
  "axes.labelcolor": INK,
  "axes.edgecolor": MUTED,
  "axes.linewidth": 0.7,
  "axes.spines.top": False,
  "axes.spines.right": False,
  "axes.axisbelow": True,
  "figure.facecolor": "white",
  "grid.color": RULE,
  "grid.linewidth": 0.6,
}
TICKS = {
  "labelsize": 8,
  "color": MUTED,
  "labelcolor": INK,
  "major.size": 3,
  "major.width": 0.7,
}
STYLE |= {f"{axis}tick.{name}": v for axis in "xy" for name, v in TICKS.items()}


@contextmanager
def drawing(width: float, height: float) -> Iterator[Any]:
  """A figure of that many inches in the house style, for `png`."""
  import matplotlib
  from matplotlib.backends.backend_agg import FigureCanvasAgg
  from matplotlib.figure import Figure

  # The style ends with the block, so that a caller's own settings stay.
  with matplotlib.rc_context(STYLE):
    figure = Figure((width, height), DPI, layout="constrained")
    FigureCanvasAgg(figure)
    yield figure


def png(figure: Any) -> bytes:
  """Draws a figure of `drawing`; the same arrays give the same bytes."""
  from matplotlib.text import Text

  # The labels of axes and colour bars do not take the setting of the style.
  for text in figure.findobj(Text):
    text.set_parse_math(False)
  for ax in figure.axes:
    for axis in (ax.xaxis, ax.yaxis):
      _plain_log_ticks(axis)
  out = io.BytesIO()
  # The default metadata names matplotlib's version, which would change bytes.
  figure.canvas.print_png(out, metadata={"Software": None})
  return out.getvalue()


def _plain_log_ticks(axis: Any) -> None:
  """Plain numbers: matplotlib writes powers of ten as mathematics."""
  from matplotlib import ticker

  def plain(original: ticker.Formatter) -> ticker.Formatter:
    class Plain(ticker.Formatter):
      def set_locs(self, locs: Any) -> None:
        original.set_locs(locs)

      def __call__(self, x: float, pos: int | None = None) -> str:
        return f"{x:g}" if original(x, pos) else ""

    return Plain()

  if isinstance(axis.get_major_formatter(), ticker.LogFormatterMathtext):
    axis.set_major_formatter(plain(axis.get_major_formatter()))
  if isinstance(axis.get_minor_formatter(), ticker.LogFormatterMathtext):
    axis.set_minor_formatter(plain(axis.get_minor_formatter()))


def ticks(count: int, most: int = 10) -> list[int]:
  """Round positions in [0, count), at most `most` of them.

  >>> ticks(4), ticks(30)
  ([0, 1, 2, 3], [0, 5, 10, 15, 20, 25])
  """
  steps = (digit * 10**power for power in range(12) for digit in (1, 2, 5))
  return list(range(0, count, next(s for s in steps if count <= s * most)))


def token_labels(tokens: Sequence[str], most: int = 11) -> list[str]:
  """Tokens as axis labels: short, on one line, in glyphs that the font has."""
  from matplotlib import font_manager as fonts

  glyphs = fonts.get_font(fonts.findfont(STYLE["font.family"])).get_charmap()
  marks = str.maketrans("\n\t\r", "↵⇥␍")
  labels = []
  for token in tokens:
    text = (token.strip(" ") or "␣").translate(marks)
    text = text if len(text) <= most else text[: most - 1] + "…"
    # Matplotlib warns of every glyph that its font does not have.
    labels.append("".join(c if ord(c) in glyphs else "\ufffd" for c in text))
  return labels


def finite(name: str, value: Any, dimensions: int) -> np.ndarray:
  """An array of that many axes, NaN where it is not finite."""
  array = np.asarray(value, np.float64)
  if array.ndim != dimensions or array.size == 0:
    raise ValueError(f"{name}: {dimensions} axes expected, got {array.shape}")
  return np.where(np.isfinite(array), array, np.nan)


def legend_above(ax: Any, title: str) -> None:
  """A title, and below it a legend on one line, both above the axes."""
  ax.set_title(title, pad=21)
  many = max(2, len(ax.get_legend_handles_labels()[1]))
  ax.legend(
    loc="lower left",
    bbox_to_anchor=(-0.01, 1.0),
    ncols=many,
    frameon=False,
    fontsize=8.5,
    borderaxespad=0.1,
    borderpad=0.2,
    handlelength=1.4,
    columnspacing=1.4,
    handletextpad=0.5,
  )


def line_band(ax: Any, values: np.ndarray, *, color: str, label: str) -> None:
  """Layers of [L, N] on x: the mean over N a line, min to max a band."""
  values = np.ma.masked_invalid(values)
  x = np.arange(len(values))
  if values.shape[1] > 1:
    low, high = values.min(axis=1), values.max(axis=1)
    ax.fill_between(x, low, high, color=color, alpha=0.18, linewidth=0)
  # Markers of more layers would touch each other.
  marker = "o" if len(x) <= 16 else ""
  mean = values.mean(axis=1)
  ax.plot(x, mean, color=color, label=label, lw=1.8, marker=marker, ms=4)
  ax.set(xlim=(-0.6, len(x) - 0.4), xticks=ticks(len(x)), xlabel="layer")
  ax.grid(axis="y")


def bands(
  ax: Any, title: str, series: Mapping[str, tuple[np.ndarray, str]], log: bool
) -> None:
  """A `line_band` for each label: (values [L, N], color), with a legend."""
  for label, (values, color) in series.items():
    kept = np.where(values > 0, values, np.nan) if log else values
    line_band(ax, kept, color=color, label=label)
  limits(ax, np.concatenate([v.ravel() for v, _ in series.values()]), log)
  legend_above(ax, title)


def limits(ax: Any, values: np.ndarray, log: bool = False) -> None:
  """Limits of y from 0 or, on a log axis, over a decade at least."""
  known = values[values > 0]
  low, high = (known.min(), known.max()) if known.size else (1.0, 1.0)
  if not log:
    # Room above, or the highest marker would be cut in half.
    ax.set_ylim(0, high * 1.06)
    return
  # A decade at least: matplotlib labels few ticks, or none, of less.
  wider = 1.25 * max(1.0, np.sqrt(10 * low / high))
  ax.set_yscale("log")
  ax.set_ylim(low / wider, high * wider)
  ax.yaxis.set_major_formatter("{x:,g}")
  ax.yaxis.set_minor_formatter("")
  ax.tick_params(axis="y", which="minor", length=0)


def heat_map(ax: Any, values: np.ndarray, **options: Any) -> Any:
  """Draws [rows, columns], row 0 on top, NaN blank; gives the image."""
  from matplotlib.colors import LinearSegmentedColormap

  scale = LinearSegmentedColormap.from_list("blues", SCALE)
  values = np.ma.masked_invalid(values)
  image = ax.imshow(values, cmap=scale, aspect="auto", **options)
  ax.spines[:].set_visible(False)
  return image


def color_bar(image: Any, axes: Any, label: str, **options: Any) -> Any:
  """A slim colour bar without a frame."""
  place = {"ax": axes, "aspect": 32, "pad": 0.02}
  bar = image.get_figure().colorbar(image, **place, **options)
  bar.outline.set_visible(False)
  bar.set_label(label)
  return bar


def sink_map(alpha: np.ndarray, eps: float, token: str = "") -> bytes:
  """Layer by head: mean attention on the first token, as a PNG.

  Args:
    alpha: [L, H] scores in [0, 1]; NaN cells stay blank.
    eps: heads above it get a dot; a line marks it on the colour bar.
    token: the first token, named on the colour bar.
  """
  alpha = finite("alpha", alpha, 2)
  layers, heads = alpha.shape
  width = float(np.clip(1.5 + 0.32 * heads, 4.4, 9))
  height = float(np.clip(0.8 + 0.18 * layers, 2.4, 9))
  with drawing(width, height) as figure:
    ax = figure.add_subplot()
    image = heat_map(ax, alpha, vmin=0, vmax=1)
    rows = ticks(layers, 10 if height > 3 else 6)
    ax.set(xticks=ticks(heads, 16), yticks=rows, xlabel="head", ylabel="layer")
    ax.tick_params(length=0)
    cell = 72 * min((width - 1.5) / heads, (height - 0.6) / layers)
    if cell > 5:  # points: white gaps between cells, where there is room
      ax.hlines(np.arange(1, layers) - 0.5, -0.5, heads - 0.5, "white", lw=0.8)
      ax.vlines(np.arange(1, heads) - 0.5, -0.5, layers - 0.5, "white", lw=0.8)
    row, column = np.nonzero(alpha > eps)
    # White on the dark half of the scale, ink on the light one.
    color = np.where(alpha[row, column] > 0.45, "#ffffff", INK)
    size = float(np.clip(cell * 0.22, 1.2, 3.2))
    ax.scatter(column, row, s=size**2, c=color, alpha=0.9, linewidths=0)
    ax.set(xlim=(-0.5, heads - 0.5), ylim=(layers - 0.5, -0.5))
    ax.set_title(f"dot: head over {eps:g}", fontsize=8.5)
    named = f", '{token_labels([token])[0]}'" if token else ""
    bar = color_bar(image, ax, f"mean {METRICS['alpha'].label}{named}")
    bar.ax.axhline(eps, color=FIRST, linewidth=1.2)
    return png(figure)


def norms_by_layer(
  hidden_first: np.ndarray,
  hidden_median: np.ndarray,
  value_first: np.ndarray,
  value_rest: np.ndarray,
) -> bytes:
  """Norms of the first token against the others', as a PNG of two panels.

  Args:
    hidden_first: [L] norm of the first token's residual after each layer.
    hidden_median: [L] median norm over tokens.
    value_first: [L, N] norm of the first token's value.
    value_rest: [L, N] mean norm of the other tokens' values.
  """
  hidden = {
    "first token": (finite("hidden_first", hidden_first, 1)[:, None], FIRST),
    "median token": (finite("hidden_median", hidden_median, 1)[:, None], REST),
  }
  values = {
    "first token": (finite("value_first", value_first, 2), FIRST),
    "other tokens": (finite("value_rest", value_rest, 2), REST),
  }
  note = " (band: range of KV heads)" if np.shape(value_first)[1] > 1 else ""
  with drawing(8, 3.3) as figure:
    left, right = figure.subplots(1, 2)
    bands(left, "hidden state norm (log scale)", hidden, log=True)
    bands(right, "value norm" + note, values, log=False)
    return png(figure)


def attention_maps(
  patterns: np.ndarray, titles: Sequence[str], tokens: Sequence[str]
) -> bytes:
  """Attention patterns on one square-root colour scale, as a PNG.

  Args:
    patterns: [n, T, T], queries by keys; the future is left blank. The first
      half makes the top row, the second half the row below.
    titles: one a pattern.
    tokens: the text of each position. More tokens than T mean that the
      patterns were averaged over square cells; ticks still count tokens.
  """
  from matplotlib.colors import PowerNorm

  patterns = finite("patterns", patterns, 3)
  count, size, keys = patterns.shape
  if size != keys or len(titles) != count:
    raise ValueError(f"{len(titles)} titles for patterns {patterns.shape}")
  patterns = np.where(np.tri(size, dtype=bool), patterns, np.nan)
  rows = min(count, 2)
  columns = -(-count // rows)
  names = token_labels(tokens) if len(tokens) == size <= LABELLED else None
  side = max(1.9, 0.105 * size) if names else 1.9
  end = size * max(1, -(-len(tokens) // size)) - 0.5
  # Most weights are small, and on a linear scale only the sink would show.
  look = {"norm": PowerNorm(0.5, 0, 1), "extent": (-0.5, end, end, -0.5)}
  with drawing(columns * side + 1.5, rows * (side + 0.3) + 0.5) as fig:
    axes = fig.subplots(rows, columns, squeeze=False)
    for ax in axes.flat[count:]:
      ax.set_axis_off()
    for i, ax in enumerate(axes.flat[:count]):
      image = heat_map(ax, patterns[i], **look)
      ax.set_title(titles[i])
      token_axis(ax.xaxis, names, end, i + columns >= count)
      token_axis(ax.yaxis, names, end, i % columns == 0)
    fig.supxlabel("attends to (key)", fontsize=9)
    fig.supylabel("position (query)", fontsize=9)
    scale = {"ticks": [0, 0.02, 0.1, 0.25, 0.5, 1], "format": "{x:g}"}
    color_bar(image, axes, "attention (square-root scale)", **scale)
    return png(fig)


def token_axis(axis: Any, names: Any, end: float, outer: bool) -> None:
  """Tokens at the outer axes, or else a few round numbers."""
  axis.set_tick_params(length=0 if names else 2, pad=2, labelsize=7.5)
  if names is None:
    axis.set_ticks(ticks(round(end + 0.5), 5))
    axis.set_tick_params(labelleft=outer, labelbottom=outer)
  else:
    names = names if outer else []
    turn = 90 if axis.axis_name == "x" else 0
    look = {"rotation": turn, "fontsize": 6.5}
    axis.set_ticks(range(len(names)), names, **look)


def entropy_by_layer(entropy: np.ndarray, entropy_share: np.ndarray) -> bytes:
  """How spread the attention of every head is, as a PNG of two panels.

  Args:
    entropy: [L, H] mean row entropy, nats.
    entropy_share: [L, H] the same over its maximum, 0 to 1.
  """
  values = finite("entropy", entropy, 2)
  shares = finite("entropy_share", entropy_share, 2)
  with drawing(8, 3.3) as figure:
    left, right = figure.subplots(1, 2)
    head_dots(left, METRICS["entropy"].title, values)
    head_dots(right, METRICS["entropy_share"].title, shares)
    # A share of 1 would lie on the frame.
    right.set_ylim(0, 1.02)
    return png(figure)


def head_dots(ax: Any, title: str, values: np.ndarray) -> None:
  """Every head of [L, H] a faint dot, the mean over heads a line."""
  layers, heads = values.shape
  x = np.repeat(np.arange(layers), heads)
  ax.scatter(x, values, 11, REST, alpha=0.35, lw=0, label="one head")
  mean = np.ma.masked_invalid(values).mean(axis=1)[:, None]
  line_band(ax, mean, color=INK, label="mean over heads")
  limits(ax, values)
  legend_above(ax, title)
