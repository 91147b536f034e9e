"""Which experiments can measure a model."""

from collections.abc import Callable, Sequence
from typing import Any

from sinkjax.experiments import BY_NAME
from sinkjax.experiments.harness.api import fits


def fitting(
  names: Sequence[str], model: str, cfg: Callable[[], Any], *, by_name: bool
) -> list[str]:
  """The experiments that can measure a model; of each other one a line.

  Args:
    names: of experiments.
    model: its name.
    cfg: gives its config; called only for an experiment that asks for one.
    by_name: they were asked for by their names, and not as a group.

  Raises:
    ValueError: for one that was asked for by its name and cannot.
  """
  left = []
  for name in names:
    unfit = BY_NAME[name].load().unfit
    why = "" if unfit is fits else unfit(cfg())
    if why and by_name:
      raise ValueError(f"--experiment={name} does not go with {model}: {why}")
    if why:
      print(f"{name}: left out for {model}: {why}")
    else:
      left.append(name)
  return left
