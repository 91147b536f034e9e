"""Do sinks grow with the context that is trained on? (section 4.1, figure 5).

Models of one size, of contexts of several lengths, with the same tokens a step
and in all. Looked at on texts of one length, the same for all, and of each
one's own.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

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
from sinkjax.report import html
from sinkjax.report.figures import FIRST, INK, MUTED, REST, drawing, png
from sinkjax.train.probe import uniform_mass
from sinkjax.train.run_config import TrainConfig

NAME, TITLE = "context_length", "Do sinks grow with the trained context?"

PAPER = {128: 0.5, 256: 3.5, 512: 26.0, 1024: 37.5, 2048: 39.0}
"""Sink rate in percent by context, read off figure 5a by eye: 120M parameters,
5B tokens. The shape is certain, the digits are not."""


@dataclasses.dataclass(frozen=True)
class Config(TextConfig):
  """What is trained: every context with every seed.

  Attributes:
    contexts: lengths T of a window, of 64 at least. A step has the tokens of
      `batch` windows of `length`, whatever the context.
  """

  contexts: tuple[int, ...] = (64, 128, 256, 512)


SCALES: dict[str, dict[str, Any]] = {
  "demo": {"contexts": (64, 256), "seeds": (0,), "steps": 500},
  "cpu": {},
  "gpu": GPU | {"contexts": (128, 256, 512, 1024, 2048)},
  "paper": text_sweep.PAPER
  | {"contexts": (128, 256, 512, 1024, 2048), "steps": TOKENS_5B},
}
"""Fields of `Config` by --scale."""


def variants(config: Config) -> dict[str, TrainConfig]:
  """The run of each context, by its name.

  Raises:
    ValueError: for a context below 64, or one that does not divide a step.
  """
  tokens = config.batch * config.length
  for length in config.contexts:
    if length < 64 or tokens % length:
      raise ValueError(
        f"a context must be 64 at least and divide the {tokens} tokens of a "
        f"step, got {length}"
      )
  return {
    str(length): text_run(
      config,
      packing={"length": length},
      batch=tokens // length,
      accumulate=min(config.accumulate, tokens // length),
    )
    for length in config.contexts
  }


def plan(config: Config) -> list[str]:
  """What will be trained, in words."""
  return text_sweep.plan(variants(config), config.seeds)


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
    ValueError: as `jobs.run_jobs` and `variants`.

  Cost: a run of the cpu scale takes 3 minutes on two cores.
  """
  sweep = text_sweep.run_sweep(
    config, variants(config), folder=folder, progress=progress
  )
  return text_sweep.sweep_result(
    NAME,
    TITLE,
    sweep,
    claims(config, sweep),
    paper={(str(n), "bos"): (rate, None) for n, rate in PAPER.items()},
    contexts=list(config.contexts),
  )


def claims(config: Config, sweep: Sweep) -> list[Claim]:
  """Slopes of a seed's models over log2 of the context."""
  if len(sweep.seeds) < 2 or len(config.contexts) < 2:
    return []
  where = "section 4.1, figure 5"
  doublings = np.log2(np.array(config.contexts, float))

  def last(name):
    """[S, contexts]"""
    rows = [sweep.trained(str(n))[name] for n in config.contexts]
    return np.stack(rows, axis=1)

  def slope(values):
    """[S] the least-squares slope by doubling."""
    off = doublings - doublings.mean()
    return values @ off / (off @ off)

  def ends(values, form=".3f"):
    return f"{values[:, 0].mean():{form}} to {values[:, -1].mean():{form}}"

  low, high = min(config.contexts), max(config.contexts)
  range_ = f"from context {low} to {high}"
  mass, rate = last("first_mass"), 100 * last(sweep.rate)
  loss = last("near_loss")
  own = last("own_first_mass") / np.array(
    [uniform_mass(n) for n in config.contexts]
  )
  percent = "0.5 to 39 % of heads, from 128 to 2048 (read by eye)"
  return [
    compare(
      "Models trained on longer contexts attend more to the first token.",
      where,
      percent,
      slope(mass),
      f"{mean(slope(mass), '.4f')} of attention by doubling; {ends(mass)} "
      f"{range_}, even {sweep.trained(str(low))['uniform_mass'][0]:.3f}",
    ),
    compare(
      f"More of their heads have a sink (eps {sweep.eps:g}).",
      where,
      percent,
      slope(rate),
      f"{mean(slope(rate), '.2f')} points by doubling; {ends(rate, '.1f')} % "
      f"{range_}",
    ),
    compare(
      "So it is at each one's own length, beside even attention there.",
      where,
      "not shown",
      slope(own),
      f"{mean(slope(own), '.2f')} times even attention by doubling; "
      f"{ends(own, '.2f')} times {range_}",
    ),
    compare(
      "It is not that they are better: the loss on the same tokens is no "
      "lower.",
      where,
      "validation losses close to each other",
      slope(loss),
      f"{mean(slope(loss))} nats by doubling, on texts of 64 tokens; "
      f"{ends(loss)} {range_}",
    ),
  ]


