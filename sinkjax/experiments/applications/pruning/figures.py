"""Figures and sections of the experiment `pruning`."""

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
  legend_above,
  png,
)

LOOKS = {
  "beside_sink": ("read beside the sink", FIRST, "-"),
  "beside_norm": ("the same as a norm", FIRST, ":"),
  "off_sink": ("mass off the sink", FIRST, "--"),
  "output": ("output over the residual", INK, "-"),
  "output_norm": ("output norm", INK, ":"),
  "dormant": ("dormant", REST, "-"),
  "weights": ("weights", MUTED, "--"),
  "random": ("random", MUTED, "-"),
}
SKIPS = {
  "sink's part kept": (FIRST, "-"),
  "sink alone": (REST, "-"),
  "foretold": (INK, "-"),
  "random queries": (MUTED, "--"),
  "random queries, sink alone": (MUTED, ":"),
}

UNITS = {
  "beside_sink": "of its layer's values",
  "output": "of the residual",
  "dormant": "of its layer's mean",
}


def draw(result) -> dict[str, bytes]:
  """Every figure, by file name."""
  return {
    "removal.png": _removal(result.arrays),
    "queries.png": _queries(result.arrays),
    "heads.png": _heads(result.arrays),
    "time.png": _time(result.tables["time.csv"][1]),
  }


def _line(ax, x, loss, label, color, style) -> None:
  """Mean loss increase in per cent and its interval, over texts."""
  mean, half = student(100 * loss)
  ax.plot(100 * x, mean, color=color, ls=style, lw=1.8, label=label)
  ax.fill_between(
    100 * x, mean - half, mean + half, color=color, alpha=0.12, lw=0
  )


def _scale(ax) -> None:
  """Linear up to one per cent, then by decades."""
  ax.set_yscale("symlog", linthresh=1, linscale=1)
  ax.axhline(1, color=MUTED, ls=":", lw=1)
  ax.yaxis.set_major_formatter("{x:g}")
  ax.grid(axis="y")


def _removal(arrays) -> bytes:
  with drawing(10, 3.8) as figure:
    axes = figure.subplots(1, 2, sharey=True)
    for ax, how in zip(axes, ("zero", "mean"), strict=True):
      for name, (label, color, style) in LOOKS.items():
        loss = arrays[f"loss, {name}, {how}"]
        _line(ax, arrays["shares"], loss, label, color, style)
      _scale(ax)
      ax.set(xlabel="heads removed, %", title=f"output set to {how}")
    axes[0].set_ylabel("loss increase, %")
    figure.legend(
      *axes[0].get_legend_handles_labels(),
      loc="outside right upper",
      frameon=False,
      fontsize=8,
    )
    return png(figure)


def _queries(arrays) -> bytes:
  with drawing(7, 3.8) as figure:
    ax = figure.add_subplot()
    for kind, (color, style) in SKIPS.items():
      x = arrays[f"skipped, {kind}"].mean(axis=1)
      _line(ax, x, arrays[f"loss, {kind}"], kind, color, style)
      ax.plot(
        100 * x,
        100 * arrays[f"loss, {kind}"].mean(axis=1),
        "o",
        color=color,
        ms=4,
      )
    _scale(ax)
    ax.set(xlabel="(head, query) pairs skipped, %", ylabel="loss increase, %")
    legend_above(ax, "")
    return png(figure)


def _heads(arrays) -> bytes:
  with drawing(9.6, 4.2) as figure:
    for ax, name in zip(figure.subplots(1, 3), UNITS, strict=True):
      values = arrays[f"score, {name}"]
      image = heat_map(ax, values, vmin=0)
      ax.set(title=LOOKS[name][0], xlabel="head", ylabel="layer")
      color_bar(image, ax, UNITS[name])
    return png(figure)


def _time(rows) -> bytes:
  rows = [row for row in rows if row[3] is not None]
  with drawing(7, 0.5 * len(rows) + 1.2) as figure:
    ax = figure.add_subplot()
    for i, row in enumerate(rows):
      value, low, high = (100 * x for x in row[3:6])
      ax.errorbar(
        value, i, xerr=[[value - low], [high - value]], fmt="o", color=FIRST
      )
    ax.set_yticks(
      range(len(rows)), [f"{row[0]} ({row[1]:.0%} left)" for row in rows]
    )
    ax.axvline(0, color=MUTED, lw=1)
    ax.set(xlabel="time saved, %", ylim=(len(rows) - 0.5, -0.5))
    ax.grid(axis="x")
    return png(figure)


def sections(result, drawn: dict[str, bytes]) -> list[html.Section]:
  """The experiment's part of the report."""
  numbers = result.numbers

  def table(name):
    return html.Table(*result.tables[name])

  return [
    html.Section(
      result.title,
      body=(
        f"{numbers['texts_that_rank']} texts rank {numbers['heads']} heads, "
        f"the loss is that of {numbers['texts']} others, of "
        f"{numbers['tokens']} tokens. Whole model: "
        f"{numbers['loss']['value']:.3f} nats a token."
      ),
      figure=drawn["removal.png"],
      caption=(
        "Those that do least are removed first. Bands: 95 % over texts. "
        "Dotted line across: +1 %. By plain norms, layers with a small "
        "residual stream come first, whatever they do."
      ),
      table=table("removal.csv"),
    ),
    html.Section(
      "Heads skipped where they rest",
      body=(
        "A head is skipped at queries that give the first token more than a "
        "threshold; then the sink's part of its output is kept, or its "
        "weight set to 1. Foretold: from the first key's score alone. At "
        "random: as many as where the sink's part is kept, and as many as "
        "foretold."
      ),
      figure=drawn["queries.png"],
      caption="A dot for each threshold. Bands: 95 % over texts.",
      table=table("queries.csv"),
    ),
    html.Section(
      "Time",
      body=(
        "Forward passes of models really without these heads, in interleaved "
        "rounds. A config has equal layers; unrolled, each layer is as small "
        "as it can be, against the whole model unrolled."
      ),
      figure=drawn["time.png"],
      caption="95 % intervals over rounds.",
      table=table("time.csv"),
    ),
    html.Section(
      "What each head does",
      figure=drawn["heads.png"],
      caption="Light heads do little.",
      table=table("heads.csv"),
    ),
  ]
