"""Figures and sections of the experiment `sink_compute`."""

from collections.abc import Mapping
from typing import Any

from sinkjax.experiments.applications.sink_compute.config import (
  NO_SINK,
  ORACLE,
  ROWS_BOUND,
  ROWS_KNOWN,
  SCORES,
  SUMMARIES,
  bits_name,
  slack_name,
)
from sinkjax.experiments.applications.sink_compute.timing import (
  EINSUM,
  FUSED,
  KNOWN,
  LOOP,
  ONLINE,
  PROVEN,
  ROWS,
  SCORED,
)
from sinkjax.experiments.harness.api import Result
from sinkjax.experiments.shared.interval_plots import band, ends_in, ends_over
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

TITLE = "Attention that can be skipped"
SHADES = ("#b9d3e8", "#6fa8d0", "#2f6f9f", "#15548f", "#0a2a52")
OCHRE = "#b58900"
TIMES = {
  EINSUM: (MUTED, "-"),
  FUSED: (INK, "-"),
  ROWS: (INK, "--"),
  ONLINE: (INK, "--"),
  LOOP: (REST, "--"),
  KNOWN: (REST, "-"),
  SCORED: (MUTED, "--"),
  PROVEN: (FIRST, "-"),
}


def draw(result: Result) -> dict[str, bytes]:
  """Every figure, by file name."""
  return {
    "shares.png": _shares(result),
    "slack.png": _slack(result),
    "layers.png": _layers(result),
    "time.png": _time(result),
  }


def _looks(numbers: Mapping[str, Any]) -> dict[str, tuple[str, str]]:
  """Colour and style of each way."""
  bits = {
    bits_name(x): (SHADES[i % len(SHADES)], "-")
    for i, x in enumerate(sorted(numbers["bits"]))
  }
  best = bits_name(numbers["best"])
  return {
    ORACLE: (INK, "-"),
    ORACLE + NO_SINK: (INK, ":"),
    SCORES: (MUTED, "--"),
    **bits,
    best + NO_SINK: (bits[best][0], ":"),
    SUMMARIES: (FIRST, "-"),
    ROWS_KNOWN: (OCHRE, "--"),
    ROWS_BOUND: (OCHRE, "-"),
  }


def _legend_beside(figure: Any, ax: Any) -> None:
  figure.legend(
    *ax.get_legend_handles_labels(),
    loc="outside right upper",
    frameon=False,
    fontsize=8,
  )


def _shares(result: Result) -> bytes:
  """Shares over the tolerance, a panel for each length."""
  numbers, rows = result.numbers, result.records("shares.csv")
  lengths = numbers["lengths"]
  with drawing(3 * len(lengths) + 1.9, 3.6) as figure:
    axes = figure.subplots(1, len(lengths), sharey=True, squeeze=False)[0]
    for ax, length in zip(axes, lengths, strict=True):
      for name, (color, style) in _looks(numbers).items():
        mine = [x for x in rows if (x["tokens"], x["way"]) == (length, name)]
        at = [x["tolerance"] for x in mine]
        ends = 100 * ends_in(mine, ("share", "low", "high"))
        look = {"color": color, "ls": style, "label": name}
        band(ax, at, ends, marker="o", ms=3, **look)
      ax.set(xscale="log", xlabel="weight a query may lose")
      ax.set_title(f"{length} tokens")
      ax.grid(axis="y")
    axes[0].set_ylabel("blocks skipped, %")
    _legend_beside(figure, axes[0])
    return png(figure)


