"""Draws the README's picture: `python docs/sitegen/picture.py`.

Left, how much attention each head of SmolLM2-135M gives to the first token of
a text, "The". Right, how far a swapped word changes the tokens after it, with
that sink and with the sink hidden from the layer on at which it forms.
"""

import io
import pathlib

import numpy as np

from sinkjax import artifacts
from sinkjax.experiments.harness import records
from sinkjax.report.figures import INK, MUTED, color_bar, drawing, heat_map

DOCS = pathlib.Path(__file__).parents[1]
HEADS = DOCS / "results" / "smollm2-135m" / "heads.csv"
SPREAD = DOCS / "results" / "paper-smollm2-135m" / "perturbation"
OUT = DOCS / "_static" / "sink.png"
BEFORE = 4
"""Tokens before the swapped word in the recorded map, where nothing changes."""

COLOURS = 128
"""Of the palette: few enough for 80 KB, enough for smooth maps."""


def attention() -> np.ndarray:
  """[H, L] mean attention on the first token."""
  header, found = artifacts.read_csv(HEADS)
  rows = [dict(zip(header, row, strict=True)) for row in found]
  layers = 1 + max(row["layer"] for row in rows)
  heads = 1 + max(row["head"] for row in rows)
  alpha = np.zeros((heads, layers))
  for row in rows:
    alpha[row["head"], row["layer"]] = row["alpha"]
  return alpha


def aligned() -> np.ndarray:
  """[condition, L, T] relative change around the swap, as recorded."""
  return records.measured(SPREAD).result.arrays["aligned"]


def spread() -> np.ndarray:
  """[2, L, T] relative change by layer and distance, with and without sink."""
  return aligned()[:2, :, BEFORE:]


def draw() -> bytes:
  """The picture, a PNG with a palette."""
  from matplotlib.colors import LogNorm
  from PIL import Image

  alpha, change = attention(), spread()
  with drawing(8.6, 3.0) as figure:
    axes = figure.subplots(1, 3, width_ratios=(1.15, 1, 1))
    over = 100 * np.mean(alpha > 0.3)
    image = heat_map(axes[0], alpha.T, vmin=0, vmax=1)
    axes[0].set_title(
      f"{over:.0f} % of heads give the word “The”\nover 30 % of their attention"
    )
    axes[0].set(xlabel="head", ylabel="layer", xticks=range(len(alpha)))
    color_bar(image, axes[0], "attention on token 0")
    titles = (
      "A swapped word hardly changes\nthe tokens after it …",
      "… until the sink is hidden\nfrom layer 8 on",
    )
    # One scale for both maps, or they could not be compared.
    scale = LogNorm(np.nanmin(change[change > 0]), np.nanmax(change))
    for ax, values, title in zip(axes[1:], change, titles, strict=True):
      image = heat_map(ax, values, norm=scale)
      ax.set_title(title)
      ax.set(xlabel="tokens after the swap", yticks=[])
    color_bar(image, list(axes[1:]), "relative change")
    for ax in axes:
      ax.title.set_color(INK)
      ax.tick_params(colors=MUTED)
    out = io.BytesIO()
    figure.canvas.print_png(out, metadata={"Software": None})
  palette = Image.open(out).convert("RGB").quantize(COLOURS, dither=0)
  out = io.BytesIO()
  palette.save(out, "PNG", optimize=True)
  return out.getvalue()


if __name__ == "__main__":
  OUT.write_bytes(draw())
  print(f"wrote {OUT.relative_to(DOCS.parent)}, {OUT.stat().st_size:,} bytes")
