"""Figures, tables and page of a training run."""

import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from sinkjax import artifacts
from sinkjax.metrics import registry
from sinkjax.metrics.table import METRICS
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
  sink_map,
)

EPS = ("0.1", "0.3", "0.5", "0.8")
"""Thresholds of the sink rate that are drawn, as the records name them."""

COLORS = (MUTED, FIRST, INK, REST)

Record = Mapping[str, Any]

SECTIONS = {
  "loss.png": ("Loss", "", "Nats a token, in training and on held-out text."),
  "sinks.png": (
    "Sinks",
    "Measured on the starts of held-out documents, the same at every step.",
    "Left: share of heads whose sink score exceeds eps. Right: mean attention "
    "on the first token; the dashed line is that of uniform attention.",
  ),
  "inside.png": (
    "Other metrics",
    "",
    "One panel a metric, measured on the same texts.",
  ),
  "formation.png": (
    "Formation of the sinks",
    "",
    "Sink score of every head over training. Each row is one head; white "
    "lines separate the layers, with the first layer on top.",
  ),
  "sink_map.png": (
    "Sink score of every head",
    "",
    "Sink score by layer and head, at the last step.",
  ),
}
"""(title, text, caption) of each figure's section."""


def write(
  folder: pathlib.Path,
  records: Sequence[Record],
  numbers: Mapping[str, Any],
  meta: Mapping[str, Any],
  *,
  complete: bool = True,
) -> None:
  """Everything but the model; `summary.json` last.

  Args:
    folder: the run's.
    records: of `train.loop.run`.
    numbers: of the whole run.
    meta: command, device, commit, versions, request and corpus.
    complete: False for a run that goes on: no `summary.json` then.
  """
  by_kind = {
    kind: [r for r in records if r["kind"] == kind]
    for kind in ("train", "eval", "probe")
  }
  drawn = {
    "loss.png": _loss(by_kind["train"], by_kind["eval"]),
    "sinks.png": _sinks(by_kind["probe"]),
    "inside.png": _metrics(by_kind["probe"]),
    "formation.png": _formation(by_kind["probe"]),
    "sink_map.png": sink_map(np.array(by_kind["probe"][-1]["alpha"]), 0.3),
  }
  for name, picture in drawn.items():
    artifacts.write_bytes(folder / name, picture)
  for name, table in _tables(by_kind).items():
    artifacts.write_csv(folder / name, *table)
  last = {kind: rows[-1] for kind, rows in by_kind.items()}
  speed = float(np.median([r["tokens_per_second"] for r in by_kind["train"]]))
  data = {
    **numbers,
    "loss": last["eval"]["loss"],
    "probe": last["probe"],
    "tokens_per_second": speed,
    **meta,
  }
  artifacts.write_text(folder / "report.html", _page(data, drawn, meta))
  if complete:
    artifacts.write_json(folder / "summary.json", {**data, "complete": True})


def _tables(
  by_kind: Mapping[str, Sequence[Record]],
) -> dict[str, tuple[list[str], list[list[Any]]]]:
  """(header, rows) of every CSV, by file name."""
  tables = {}
  for kind, rows in by_kind.items():
    header = [
      name
      for name, value in rows[0].items()
      if name != "kind" and not isinstance(value, list)
    ]
    cells = [["" if r.get(n) is None else r[n] for n in header] for r in rows]
    tables[f"{kind}.csv"] = (header, cells)
  scores = [
    [row["step"], *place, score]
    for row in by_kind["probe"]
    for place, score in np.ndenumerate(np.array(row["alpha"]))
  ]
  tables["sinks.csv"] = (["step", "layer", "head", "sink_score"], scores)
  return tables


def _page(
  data: Mapping[str, Any], drawn: Mapping[str, bytes], meta: Mapping[str, Any]
) -> str:
  """The report as HTML."""
  probe, skipped = data["probe"], data["skipped"]
  warnings = []
  if skipped:
    warnings = [f"{skipped} steps had no finite gradient and were left out."]
  return html.render_report(
    title="A training run and its attention sinks",
    subtitle=f"{data['parameters']:,} parameters, {data['tokens']:,} tokens",
    numbers=[
      html.Number("held-out loss", data["loss"], "nats a token"),
      html.Number(
        "sink rate", f"{100 * probe['sink_rate_0.3']:.1f} %", "eps 0.3"
      ),
      html.Number(
        METRICS["alpha"].label, probe["first_mass"], "mean of heads and rows"
      ),
      html.Number("tokens a second", data["tokens_per_second"], meta["device"]),
    ],
    sections=[
      html.Section(title, body, drawn[name], caption)
      for name, (title, body, caption) in SECTIONS.items()
    ],
    warnings=warnings,
    command=meta["command"],
    details={k: v for k, v in meta.items() if k != "command"},
  )


