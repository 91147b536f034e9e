"""Do sinks grow with the context that models are trained on?

    python -m launch.reproduce --experiment=context_length --scale=cpu --out=DIR

Barbero et al. (2025), section 4.1, figure 5: models of one size are trained on
windows of several lengths, with equal tokens in a step and in total. Sinks are
measured on texts of one length, the same for all models, and on texts of each
model's own length.

The cpu scale (12 runs) took 46 minutes on two CPU cores, the gpu scale (15
runs) 21 minutes on an H200. Expected verdicts: at cpu scale two undecided, one
disagrees (the trend at each model's own length) and one agrees (longer-context
models are no better); at gpu scale two undecided and two agree (the sink rate
grows, too).
"""

import dataclasses
import functools
from typing import Any

import numpy as np

from sinkjax.experiments.harness import sweep_figures
from sinkjax.experiments.harness.api import Claim, Result
from sinkjax.experiments.harness.stats import compare, mean
from sinkjax.experiments.harness.sweep import Sweep, Trained, slope_by_doubling
from sinkjax.experiments.harness.sweep_config import (
  GPU_SCALE,
  PAPER_SCALE,
  SHORTEST,
  TOKENS_5B,
  TextConfig,
  text_run,
)
from sinkjax.experiments.harness.sweep_figures import Chart, Panel, seed_points
from sinkjax.report.figures import FIRST, MUTED, REST, drawing, png
from sinkjax.train.run_config import TrainConfig

TITLE = "Do sinks grow with the trained context length?"

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
  "gpu": GPU_SCALE | {"contexts": (128, 256, 512, 1024, 2048)},
  "paper": PAPER_SCALE
  | {"contexts": (128, 256, 512, 1024, 2048), "steps": TOKENS_5B},
}
"""Fields of `Config` by --scale."""


