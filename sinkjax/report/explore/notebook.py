"""The page in a notebook: measured by one call, a widget where there are some.

The widget's front end is the page itself in a frame: each tells the other its
address, so that what is shown there is a trait here.
"""

import functools
import importlib.util
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from sinkjax.analysis import exploration
from sinkjax.analysis.exploration import EDIT
from sinkjax.report.explore.page import (
  FOLDER,
  HEIGHT,
  NEEDED,
  Page,
  render,
  require_room,
)
from sinkjax.transforms.residual import taken_apart

FRONT_END = FOLDER / "widget.js"

PART = re.compile(
  r"(map|view|sort)=[a-z]+|values=1|token=\d+|(head|pair)=\d+\.\d+"
)
"""One of those that an address of the page is made of."""


def explore(
  fn: Callable,
  params: Any,
  tokens: Sequence[int],
  *,
  tokenizer: Any = None,
  edits: Mapping[str, Any] | None = None,
  edit: str = EDIT,
  jacobian: bool = False,
  title: str = "Attention of a text",
  progress: Callable[[int, int], Any] = lambda done, total: None,
) -> Any:
  """A page with every head on one text, as it is and edited.

  Args:
    fn: `forward(cfg)`, or an `intervene` of it.
    params: its parameters.
    tokens: one text [T], of at least two tokens.
    tokenizer: of the model, for the tokens' text; without it they are ids.
    edits: of `intervene`. By default token 0 is hidden in every layer; with
      `{}` nothing is compared.
    edit: the edit's name.
    jacobian: also the exact Jacobian's norms after every layer, which takes
      minutes for a model of 135M parameters.
    title: of the page.
    progress: of the Jacobian, called with (steps done, steps in all).

  Returns:
    A `Page`: `.html`, `.save(path)`, and in a notebook the page itself. Where
    anywidget is installed, the same as a widget, with what is shown as its
    `view`: see `widget`.

  Raises:
    TypeError: for a function that is none of ours.
    ValueError: for a text that does not fit `LIMIT`, naming the longest; or as
      `forward` and `jacobian_norms`.

  >>> import jax, sinkjax
  >>> params = sinkjax.init_params(sinkjax.TINY, jax.random.key(0))
  >>> f = sinkjax.forward(sinkjax.TINY)
  >>> explore(f, params, range(20), edits={}).html[:15]
  '<!DOCTYPE html>'
  """
  cfg, _ = taken_apart(fn)
  functions = exploration.conditions(fn, edits, edit)
  require_room(cfg, len(tokens), len(functions), jacobian)
  maps = None
  if jacobian:
    maps = {
      name: exploration.jacobian(one, params, tokens, progress=progress)
      for name, one in functions.items()
    }
  seen = exploration.measure(functions, params, tokens, jacobians=maps)
  texts = [str(t) for t in seen.ids]
  if tokenizer is not None:
    texts = [tokenizer.token(t) for t in seen.ids]
  page = render(seen, texts, title=title)
  return widget(page) if importlib.util.find_spec("anywidget") else page


def widget(page: Page) -> Any:
  """A page as a widget of a notebook, by anywidget.

  Its trait `view` is the address of what is shown, as in
  "head=20.4&view=difference" (without "#"). It changes with every choice in the
  page, `observe` tells of it, and the page follows what is assigned; the page
  answers with what of it there is to be seen. `head` (layer, head), `token` and
  `pair` (t, s) are its parts, `None` where nothing is chosen, and can be
  assigned, too. `html` and `save` are the page's.

  Raises:
    ImportError: without anywidget.
  """
  return _widget_class()(html=page.html)


@functools.cache
def _widget_class() -> type:
  """Made where it is asked for: anywidget is optional."""
  try:
    import anywidget
    import traitlets
  except ImportError:
    raise ImportError(NEEDED) from None

  class PageWidget(anywidget.AnyWidget):
    """See `widget`."""

    _esm = FRONT_END.read_text("utf-8")
    html = traitlets.Unicode().tag(sync=True)
    view = traitlets.Unicode("").tag(sync=True)
    height = traitlets.Int(HEIGHT).tag(sync=True)

    @traitlets.validate("view")
    def _check(self, proposal: Any) -> str:
      return address(proposal["value"])

    head = property(
      lambda self: _numbers(self.view, "head"),
      lambda self, value: _assign(self, "head", value),
      doc="(layer, head) that is open.",
    )
    pair = property(
      lambda self: _numbers(self.view, "pair"),
      lambda self, value: _assign(self, "pair", value),
      doc="(t, s) that is chosen on the map.",
    )
    token = property(
      lambda self: (_numbers(self.view, "token") or (None,))[0],
      lambda self, value: _assign(
        self, "token", None if value is None else (value,)
      ),
      doc="The token that is chosen in the text.",
    )

    def save(self, path: str | Path) -> Path:
      """Writes the page."""
      return Page(self.html).save(path)

    def _repr_mimebundle_(self, **kwargs: Any) -> Any:
      """The widget, and the page alone for what shows no widgets."""
      found = super()._repr_mimebundle_(**kwargs)
      if found is not None:
        found[0]["text/html"] = Page(self.html)._repr_html_()
      return found

  return PageWidget


def address(view: str) -> str:
  """A view of a page as it is written, without a "#" before it.

  Raises:
    ValueError: for what is none.

  >>> address("#head=20.4&token=3")
  'head=20.4&token=3'
  """
  view = view.removeprefix("#")
  wrong = [x for x in view.split("&") if x and not PART.fullmatch(x)]
  if wrong:
    raise ValueError(
      f"{wrong[0]!r} is no part of a view; a view is the address of the page "
      "behind #, as in 'head=20.4&view=difference&token=3&pair=5.3', whose "
      "parts are map, head, view, sort, values, token and pair"
    )
  return view


def _numbers(view: str, name: str) -> tuple[int, ...] | None:
  """The numbers of a part of a view, `None` where it is not there."""
  found = re.search(rf"(?:^|&){name}=([\d.]+)", view)
  return tuple(map(int, found[1].split("."))) if found else None


def _assign(shown: Any, name: str, value: Sequence[int] | None) -> None:
  """Puts a part of a widget's view in the place of what was there."""
  parts = [
    part for part in shown.view.split("&") if not part.startswith(f"{name}=")
  ]
  if value is not None:
    parts.append(f"{name}={'.'.join(str(int(x)) for x in value)}")
  shown.view = "&".join(filter(None, parts))