def _xy(rows: Sequence[Record], name: str) -> np.ndarray:
  """[2, n] steps and values, where there is one."""
  known = [(r["step"], r[name]) for r in rows if r.get(name) is not None]
  return np.array(known, float).reshape(-1, 2).T


def _loss(train: Sequence[Record], held: Sequence[Record]) -> bytes:
  with drawing(7, 3.4) as figure:
    ax = figure.add_subplot()
    ax.plot(*_xy(train, "loss"), color=REST, lw=1.2, label="training")
    ax.plot(*_xy(held, "loss"), "o-", color=FIRST, ms=4, label="held out")
    ax.set(xlabel="step", ylabel="nats a token")
    ax.grid(axis="y")
    legend_above(ax, "loss")
    return png(figure)


def _sinks(probe: Sequence[Record]) -> bytes:
  with drawing(8, 3.4) as figure:
    left, right = figure.subplots(1, 2)
    for eps, color in zip(EPS, COLORS, strict=True):
      steps, rates = _xy(probe, f"sink_rate_{eps}")
      left.plot(steps, 100 * rates, color=color, lw=1.8, label=f"eps {eps}")
    left.set(xlabel="step", ylabel="% of heads", ylim=(-2, 102))
    legend_above(left, METRICS["sink_rate"].label)
    right.plot(*_xy(probe, "first_mass"), color=FIRST, lw=1.8, label="measured")
    uniform = probe[-1]["uniform_mass"]
    right.axhline(uniform, color=MUTED, ls="--", lw=1, label="uniform")
    right.set(xlabel="step", ylim=(0, None))
    legend_above(right, METRICS["alpha"].label)
    for ax in (left, right):
      ax.grid(axis="y")
    return png(figure)


def _formation(probe: Sequence[Record]) -> bytes:
  """The sink map over training: a row for every head, a column a probe."""
  alpha = np.array([row["alpha"] for row in probe], float)  # [P, L, H]
  steps, (count, layers, heads) = [row["step"] for row in probe], alpha.shape
  with drawing(7, float(np.clip(1.2 + 0.1 * layers * heads, 2.6, 8))) as figure:
    ax = figure.add_subplot()
    image = heat_map(
      ax, alpha.reshape(count, -1).T, vmin=0, vmax=1, interpolation="nearest"
    )
    for edge in range(1, layers):
      ax.axhline(edge * heads - 0.5, color="white", lw=1.5)
    ax.set_yticks(
      np.arange(layers) * heads + (heads - 1) / 2,
      [str(n) for n in range(layers)],
    )
    at = np.unique(np.linspace(0, count - 1, min(count, 7)).round().astype(int))
    ax.set_xticks(at, [f"{steps[i]:,}" for i in at])
    ax.set(xlabel="step", ylabel="layer")
    color_bar(image, ax, "sink score")
    return png(figure)


def _metrics(probe: Sequence[Record]) -> bytes:
  """A panel for every metric of the probe that no other figure shows."""
  panels = [
    (metric, key)
    for metric in registry.shown_in("probe")
    if metric.measured is not METRICS["alpha"]
    for key, how in metric.probe.items()
    if how != "each" and any(row.get(key) is not None for row in probe)
  ]
  rows = max(1, -(-len(panels) // 2))
  with drawing(8, 2.3 * rows) as figure:
    axes = list(figure.subplots(rows, 2, squeeze=False).flat)
    for ax, (metric, key) in zip(axes, panels, strict=False):
      ax.plot(*_xy(probe, key), color=FIRST, lw=1.8)
      ax.set_title(metric.title, loc="left", fontsize=9)
      ax.grid(axis="y")
      if metric.log:
        ax.set_yscale("log")
      ax.set_xlabel("step")
    for ax in axes[len(panels) :]:
      ax.set_axis_off()
    return png(figure)