def variants(config: Config) -> dict[str, TrainConfig]:
  """The run of each context, by its length.

  Raises:
    ValueError: for a context below 64, or one that does not divide a step.
  """
  tokens = config.batch * config.length
  for length in config.contexts:
    if length < SHORTEST or tokens % length:
      raise ValueError(
        f"a context must be {SHORTEST} at least and divide the {tokens} tokens "
        f"of a step, got {length}"
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


def claims(trained: Trained, result: Result) -> list[Claim]:
  """Slopes over log2 of the context, one for the models of each seed."""
  contexts = result.config.contexts
  if len(contexts) < 2:
    return []

  def final(name: str) -> np.ndarray:
    """[S, contexts]"""
    rows = [trained.as_trained(str(length))[name] for length in contexts]
    return np.stack(rows, axis=1)

  def ends(values: np.ndarray, form: str = ".3f") -> str:
    return f"{values[:, 0].mean():{form}} to {values[:, -1].mean():{form}}"

  mass, rate, loss = map(final, ("first_mass", trained.rate, "near_loss"))
  own = final("own_first_mass") / final("own_uniform_mass")
  by_mass, by_rate, by_own, by_loss = (
    slope_by_doubling(values, contexts)
    for values in (mass, 100 * rate, own, loss)
  )
  where = "section 4.1, figure 5"
  paper = "0.5 to 39 % of heads from context 128 to 2048 (read by eye)"
  range_ = f"from context {min(contexts)} to {max(contexts)}"
  more_heads = compare(
    "longer_context_more_heads",
    "Models trained on longer contexts have more heads with a sink.",
    where,
    paper,
    by_rate,
    f"{mean(by_rate, '.2f')} percentage points for each doubling of the "
    f"context; {ends(100 * rate, '.1f')} % {range_}",
  )
  threshold = f"a head has a sink if its sink score is above {trained.eps:g}"
  return [
    compare(
      "longer_context_more_attention",
      "Models trained on longer contexts attend more to the first token.",
      where,
      paper,
      by_mass,
      f"{mean(by_mass, '.4f')} of attention for each doubling of the context; "
      f"{ends(mass)} {range_}, uniform attention {trained.uniform:.3f}",
    ),
    dataclasses.replace(more_heads, why=f"{more_heads.why}; {threshold}"),
    compare(
      "trend_at_own_length",
      "When each model reads texts of its trained length, its attention on "
      "the first token relative to uniform attention grows with that length.",
      where,
      "not shown",
      by_own,
      f"{mean(by_own, '.2f')} times uniform attention for each doubling of the "
      f"context; {ends(own, '.2f')} times {range_}",
    ),
    compare(
      "longer_context_no_better",
      "Models trained on longer contexts predict the same tokens no better.",
      where,
      "validation losses close to each other",
      by_loss,
      f"{mean(by_loss)} nats for each doubling of the context, on texts of "
      f"{SHORTEST} tokens; {ends(loss)} {range_}",
    ),
  ]


def _by_context(result: Result) -> bytes:
  """Attention on the first token, sink rate and loss over the context."""
  numbers = result.numbers
  contexts = numbers["contexts"]
  rows = sweep_figures.as_trained(numbers)

  def of(name: str) -> np.ndarray:
    """[contexts, S]"""
    return np.array([rows[str(length)][name] for length in contexts])

  near, own = f"{SHORTEST} tokens", "trained length"
  with drawing(11.4, 3.6) as figure:
    mass, rate, loss = figure.subplots(1, 3)
    seed_points(mass, contexts, of("first_mass"), color=FIRST, label=near)
    seed_points(mass, contexts, of("own_first_mass"), color=REST, label=own)
    mass.axhline(numbers["uniform_mass"], color=FIRST, lw=0.9, ls=":")
    uniform = of("own_uniform_mass")[:, 0]
    mass.plot(contexts, uniform, color=REST, lw=0.9, ls=":")
    mass.set_title("Attention on the first token")
    seed_points(rate, contexts, 100 * of("rate"), color=FIRST, label="ours")
    theirs = "paper: 120M parameters, eps 0.3"
    style = {"color": MUTED, "ms": 4, "lw": 1.2}
    rate.plot(list(PAPER), list(PAPER.values()), "o--", label=theirs, **style)
    rate.set_title(f"Heads with sink score above {numbers['eps']:g}, %")
    seed_points(loss, contexts, of("near_loss"), color=FIRST, label=near)
    seed_points(loss, contexts, of("loss"), color=REST, label=own)
    loss.set_title("Held-out loss, nats")
    for ax in (mass, rate, loss):
      ax.set_xscale("log", base=2)
      ticks = sorted({*contexts, *(PAPER if ax is rate else ())})
      ax.set_xticks(ticks, [str(length) for length in ticks])
      ax.minorticks_off()
      ax.set_xlabel("trained context length, tokens")
      ax.grid(axis="y")
      ax.legend(frameon=False, fontsize=8)
    return png(figure)


def _caption(result: Result) -> str:
  return (
    f"{sweep_figures.seeds_caption(result, 'Points', 'dashes')} Dotted lines: "
    "uniform attention, in the colour of the curve. The paper's sink rates are "
    "read off its figure by eye."
  )


COLUMNS = (
  Panel("attention on the first token, own length", "own_first_mass"),
  Panel("uniform attention, own length", "own_uniform_mass"),
  Panel(f"loss on {SHORTEST} tokens", "near_loss"),
)

EXPERIMENT = Sweep(
  TITLE,
  Config,
  SCALES,
  variants,
  claims,
  charts=[
    Chart(
      "context.png",
      _by_context,
      "All contexts have equal tokens in a step and in total. Models are "
      "measured on the starts of held-out documents: on 64 tokens, the same "
      "for all models, and on as many tokens as the model was trained on. "
      "Uniform attention falls with the length of a text, so attention at the "
      "model's own length is to be compared with the dotted line.",
      _caption,
      functools.partial(
        sweep_figures.table, columns=COLUMNS, paper=True, label="context"
      ),
    )
  ],
  curves_body="Sinks are measured on texts of 64 tokens, the loss on held-out "
  "windows of each model's own length.",
  paper={(str(n), "bos"): (rate, None) for n, rate in PAPER.items()},
  numbers=lambda config, trained: {"contexts": list(config.contexts)},
).experiment()
