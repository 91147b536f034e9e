"""Points on the residual stream and edits, as flags name them."""

import re
from typing import Any, NamedTuple


def parse_point(flag: str, text: str) -> str | tuple[str, int]:
  """A site, or (site, layer).

  Args:
    flag: its name, for the error.
    text: as "embed" or "resid_mid@3"; negative layers count from the end.

  Raises:
    ValueError: for a layer that is no number.

  >>> parse_point("from", "embed"), parse_point("to", "resid_mid@-1")
  ('embed', ('resid_mid', -1))
  """
  site, at, layer = text.partition("@")
  if not at:
    return site
  if re.fullmatch(r"-?\d+", layer) is None:
    raise ValueError(
      f"--{flag}={text}: {layer!r} is no layer; write it as resid_mid@3"
    )
  return site, int(layer)


class Knockout(NamedTuple):
  """Token `key` hidden from all others, from a layer on."""

  key: int
  from_layer: int

  def edits(self) -> dict[str, Any]:
    """What `sinkjax.intervene` takes."""
    import sinkjax

    return {"scores": sinkjax.knockout(self.key, from_layer=self.from_layer)}

  def check(self, tokens: int, layers: int) -> None:
    """Raises ValueError where text or model is too short for it."""
    for what, value, size in (
      ("tokens", self.key, tokens),
      ("layers", self.from_layer, layers),
    ):
      if value >= size:
        raise ValueError(
          f"--edit=knockout:{self.key}@{self.from_layer}: {value} is not among "
          f"the {size} {what}, which count from 0"
        )


def parse_edit(text: str) -> Knockout | None:
  """The edit of "knockout:KEY@LAYER", `None` for "none".

  Raises:
    ValueError: for anything else.

  >>> parse_edit("knockout:0@2"), parse_edit("none")
  (Knockout(key=0, from_layer=2), None)
  """
  if text == "none":
    return None
  match = re.fullmatch(r"knockout:(\d+)(?:@(\d+))?", text)
  if match is None:
    raise ValueError(
      f"--edit={text}: expected none or knockout:KEY@LAYER, as in knockout:0@2"
    )
  return Knockout(int(match[1]), int(match[2] or 0))
