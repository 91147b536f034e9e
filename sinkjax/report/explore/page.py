"""The page: how large it may be, and what stands in it."""

import dataclasses
import html
import json
from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from sinkjax import artifacts
from sinkjax.analysis.exploration import Condition, Exploration
from sinkjax.config import ModelConfig
from sinkjax.report.explore.packing import for_script, packed
from sinkjax.report.html import printable
from sinkjax.transforms.path_steps import CARRIERS, OF_HEADS

FOLDER = Path(__file__).with_name("assets")
SCRIPTS = (
  "data.js",
  "scales.js",
  "maps.js",
  "store.js",
  "strip.js",
  "grid.js",
  "map.js",
  "keys.js",
  "frame.js",
  "page.js",
)
"""In the order in which they are run; each uses those before it."""

LIVE = "live.js"
"""Of a page that is served."""

LIMIT = 6_000_000
"""Bytes of a page: what a browser opens at once, and a mail can carry."""

OVERHEAD = 150_000
"""Bytes of a page without its arrays: style, scripts, text and found sinks."""

A_TOKEN = 300
"""Bytes of a token beside the arrays: its text and what a sink is told of."""

HEIGHT = 900
"""Pixels of the page in a notebook: the grid, or a head, is then in view."""


NEEDED = (
  "a view that Python reads and sets needs a widget: pip install "
  "'sinkjax[notebooks]', which has anywidget, and call sinkjax.explore again"
)


@dataclasses.dataclass
class Page:
  """A page as a string.

  Attributes:
    html: the whole file.
  """

  html: str

  @property
  def view(self) -> str:
    """What is shown, of a `PageWidget`.

    Raises:
      ImportError: of this page, which stands alone.
    """
    raise ImportError(NEEDED)

  @view.setter
  def view(self, value: str) -> None:
    raise ImportError(NEEDED)

  def save(self, path: str | Path) -> Path:
    """Writes the file."""
    return artifacts.write_text(path, self.html)

  def _repr_html_(self) -> str:
    """The page in a frame of its own, as notebooks show it."""
    page = html.escape(self.html, quote=True)
    return (
      f'<iframe title="sinkjax: attention of a text" srcdoc="{page}" '
      f'style="width:100%;height:{HEIGHT}px;border:0"></iframe>'
    )


def page_bytes(
  cfg: ModelConfig,
  tokens: int,
  conditions: int = 2,
  jacobian: bool = False,
  carriers: bool = False,
) -> int:
  """The most that a page can have, before any array is deflated."""
  triangle, heads = tokens * (tokens + 1) // 2, cfg.n_layers * cfg.n_heads
  keys = cfg.n_layers * cfg.n_kv_heads
  numbers = 2 * (triangle * heads + tokens * (heads + keys)) + 8 * heads
  if jacobian:
    numbers += 4 * triangle * cfg.n_layers
  if carriers:  # of every pair, those with a future source among them
    of_heads = len(set(CARRIERS) & set(OF_HEADS))
    ways = len(CARRIERS) + (cfg.n_heads - 1) * of_heads
    numbers += 2 * tokens * tokens * cfg.n_layers * ways
  # Of three bytes base64 makes four; deflating adds 5 bytes in 16,000 to what
  # it cannot shorten.
  arrays = 1.34 * conditions * numbers
  return int(arrays) + OVERHEAD + A_TOKEN * tokens


def most_tokens(
  cfg: ModelConfig,
  conditions: int = 2,
  jacobian: bool = False,
  carriers: bool = False,
) -> int:
  """The longest text whose page cannot exceed `LIMIT`, 0 for none."""
  # From 0 to a text that is too long, halving what is between.
  low, high = 0, 1 << 20
  while high - low > 1:
    middle = (low + high) // 2
    if page_bytes(cfg, middle, conditions, jacobian, carriers) <= LIMIT:
      low = middle
    else:
      high = middle
  return low


def require_room(
  cfg: ModelConfig,
  tokens: int,
  conditions: int = 2,
  jacobian: bool = False,
  carriers: bool = False,
) -> None:
  """Raises ValueError for a text whose page could exceed `LIMIT`."""
  most = most_tokens(cfg, conditions, jacobian, carriers)
  if tokens > most:
    more = ", or leave out the edit" if conditions > 1 else ""
    raise ValueError(
      f"{tokens} tokens of {cfg.n_layers} layers x {cfg.n_heads} heads do not "
      f"fit a page of {LIMIT / 1e6:g} MB: take at most {most}{more}"
    )


