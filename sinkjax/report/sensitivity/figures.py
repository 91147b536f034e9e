"""The figures of a sensitivity report: arrays in, PNG bytes out.

A series is `{label: values}`: the model as it is first, then the edited one.
Axes: T tokens, L layers.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from sinkjax.report.figures import (
  FIRST,
  INK,
  LABELLED,
  MUTED,
  REST,
  RULE,
  SERIES,
  bands,
  color_bar,
  drawing,
  finite,
  heat_map,
  legend_above,
  limits,
  png,
  ticks,
  token_axis,
  token_labels,
)

SPAN = 1e8
"""A colour scale covers no more than this ratio.

Below it the derivatives of a float32 model are rounding.
"""

LINES = len(SERIES)
"""Lines that can be told apart in one panel."""

DIVERGING = ("#0a2a52", "#3a82bb", "#f4f4f2", "#d9764d", "#7a2a0c")


def log_ticks(low: float, high: float, most: int = 7) -> list[float]:
  """Round numbers of a log scale within [low, high], at most `most`.

  >>> log_ticks(0.3, 40), log_ticks(1e-6, 1e6, 4)
  ([0.5, 1.0, 2.0, 5.0, 10.0, 20.0], [1e-06, 0.01, 100.0, 1000000.0])
  """
  powers = range(int(np.floor(np.log10(low))), int(np.ceil(np.log10(high))) + 1)
  # Text gives the nearest float, which products of powers of ten need not.
  ticks_at = [float(f"{d}e{p}") for p in powers for d in (1, 2, 5)]
  ticks_at = [value for value in ticks_at if low <= value <= high]
  if len(ticks_at) > most:
    ticks_at = [
      float(f"1e{p}") for p in powers if low <= float(f"1e{p}") <= high
    ]
  return ticks_at[:: max(1, -(-len(ticks_at) // most))]


def _names(tokens: Sequence[str]) -> list[str] | None:
  return token_labels(tokens) if len(tokens) <= LABELLED else None


def _side(tokens: Sequence[str], least: float, most: float) -> float:
  each = 0.19 if len(tokens) <= LABELLED else 0.05
  return float(np.clip(each * len(tokens), least, most))


def _square(
  ax: Any, values: np.ndarray, tokens: Sequence[str], outer: bool, **look
) -> Any:
  """A map of tokens by tokens: NaN blank, zeros grey."""
  from matplotlib.colors import ListedColormap

  size = len(values)
  zero = values == 0
  image = heat_map(ax, np.where(zero, np.nan, values), **look)
  if zero.any():
    # A logarithmic scale has no colour for zero, so zeros are an image of their
    # own.
    grey = ListedColormap([RULE])
    ax.imshow(np.where(zero, 1.0, np.nan), cmap=grey, aspect="auto")
  names = _names(tokens)
  token_axis(ax.xaxis, names, size - 0.5, True)
  token_axis(ax.yaxis, names, size - 0.5, outer)
  ax.set_xlabel("source token")
  if outer:
    ax.set_ylabel("target token")
  return image


def norm_maps(
  maps: Mapping[str, np.ndarray], tokens: Sequence[str], label: str
) -> bytes:
  """Maps of norms side by side on one logarithmic colour scale, as a PNG.

  What a token cannot see, above the diagonal, is blank; a pair that it could
  see but whose norm is exactly zero is grey.

  Args:
    maps: [T, T] each, by title.
    tokens: the text of each position.
    label: what the norms are, for the colour bar.
  """
  from matplotlib.colors import LogNorm

  maps = {name: finite(name, values, 2) for name, values in maps.items()}
  size = len(tokens)
  future = ~np.tri(size, dtype=bool)
  maps = {name: np.where(future, np.nan, m) for name, m in maps.items()}
  known = np.concatenate([m[m > 0] for m in maps.values()])
  low, high = (known.min(), known.max()) if known.size else (0.5, 2.0)
  low = max(low, high / SPAN)
  if high < 1.5 * low:
    # On a scale that narrow, rounding would show as contrast.
    low, high = low / 2, high * 2
  side = _side(tokens, 2.9, 6.0 if len(maps) == 1 else 5.0)
  with drawing(len(maps) * side + 1.9, side + 1.1) as figure:
    axes = figure.subplots(1, len(maps), squeeze=False)[0]
    for i, (ax, (title, values)) in enumerate(
      zip(axes, maps.items(), strict=True)
    ):
      image = _square(ax, values, tokens, i == 0, norm=LogNorm(low, high))
      ax.set_title(title)
    _log_bar(image, list(axes), label, low, high)
    return png(figure)


def _log_bar(image: Any, axes: Any, label: str, low: float, high: float):
  bar = color_bar(image, axes, label, ticks=log_ticks(low, high))
  bar.ax.yaxis.set_major_formatter("{x:g}")
  bar.ax.minorticks_off()


def ratio_map(ratio: np.ndarray, tokens: Sequence[str], label: str) -> bytes:
  """A map of ratios around 1, logarithmic, as a PNG.

  Args:
    ratio: [T, T]; NaN stays blank, exact zeros are grey.
    tokens: the text of each position.
    label: what is divided by what, for the colour bar.
  """
  from matplotlib.colors import LinearSegmentedColormap, LogNorm

  ratio = finite("ratio", ratio, 2)
  known = ratio[ratio > 0]
  wide = np.exp(np.abs(np.log(known)).max()) if known.size else 1.0
  # Beyond a factor of 1000 the colours of ordinary changes would be one shade.
  wide = float(np.clip(wide, 2.0, 1e3))
  side = _side(tokens, 2.9, 6.0)
  with drawing(side + 1.9, side + 0.9) as figure:
    ax = figure.add_subplot()
    look = {"norm": LogNorm(1 / wide, wide)}
    image = _square(ax, ratio, tokens, True, **look)
    image.set_cmap(LinearSegmentedColormap.from_list("around one", DIVERGING))
    _log_bar(image, ax, label, 1 / wide, wide)
    return png(figure)


def _coloured(series: Mapping[str, np.ndarray]) -> dict[str, Any]:
  colors = (REST, FIRST)
  return {
    label: (np.asarray(values, np.float64), color)
    # One series leaves a colour over.
    for (label, values), color in zip(series.items(), colors, strict=False)
  }


def by_distance(
  last: Mapping[str, np.ndarray],
  mean: Mapping[str, np.ndarray],
  errors: Mapping[str, np.ndarray | None],
) -> bytes:
  """Sensitivity against distance, as a PNG of two panels.

  Args:
    last: [T] of the last token, 0 to T - 1 tokens back.
    mean: [T] the mean over tokens at each distance.
    errors: [T] standard errors of `last`, or `None`.
  """
  with drawing(8, 3.4) as figure:
    left, right = figure.subplots(1, 2)
    panels = (
      (left, "the last token (log scale)", last),
      (right, "mean over tokens (log scale)", mean),
    )
    for ax, title, series in panels:
      lines = _coloured(series)
      bands(
        ax, title, {k: (v[:, None], c) for k, (v, c) in lines.items()}, log=True
      )
      ax.set_xlabel("tokens back")
      _few_log_ticks(ax)
    for label, (values, color) in _coloured(last).items():
      error = errors.get(label)
      if error is not None:
        # A logarithmic axis has no place for what is not positive.
        x, low = np.arange(len(values)), np.maximum(values - error, 1e-30)
        left.fill_between(x, low, values + error, color=color, alpha=0.2, lw=0)
    left.set_ylabel("norm of d target / d source")
    return png(figure)


def columns_by_target(
  maps: Mapping[str, np.ndarray],
  columns: Sequence[int],
  names: Sequence[str],
  label: str,
) -> bytes:
  """Norms of chosen source tokens against the target token, as a PNG.

  One panel a map. Up to `LINES` sources have a line each; of more, which could
  not be told apart, there are the median over sources and their range, by
  tokens back.

  Args:
    maps: [T, C] each, by title.
    columns: the C source positions.
    names: of the sources.
    label: what the norms are.
  """
  few = len(columns) <= LINES
  everything = np.concatenate([m.ravel() for m in maps.values()])
  with drawing(8, 3.6) as figure:
    axes = figure.subplots(1, len(maps), sharey=True, squeeze=False)[0]
    for ax, (title, norms) in zip(axes, maps.items(), strict=True):
      each = [
        np.where(norms[s:, i] > 0, norms[s:, i], np.nan)
        for i, s in enumerate(columns)
      ]
      limits(ax, everything, log=True)
      if few:
        for s, values, name, color in zip(
          columns,
          each,
          names,
          SERIES,
          strict=False,  # colours may be left
        ):
          x = s + np.arange(len(values))
          marker = "o" if len(values) <= 16 else ""
          ax.plot(
            x, values, color=color, label=name, lw=1.4, marker=marker, ms=4
          )
        ax.set(title=title, xlabel="target token")
      else:
        low, middle, high = _range(each)
        x = np.arange(len(middle))
        ax.fill_between(x, low, high, color=REST, alpha=0.18, lw=0)
        ax.plot(x, middle, color=REST, lw=1.8)
        ax.set(title=f"{title}, median and range", xlabel="tokens back")
      _few_log_ticks(ax)
      ax.grid(axis="y")
    axes[0].set_ylabel(f"{label} (log scale)")
    if few:
      lines, labels = axes[-1].get_legend_handles_labels()
      place = {"loc": "upper left", "bbox_to_anchor": (1.01, 1.0)}
      axes[-1].legend(lines, labels, frameon=False, fontsize=8, **place)
    return png(figure)


def _range(each: Sequence[np.ndarray]) -> tuple[np.ndarray, ...]:
  """(lowest, median, highest) by place of lists of several lengths."""
  size = max(map(len, each))
  table = np.full((len(each), size), np.nan)
  for row, values in zip(table, each, strict=True):
    row[: len(values)] = values
  # Places that no list has, or where all are zero, have no median.
  seen = ~np.isnan(table).all(axis=0)
  parts = np.full((3, size), np.nan)
  parts[:, seen] = [
    reduce(table[:, seen], axis=0)
    for reduce in (np.nanmin, np.nanmedian, np.nanmax)
  ]
  return tuple(parts)


def _few_log_ticks(ax: Any) -> None:
  low, high = ax.get_ylim()
  ax.set_yticks(log_ticks(low, high))
  ax.yaxis.set_major_formatter("{x:g}")


def mixing_by_layer(
  series: Mapping[str, np.ndarray], layers: Sequence[int]
) -> bytes:
  """Total mixing after every layer, as a PNG.

  Args:
    series: [L] shares in [0, 1].
    layers: their numbers.
  """
  with drawing(6.4, 3.3) as figure:
    ax = figure.add_subplot()
    marker = "o" if len(layers) <= 16 else ""
    for label, (values, color) in _coloured(series).items():
      ax.plot(
        layers,
        100 * values,
        color=color,
        label=label,
        lw=1.8,
        marker=marker,
        ms=4,
      )
    shown = [layers[i] for i in ticks(len(layers))]
    ax.set(xticks=shown, xlabel="layer", ylim=(0, 102), ylabel="%")
    ax.set_xlim(layers[0] - 0.6, layers[-1] + 0.6)
    ax.grid(axis="y")
    legend_above(ax, "share of the sensitivity that is to other tokens")
    return png(figure)


def loss_by_token(
  series: Mapping[str, np.ndarray], tokens: Sequence[str]
) -> bytes:
  """Sensitivity of the loss to each token, as a PNG.

  Args:
    series: [T] norms of the gradient; zeros are not drawn.
    tokens: the text of each position.
  """
  names, size = _names(tokens), len(tokens)
  with drawing(8, 3.6 if names else 3.2) as figure:
    ax = figure.add_subplot()
    lines = _coloured(series)
    everything = np.concatenate([values for values, _ in lines.values()])
    limits(ax, everything, log=True)
    for at, (label, (values, color)) in enumerate(lines.items()):
      # Side by side, as one series would hide the other.
      x = np.arange(size) + (at - (len(lines) - 1) / 2) * 0.3
      kept = np.where(values > 0, values, np.nan)
      style = {"s": 26 if size <= LABELLED else 9, "lw": 0, "zorder": 3}
      ax.scatter(x, kept, c=color, label=label, **style)
      # A logarithmic axis has no zero to start from.
      ax.vlines(x, ax.get_ylim()[0], kept, color, lw=1.2, alpha=0.45)
    token_axis(ax.xaxis, names, size - 0.5, True)
    ax.set(xlim=(-0.8, size - 0.2), ylabel="nats a unit")
    if names is None:
      ax.set_xlabel("position")
    ax.tick_params(axis="x", labelcolor=INK, color=MUTED)
    _few_log_ticks(ax)
    ax.grid(axis="y")
    legend_above(ax, "gradient of the mean loss at each token (log scale)")
    return png(figure)
