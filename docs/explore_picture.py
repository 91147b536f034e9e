"""Draws docs/_static/explore.png: a page to explore, as Chromium shows it.

python -m launch.explore --model=smollm2-135m --max_tokens=32 --out=out/page
PYTHONPATH=tests/helpers python docs/explore_picture.py out/page/explore.html
"""

import io
import pathlib
import sys
import tempfile

import browser
from PIL import Image

OUT = pathlib.Path(__file__).parent / "_static" / "explore.png"
VIEW = "head=12.3&token=23&pair=23.0"
SIZE = 1100, 900
COLORS = 128
"""With these a channel is off by at most 18 of 255."""


def main() -> None:
  """Opens the page that is named, and writes the picture."""
  page = pathlib.Path(sys.argv[1]).resolve().as_uri()
  with tempfile.TemporaryDirectory() as folder:
    tab = browser.Browser(pathlib.Path(folder, "profile"))
    try:
      tab.size(*SIZE)
      tab.prefers("light")
      tab.open(f"{page}#{VIEW}", "globalThis.sinkjax")
      shot = pathlib.Path(folder, "shot.png")
      tab.picture(shot)
      image = Image.open(io.BytesIO(shot.read_bytes())).convert("RGB")
    finally:
      tab.close()
  few = image.quantize(
    COLORS,
    method=Image.Quantize.MAXCOVERAGE,
    kmeans=2,
    dither=Image.Dither.NONE,
  )
  few.save(OUT, optimize=True)


if __name__ == "__main__":
  main()
