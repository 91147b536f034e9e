"""Which attention has sinks: other normalisers, biases, gates, registers.

The variants of Gu et al. (2025, arXiv 2410.10781, section 7) and of those who
came after, each an option of the one block, trained alike. A learned sink
token is what `softmax` has: BOS pinned at the start of every window.
"""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from sinkjax.experiments.harness import sweep as text_sweep
from sinkjax.experiments.harness import sweep_figures
from sinkjax.experiments.harness.api import Claim, Result
from sinkjax.experiments.harness.stats import compare, mean, unless_worse
from sinkjax.experiments.harness.sweep import (
  GPU,
  TOKENS_5B,
  Sweep,
  TextConfig,
  text_run,
)
from sinkjax.report import html
from sinkjax.train.run_config import TrainConfig

NAME, TITLE = "attention_variants", "Which attention has sinks?"

REGISTERS = 4

VARIANTS: dict[str, dict[str, dict[str, Any]]] = {
  "softmax": {},
  "no_bos": {"packing": {"bos": "none"}},
  "registers": {"packing": {"bos": "none", "registers": REGISTERS}},
  "k_bias": {"model": {"attn_bias": "k"}},
  "kv_bias": {"model": {"attn_bias": "kv"}},
  "v_bias": {"model": {"attn_bias": "v"}},
  "sink_logit": {"model": {"sink_logit": True}},
  "softmax1": {"model": {"normalizer": "softmax1"}},
  "clipped_softmax": {"model": {"normalizer": "clipped_softmax"}},
  "softpick": {"model": {"normalizer": "softpick"}},
  "sigmoid": {"model": {"normalizer": "sigmoid"}},
  "normalized_sigmoid": {"model": {"normalizer": "normalized_sigmoid"}},
  "elu1": {"model": {"normalizer": "elu1"}},
  "relu": {"model": {"normalizer": "relu"}},
  "head_gate": {"model": {"gate": "head"}},
  "element_gate": {"model": {"gate": "element"}},
  "value_gate": {"model": {"gate": "value"}},
  "qk_norm": {"model": {"qk_norm": True}},
}
"""What each has otherwise than softmax with a pinned BOS."""

GU, ZUHRI, QIU, BONDARENKO = (
  "Gu et al., section 7",
  "Zuhri et al. (2504.20966)",
  "Qiu et al. (2505.06708)",
  "Bondarenko et al. (2306.12929)",
)


class Told(NamedTuple):
  """What a paper says of a variant.

  Attributes:
    source: which paper.
    softmax: its sink with softmax, in percent.
    variant: its sink with the variant.
    what: the sink is counted in.
  """

  source: str
  softmax: float
  variant: float
  what: str = "of heads"

  @property
  def left(self) -> float:
    """The variant's sink in percent of softmax's."""
    return 100 * self.variant / self.softmax

  def __str__(self) -> str:
    return f"{self.softmax:g} to {self.variant:g} % {self.what}"


TOLD = {
  "k_bias": Told(GU, 18.18, 0.0),
  "kv_bias": Told(GU, 18.18, 0.04),
  "v_bias": Told(GU, 18.18, 17.53),
  "sink_logit": Told(ZUHRI, 34.89, 8.78),
  "softmax1": Told(ZUHRI, 34.89, 16.36),
  "softpick": Told(ZUHRI, 34.89, 0.0),
  "sigmoid": Told(GU, 18.18, 0.44, "of heads, by proxy"),
  "normalized_sigmoid": Told(GU, 18.18, 30.24),
  "elu1": Told(GU, 18.18, 0.80, "of heads, by proxy"),
  "relu": Told(ZUHRI, 34.89, 4.56, "of heads, ReLU of the softmax"),
  "head_gate": Told(QIU, 46.7, 7.3, "of attention"),
  "element_gate": Told(QIU, 46.7, 4.8, "of attention"),
  "value_gate": Told(QIU, 46.7, 29.7, "of attention"),
}
"""What papers found; sinks in heads are at eps 0.3."""

UNCOUNTED = (BONDARENKO, "outliers 735 to 21.5; no sink rate")
"""What is said of clipped softmax, whose paper counts no sinks."""

LESS = (
  "k_bias",
  "kv_bias",
  "sink_logit",
  "softmax1",
  "clipped_softmax",
  "softpick",
  "sigmoid",
  "elu1",
  "relu",
  "head_gate",
  "element_gate",
  "value_gate",
)
"""Variants that were found, or meant, to have less of a sink."""


