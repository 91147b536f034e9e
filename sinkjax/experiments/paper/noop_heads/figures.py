"""Figures and sections of the experiment `noop_heads`."""

import numpy as np

from sinkjax.experiments.paper.noop_heads.experiment import BROADCAST, NOP
from sinkjax.report import html
from sinkjax.report.figures import (
  FIRST,
  MUTED,
  REST,
  drawing,
  heat_map,
  png,
  token_labels,
)


def draw(result) -> dict[str, bytes]:
  """Every figure, by file name."""
  drawn = {}
  for i, one in enumerate(result.numbers["drawn"]):
    pattern, value = (result.arrays[f"{x} {i}"] for x in ("pattern", "value"))
    drawn[f"head-{one['layer']}-{one['head']}.png"] = _head(one, pattern, value)
  drawn["kinds.png"] = _kinds(result.arrays)
  return drawn


def _head(one, pattern: np.ndarray, value: np.ndarray) -> bytes:
  """Attention beside the norms of the values, as the paper draws its head."""
  labels = token_labels(one["tokens"])
  with drawing(8.4, 3.9) as figure:
    left, right = figure.subplots(1, 2, width_ratios=(3, 2))
    shown = np.where(np.tri(*pattern.shape, 1, dtype=bool), pattern, np.nan)
    image = heat_map(left, shown, vmin=0, vmax=1)
    left.axvline(0.5, color=FIRST, lw=1)
    left.set_xticks(range(len(labels)), labels, rotation=90, parse_math=False)
    left.set_yticks(range(len(labels) - 1), labels[1:], parse_math=False)
    left.set(title=f"attention of layer {one['layer']}, head {one['head']}")
    figure.colorbar(image, ax=left)
    colors = [FIRST] + [REST] * (len(labels) - 1)
    right.barh(range(len(labels)), value, color=colors, height=0.75)
    right.set_yticks(range(len(labels)), labels, parse_math=False)
    right.set(ylim=(len(labels) - 0.5, -0.5), title="norm of each value")
    right.grid(axis="x")
    return png(figure)


def _kinds(arrays) -> bytes:
  """Every head: the sink's value against the rank of what the head writes."""
  ratio, share = arrays["value_ratio"].ravel(), arrays["sink"].ravel()
  rank = arrays["stable_rank"].ravel()
  with drawing(6.4, 3.6) as figure:
    ax = figure.add_subplot()
    order = np.argsort(share)
    image = ax.scatter(
      ratio[order],
      rank[order],
      c=100 * share[order],
      cmap="Blues",
      s=16,
      vmin=0,
      vmax=100,
      edgecolors=MUTED,
      linewidths=0.3,
    )
    for at in (NOP, BROADCAST):
      ax.axvline(at, color=MUTED, ls=":", lw=1.2)
    ax.set(
      xlabel="norm of the first value over the mean of the others",
      ylabel="stable rank of what the head writes",
      xlim=(0, None),
      title="heads; left of the lines no-op, right of them broadcast",
    )
    figure.colorbar(image, ax=ax, label="texts with a sink, %")
    return png(figure)


def sections(result, drawn: dict[str, bytes]) -> list[html.Section]:
  """The experiment's part of the report."""
  numbers = result.numbers
  header, rows = result.tables["heads.csv"]
  conditions = numbers["conditions"]
  low, high = conditions["resting"]
  found = [
    html.Section(
      result.title,
      body=(
        f"{numbers['texts']} texts of {numbers['tokens']} tokens. A query "
        "rests where more than half of its attention is on the first token. "
        f"Shown are heads of which {low:.0%} to {high:.0%} of the queries "
        f"rest, which then write at most {conditions['output']:g} of the norm "
        "that they write when they act, and whose mass on the first token is "
        "foretold by a trigger: by this token, the one before it, or the "
        "position. Half of the texts give the means, a quarter chooses the "
        "heads and the trigger "
        f"(AUROC at least {conditions['auroc']:g}), a quarter is kept back "
        "and gives every number here."
      ),
      table=html.Table(header, rows),
    )
  ]
  for one in numbers["drawn"]:
    name = f"{one['layer']}.{one['head']}"
    listed = html.Table(
      ["token or position", "mass foretold", "seen"],
      [
        [word["value"], word["mass"], word["times"]]
        for word in numbers["words"][name]
      ],
    )
    texts = dict(zip([f"{r[0]}.{r[1]}" for r in rows], rows, strict=True))
    found.append(
      html.Section(
        f"Layer {one['layer']}, head {one['head']}: by {one['trigger']}",
        body=f"Most by {texts[name][3]}.",
        figure=drawn[f"head-{one['layer']}-{one['head']}.png"],
        caption=(
          "A text of our own. Left: rows are queries; the first column is the "
          f"first token, the others start at position {one['start']}. Right: "
          "the values that it reads."
        ),
        table=listed,
      )
    )
  kinds = result.tables["kinds.csv"]
  found.append(
    html.Section(
      "No-op and broadcast sinks",
      figure=drawn["kinds.png"],
      caption="Means over texts; dark heads have a sink in every text.",
      table=html.Table(*kinds),
    )
  )
  return found
