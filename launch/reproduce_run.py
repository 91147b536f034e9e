"""The measuring of `launch.reproduce`, by one process or by several."""

import contextlib
import pathlib
import time
from collections.abc import Callable, Sequence
from typing import Any

from launch import app, process_flags, train_processes
from sinkjax import outputs, provenance
from sinkjax.experiments import BY_NAME

LEFT = "the finished parts of a measurement are kept"
"""What processes that end early leave."""


def run(
  out: pathlib.Path,
  names: Sequence[str],
  requests: dict[str, Any],
  subject: Callable[[Sequence[str]], Callable[[], Any]],
  choose: Callable[[list[str], Callable[[], Any]], list[str]],
  *,
  overwrite: bool,
) -> Any:
  """Measures what is missing, and writes the report.

  Args:
    out: the folder of --out.
    names: of the experiments that are asked for.
    requests: of each.
    subject: what gives the model for some experiments.
    choose: of some experiments those that can measure it.
    overwrite: measure again what is there.

  Returns:
    All experiments that `out` has now; `None` in a process that does not write.
  """
  from sinkjax.experiments.harness import records, runner, together

  start = time.monotonic()
  # All folders are checked before the first experiment starts: one that holds
  # another command's result would otherwise stop the run hours later.
  left = [
    name
    for name in names
    if runner.is_missing(out / name, requests[name], overwrite=overwrite)
  ]
  # Before anything asks for devices: the processes then know each other's.
  first = process_flags.join()
  app.warm_compiler()
  several = process_flags.asked()
  # Another process may not see the folder, and must have the same texts.
  model = subject(names if several else left)
  ending = train_processes.ending_together(LEFT)
  with ending if several else contextlib.nullcontext():
    if first:
      left = choose(left, model)
      with outputs.folder(out):
        runner.run_all(out, {x: requests[x] for x in left}, model, overwrite)
        # The report covers the folder, with experiments of earlier commands.
        found = records.every(out)
      runner.report(
        out,
        found,
        command=provenance.command("reproduce"),
        seconds=time.monotonic() - start,
      )
      together.begin("", {})
    else:
      found = together.help_all(requests, model)
    train_processes.wait()
  train_processes.leave()
  return found


def apart(names: Sequence[str], *, by_name: bool) -> list[str]:
  """The experiments that several processes can measure, if there are several.

  Args:
    names: of experiments.
    by_name: they were asked for by their names, and not as a group.

  Raises:
    ValueError: for one that was asked for by its name and cannot.
  """
  if not process_flags.asked():
    return list(names)
  from launch.fitting import able

  words = "runs in one process", "left out, it runs in one process"
  return able(names, _apart, *words, by_name=by_name)


def _apart(name: str) -> str:
  """Why several processes cannot measure an experiment, "" where they can."""
  if BY_NAME[name].load().scales is not None:
    return (
      "it trains models of its own; the same command in other processes, "
      "without --distributed, shares its runs"
    )
  return ""
