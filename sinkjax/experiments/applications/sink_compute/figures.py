"""Figures and sections of the experiment `sink_compute`."""

import numpy as np

from sinkjax.experiments.applications.sink_compute import (
  skipped_blocks as blocks,
)
from sinkjax.experiments.applications.sink_compute.timing import (
  EINSUM,
  FUSED,
  KNOWN,
  LOOP,
  PROVEN,
  ROWS,
  SCORED,
)
from sinkjax.experiments.harness.stats import student
from sinkjax.report import html
from sinkjax.report.figures import (
  FIRST,
  INK,
  MUTED,
  REST,
  color_bar,
  drawing,
  heat_map,
  png,
  ticks,
)

SHADES = ("#b9d3e8", "#6fa8d0", "#2f6f9f", "#15548f", "#0a2a52")
TIMES = {
  EINSUM: (MUTED, "-"),
  FUSED: (INK, "-"),
  ROWS: (INK, "--"),
  LOOP: (REST, "--"),
  KNOWN: (REST, "-"),
  SCORED: (MUTED, "--"),
  PROVEN: (FIRST, "-"),
}


def draw(result) -> dict[str, bytes]:
  """Every figure, by file name."""
  numbers = result.numbers
  return {
    "shares.png": _shares(result.tables["shares.csv"][1], numbers),
    "slack.png": _slack(result.tables["slack.csv"], numbers),
    "layers.png": _layers(result.arrays, numbers),
    "time.png": _time(result.tables["time.csv"][1], numbers),
  }


def _looks(numbers) -> dict[str, tuple[str, str]]:
  """Colour and style of each way."""
  bits = {
    blocks.bits_name(x): (SHADES[i % len(SHADES)], "-")
    for i, x in enumerate(sorted(numbers["bits"]))
  }
  best = blocks.bits_name(numbers["best"])
  return {
    blocks.ORACLE: (INK, "-"),
    blocks.ORACLE + blocks.NO_SINK: (INK, ":"),
    blocks.SCORES: (MUTED, "--"),
    **bits,
    best + blocks.NO_SINK: (bits[best][0], ":"),
    blocks.SUMMARIES: (FIRST, "-"),
    blocks.ROWS_KNOWN: ("#b58900", "--"),
    blocks.ROWS_BOUND: ("#b58900", "-"),
  }


def _shares(rows, numbers) -> bytes:
  lengths = numbers["lengths"]
  with drawing(3 * len(lengths) + 1.9, 3.6) as figure:
    axes = figure.subplots(1, len(lengths), sharey=True, squeeze=False)[0]
    for ax, length in zip(axes, lengths, strict=True):
      for name, (color, style) in _looks(numbers).items():
        found = [x for x in rows if x[0] == length and x[2] == name]
        at, value, low, high = (
          np.array([x[i] for x in found]) for i in (3, 4, 5, 6)
        )
        ax.plot(
          at,
          100 * value,
          color=color,
          ls=style,
          marker="o",
          ms=3,
          lw=1.6,
          label=name,
        )
        ax.fill_between(
          at, 100 * low, 100 * high, color=color, alpha=0.12, lw=0
        )
      ax.set(
        xscale="log", xlabel="weight a query may lose", title=f"{length} tokens"
      )
      ax.grid(axis="y")
    axes[0].set_ylabel("blocks left out, %")
    figure.legend(
      *axes[0].get_legend_handles_labels(),
      loc="outside right upper",
      frameon=False,
      fontsize=8,
    )
    return png(figure)


def _slack(table, numbers) -> bytes:
  """Share left out against how far off the bound is."""
  header, rows = table
  names = {blocks.slack_name(x) for x in numbers["slacks"]} | {blocks.SCORES}
  measured = [x for x in rows if x[0] not in names]
  with drawing(6.6, 3.8) as figure:
    ax = figure.add_subplot()
    for i, at in enumerate(numbers["tolerances"]):
      column = header.index(f"share_at_{at:g}")
      curve = sorted((x[1], 100 * x[column]) for x in rows if x[0] in names)
      color = SHADES[::-1][i % len(SHADES)]
      ax.plot(
        *zip(*curve, strict=True),
        color=color,
        lw=1.6,
        marker=".",
        label=f"{at:g}",
      )
      ax.plot(
        [x[1] for x in measured],
        [100 * x[column] for x in measured],
        "D",
        color=color,
        ms=5,
      )
    top = ax.get_ylim()[1]
    for row in measured:
      ax.axvline(row[1], color=MUTED, ls=":", lw=1)
      ax.text(
        row[1],
        top,
        f" {row[0]}",
        fontsize=8,
        color=MUTED,
        rotation=90,
        va="top",
        ha="right",
      )
    ax.set_xscale("symlog", linthresh=0.1, linscale=0.5)
    ax.xaxis.set_major_formatter("{x:g}")
    ax.set(
      xlabel="upper bound above the logarithm of a block's weight, nats",
      ylabel="blocks left out, %",
      ylim=(-0.02 * top, top),
    )
    ax.set_xlim(-0.02, None)
    ax.legend(
      frameon=False,
      fontsize=8,
      title="weight a query may lose",
      title_fontsize=8,
      loc="center right",
    )
    ax.grid(axis="y")
    return png(figure)


