"""Figures, tables and page of a training run."""

import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from sinkjax import artifacts
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
COLORS = (MUTED, FIRST, INK, REST)


def write(
  folder: pathlib.Path,
  records: Sequence[Mapping[str, Any]],
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
    "inside.png": _inside(by_kind["probe"]),
    "formation.png": _formation(by_kind["probe"]),
    "sink_map.png": sink_map(np.array(by_kind["probe"][-1]["alpha"]), 0.3),
  }
  for name, picture in drawn.items():
    artifacts.write_bytes(folder / name, picture)
  for kind, rows in by_kind.items():
    header = [
      name
      for name, value in rows[0].items()
      if name != "kind" and not isinstance(value, list)
    ]
    artifacts.write_csv(
      folder / f"{kind}.csv",
      header,
      [["" if r.get(n) is None else r[n] for n in header] for r in rows],
    )
  artifacts.write_csv(
    folder / "sinks.csv",
    ["step", "layer", "head", "sink_score"],
    [
      [row["step"], *place, score]
      for row in by_kind["probe"]
      for place, score in np.ndenumerate(np.array(row["alpha"]))
    ],
  )
  last = {kind: rows[-1] for kind, rows in by_kind.items()}
  speed = float(np.median([r["tokens_per_second"] for r in by_kind["train"]]))
  data = {
    **numbers,
    "loss": last["eval"]["loss"],
    "probe": last["probe"],
    "tokens_per_second": speed,
    **meta,
  }
  page = html.render_report(
    title="A training run, and its sinks",
    subtitle=f"{numbers['parameters']:,} parameters, {numbers['tokens']:,} "
    f"tokens",
    numbers=[
      html.Number("held-out loss", last["eval"]["loss"], "nats a token"),
      html.Number(
        "sink rate", f"{100 * last['probe']['sink_rate_0.3']:.1f} %", "eps 0.3"
      ),
      html.Number(
        "attention on the first token",
        last["probe"]["first_mass"],
        "mean of heads and rows",
      ),
      html.Number("tokens a second", speed, meta["device"]),
    ],
    sections=[
      html.Section(
        "Loss",
        figure=drawn["loss.png"],
        caption="Nats a token, in training and on held-out text.",
      ),
      html.Section(
        "Sinks",
        body="On the starts of held-out documents, which are always the same.",
        figure=drawn["sinks.png"],
        caption="Left: heads whose sink score exceeds eps. Right: the score "
        "itself; dashed, what uniform attention would give.",
      ),
      html.Section(
        "Inside",
        figure=drawn["inside.png"],
        caption="Evenness of attention rows; the first value's norm over the "
        "others'; the largest activation over the median one; effective rank.",
      ),
      html.Section(
        "How they form",
        figure=drawn["formation.png"],
        caption="Sink score of every head over training; lines part layers, "
        "the first is on top. A row's shade is one head.",
      ),
      html.Section(
        "Where the sinks are",
        figure=drawn["sink_map.png"],
        caption="Sink score by layer and head, at the last step.",
      ),
    ],
    warnings=[
      f"{numbers['skipped']} steps had no finite gradient and were left out."
    ]
    if numbers["skipped"]
    else [],
    command=meta["command"],
    details={k: v for k, v in meta.items() if k != "command"},
  )
  artifacts.write_text(folder / "report.html", page)
  if complete:
    artifacts.write_json(folder / "summary.json", {**data, "complete": True})


def _xy(rows, name: str):
  known = [(r["step"], r[name]) for r in rows if r.get(name) is not None]
  return np.array(known, float).reshape(-1, 2).T


def _loss(train, held) -> bytes:
  with drawing(7, 3.4) as figure:
    ax = figure.add_subplot()
    ax.plot(*_xy(train, "loss"), color=REST, lw=1.2, label="training")
    ax.plot(*_xy(held, "loss"), "o-", color=FIRST, ms=4, label="held out")
    ax.set(xlabel="step", ylabel="nats a token")
    ax.grid(axis="y")
    legend_above(ax, "loss")
    return png(figure)


def _sinks(probe) -> bytes:
  with drawing(8, 3.4) as figure:
    left, right = figure.subplots(1, 2)
    for eps, color in zip(EPS, COLORS, strict=True):
      steps, rates = _xy(probe, f"sink_rate_{eps}")
      left.plot(steps, 100 * rates, color=color, lw=1.8, label=f"eps {eps}")
    left.set(xlabel="step", ylabel="% of heads", ylim=(-2, 102))
    legend_above(left, "sink rate")
    right.plot(*_xy(probe, "first_mass"), color=FIRST, lw=1.8, label="measured")
    uniform = probe[-1]["uniform_mass"]
    right.axhline(uniform, color=MUTED, ls="--", lw=1, label="uniform")
    right.set(xlabel="step", ylim=(0, None))
    legend_above(right, "attention on the first token")
    for ax in (left, right):
      ax.grid(axis="y")
    return png(figure)


def _formation(probe) -> bytes:
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


def _inside(probe) -> bytes:
  shown = {
    "entropy_share": "evenness of rows",
    "value_ratio": "first value's norm",
    "massive_ratio": "largest activation",
    "effective_rank": "effective rank",
  }
  with drawing(8, 4.6) as figure:
    for ax, (name, title) in zip(
      figure.subplots(2, 2).flat, shown.items(), strict=True
    ):
      ax.plot(*_xy(probe, name), color=FIRST, lw=1.8)
      ax.set_title(title, loc="left", fontsize=9)
      ax.grid(axis="y")
      if name == "massive_ratio":
        ax.set_yscale("log")
      ax.set_xlabel("step")
    return png(figure)