def draw(result) -> dict[str, bytes]:
  """Every figure, by file name."""
  names = ("first_mass", "sink_rate", "loss")
  return {
    "context.png": _by_context(result),
    "curves.png": sweep_figures.curves(result, names=names),
  }


def _by_context(result) -> bytes:
  """Attention on the first token, sink rate and loss over the context."""
  numbers = result.numbers
  contexts = numbers["contexts"]
  rows = {
    row["variant"]: row for row in numbers["rows"] if row["form"] == "bos"
  }
  rows = rows or {row["variant"]: row for row in numbers["rows"]}

  def of(name):
    return np.array([rows[str(n)][name] for n in contexts])  # [contexts, S]

  even = of("own_uniform_mass")[:, 0]
  with drawing(11.4, 3.6) as figure:
    mass, rate, loss = figure.subplots(1, 3)
    for values, color, label in (
      (of("first_mass"), FIRST, "64 tokens"),
      (of("own_first_mass"), REST, "own length"),
    ):
      _line(mass, contexts, values, color, label)
    mass.axhline(numbers["uniform_mass"], color=FIRST, lw=0.9, ls=":")
    mass.plot(contexts, even, color=REST, lw=0.9, ls=":")
    mass.set_title("attention on the first token")
    _line(rate, contexts, 100 * of("rate"), FIRST, "ours, 64 tokens")
    rate.plot(
      list(PAPER),
      list(PAPER.values()),
      "o--",
      color=MUTED,
      ms=4,
      lw=1.2,
      label="the paper, 120M, eps 0.3, by eye",
    )
    rate.set_title(f"heads above eps {numbers['eps']:g}, %")
    _line(loss, contexts, of("near_loss"), FIRST, "64 tokens")
    _line(loss, contexts, of("loss"), REST, "own length")
    loss.set_title("held-out loss, nats")
    for ax in (mass, rate, loss):
      ax.set_xscale("log", base=2)
      ticks = sorted({*contexts, *(PAPER if ax is rate else ())})
      ax.set_xticks(ticks, [str(n) for n in ticks])
      ax.minorticks_off()
      ax.set_xlabel("trained context, tokens")
      ax.grid(axis="y")
      ax.legend(frameon=False, fontsize=8)
    return png(figure)


def _line(ax, x, values, color, label):
  ax.plot(x, values.mean(axis=1), "o-", color=color, ms=4, lw=1.6, label=label)
  for i, seeds in enumerate(values):
    ax.plot(np.full(len(seeds), x[i]), seeds, "_", color=INK, ms=6, lw=1)


def sections(result, drawn: dict[str, bytes]) -> list[html.Section]:
  """The experiment's part of the report."""
  panels = [
    ("attention on first, own length", lambda row: row["own_first_mass"]),
    ("even, own length", lambda row: row["own_uniform_mass"]),
    ("loss of 64 tokens", lambda row: row["near_loss"]),
  ]
  return [
    html.Section(
      result.title,
      body=(
        "Every context has the same tokens a step and in all. Looked at on "
        "starts of held-out documents: 64 tokens for all, and as many as each "
        "was trained on. Longer texts spread even attention thinner, so "
        "attention at the own length is to be held against the dotted line."
      ),
      figure=drawn["context.png"],
      caption=(
        "Points are means, dashes the seeds "
        f"({len(result.numbers['seeds'])}). Dotted: even attention, in the "
        "colour of its curve."
      ),
      table=sweep_figures.table(result, panels, paper=True, label="context"),
    ),
    sweep_figures.training_section(
      result,
      drawn,
      "Sinks on texts of 64 tokens; the loss is on held-out windows of each "
      "one's own length.",
    ),
  ]
