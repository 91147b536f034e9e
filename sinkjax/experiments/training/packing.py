"""Whether the sink belongs to BOS: the packing table (section 5, table 2).

Five ways of filling windows, nine ways of asking the models. Pinned at the
start of every window, BOS becomes what the model leans on; without it the sink
is at whatever comes first.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

from sinkjax.experiments.harness import sweep as text_sweep
from sinkjax.experiments.harness import sweep_figures
from sinkjax.experiments.harness.api import Claim, Result
from sinkjax.experiments.harness.stats import compare, mean
from sinkjax.experiments.harness.sweep import (
  GPU,
  TOKENS_30B,
  Sweep,
  TextConfig,
  text_run,
)
from sinkjax.report import html
from sinkjax.train.run_config import TrainConfig

NAME, TITLE = "packing", "Does the sink belong to BOS?"

WAYS = {
  "causal-document": ("causal", "document"),
  "causal-pinned": ("causal", "pinned"),
  "separate-none": ("document", "none"),
  "separate-document": ("document", "document"),
  "separate-pinned": ("document", "pinned"),
}
"""(mask, BOS) of `Packing` for each way of training."""

PAPER = {
  ("causal-document", "bos"): (65.10, 2.69),
  ("causal-document", "text"): (65.15, 2.70),
  ("causal-pinned", "bos"): (90.84, 2.69),
  ("causal-pinned", "text"): (0.05, 7.56),
  ("separate-none", "text"): (28.23, 2.67),
  ("separate-document", "bos"): (83.33, 2.67),
  ("separate-document", "text"): (50.24, 2.68),
  ("separate-pinned", "bos"): (90.56, 2.67),
  ("separate-pinned", "text"): (0.00, 7.78),
}
"""Sink rate in percent and validation loss of table 2: 120M parameters, 30B
tokens."""


@dataclasses.dataclass(frozen=True)
class Config(TextConfig):
  """What is trained: every way with every seed.

  Attributes:
    ways: names of `WAYS`; each says itself where BOS stands.
  """

  ways: tuple[str, ...] = tuple(WAYS)


SCALES: dict[str, dict[str, Any]] = {
  "demo": {"ways": ("causal-document", "causal-pinned"), "seeds": (0,)},
  "cpu": {},
  "gpu": GPU,
  "paper": text_sweep.PAPER | {"steps": TOKENS_30B},
}
"""Fields of `Config` by --scale; `paper` is 30B tokens a run."""


def variants(config: Config) -> dict[str, TrainConfig]:
  """The run of each way.

  Raises:
    ValueError: for a way that there is not.
  """
  runs = {
    way: text_run(config, packing={"mask": mask, "bos": bos})
    for way, (mask, bos) in WAYS.items()
  }
  return text_sweep.chosen(runs, config.ways, NAME)


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
  return text_sweep.sweep_result(NAME, TITLE, sweep, claims(sweep), paper=PAPER)


def claims(sweep: Sweep) -> list[Claim]:
  """Of the table's rows, pairs over seeds."""
  if len(sweep.seeds) < 2:
    return []
  found, last, where = [], sweep.last, "section 5, table 2"
  for way in ("causal-pinned", "separate-pinned"):
    if (way, "bos") not in last:
      continue
    bos, text = last[way, "bos"], last[way, "text"]
    uniform = bos["uniform_mass"][0]
    percent = PAPER[way, "bos"][0], PAPER[way, "text"][0]
    mask = f"({way.split('-')[0]} mask)"
    found.append(
      compare(
        f"Trained with BOS pinned {mask}, taking it away takes the sink away.",
        where,
        f"{percent[0]:.1f} to {percent[1]:.2f} % of heads",
        bos["first_mass"] - text["first_mass"],
        f"attention on the first token {mean(bos['first_mass'])} to "
        f"{mean(text['first_mass'])}, even {uniform:.3f}; heads above eps "
        f"{sweep.eps:g} {mean(100 * bos[sweep.rate], '.1f')} to "
        f"{mean(100 * text[sweep.rate], '.1f')} %",
      )
    )
    rise = text["loss"] - bos["loss"]
    found.append(
      compare(
        f"And the loss goes up {mask}.",
        where,
        f"{PAPER[way, 'bos'][1]} to {PAPER[way, 'text'][1]} nats",
        rise,
        f"{mean(rise)} nats up from {mean(bos['loss'])}",
      )
    )
  for mask in ("causal", "separate"):
    pinned = last.get((f"{mask}-pinned", "bos"))
    loose = last.get((f"{mask}-document", "bos"))
    if pinned is None or loose is None:
      continue
    found.append(
      compare(
        f"A pinned BOS draws more attention than one at each document ({mask} "
        "mask).",
        where,
        f"{PAPER[f'{mask}-pinned', 'bos'][0]} and "
        f"{PAPER[f'{mask}-document', 'bos'][0]} % of heads",
        pinned["first_mass"] - loose["first_mass"],
        f"{mean(pinned['first_mass'])} and {mean(loose['first_mass'])}",
      )
    )
  if ("separate-none", "text") in last:
    none = last["separate-none", "text"]
    even = none["uniform_mass"][0]
    found.append(
      compare(
        "Without any BOS there is a sink at the first token, too.",
        where,
        "28.2 % of heads",
        none["first_mass"],
        f"attention on it {mean(none['first_mass'])}, even {even:.3f}; heads "
        f"{mean(100 * none[sweep.rate], '.1f')} %",
        against=even,
      )
    )
  return found


def draw(result) -> dict[str, bytes]:
  """Every figure, by file name."""
  panels = sweep_figures.standard_panels(result.numbers)
  panels[0] = (f"ours: {panels[0][0]}", panels[0][1])
  paper = ("paper: heads above eps 0.3, %", lambda row: row["paper"][0])
  return {
    "rows.png": sweep_figures.bars(
      result,
      [paper, *panels],
      label=lambda row: f"{row['variant']}: {sweep_figures.FORMS[row['form']]}",
    ),
    "curves.png": sweep_figures.curves(result),
  }


def sections(result, drawn: dict[str, bytes]) -> list[html.Section]:
  """The experiment's part of the report."""
  numbers = result.numbers
  return [
    html.Section(
      result.title,
      body=(
        "The first word of a row is the mask: causal, or separate for one that "
        "hides other documents. The second is where BOS was in training: none, "
        "at each document's start, or pinned at the start of every window. "
        "Measured on starts of held-out documents, with BOS in front and "
        "without; the loss is on the same tokens in both. The paper's models "
        "have 120M parameters and 30B tokens: compare signs, not sizes."
      ),
      figure=drawn["rows.png"],
      caption=(
        f"Ticks are the seeds ({len(numbers['seeds'])}), bars their mean. "
        f"Dotted: even attention, {numbers['uniform_mass']:.3f}."
      ),
      table=sweep_figures.table(result, paper=True),
    ),
    sweep_figures.training_section(result, drawn),
  ]
