"""Do sinks grow with the depth and width of a model?

    python -m launch.reproduce --experiment=model_family --scale=cpu --out=DIR

Barbero et al. (2025), section 4.2, table 1, compare three sizes of Llama 3.1.
Here models of several widths and depths are trained alike on the same tokens,
so that nothing but the size differs. Models that others trained stand beside
them; those differ in everything, and no claim is made of them.

The cpu scale (15 runs) took 75 minutes on two CPU cores. Expected verdicts:
all inconclusive, as three seeds are fewer than a verdict needs; `seeds` takes
more.
"""

import collections
import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from sinkjax.experiments.harness import sweep_figures
from sinkjax.experiments.harness.api import Claim, Result
from sinkjax.experiments.harness.effects import SHARE, Expect
from sinkjax.experiments.harness.stats import mean
from sinkjax.experiments.harness.sweep import Sweep, Trained
from sinkjax.experiments.harness.sweep_config import (
  GPU_SCALE,
  PAPER_SCALE,
  TOKENS_5B,
  TextConfig,
  text_run,
)
from sinkjax.experiments.harness.sweep_figures import (
  LOSS,
  MASS,
  RATE,
  Chart,
  Panel,
)
from sinkjax.experiments.shared import sink_rates
from sinkjax.experiments.shared.seed_effects import seed_effect, trend
from sinkjax.models.transformer import param_shapes
from sinkjax.report.figures import FIRST, INK, MUTED, drawing, png
from sinkjax.train.run_config import TrainConfig

TITLE = "Do sinks grow with the model?"
PERCENT = "45.97, 73.49 and 78.29 % of heads at eps 0.8 (8B, 70B, 405B)"

PAPER = {8e9: 45.97, 70e9: 73.49, 405e9: 78.29}
"""Parameters of Llama 3.1: % of heads above eps 0.8, table 1."""

OUTSIDE_EPS = 0.3
"""Threshold of the sink rate of models that others trained: the papers'."""


