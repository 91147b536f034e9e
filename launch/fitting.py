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

  def why(name: str) -> str:
    unfit = BY_NAME[name].load().unfit
    return "" if unfit is fits else unfit(cfg())

  words = f"does not go with {model}", f"left out for {model}"
  return able(names, why, *words, by_name=by_name)


def able(
  names: Sequence[str],
  why: Callable[[str], str],
  refused: str,
  left_out: str,
  *,
  by_name: bool,
) -> list[str]:
  """The experiments that nothing speaks against; of each other one a line.

  Args:
    names: of experiments.
    why: of a name, the reason why it cannot be measured; "" for none.
    refused: what one is that was asked for by its name.
    left_out: what one of a group is.
    by_name: as for `fitting`.

  Raises:
    ValueError: for one that was asked for by its name and cannot.
  """
  left = []
  for name in names:
    reason = why(name)
    if reason and by_name:
      raise ValueError(f"--experiment={name} {refused}: {reason}")
    if reason:
      print(f"{name}: {left_out}: {reason}")
    else:
      left.append(name)
  return left