def _slack(result: Result) -> bytes:
  """Share skipped against how far off the bound is."""
  numbers, rows = result.numbers, result.records("slack.csv")
  assumed = {slack_name(x) for x in numbers["slacks"]} | {SCORES}
  measured = [x for x in rows if x["way"] not in assumed]
  with drawing(6.6, 3.8) as figure:
    ax = figure.add_subplot()
    for i, at in enumerate(numbers["tolerances"]):
      column, color = f"share_at_{at:g}", SHADES[::-1][i % len(SHADES)]
      curve = [x for x in rows if x["way"] in assumed]
      curve = sorted((x["nats_off"], 100 * x[column]) for x in curve)
      look = {"color": color, "label": f"{at:g}", "lw": 1.6}
      ax.plot(*zip(*curve, strict=True), marker=".", **look)
      points = [(x["nats_off"], 100 * x[column]) for x in measured]
      ax.plot(*zip(*points, strict=True), "D", color=color, ms=5)
    # Taken before the labels are drawn, which would widen the axis.
    top = ax.get_ylim()[1]
    for row in measured:
      ax.axvline(row["nats_off"], color=MUTED, ls=":", lw=1)
      look = {"fontsize": 8, "color": MUTED, "rotation": 90}
      at = row["nats_off"], top
      ax.text(*at, f" {row['way']}", va="top", ha="right", **look)
    # All scores are off by 0 and summaries by more than ten nats.
    ax.set_xscale("symlog", linthresh=0.1, linscale=0.5)
    ax.xaxis.set_major_formatter("{x:g}")
    ax.set_xlabel("upper bound above the logarithm of a block's weight, nats")
    ax.set(ylabel="blocks skipped, %", ylim=(-0.02 * top, top))
    ax.set_xlim(-0.02, None)
    title = {"title": "weight a query may lose", "title_fontsize": 8}
    ax.legend(frameon=False, fontsize=8, loc="center right", **title)
    ax.grid(axis="y")
    return png(figure)


def _layers(result: Result) -> bytes:
  """Shares by layer for some ways, and by head with the pattern known."""
  numbers = result.numbers
  share = result.arrays[f"share, {numbers['length']}"]  # [P, way, L, H, E]
  share = 100 * share[..., numbers["tolerances"].index(numbers["at"])]
  looks, best = _looks(numbers), bits_name(numbers["best"])
  with drawing(9, 3.9) as figure:
    left, right = figure.subplots(1, 2, width_ratios=(1.5, 1))
    for name in (ORACLE, ORACLE + NO_SINK, best, best + NO_SINK, SUMMARIES):
      by_text = share[:, numbers["ways"].index(name)].mean(axis=-1)
      ends, (color, style) = ends_over(by_text.T), looks[name]
      band(left, range(ends.shape[1]), ends, color=color, ls=style, label=name)
    left.set(xlabel="layer", ylabel="blocks skipped, %")
    left.set_xticks(ticks(share.shape[2]))
    left.set_ylim(-2, 1.35 * max(10, share.mean(axis=(0, 3)).max()))
    left.grid(axis="y")
    left.legend(frameon=False, fontsize=8, ncols=2, loc="upper left")
    values = share[:, numbers["ways"].index(ORACLE)].mean(axis=0)
    image = heat_map(right, values, vmin=0, vmax=100)
    right.set(xlabel="head", ylabel="layer", title=ORACLE)
    color_bar(image, right, "blocks skipped, %")
    return png(figure)


def _time(result: Result) -> bytes:
  """Times over length, a panel for each layer."""
  rows = result.records("time.csv")
  layers = list(dict.fromkeys(result.numbers["layers_timed"]))
  with drawing(3.2 * len(layers) + 2.2, 3.6) as figure:
    axes = figure.subplots(1, len(layers), sharey=True, squeeze=False)[0]
    for ax, layer in zip(axes, layers, strict=True):
      mine = [x for x in rows if x["layer"] == layer]
      for name, (color, style) in TIMES.items():
        some = [x for x in mine if x["way"] == name]
        if not some:  # `ROWS` and `ONLINE` are never in one file
          continue
        points = [(x["tokens"], 1000 * x["median_seconds"]) for x in some]
        look = {"color": color, "ls": style, "label": name, "lw": 1.6}
        ax.plot(*zip(*points, strict=True), marker="o", ms=3.5, **look)
      known = [x for x in mine if x["way"] == KNOWN]
      out = [100 * x["left_out"] for x in known]
      ax.set(xscale="log", yscale="log", xlabel="tokens")
      ax.set_title(f"layer {layer}: {min(out):.0f} to {max(out):.0f} % known")
      at = [x["tokens"] for x in known]
      ax.set_xticks(at, map(str, at))
      ax.minorticks_off()
      ax.grid(axis="y")
    axes[0].set_ylabel("milliseconds")
    _legend_beside(figure, axes[0])
    return png(figure)


