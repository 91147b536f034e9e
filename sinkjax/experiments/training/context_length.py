"""Do sinks grow with the context that models are trained on?

    python -m launch.reproduce --experiment=context_length --scale=cpu --out=DIR

Barbero et al. (2025), section 4.1, figure 5: models of one size are trained on
windows of several lengths, with equal tokens in a step and in total. Sinks are
measured on texts of one length, the same for all models, and on texts of each
model's own length.

The cpu scale (12 runs) took 46 minutes on two CPU cores, the gpu scale (15
runs) 21 minutes on an H200. Expected verdicts: all inconclusive, as three seeds
are fewer than a verdict needs; `seeds` takes more.
"""

import dataclasses
import functools
from typing import Any

import numpy as np

from sinkjax.experiments.harness import sweep_figures
from sinkjax.experiments.harness.api import Claim, Result
from sinkjax.experiments.harness.effects import (
  LOG_RATIO,
  NATS,
  SHARE,
  Effect,
  Expect,
  Unit,
)
from sinkjax.experiments.harness.stats import mean
from sinkjax.experiments.harness.sweep import Sweep, Trained
from sinkjax.experiments.harness.sweep_config import (
  GPU_SCALE,
  PAPER_SCALE,
  SHORTEST,
  TOKENS_5B,
  TextConfig,
  text_run,
)
from sinkjax.experiments.harness.sweep_figures import Chart, Panel, seed_points
from sinkjax.experiments.shared.seed_effects import seed_effect, trend
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
      # A step of few long windows may have fewer windows than parts.
      accumulate=min(config.accumulate, tokens // length),
    )
    for length in config.contexts
  }


def claims(trained: Trained, result: Result) -> list[Claim]:
  """What changes from the shortest context to the longest, seed by seed."""
  contexts = result.config.contexts
  # A trend needs two contexts.
  if len(set(contexts)) < 2:
    return []

  def final(name: str) -> np.ndarray:
    """[S, contexts]"""
    rows = [trained.as_trained(str(length))[name] for length in contexts]
    return np.stack(rows, axis=1)

  def ends(values: np.ndarray, form: str = ".3f") -> str:
    return f"{values[:, 0].mean():{form}} to {values[:, -1].mean():{form}}"

  # These are on the same texts for all models: the loss on longer texts is
  # lower for whatever model, as later tokens have more to go by.
  mass, rate, loss = map(final, ("first_mass", trained.rate, "near_loss"))
  # Uniform attention falls with the length of a text, so attention on texts of
  # different length is compared as a multiple of it.
  own = final("own_first_mass") / final("own_uniform_mass")
  range_ = f"from context {min(contexts)} to {max(contexts)}"

  def change(
    values: np.ndarray, what: str, unit: Unit, expect: Expect
  ) -> Effect:
    found = trend(values, contexts).change
    return seed_effect(found, f"the change of {what} {range_}", unit, expect)

  def slope(values: np.ndarray, form: str) -> str:
    return mean(trend(values, contexts).slope, form)

  same_texts = f"the loss on the same texts of {SHORTEST} tokens"
  # The shorter contexts must not have weaker sinks for having learnt less.
  comparable = (change(loss, same_texts, NATS, Expect.NOT_LESS),)
  where = "section 4.1, figure 5"
  paper = "0.5 to 39 % of heads from context 128 to 2048 (read by eye)"
  how = (
    "a line is fitted over the logarithm of the context for each seed, and its "
    "ends are compared"
  )
  return [
    Claim(
      "longer_context_more_attention",
      "Models trained on longer contexts attend more to the first token.",
      where,
      paper,
      f"{slope(mass, '.4f')} of attention for each doubling of the context; "
      f"{ends(mass)} {range_}, uniform attention {trained.uniform:.3f}",
      change(mass, "attention on the first token", SHARE, Expect.MORE),
      how,
      comparable,
    ),
    Claim(
      "longer_context_more_heads",
      "Models trained on longer contexts have more heads with a sink.",
      where,
      paper,
      f"{slope(100 * rate, '.2f')} percentage points for each doubling of the "
      f"context; {ends(100 * rate, '.1f')} % {range_}",
      change(rate, "the share of heads with a sink", SHARE, Expect.MORE),
      f"a head has a sink if its sink score is above {trained.eps:g}; {how}",
      comparable,
    ),
    Claim(
      "trend_at_own_length",
      "When each model reads texts of its trained length, its attention on "
      "the first token relative to uniform attention grows with that length.",
      where,
      "not shown",
      f"{slope(own, '.2f')} times uniform attention for each doubling of the "
      f"context; {ends(own, '.2f')} times {range_}",
      change(
        np.log(own),
        "attention on the first token over uniform attention",
        LOG_RATIO,
        Expect.MORE,
      ),
      f"each model reads texts of its own context; {how}",
      comparable,
    ),
    Claim(
      "longer_context_no_better",
      "Models trained on longer contexts predict the same tokens no better.",
      where,
      "validation losses close to each other",
      f"{slope(loss, '.3f')} nats for each doubling of the context, on texts "
      f"of {SHORTEST} tokens; {ends(loss)} {range_}",
      change(loss, same_texts, NATS, Expect.NOT_LESS),
      how,
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
    # Uniform attention is the same for every seed.
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
      # Only the panel of rates has points of the paper's contexts.
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
