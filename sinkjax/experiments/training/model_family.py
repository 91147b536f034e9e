"""Do sinks grow with the model? A family of our own (section 4.2, table 1).

Models of several widths and depths, trained alike on the same tokens, so that
nothing but the size differs. Models that others trained stand beside them;
those differ in everything, and no claim is made of them.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from sinkjax.experiments.harness import sweep as text_sweep
from sinkjax.experiments.harness import sweep_figures
from sinkjax.experiments.harness.api import Claim, Result
from sinkjax.experiments.harness.stats import compare, mean
from sinkjax.experiments.harness.sweep import (
  GPU,
  TOKENS_5B,
  Sweep,
  TextConfig,
  text_run,
)
from sinkjax.experiments.shared import sink_rates
from sinkjax.models.transformer import param_shapes
from sinkjax.report import html
from sinkjax.report.figures import FIRST, INK, MUTED, drawing, png
from sinkjax.train.run_config import TrainConfig

NAME, TITLE = "model_family", "Do sinks grow with the model?"
PERCENT = "45.97, 73.49 and 78.29 % of heads at eps 0.8 (8B, 70B, 405B)"

PAPER = {8e9: 45.97, 70e9: 73.49, 405e9: 78.29}
"""Parameters of Llama 3.1: % of heads above eps 0.8, table 1."""


@dataclasses.dataclass(frozen=True)
class Config(TextConfig):
  """What is trained: every size with every seed.

  Attributes:
    sizes: (layers, width) of each.
    outside: models by name, or paths, that are looked at beside them, as the
      experiment `model_size` does.
  """

  sizes: tuple[tuple[int, int], ...] = (
    (2, 64),
    (2, 128),
    (4, 128),
    (8, 128),
    (4, 256),
  )
  outside: tuple[str, ...] = ("smollm2-135m", "glassllm-en", "glassllm-pt")


SCALES: dict[str, dict[str, Any]] = {
  "demo": {"sizes": ((2, 64), (2, 128)), "seeds": (0,), "outside": ()},
  "cpu": {},
  "gpu": GPU
  | {
    "length": 256,
    "batch": 64,
    "steps": 1000,
    "vocab_size": 4096,
    "head_dim": 32,
    "sizes": ((2, 128), (4, 128), (8, 128), (4, 256), (4, 512)),
  },
  "paper": text_sweep.PAPER
  | {"steps": TOKENS_5B, "sizes": ((6, 384), (12, 384), (12, 768), (24, 1024))},
}
"""Fields of `Config` by --scale; the paper itself takes Llama 3.1 as it is, for
which see configs/reproduce/llama31.py."""


def name_of(layers: int, width: int) -> str:
  """The variant's name."""
  return f"{layers}x{width}"


def variants(config: Config) -> dict[str, TrainConfig]:
  """The run of each size."""
  return {
    name_of(layers, width): text_run(
      config, model={"n_layers": layers, "d_model": width}
    )
    for layers, width in config.sizes
  }


def parameters(run: TrainConfig) -> int:
  """How many there are outside the embedding."""
  shapes = {k: v for k, v in param_shapes(run.model).items() if k != "embed"}
  return sum(int(np.prod(x.shape)) for x in jax.tree.leaves(shapes))


def plan(config: Config) -> list[str]:
  """What will be trained, in words."""
  lines = text_sweep.plan(variants(config), config.seeds)
  return lines + [f"beside them: {', '.join(config.outside) or 'no others'}"]


def run(
  config: Config,
  *,
  folder: Any,
  progress: Callable[[int, int], Any] = lambda done, total: None,
) -> Result:
  """Trains what is left of the sweep, and says what came of it.

  Args:
    config: the sweep.
    folder: where runs are kept.
    progress: called with (steps done, steps in all).

  Raises:
    ValueError: as `jobs.run_jobs`; for an outside model that is not there.

  Cost: the runs of the cpu scale take 1 to 6 minutes on two cores.
  """
  runs = variants(config)
  sweep = text_sweep.run_sweep(config, runs, folder=folder, progress=progress)
  others = [
    sink_rates.measure_named(name, sink_rates.SinkRateConfig())
    for name in config.outside
  ]
  return text_sweep.sweep_result(
    NAME,
    TITLE,
    sweep,
    claims(config, sweep),
    sizes=[
      {
        "variant": name,
        "layers": run.model.n_layers,
        "width": run.model.d_model,
        "parameters": parameters(run),
      }
      for name, run in runs.items()
    ],
    outside=[
      {
        "model": row["model"],
        "parameters": row["parameters"],
        "layers": row["layers"],
        "mass": float(np.mean(row["alpha"])),
        "rate": row["rates"][0.3].value,
      }
      for row in others
    ],
    outside_tokens=sink_rates.SinkRateConfig().tokens,
  )