def sections(result: Result, drawn: Mapping[str, bytes]) -> list[html.Section]:
  """The experiment's part of the report."""
  numbers = result.numbers

  def table(name: str) -> html.Table:
    return html.Table(*result.tables[name])

  return [
    html.Section(
      TITLE,
      body=_about_shares(numbers),
      figure=drawn["shares.png"],
      caption="Share of block pairs skipped. Bands: 95 % intervals over texts.",
      table=table("shares.csv"),
    ),
    html.Section(
      "How tight must a bound be?",
      body=(
        "Lines: all scores assumed to be known to within so many nats. "
        "Diamonds: measured ways, placed by how far their upper bound is off; "
        f"their lower bound can be off by more or less. {numbers['length']} "
        "tokens."
      ),
      figure=drawn["slack.png"],
      caption="Means over texts, layers, heads and blocks.",
      table=table("slack.csv"),
    ),
    html.Section(
      "By layer and head",
      figure=drawn["layers.png"],
      caption=(
        f"A query may lose {numbers['at']:g} of its weight; "
        f"{numbers['length']} tokens. Bands: 95 % intervals over texts."
      ),
      table=table("layers.csv"),
    ),
    html.Section(
      "The cost of skipping",
      body=(
        'Blocks are skipped in all layers at once. "loss_change" is relative '
        f"to the loss of the whole model, {numbers['loss']:.3f} nats a token; "
        'KL divergence in nats a token. "error" and "bound" are of one '
        "head's output, over its norm, with the layer's input unchanged; means "
        "over queries, heads and layers."
      ),
      table=table("errors.csv"),
    ),
    html.Section(
      "Time",
      body=_about_time(numbers),
      figure=drawn["time.png"],
      caption=f"Medians of {numbers['rounds']} interleaved rounds.",
      table=table("time.csv"),
    ),
  ]


def _about_shares(numbers: Mapping[str, Any]) -> str:
  texts = ", ".join(
    f"{count} of {length}"
    for length, count in zip(numbers["lengths"], numbers["counts"], strict=True)
  )
  return (
    f"Texts by tokens: {texts}. A share is of all pairs of a block of "
    f"{numbers['block']} queries and one of as many keys that these may see, "
    "over layers and heads. The first key is always read; so are, but for the "
    f"oracle, a query's own block and the {numbers['window']} before it. "
    "Blocks are skipped in the order of their weight, the smallest first, "
    "until one query would lose more than it may.\n\noracle: the same rule "
    "with the pattern known, although another choice could skip more. scores: "
    "the same from all scores. bits: bounds from keys stored in a few bits. "
    "summaries: bounds from each block's centre, radius and ranges. whole "
    "rows: blocks of queries that read the first value alone. no sink: the "
    "same queries and keys, the first key taken out of the softmax."
  )


def _about_time(numbers: Mapping[str, Any]) -> str:
  return (
    "One layer's attention on the queries, keys and values of a text, in the "
    "layer in which most can be skipped and in the median one; a query may "
    f"lose {numbers['at']:g} of its weight.\n\n{EINSUM}: the whole pattern. "
    f"{FUSED}: XLA's own. {ONLINE}, {ROWS} where recorded earlier: ours, "
    f"which skips the future. {LOOP}: the loop over blocks, with all of "
    f"them. {KNOWN}: with the blocks that the scores keep, found beforehand. "
    f"{SCORED}: with the same blocks, found within the time. {PROVEN}: with "
    f"the blocks that keys in {numbers['best']} bits cannot prove skippable, "
    "found within the time; codes are simulated on float32 keys, so a bound "
    "costs what a score does."
  )