@dataclasses.dataclass(frozen=True)
class Config(TextConfig):
  """What is trained: every variant with every seed.

  Attributes:
    variants: names of `VARIANTS`; the others are held against softmax.
  """

  variants: tuple[str, ...] = tuple(VARIANTS)


SCALES: dict[str, dict[str, Any]] = {
  "demo": {"variants": ("softmax", "k_bias", "sigmoid"), "seeds": (0,)},
  "cpu": {},
  "gpu": GPU | {"length": 256, "batch": 64, "steps": 1000},
  "paper": text_sweep.PAPER | {"steps": TOKENS_5B},
}
"""Fields of `Config` by --scale."""


def variants(config: Config) -> dict[str, TrainConfig]:
  """The run of each variant.

  Raises:
    ValueError: for one that there is not.
  """
  runs = {}
  for name, other in VARIANTS.items():
    model = dict(other.get("model", {}))
    if "registers" in other.get("packing", {}):
      model["vocab_size"] = config.vocab_size + REGISTERS
    runs[name] = text_run(config, model=model, packing=other.get("packing"))
  return text_sweep.chosen(runs, config.variants, NAME)


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

  Cost: a run of the cpu scale takes 2.5 minutes on two cores.
  """
  sweep = text_sweep.run_sweep(
    config, variants(config), folder=folder, progress=progress
  )
  found = left(sweep)
  return text_sweep.sweep_result(
    NAME,
    TITLE,
    sweep,
    claims(sweep),
    left=found,
    tables={"papers.csv": _papers(found)},
  )


def left(sweep: Sweep) -> dict[str, list[float]]:
  """What is left of softmax's sink in each variant, in percent.

      100 (m_s - u) / (mean m_softmax - u),

  m_s the attention on the first token with seed s, u even attention; empty
  where softmax has no sink. Beside it papers put the share of their own sinks.
  """
  if "softmax" not in sweep.probes:
    return {}
  plain = sweep.trained("softmax")
  even = plain["uniform_mass"].mean()
  above = plain["first_mass"].mean() - even
  if above <= 0:
    return {}
  return {
    name: list(100 * (sweep.trained(name)["first_mass"] - even) / above)
    for name in sweep.probes
  }


def _papers(found: dict[str, list[float]]):
  """The papers' sinks beside ours, as a table."""
  header = [
    "variant",
    "source",
    "softmax_percent",
    "variant_percent",
    "counted",
    "left_percent",
    "ours_left_percent",
  ]
  rows = []
  for name, ours in found.items():
    told = TOLD.get(name)
    theirs = [*told, told.left] if told else [None] * 5
    rows.append([name, *theirs, float(np.mean(ours))])
  return header, rows


def claims(sweep: Sweep) -> list[Claim]:
  """Each variant against softmax, seed by seed."""
  known = set(sweep.probes)
  if len(sweep.seeds) < 2 or "softmax" not in known:
    return []
  plain, found = sweep.trained("softmax"), []

  def told(name, key="first_mass", form=".3f"):
    return mean(sweep.trained(name)[key], form)

  def cost(name):
    return mean(sweep.trained(name)["loss"] - plain["loss"]) + " nats of loss"

  def claim(text, source, paper, more, less, key="first_mass", form=".3f"):
    """That `more` has more of `key` than `less`, which is no worse a model."""
    values = sweep.trained(more)[key] - sweep.trained(less)[key]
    other = less if more == "softmax" else more
    what = {
      "first_mass": "attention on the first token",
      "kurtosis": "kurtosis",
      "massive_ratio": "largest over median",
    }
    made = compare(
      text,
      source,
      paper,
      values,
      f"{what[key]} {told(more, key, form)} ({more}) and "
      f"{told(less, key, form)} ({less}); {other}: {cost(other)}",
    )
    worse = sweep.trained(less)["loss"] - sweep.trained(more)["loss"]
    why = f"but {less} is a worse model, and these have less of all this"
    found.append(unless_worse(made, worse, why))

  for name in LESS:
    if name in known:
      words = name.replace("_", " ")
      text = f"There is less of a sink with {words}."
      source, paper = (
        (TOLD[name].source, str(TOLD[name])) if name in TOLD else UNCOUNTED
      )
      claim(text, source, paper, "softmax", name)
  if {"k_bias", "v_bias"} <= known:
    claim(
      "It is a key that takes the sink, not a value.",
      GU,
      f"{TOLD['k_bias'].variant:g} % of heads with a key, "
      f"{TOLD['v_bias'].variant:g} % with a value",
      "v_bias",
      "k_bias",
    )
  if {"sigmoid", "normalized_sigmoid"} <= known:
    claim(
      "Normalising the sigmoids brings the sink back.",
      GU,
      f"{TOLD['sigmoid'].variant:g} to "
      f"{TOLD['normalized_sigmoid'].variant:g} % of heads",
      "normalized_sigmoid",
      "sigmoid",
    )
  if "softpick" in known:
    claim(
      "With softpick the activations are less peaked.",
      ZUHRI,
      "kurtosis 6453 to 282",
      "softmax",
      "softpick",
      "kurtosis",
      ".1f",
    )
  if "element_gate" in known:
    claim(
      "With an element-wise gate the largest activation is smaller.",
      QIU,
      "1053 to 94",
      "softmax",
      "element_gate",
      "massive_ratio",
      ".1f",
    )
  return found


