"""A page to explore the attention of one text: every head, one HTML file.

The file needs nothing but itself and a browser of 2024 or later. Arrays are in
it as base64 of deflated bytes, attention in float16; tokens and all other text
are JSON that no token can end, and the page shows them as text alone.
"""

from sinkjax.report.explore.notebook import explore, widget
from sinkjax.report.explore.packing import packed, read, unpacked
from sinkjax.report.explore.page import (
  LIMIT,
  Page,
  most_tokens,
  page_bytes,
  render,
  require_room,
)

__all__ = [
  "LIMIT",
  "Page",
  "explore",
  "most_tokens",
  "packed",
  "page_bytes",
  "read",
  "render",
  "require_room",
  "unpacked",
  "widget",
]