def _layers(arrays, numbers) -> bytes:
  share = arrays[f"share, {numbers['length']}"]  # [P, way, L, H, E]
  share = 100 * share[..., list(numbers["tolerances"]).index(numbers["at"])]
  looks = _looks(numbers)
  with drawing(9, 3.9) as figure:
    left, right = figure.subplots(1, 2, width_ratios=(1.5, 1))
    for name in (
      blocks.ORACLE,
      blocks.ORACLE + blocks.NO_SINK,
      blocks.bits_name(numbers["best"]),
      blocks.bits_name(numbers["best"]) + blocks.NO_SINK,
      blocks.SUMMARIES,
    ):
      by_text = share[:, numbers["ways"].index(name)].mean(axis=-1)
      mean, half = student(by_text.T)
      color, style = looks[name]
      x = np.arange(len(mean))
      left.plot(x, mean, color=color, ls=style, lw=1.6, label=name)
      left.fill_between(
        x, mean - half, mean + half, color=color, alpha=0.12, lw=0
      )
    left.set(
      xlabel="layer", ylabel="blocks left out, %", xticks=ticks(len(mean))
    )
    left.set_ylim(-2, 1.35 * max(10, share.mean(axis=(0, 3)).max()))
    left.grid(axis="y")
    left.legend(frameon=False, fontsize=8, ncols=2, loc="upper left")
    values = share[:, numbers["ways"].index(blocks.ORACLE)].mean(axis=0)
    image = heat_map(right, values, vmin=0, vmax=100)
    right.set(xlabel="head", ylabel="layer", title="oracle")
    color_bar(image, right, "blocks left out, %")
    return png(figure)


def _time(rows, numbers) -> bytes:
  layers = list(dict.fromkeys(numbers["layers_timed"]))
  with drawing(3.2 * len(layers) + 2.2, 3.6) as figure:
    axes = figure.subplots(1, len(layers), sharey=True, squeeze=False)[0]
    for ax, layer in zip(axes, layers, strict=True):
      mine = [x for x in rows if x[0] == layer]
      for name, (color, style) in TIMES.items():
        some = [(x[1], 1000 * x[4]) for x in mine if x[3] == name]
        ax.plot(
          *zip(*some, strict=True),
          color=color,
          ls=style,
          marker="o",
          ms=3.5,
          lw=1.6,
          label=name,
        )
      out = {x[1]: 100 * x[2] for x in mine if x[3] == KNOWN}
      ax.set(
        xscale="log",
        yscale="log",
        xlabel="tokens",
        title=f"layer {layer}: {min(out.values()):.0f} to "
        f"{max(out.values()):.0f} % known",
      )
      ax.set_xticks(list(out), [f"{x}" for x in out])
      ax.minorticks_off()
      ax.grid(axis="y")
    axes[0].set_ylabel("ms")
    figure.legend(
      *axes[0].get_legend_handles_labels(),
      loc="outside right upper",
      frameon=False,
      fontsize=8,
    )
    return png(figure)


def sections(result, drawn: dict[str, bytes]) -> list[html.Section]:
  """The experiment's part of the report."""
  numbers = result.numbers

  def table(name):
    return html.Table(*result.tables[name])

  texts = ", ".join(
    f"{count} of {length}"
    for length, count in zip(numbers["lengths"], numbers["counts"], strict=True)
  )
  return [
    html.Section(
      result.title,
      body=(
        f"Texts by tokens: {texts}. A share is of all pairs of a block of "
        f"{numbers['block']} queries and one of as many keys that these may "
        "see, over layers and heads. The first key is read apart; but for the "
        f"oracle, a query's own block and the {numbers['window']} before it "
        "always are. Blocks are left out from the lightest on, by the query "
        "that minds most, until one does not fit.\n\nOracle: the same rule "
        "with the pattern known; another choice could leave out more. Scores: "
        "the same, but for what is always read. Bits: bounds from keys kept in "
        "a few bits. Summaries: bounds from each block's centre, radius and "
        "ranges. Whole rows: blocks of queries that read the first value "
        "alone. No sink: the same queries and keys, the first key out of the "
        "softmax."
      ),
      figure=drawn["shares.png"],
      caption="Bands: 95 % over texts.",
      table=table("shares.csv"),
    ),
    html.Section(
      "How tight must a bound be?",
      body=(
        "Lines: scores taken to be known within so much, up and down. "
        "Diamonds: measured ways, by how far their upper bound is off; how "
        "far the lower one is can differ. "
        f"{numbers['length']} tokens."
      ),
      figure=drawn["slack.png"],
      caption="Mean over texts, layers, heads and blocks.",
      table=table("slack.csv"),
    ),
    html.Section(
      "By layer and head",
      figure=drawn["layers.png"],
      caption=(
        f"A query may lose {numbers['at']:g}; {numbers['length']} tokens. "
        "Bands: 95 % over texts."
      ),
      table=table("layers.csv"),
    ),
    html.Section(
      "What it costs to leave them out",
      body=(
        "Blocks are left out in all layers at once. Loss: change over that of "
        f"the whole model, {numbers['loss']:.3f} nats a token; KL in nats a "
        "token. Error and bound: of one head's output, over its size, mean "
        "over queries, heads and layers, inputs being equal."
      ),
      table=table("errors.csv"),
    ),
    html.Section(
      "Time",
      body=(
        "One layer's attention on the queries, keys and values of a text. "
        f"The layer of which most can be left out, and the median one; a "
        f"query may lose {numbers['at']:g}.\n\n{EINSUM}: the whole pattern. "
        f"{FUSED}: XLA's own. {ROWS}: ours by blocks of rows, which skips the "
        f"future. {LOOP}: the loop over blocks, with all of them. {KNOWN}: "
        f"with those that the scores keep, found beforehand. {SCORED}: with "
        f"the same, found within the time. {PROVEN}: with those that keys in "
        f"{numbers['best']} bits do not prove away, found within the time; "
        "codes are simulated on float32 keys, so a bound costs what a score "
        "does."
      ),
      figure=drawn["time.png"],
      caption=f"Medians of {numbers['rounds']} interleaved rounds.",
      table=table("time.csv"),
    ),
  ]