CHOSEN = (
  "softmax",
  "k_bias",
  "softmax1",
  "softpick",
  "sigmoid",
  "relu",
  "element_gate",
  "qk_norm",
)
"""Variants whose curves are drawn: more of them cannot be told apart."""


WITHIN = (
  ("what a query gives in all", "row_sum"),
  ("first value's norm over others'", "value_ratio"),
  ("kurtosis of activations", "kurtosis"),
  ("largest activation over median", "massive_ratio"),
  ("evenness of rows", "entropy_share"),
)
"""Titles and names of what is drawn beside the sinks."""


def _beside(numbers) -> list[sweep_figures.Panel]:
  """What the papers say is left of softmax's sink, and what is here."""
  trained = sweep_figures.as_trained(numbers)

  def theirs(row):
    told = TOLD.get(row["variant"])
    return told.left if told and row is trained[row["variant"]] else None

  def ours(row):
    if row is trained[row["variant"]]:
      return numbers["left"].get(row["variant"])
    return None

  return [
    ("papers: left of softmax's sink, %", theirs),
    ("ours: left of softmax's sink, %", ours),
  ]


def _within() -> list[sweep_figures.Panel]:
  return [(title, lambda row, key=key: row[key]) for title, key in WITHIN]


def draw(result) -> dict[str, bytes]:
  """Every figure, by file name."""
  numbers = result.numbers
  rows = list(sweep_figures.as_trained(numbers).values())

  def bars(panels):
    return sweep_figures.bars(
      result,
      panels,
      label=lambda row: row["variant"].replace("_", " "),
      rows=rows,
    )

  drawn = [name for name in CHOSEN if name in numbers["variants"]]
  return {
    "variants.png": bars(
      [*_beside(numbers), *sweep_figures.standard_panels(numbers)]
    ),
    "within.png": bars(_within()),
    "curves.png": sweep_figures.curves(result, variants=drawn),
  }


def sections(result, drawn: dict[str, bytes]) -> list[html.Section]:
  """The experiment's part of the report."""
  numbers = result.numbers
  seeds = (
    f"Ticks are the seeds ({len(numbers['seeds'])}), bars their mean; orange "
    "with BOS or registers in front, blue without."
  )
  return [
    html.Section(
      result.title,
      body=(
        "All with BOS pinned at the start of every window, which is a learned "
        "sink token, but for no bos and registers; with registers the first "
        "token is the first of four. Sigmoid, elu1 and relu need not give all "
        "rows the same sum: their attention is counted as shares of what a "
        "query gives, the proxy of Gu et al. Elsewhere what a query gives to "
        "nothing, or to a learned key, counts as given. What is left of "
        "softmax's sink is, in the papers, the share of its heads above 0.3 "
        "(of its attention, where gates come from), and here of its attention "
        "above even. The papers' models have 60M to 1.7B parameters, and data "
        "of their own: compare signs. A dash: no number."
      ),
      figure=drawn["variants.png"],
      caption=(
        f"{seeds} Dotted: even attention, {numbers['uniform_mass']:.3f}; less "
        "than that is below zero in the second panel."
      ),
      table=sweep_figures.table(result, _beside(numbers)),
    ),
    html.Section(
      "What else is otherwise",
      body=(
        "The sum of a row says how much a query gives to tokens, and not to "
        "nothing or to a learned key. Where sinks are, the first value is "
        "small and some activations are far from the others."
      ),
      figure=drawn["within.png"],
      caption=seeds,
      table=sweep_figures.table(result, _within()),
    ),
    sweep_figures.training_section(result, drawn),
  ]
