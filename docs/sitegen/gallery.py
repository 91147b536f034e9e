"""The gallery of models: a row for each file of docs/models."""

import json
import pathlib
from collections.abc import Iterable
from typing import Any

DOCS = pathlib.Path(__file__).parents[1]
HEAD = """# Gallery

Twelve texts of {tokens} tokens, the same for every model; intervals are 95 %
over texts. Sink rate: share of heads whose mean attention on position 0 exceeds
a threshold. Massive: dimensions of the residual stream in which a token is
above 100 and 1,000 times the median. Other sinks: tokens beside the first that
`sinkjax.find_sinks` finds, for each text. Without the sink: position 0 hidden
from the layer that leaves the fewest sinks, in nats more, and in times the
exact mixing of the other tokens of {map_texts} texts of {map_tokens} tokens.

"""
SINKS = (
  "model",
  "layers x heads",
  "position 0",
  "rate > 0.3, 0.5, 0.8, %",
  "> 0.3 with, without BOS",
)
BESIDE = (
  "model",
  "massive, other sinks",
  "loss",
  "without the sink",
  "mixing without it",
)


def rows() -> list[dict[str, Any]]:
  """The recorded rows, the largest models first."""
  files = (DOCS / "models").glob("*.json")
  found = [json.loads(file.read_text("utf-8")) for file in files]
  return sorted(found, key=lambda row: (-row["parameters"], row["name"]))


def page() -> str:
  """Both tables, in Markdown."""
  found = rows()
  head = HEAD.format(
    tokens=found[0]["tokens"],
    map_tokens=found[0]["mixing"]["tokens"],
    map_texts=found[0]["mixing"]["texts"],
  )
  sinks = _table(SINKS, map(_sinks, found))
  return f"{head}{sinks}\n{_table(BESIDE, map(_beside, found))}"


def _table(heads: Iterable[str], cells: Iterable[list[str]]) -> str:
  lines = [list(heads), ["---"] * len(list(heads)), *cells]
  return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def _sinks(row: dict[str, Any]) -> list[str]:
  first, bos = row["first_token"], row["bos"]
  start = "the text's own"
  if first["id"] is not None:
    text = first["text"].replace("|", "\\|")
    start = f"`{text}`" + (" (BOS)" if first["is_bos"] else "")
  rates = [f"{100 * ends[0]:.1f}" for ends in row["sink_rate"].values()]
  low, high = (100 * x for x in next(iter(row["sink_rate"].values()))[1:])
  rates[0] += f" ({low:.1f} to {high:.1f})"
  habit = "no BOS"
  if bos:
    habit = ", ".join(f"{100 * bos[x][0]:.1f}" for x in ("with", "without"))
  return [
    row["name"],
    f"{row['layers']} x {row['heads']}",
    start,
    ", ".join(rates),
    habit,
  ]


def _beside(row: dict[str, Any]) -> list[str]:
  return [
    row["name"],
    f"{len(row['massive_dimensions'])}, "
    f"{row['sinks_elsewhere'] / row['texts']:.1f}",
    f"{row['loss'][0]:.2f}",
    "{:+.2f} ({:+.2f} to {:+.2f})".format(*row["loss_without_sink"]),
    "{:.2f} ({:.2f} to {:.2f})".format(*row["mixing"]["ratio"]),
  ]