@dataclasses.dataclass(frozen=True)
class Config(TextConfig):
  """What is trained: every size with every seed.

  Attributes:
    sizes: (layers, width) of each.
    outside: models by name, or paths, that are measured beside them, as the
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
  "gpu": GPU_SCALE
  | {
    "length": 256,
    "batch": 64,
    "steps": 1000,
    "vocab_size": 4096,
    "head_dim": 32,
    "sizes": ((2, 128), (4, 128), (8, 128), (4, 256), (4, 512)),
  },
  "paper": PAPER_SCALE
  | {"steps": TOKENS_5B, "sizes": ((6, 384), (12, 384), (12, 768), (24, 1024))},
}
"""Fields of `Config` by --scale. For Llama 3.1 itself, as in the paper, see
configs/reproduce/llama31.py."""


def variants(config: Config) -> dict[str, TrainConfig]:
  """The run of each size, "LAYERSxWIDTH"."""
  return {
    f"{layers}x{width}": text_run(
      config, model={"n_layers": layers, "d_model": width}
    )
    for layers, width in config.sizes
  }


def parameters(run: TrainConfig) -> int:
  """How many there are outside the embedding."""
  # The embedding grows with the vocabulary and the width, not with the depth.
  shapes = {k: v for k, v in param_shapes(run.model).items() if k != "embed"}
  return sum(int(np.prod(x.shape)) for x in jax.tree.leaves(shapes))


def _numbers(config: Config, trained: Trained) -> dict[str, Any]:
  """Sizes of what was trained, and the sinks of models of others."""
  of_others = sink_rates.SinkRateConfig()
  rows = [sink_rates.measure_named(name, of_others) for name in config.outside]
  return {
    "sizes": [
      {
        "variant": name,
        "layers": run.model.n_layers,
        "width": run.model.d_model,
        "parameters": parameters(run),
      }
      for name, run in variants(config).items()
    ],
    "outside": [
      {
        "model": row["model"],
        "parameters": row["parameters"],
        "layers": row["layers"],
        "mass": float(np.mean(row["alpha"])),
        "rate": row["rates"][OUTSIDE_EPS].value,
      }
      for row in rows
    ],
    "outside_tokens": of_others.tokens,
  }


Size = Mapping[str, Any]
"""An entry of `numbers["sizes"]`."""


def claims(trained: Trained, result: Result) -> list[Claim]:
  """Attention over parameters, depth and width, seed by seed."""
  sizes = result.numbers["sizes"]
  claim = functools.partial(_claim, trained)
  # Depth is compared within models of one width and width within models of one
  # depth, so that neither can stand for the other.
  found = [
    claim(
      "larger_stronger_sinks",
      "Larger models attend more to the first token.",
      PERCENT,
      sizes,
      "parameters",
    ),
    claim(
      "deeper_stronger_sinks",
      "Among models of the same width, deeper ones have stronger sinks.",
      PERCENT,
      _with_others(sizes, "width"),
      "layers",
      same="width",
    ),
    claim(
      "wider_stronger_sinks",
      "Among models of the same depth, wider ones have stronger sinks.",
      "not apart from depth",
      _with_others(sizes, "layers"),
      "width",
      same="layers",
    ),
  ]
  return [one for one in found if one is not None]


def _with_others(sizes: Sequence[Size], key: str) -> list[Size]:
  """Sizes that share their value of `key` with another."""
  counts = collections.Counter(size[key] for size in sizes)
  return [size for size in sizes if counts[size[key]] > 1]


def _claim(
  trained: Trained,
  id: str,
  text: str,
  paper: str,
  sizes: Sequence[Size],
  key: str,
  *,
  same: str | None = None,
) -> Claim | None:
  """That attention on the first token grows with `key`, if that differs.

  Args:
    trained: the models.
    id: of the claim.
    text: the claim.
    paper: what it reports.
    sizes: of the models that are compared.
    key: what should make sinks stronger.
    same: what must be equal for two models to be compared.
  """
  # Without two different sizes there is no slope.
  if len({size[key] for size in sizes}) < 2:
    return None
  sizes = sorted(sizes, key=lambda size: size[key])
  mass, loss = (
    np.stack([trained.as_trained(x["variant"])[name] for x in sizes], axis=1)
    for name in ("first_mass", "loss")
  )
  groups = None if same is None else [size[same] for size in sizes]
  found = trend(mass, [size[key] for size in sizes], groups)
  means = ", ".join(
    f"{size['variant']} {seeds.mean():.3f}"
    for size, seeds in zip(sizes, mass.T, strict=True)
  )
  losses = loss.mean(axis=0)
  how = "a line is fitted over the logarithm of the size for each seed" + (
    "" if same is None else f", with one slope for every number of {same}"
  )
  return Claim(
    id,
    text,
    "section 4.2, table 1",
    paper,
    f"{mean(found.slope, '.4f')} of attention on the first token for each "
    f"doubling: {means}",
    seed_effect(
      found.change,
      f"the change of attention on the first token over {found.doublings:.2g} "
      f"doublings of {key}",
      SHARE,
      Expect.MORE,
    ),
    f"{how}; all models saw the same tokens, and their held-out losses are "
    f"{losses.min():.2f} to {losses.max():.2f} nats, which is not controlled "
    "for",
  )


SHOWN = ((MASS, "mass"), (RATE, "rate"), (LOSS, None))
"""For each panel: what is shown of our models, and its key in `numbers` for the
models of others, `None` where theirs is not comparable."""


def _sizes(result: Result) -> bytes:
  """By parameters: what we measure, and the paper's sink rate of Llama 3.1."""
  numbers = result.numbers
  with drawing(14.2, 3.8) as figure:
    *axes, theirs = figure.subplots(1, 4)
    # Both panels show a share of heads in percent.
    theirs.sharey(axes[1])
    theirs.plot(list(PAPER), list(PAPER.values()), "o--", color=MUTED, ms=5)
    theirs.set_title("Paper: Llama 3.1, heads above 0.8, %")
    for size, rate in PAPER.items():
      _annotate(theirs, f"{size / 1e9:g}B", size, rate, (5, -10), color=MUTED)
    axes[1].sharex(axes[0])
    for ax in figure.axes:
      ax.set_xscale("log")
      # Over less than a decade, Matplotlib also labels minor ticks, which
      # overlap.
      ax.xaxis.set_minor_formatter("")
      # Names beside the outermost points need room.
      ax.margins(x=0.15)
      ax.set_xlabel("parameters")
      ax.grid(axis="y")
    for ax, (panel, key) in zip(axes, SHOWN, strict=True):
      _ours(ax, numbers, panel)
      # The loss of other models is on other tokens, so it is not drawn.
      if key is not None:
        _others(ax, numbers["outside"], key, panel.factor)
      if panel.uniform:
        ax.axhline(numbers["uniform_mass"], color=MUTED, lw=0.9, ls=":")
      ax.set_title(panel.heading(numbers))
    # One legend is enough: the marks mean the same in every panel.
    figure.axes[0].legend(frameon=False, fontsize=8, loc="upper left")
    return png(figure)