def render(
  seen: Exploration,
  texts: Sequence[str],
  *,
  title: str,
  subtitle: str = "",
  notes: Sequence[str] = (),
  command: str = "",
  details: Mapping[str, Any] | None = None,
  carriers: Mapping[str, Any] | None = None,
  live: str | None = None,
) -> Page:
  """The page of what was measured.

  Args:
    seen: the measurement.
    texts: of each token.
    title: heading and window title.
    subtitle: one line below it.
    notes: what the reader must know, a line each.
    command: what makes the page again.
    details: versions, device and the like, by name.
    carriers: who carries the Jacobian from one token to another, shown for a
      pair that is chosen on its map, in the layer that is open: "rows", the R
      target tokens, and "conditions", for each a mapping from a carrier's name
      to its share, [L, R, T], or [L, H, R, T] of heads.
    live: the text, for a page that is served and may ask for other numbers.
  """
  data = {
    "title": title,
    "subtitle": subtitle,
    "notes": list(notes),
    "command": command,
    "details": [
      [name, value if isinstance(value, str) else json.dumps(value)]
      for name, value in artifacts.plain(details or {}).items()
    ],
    "text": live,
    "carriers": None if carriers is None else _carriers(carriers),
    **numbers(seen, texts),
  }
  page = _template().render(
    title=title,
    style=_read("page.css"),
    script="\n".join(map(_read, [*SCRIPTS, *([] if live is None else [LIVE])])),
    data=for_script(as_json(data)),
    live=live is not None,
  )
  page = printable(page)
  if len(page.encode()) > LIMIT:  # `require_room` does not count carriers
    raise ValueError(
      f"the page has {len(page.encode()) / 1e6:.1f} MB, more than "
      f"{LIMIT / 1e6:g}: take fewer tokens, or fewer rows of carriers"
    )
  return Page(page)


def numbers(seen: Exploration, texts: Sequence[str]) -> dict[str, Any]:
  """What the page holds of a measurement; arguments as `render`."""
  return {
    "tokens": [
      {"id": token, "text": text}
      for token, text in zip(seen.ids, texts, strict=True)
    ],
    "conditions": [_condition(one) for one in seen.conditions],
  }


def as_json(data: Mapping[str, Any]) -> str:
  """Strict JSON."""
  return json.dumps(artifacts.plain(data), ensure_ascii=False, allow_nan=False)


def _condition(one: Condition) -> dict[str, Any]:
  layers, heads, length, _ = one.pattern.shape
  rows = np.tril_indices(length)
  arrays = {
    "pattern": packed(one.pattern[:, :, *rows], np.float16),
    "values": packed(one.value_norms, np.float16),
    "outputs": packed(one.output_norms, np.float16),
    "scores": packed(one.sink_scores(), np.float32),
    "shares": packed(one.output_shares(), np.float32),
  }
  if one.jacobian is not None:
    arrays["jacobian"] = packed(one.jacobian[:, *rows], np.float32)
  sinks = None if one.sinks is None else [s._asdict() for s in one.sinks]
  return {
    "name": one.name,
    "loss": one.loss,
    "layers": layers,
    "heads": heads,
    "sinks": sinks,
    "arrays": arrays,
  }


def _carriers(carriers: Mapping[str, Any]) -> dict[str, Any]:
  """The same with an array [carriers, L, R, T] for each condition."""
  names, arrays = [], []
  for one in carriers["conditions"]:
    found = {}
    for name, shares in one.items():
      shares = np.asarray(shares)
      if shares.ndim == 3:
        found[name] = shares
        continue
      for head in range(shares.shape[1]):
        found[f"head {head}, {name}"] = shares[:, head]
    names = list(found)
    arrays.append(packed(np.stack(list(found.values())), np.float16))
  rows = [int(row) for row in carriers["rows"]]
  return {"names": names, "rows": rows, "conditions": arrays}


def _read(name: str) -> str:
  return (FOLDER / name).read_text("utf-8")


@lru_cache(maxsize=1)
def _template() -> Any:
  import jinja2

  environment = jinja2.Environment(
    autoescape=True,
    undefined=jinja2.StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
  )
  return environment.from_string(_read("page.html.j2"))
