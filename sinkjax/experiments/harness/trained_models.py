"""Evaluations of trained models that experiments left in the same folder.

Models are large and evaluations are small: one that was made is kept when its
model is deleted.
"""

import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from sinkjax.experiments.harness.jobs import Advance, Job, complete
from sinkjax.train.run_config import TrainConfig
from sinkjax.weights import orbax_io

Evaluate = Callable[
  [TrainConfig, Mapping[str, Any], pathlib.Path, Advance], Mapping[str, Any]
]
"""`evaluate(run, trained, model, advance) -> outcome`, plain values, from the
config of a run, its outcome and the folder of its model."""


def eval_jobs(
  of: Sequence[str],
  folder: pathlib.Path,
  *,
  beside: pathlib.Path,
  request: Mapping[str, Any],
  steps: int,
  evaluate: Evaluate,
) -> list[Job]:
  """A job for every trained model, and for every evaluation that is kept.

  Args:
    of: experiments whose models are taken; those without a folder are left
      out.
    folder: where evaluations are kept.
    beside: the folder that holds the experiments' folders.
    request: what decides an outcome, beside the model.
    steps: of one evaluation, for the progress bar.
    evaluate: makes it.

  Raises:
    ValueError: if there is neither a model nor an evaluation.
  """

  def job(
    name: str,
    what: Mapping[str, Any],
    trained: Mapping[str, Any] | None = None,
    model: pathlib.Path | None = None,
  ) -> Job:
    def work(folder: pathlib.Path, device: Any, advance: Advance):
      run = TrainConfig.from_dict(what["run"])
      return evaluate(run, trained, model, advance)

    return Job(name, steps, {**request, **what}, work)

  found, kept = {}, complete(folder)
  for experiment in of:
    for name, one in kept.items():
      what = {k: one["request"][k] for k in ("experiment", "variant", "run")}
      if what["experiment"] == experiment:
        found[name] = job(name, what)
    for run, one in complete(beside / experiment).items():
      what = {
        "experiment": experiment,
        "variant": one["request"]["variant"],
        "run": one["request"]["config"],
      }
      model = beside / experiment / "runs" / run / "model"
      name = f"{experiment}-{run}"
      if orbax_io.is_checkpoint(model):
        found[name] = job(name, what, one, model)
  if not found:
    raise ValueError(
      f"{beside} has no trained models of {', '.join(of)}: run these "
      "experiments first, with the same --out"
    )
  return list(found.values())
