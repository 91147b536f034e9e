"""Sweeps: variants of one small language model, each trained with every seed.

An experiment says which variants there are, what it claims of them, and what
its figures show; `Sweep` adds everything else. How a variant becomes a run is
in `sweep_config`, what is measured on a trained model in `train_runs`.
"""

import dataclasses
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from sinkjax.experiments.harness import sweep_config, sweep_figures
from sinkjax.experiments.harness.api import Claim, Experiment, Result
from sinkjax.experiments.harness.jobs import run_jobs
from sinkjax.experiments.harness.sweep_config import TextConfig
from sinkjax.experiments.harness.sweep_figures import Chart, Text
from sinkjax.experiments.harness.train_runs import text_jobs
from sinkjax.report import html
from sinkjax.train.run_config import TrainConfig

Table = tuple[list[str], list[list[Any]]]
"""(header, rows)."""

LABELS = ("variant", "form", "paper", "rate")
"""Keys of a row that are no measurement of their own."""


class Trained(NamedTuple):
  """What the trained models of a sweep came to.

  Attributes:
    seeds: of every variant.
    eps: threshold of the sink rate.
    final: {(variant, form): {scalar: [S]}} of the trained models, see
      `train_runs.measure`; a form is "bos" or "text".
    probes: {variant: {scalar: [S, K]}} through training, "step" [K] among
      them, on texts read as in training. Files keep the attention on the first
      token and the sink rate alone.
    losses: {variant: {"step": [K], "loss": [S, K]}} on held-out windows.
    alpha: {variant: [S, L, H]} sink scores at the end.
    seconds: {variant: [S]} that the steps took.
  """

  seeds: tuple[int, ...]
  eps: float
  final: dict[tuple[str, str], dict[str, np.ndarray]]
  probes: dict[str, dict[str, np.ndarray]]
  losses: dict[str, dict[str, np.ndarray]]
  alpha: dict[str, np.ndarray]
  seconds: dict[str, np.ndarray]

  @property
  def rate(self) -> str:
    """The name of the sink rate at `eps`."""
    return f"sink_rate_{self.eps:g}"

  @property
  def uniform(self) -> float:
    """Attention on the first token of uniform attention."""
    return float(next(iter(self.final.values()))["uniform_mass"][0])

  def as_trained(self, variant: str) -> dict[str, np.ndarray]:
    """`final` in the form in which the variant was trained."""
    found = self.final.get((variant, "bos"))
    return self.final[variant, "text"] if found is None else found

  @classmethod
  def collect(
    cls,
    config: TextConfig,
    variants: Sequence[str],
    outcomes: Sequence[Mapping[str, Any]],
  ) -> "Trained":
    """From the outcomes of runs, one for each variant and seed."""
    by = {
      name: [one for one in outcomes if one["request"]["variant"] == name]
      for name in variants
    }
    # Runs that were made earlier may lack what is measured since.
    lists = [set(x) for one in outcomes for x in one["final"].values()]
    known = set.intersection(*lists)
    final = {
      (name, form): {
        key: np.array([one["final"][form][key] for one in runs], float)
        for key in runs[0]["final"][form]
        if key in known
      }
      for name, runs in by.items()
      for form in runs[0]["final"]
    }
    return cls(
      tuple(config.seeds),
      config.eps,
      final,
      {name: _through(runs, "probe") for name, runs in by.items()},
      {name: _through(runs, "eval") for name, runs in by.items()},
      {name: np.array([x["alpha"] for x in runs]) for name, runs in by.items()},
      {
        name: np.array([x["training_seconds"] for x in runs], float)
        for name, runs in by.items()
      },
    )

  @classmethod
  def of(cls, result: Result) -> "Trained":
    """From a stored result of `as_result`."""
    numbers, arrays = result.numbers, result.arrays
    rate = f"sink_rate_{numbers['eps']:g}"
    probes, losses = {}, {}
    for name in numbers["variants"]:
      probes[name] = {
        "step": arrays[f"steps_{name}"],
        "first_mass": arrays[f"first_mass_{name}"],
        rate: arrays[f"sink_rate_{name}"],
      }
      losses[name] = {"step": np.zeros(0, int)}
      # A run that was never evaluated has no losses in its files.
      if f"loss_{name}" in arrays:
        losses[name] = {
          "step": arrays[f"loss_steps_{name}"],
          "loss": arrays[f"loss_{name}"],
        }
    return cls(
      tuple(numbers["seeds"]),
      numbers["eps"],
      {
        (row["variant"], row["form"]): {
          key: np.array(values, float)
          for key, values in row.items()
          if key not in LABELS
        }
        for row in numbers["rows"]
      },
      probes,
      losses,
      {name: arrays[f"alpha_{name}"] for name in numbers["variants"]},
      {k: np.array(x, float) for k, x in numbers["seconds"].items()},
    )

  def as_result(
    self,
    paper: Mapping[tuple[str, str], Sequence[float | None]],
    numbers: Mapping[str, Any],
    tables: Mapping[str, Table],
  ) -> Result:
    """What files keep.

    Args:
      paper: {(variant, form): (sink rate in percent, loss in nats)} of a paper.
      numbers: more of them.
      tables: more of them.
    """
    rows = [
      {
        "variant": variant,
        "form": form,
        "paper": list(paper.get((variant, form), (None, None))),
        "rate": values[self.rate],
        **values,
      }
      for (variant, form), values in self.final.items()
    ]
    arrays: dict[str, np.ndarray] = {}
    for variant, probes in self.probes.items():
      arrays[f"steps_{variant}"] = probes["step"]
      arrays[f"first_mass_{variant}"] = probes["first_mass"]
      arrays[f"sink_rate_{variant}"] = probes[self.rate]
      losses = self.losses[variant]
      if losses["step"].size:
        arrays[f"loss_steps_{variant}"] = losses["step"]
        arrays[f"loss_{variant}"] = losses["loss"]
      arrays[f"alpha_{variant}"] = self.alpha[variant]
    own = {
      "variants": list(self.probes),
      "seeds": list(self.seeds),
      "eps": self.eps,
      "rows": rows,
      "uniform_mass": self.uniform,
      "seconds": self.seconds,
    }
    own_tables = {"rows.csv": self._table(), "curves.csv": self._curves()}
    return Result({**own, **numbers}, {**own_tables, **tables}, arrays)

  def _table(self) -> Table:
    """Every measurement of a trained model, a row for each seed."""
    scalars = list(next(iter(self.final.values())))
    rows = [
      [variant, form, seed, *(float(values[key][i]) for key in scalars)]
      for (variant, form), values in self.final.items()
      for i, seed in enumerate(self.seeds)
    ]
    return ["variant", "form", "seed", *scalars], rows

  def _curves(self) -> Table:
    """Every measurement of sinks through training, with the loss if known."""
    names = ["first_mass", self.rate, "value_ratio"]
    rows = []
    for variant, probes in self.probes.items():
      losses = self.losses[variant]
      at = {int(step): k for k, step in enumerate(losses["step"])}
      for i, seed in enumerate(self.seeds):
        for k, step in enumerate(probes["step"]):
          known = at.get(int(step))
          loss = None if known is None else float(losses["loss"][i, known])
          row = [float(probes[name][i, k]) for name in names]
          rows.append([variant, seed, int(step), *row, loss])
    return ["variant", "seed", "step", *names, "held_out_loss"], rows