def claims(config: Config, sweep: Sweep) -> list[Claim]:
  """Slopes of a seed's models over log2 of size, of depth and of width."""
  if len(sweep.seeds) < 2:
    return []
  runs = variants(config)

  def slopes(sizes, size_of):
    """[S] slope of attention on the first token by doubling."""
    x = np.log2([size_of(*size) for size in sizes])
    y = np.stack(
      [sweep.trained(name_of(*size))["first_mass"] for size in sizes], axis=1
    )
    off = x - x.mean()
    return y, y @ off / (off @ off)

  found = []

  def claim(text, paper, sizes, size_of):
    if len({size_of(*size) for size in sizes}) < 2:
      return
    sizes = sorted(sizes, key=lambda size: size_of(*size))
    y, slope = slopes(sizes, size_of)
    of = ", ".join(
      f"{name_of(*size)} {row.mean():.3f}"
      for size, row in zip(sizes, y.T, strict=True)
    )
    found.append(
      compare(
        text,
        "section 4.2, table 1",
        paper,
        slope,
        f"{mean(slope, '.4f')} of attention on the first token by doubling: "
        f"{of}",
      )
    )

  claim(
    "Larger models attend more to the first token.",
    PERCENT,
    config.sizes,
    lambda layers, width: parameters(runs[name_of(layers, width)]),
  )
  for i, (what, paper) in enumerate(
    (("Deeper", PERCENT), ("Wider", "not apart from depth"))
  ):
    groups: dict[int, list[tuple[int, int]]] = {}
    for size in config.sizes:
      groups.setdefault(size[1 - i], []).append(size)
    same = max(groups.values(), key=len)
    if len(same) > 1:
      other = f"width {same[0][1]}" if i == 0 else f"{same[0][0]} layers"
      claim(
        f"{what} models of one {'width' if i == 0 else 'depth'} do ({other}).",
        paper,
        same,
        lambda layers, width, i=i: (layers, width)[i],
      )
  return found


def draw(result) -> dict[str, bytes]:
  """Every figure, by file name."""
  names = ("first_mass", "sink_rate", "loss")
  return {
    "sizes.png": _sizes(result),
    "curves.png": sweep_figures.curves(result, names=names),
  }


def _sizes(result) -> bytes:
  """By parameters: attention on the first token, sink rate, loss; the paper's
  sink rate of Llama 3.1."""
  numbers = result.numbers
  rows = sweep_figures.as_trained(numbers)
  panels = (
    ("attention on the first token", "first_mass", 1, "mass"),
    (f"heads above eps {numbers['eps']:g}, %", "rate", 100, "rate"),
    ("held-out loss, nats", "loss", 1, None),
  )
  with drawing(14.2, 3.8) as figure:
    *axes, theirs = figure.subplots(1, 4)
    theirs.sharey(axes[1])
    theirs.plot(list(PAPER), list(PAPER.values()), "o--", color=MUTED, ms=5)
    theirs.set_title("the paper: Llama 3.1, heads above eps 0.8, %")
    for size, rate in PAPER.items():
      theirs.annotate(
        f"{size / 1e9:g}B",
        (size, rate),
        fontsize=8,
        color=MUTED,
        xytext=(5, -10),
        textcoords="offset points",
      )
    axes[1].sharex(axes[0])
    for ax in figure.axes:
      ax.set_xscale("log")
      ax.xaxis.set_minor_formatter("")
      ax.margins(x=0.15)
      ax.set_xlabel("parameters")
      ax.grid(axis="y")
    for ax, (title, key, factor, outside) in zip(axes, panels, strict=True):
      for i, size in enumerate(numbers["sizes"]):
        values = factor * np.asarray(rows[size["variant"]][key])
        x = size["parameters"]
        ax.plot(
          x,
          values.mean(),
          "o",
          color=FIRST,
          ms=5,
          label="" if i else "ours, trained alike",
        )
        ax.plot(np.full(values.size, x), values, "_", color=INK, ms=7)
        ax.annotate(
          size["variant"],
          (x, values.mean()),
          fontsize=8,
          xytext=(5, -11 if i % 2 else 4),
          textcoords="offset points",
        )
      for i, row in enumerate(numbers["outside"] if outside else []):
        if row["parameters"] is None:
          continue
        ax.plot(
          row["parameters"],
          factor * row[outside],
          "s",
          color=MUTED,
          ms=5,
          label="" if i else "others', uncontrolled",
        )
        ax.annotate(
          row["model"],
          (row["parameters"], factor * row[outside]),
          fontsize=8,
          color=MUTED,
          ha="right",
          xytext=(-6, 3 if i % 2 else -9),  # two may be at one place
          textcoords="offset points",
        )
      if key == "first_mass":
        ax.axhline(numbers["uniform_mass"], color=MUTED, lw=0.9, ls=":")
      ax.set_title(title)
    figure.axes[0].legend(frameon=False, fontsize=8, loc="upper left")
    return png(figure)


def sections(result, drawn: dict[str, bytes]) -> list[html.Section]:
  """The experiment's part of the report."""
  numbers = result.numbers
  sizes = {size["variant"]: size for size in numbers["sizes"]}
  panels = [
    ("layers", lambda row: sizes[row["variant"]]["layers"]),
    ("width", lambda row: sizes[row["variant"]]["width"]),
    ("parameters", lambda row: sizes[row["variant"]]["parameters"]),
  ]
  body = (
    "Our models differ in size alone: data, tokens and optimiser are the same. "
    "Parameters are counted without the embedding. The last panel is of the "
    "paper's table 1: another threshold, larger models."
  )
  if numbers["outside"]:
    body += (
      " The models of others differ in everything, are looked at on other "
      f"texts, of {numbers['outside_tokens']} tokens, and count all their "
      "parameters: they are shown, not compared."
    )
  return [
    html.Section(
      result.title,
      body=body,
      figure=drawn["sizes.png"],
      caption=(
        f"Points are means, dashes the seeds ({len(numbers['seeds'])}). "
        f"Dotted: even attention, {numbers['uniform_mass']:.3f}."
      ),
      table=sweep_figures.table(result, panels, label="size"),
    ),
    sweep_figures.training_section(result, drawn),
  ]
