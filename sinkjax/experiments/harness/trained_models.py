"""Looks at trained models that other experiments left in the same folder.

Models are large and looks are small: a look that was taken is kept when its
model is deleted.
"""

import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from sinkjax.experiments.harness.jobs import Advance, Job, complete
from sinkjax.train.run_config import TrainConfig
from sinkjax.weights import orbax_io

Look = Callable[
  [TrainConfig, Mapping[str, Any], pathlib.Path, Advance], Mapping[str, Any]
]
"""`look(run, trained, model, advance) -> outcome`, plain values, of a model and
the outcome of the run that trained it."""


def look_jobs(
  of: Sequence[str],
  folder: pathlib.Path,
  *,
  beside: pathlib.Path,
  request: Mapping[str, Any],
  steps: int,
  look: Look,
) -> list[Job]:
  """A look at every trained model, and those at models that are gone.

  Args:
    of: experiments whose models are taken; those that are not there are left
      out.
    folder: where looks are kept.
    beside: the folder in which these experiments are.
    request: what decides a look's outcome, the model apart.
    steps: of a look, for the progress bar.
    look: takes it.

  Raises:
    ValueError: if there is no model and no look.
  """

  def job(name: str, what: dict[str, Any], trained=None, model=None) -> Job:
    def work(folder, device, advance):
      return look(TrainConfig.from_dict(what["run"]), trained, model, advance)

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