def _ours(ax: Any, numbers: Mapping[str, Any], panel: Panel) -> None:
  """A point for each size, a dash for each seed."""
  rows = sweep_figures.as_trained(numbers)
  for i, size in enumerate(numbers["sizes"]):
    values, x = panel.of(rows[size["variant"]], numbers), size["parameters"]
    label = "" if i else "ours, trained alike"
    ax.plot(x, values.mean(), "o", color=FIRST, ms=5, label=label)
    ax.plot(np.full(values.size, x), values, "_", color=INK, ms=7)
    # Two neighbours may have nearly the same value.
    at = (5, -11 if i % 2 else 4)
    _annotate(ax, size["variant"], x, values.mean(), at)


def _others(
  ax: Any, models: Sequence[Mapping[str, Any]], key: str, factor: float
) -> None:
  """A square for each model of others."""
  for i, row in enumerate(models):
    x, y = row["parameters"], factor * row[key]
    # Without its number of parameters a model has no place on this axis.
    if x is None:
      continue
    label = "" if i else "others', not comparable"
    ax.plot(x, y, "s", color=MUTED, ms=5, label=label)
    at = (-6, 3 if i % 2 else -9)
    _annotate(ax, row["model"], x, y, at, color=MUTED, ha="right")


def _annotate(
  ax: Any, text: str, x: float, y: float, at: tuple[float, float], **style: Any
) -> None:
  """Small text beside a point, `at` so many points from it."""
  ax.annotate(
    text, (x, y), fontsize=8, xytext=at, textcoords="offset points", **style
  )


def _body(result: Result) -> str:
  words = (
    "Our models differ in size alone: data, tokens and optimiser are the same. "
    "Their parameters are counted without the embedding. The last panel shows "
    "the paper's table 1, with another threshold and larger models."
  )
  if result.numbers["outside"]:
    words += (
      " The models of others differ in everything, are measured on other texts "
      f"of {result.numbers['outside_tokens']} tokens, and are counted with all "
      "their parameters: they are shown, not compared."
    )
  return words


def _of_size(key: str) -> Callable[[Mapping[str, Any], Mapping[str, Any]], int]:
  """Reads `key` of a row's size."""

  def value(row: Mapping[str, Any], numbers: Mapping[str, Any]) -> int:
    sizes = {size["variant"]: size for size in numbers["sizes"]}
    return sizes[row["variant"]][key]

  return value


COLUMNS = [
  Panel(key, _of_size(key)) for key in ("layers", "width", "parameters")
]

EXPERIMENT = Sweep(
  TITLE,
  Config,
  SCALES,
  variants,
  claims,
  charts=[
    Chart(
      "sizes.png",
      _sizes,
      _body,
      sweep_figures.point_caption,
      functools.partial(sweep_figures.table, columns=COLUMNS, label="size"),
    )
  ],
  numbers=_numbers,
  notes=lambda config: [
    f"measured beside them: {', '.join(config.outside) or 'no other models'}"
  ],
).experiment()
