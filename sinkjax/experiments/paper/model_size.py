"""How do the sink rates of several models compare?

    python -m launch.reproduce --experiment=model_size \\
        --model=smollm2-135m --models=glassllm-en,glassllm-pt --out=out/paper

Section 4.2 and table 1 of the paper compare three sizes of one family, trained
alike. Models that differ in more than size do not test that claim, so its
verdict is always "not testable"; the table is what is of interest.

Takes 4 s for SmolLM2-135M and the two glassllm models on two CPU cores.
Expected: the claim is not testable.
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from sinkjax.experiments.harness.api import (
  ALL_SITES,
  Claim,
  Experiment,
  Result,
  Subject,
)
from sinkjax.experiments.harness.stats import Mean
from sinkjax.experiments.shared import sink_rates
from sinkjax.experiments.shared.interval_plots import error_bars
from sinkjax.experiments.shared.sink_rates import SinkRateConfig
from sinkjax.report import html
from sinkjax.report.figures import REST, drawing, png
from sinkjax.weights import registry
from sinkjax.weights.offload import peak_estimate

TITLE = "Sink rates by model"


@dataclasses.dataclass(frozen=True)
class Config(SinkRateConfig):
  """What is measured.

  Attributes:
    models: names or paths, beside the given model, which is not repeated.
  """

  models: tuple[str, ...] = ("glassllm-en", "glassllm-pt")


def measure(
  subject: Subject,
  config: Config,
  *,
  progress: Callable[[int, int], Any] = lambda done, total: None,
) -> Result:
  """The sink rates of the given model and of every other one.

  Args:
    subject: the given model.
    config: what is measured.
    progress: called with (models done, models in all).

  Raises:
    ValueError: for a model that is not there, has no tokenizer, or makes
      fewer than two texts long enough.

  Cost: one forward pass a text and model; one model in memory beside the
    given one, or one of its layers.
  """
  others = [name for name in config.models if name != subject.name]
  rows = [sink_rates.measure(subject, config)]
  progress(1, 1 + len(others))
  for done, name in enumerate(others):
    rows.append(sink_rates.measure_named(name, config))
    progress(done + 2, 1 + len(others))
  return _result(config, rows)


def _result(config: Config, rows: Sequence[Mapping[str, Any]]) -> Result:
  """Of `sink_rates.measure`'s rows."""
  names = [
    "model",
    "parameters",
    "layers",
    "heads",
    "all_heads",
    "bos",
    "texts",
  ]
  header = [*names, "loss"]
  for eps in config.eps:
    header += [f"sink_rate_{eps:g}", f"low_{eps:g}", f"high_{eps:g}"]
  table = []
  for row in rows:
    cells = [row[name] for name in names] + [row["loss"].value]
    for eps in config.eps:
      cells += row["rates"][eps].scaled(100)[:3]
    table.append(cells)
  models = [{k: v for k, v in row.items() if k != "alpha"} for row in rows]
  return Result(
    numbers={
      "tokens": config.tokens,
      "eps": list(config.eps),
      "models": models,
    },
    tables={"models.csv": (header, table)},
    arrays={
      f"alpha_{i}": np.asarray(jax.device_get(row["alpha"]))
      for i, row in enumerate(rows)
    },
  )


def claims(result: Result) -> list[Claim]:
  """One claim, at the last threshold; these models do not test it."""
  # The numbers of the paper are for eps 0.8, the last of the defaults.
  eps = result.numbers["eps"][-1]
  shown = []
  for row in result.numbers["models"]:
    # JSON has only strings as keys, so thresholds are read back as text.
    rate = Mean.read(row["rates"][str(eps)]).scaled(100)
    shown.append(
      f"{row['model']} ({row['all_heads']} heads) {rate.text('.1f', ' %')}"
    )
  return [
    Claim(
      id="larger_models",
      claim="Larger models of one family have more heads with a sink.",
      source="section 4.2, table 1",
      paper="45.97, 73.49 and 78.29 % of heads at eps 0.8 "
      "(Llama 3.1 8B, 70B, 405B)",
      ours=f"at eps {eps:g}: {'; '.join(shown)}",
      effect=None,
      untested="these models differ in data and training, not in size alone",
    )
  ]


def draw(result: Result) -> dict[str, bytes]:
  """Every figure, by file name."""
  models, thresholds = result.numbers["models"], result.numbers["eps"]
  with drawing(7, 0.5 * len(models) + 1.6) as figure:
    # Without `squeeze=False`, a single threshold would give an axis and not an
    # array of them.
    axes = figure.subplots(1, len(thresholds), sharey=True, squeeze=False)[0]
    y = np.arange(len(models))
    for ax, eps in zip(axes, thresholds, strict=True):
      ends = [Mean.read(model["rates"][str(eps)])[:3] for model in models]
      error_bars(ax, y, 100 * np.array(ends).T, across=True, color=REST)
      ax.grid(axis="x")
      ax.set(xlim=(-3, 103), xlabel="heads, %")
      ax.set_title(f"sink score above {eps:g}")
    names = [f"{m['model']}, {m['all_heads']} heads" for m in models]
    axes[0].set_yticks(y, names, parse_math=False)
    axes[0].set_ylim(len(models) - 0.5, -0.5)
    return {"models.png": png(figure)}


def sections(result: Result, drawn: Mapping[str, bytes]) -> list[html.Section]:
  """The experiment's part of the report."""
  return [
    html.Section(
      TITLE,
      body=(
        f"The first {result.numbers['tokens']} tokens of the same texts, by "
        "each model's own tokenizer, with BOS where the model's file says so. "
        "Rates are percent of heads, with 95 % intervals over texts. Models "
        "that differ in more than size do not test the effect of size."
      ),
      figure=drawn["models.png"],
      caption="Share of heads with a sink at position 0, by threshold.",
      table=html.Table(*result.tables["models.csv"]),
    )
  ]


def plan(config: Config) -> list[str]:
  """What each other model's weights need, for --dry_run."""
  lines = []
  for name in config.models:
    try:
      lines.append(f"other model  {name}: {_needs(name)}")
    # A dry run lists what it can: one model that cannot be read must not hide
    # what the others need.
    except ValueError as error:
      lines.append(f"other model  {name}: cannot be looked at: {error}")
  return lines


def _needs(name: str) -> str:
  """The memory that a model's weights take, whole or layer by layer."""
  found = registry.peek(name)
  if found is None:
    return registry.would_fetch(name)
  cfg, _, parameters = found
  return (
    f"{4 * parameters / 1e9:.3g} GB of float32 weights, "
    f"{peak_estimate(cfg) / 1e9:.3g} GB at a time with --offload"
  )


EXPERIMENT = Experiment(
  TITLE, Config, measure, claims, draw, sections, plan=plan, unedited=ALL_SITES
)