def _through(
  runs: Sequence[Mapping[str, Any]], kind: str
) -> dict[str, np.ndarray]:
  """{scalar: [S, K]} of a kind of record through training, and "step" [K]."""
  histories = [
    [row for row in one["history"] if row["kind"] == kind] for one in runs
  ]
  first = histories[0]
  if not first:
    return {"step": np.zeros(0, int)}
  names = [key for key in first[0] if key not in ("kind", "step")]
  return {
    "step": np.array([row["step"] for row in first]),
    **{
      name: np.array([[row[name] for row in rows] for rows in histories], float)
      for name in names
    },
  }


@dataclasses.dataclass(frozen=True)
class Sweep:
  """A sweep as an experiment declares it.

  Attributes:
    title: of its part of the report.
    config: its Config, a `TextConfig`.
    scales: fields of the config by --scale.
    variants: `f(config)`, the run of each variant by name.
    claims: `f(trained, result)`, for results of two seeds or more: one seed
      has no interval.
    charts: the figures beside the curves, each with its section.
    curves: what is drawn through training, names of
      `sweep_figures.CURVE_TITLES`.
    curves_of: variants whose curves are drawn; all if `None`.
    curves_body: text of the section of the curves.
    paper: {(variant, form): (sink rate in percent, loss in nats)} of a paper.
    numbers: `f(config, trained)`, more numbers for the result.
    tables: `f(trained)`, more tables for the result.
    notes: `f(config)`, more lines of the dry run.
  """

  title: str
  config: type[TextConfig]
  scales: Mapping[str, Mapping[str, Any]]
  variants: Callable[[Any], dict[str, TrainConfig]]
  claims: Callable[[Trained, Result], list[Claim]]
  charts: Sequence[Chart]
  curves: Sequence[str] = ("first_mass", "sink_rate", "loss")
  curves_of: Sequence[str] | None = None
  curves_body: Text = (
    "Measured on the starts of held-out documents, read as in training."
  )
  paper: Mapping[tuple[str, str], Sequence[float | None]] = dataclasses.field(
    default_factory=dict
  )
  numbers: Callable[[Any, Trained], dict[str, Any]] = lambda config, trained: {}
  tables: Callable[[Trained], dict[str, Table]] = lambda trained: {}
  notes: Callable[[Any], list[str]] = lambda config: []

  def experiment(self) -> Experiment:
    """The experiment that it makes."""
    return Experiment(
      self.title,
      self.config,
      self.measure,
      self.claims_of,
      self.draw,
      self.sections,
      scales=self.scales,
      plan=self.plan,
    )

  def measure(
    self,
    config: TextConfig,
    *,
    folder: pathlib.Path,
    progress: Callable[[int, int], Any] = lambda done, total: None,
  ) -> Result:
    """Trains the runs that are missing and collects what all came to.

    Args:
      config: of the sweep.
      folder: where runs are kept.
      progress: called with (steps done, steps in all).

    Raises:
      ValueError: as `jobs.run_jobs` and `variants`.
    """
    runs = self.variants(config)
    jobs = text_jobs(runs, config.seeds)
    outcomes = run_jobs(jobs, folder, progress=progress)
    trained = Trained.collect(config, list(runs), outcomes)
    return trained.as_result(
      self.paper, self.numbers(config, trained), self.tables(trained)
    )

  def claims_of(self, result: Result) -> list[Claim]:
    """The claims of a stored result."""
    trained = Trained.of(result)
    return self.claims(trained, result) if len(trained.seeds) > 1 else []

  def draw(self, result: Result) -> dict[str, bytes]:
    """Every figure, by file name."""
    known = result.numbers["variants"]
    shown = known if self.curves_of is None else self.curves_of
    curves = sweep_figures.curves(
      result, names=self.curves, variants=[x for x in shown if x in known]
    )
    figures = {chart.file: chart.draw(result) for chart in self.charts}
    return {**figures, "curves.png": curves}

  def sections(
    self, result: Result, drawn: Mapping[str, bytes]
  ) -> list[html.Section]:
    """The experiment's part of the report."""
    return [
      *(chart.section(result, drawn, self.title) for chart in self.charts),
      html.Section(
        "Through training",
        body=sweep_figures.worded(self.curves_body, result),
        figure=drawn["curves.png"],
        caption=sweep_figures.curve_caption(result),
      ),
    ]

  def plan(self, config: TextConfig) -> list[str]:
    """What will be trained, for --dry_run."""
    runs = sweep_config.plan(self.variants(config), config.seeds)
    return runs + self.notes(config)
