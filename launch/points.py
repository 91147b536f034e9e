"""Points on the residual stream, as flags name them."""

import re


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
  # `int` alone would also take "1_0" and " 1".
  if re.fullmatch(r"-?\d+", layer) is None:
    raise ValueError(
      f"--{flag}={text}: {layer!r} is no layer; write it as resid_mid@3"
    )
  return site, int(layer)
