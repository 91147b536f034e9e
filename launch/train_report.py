"""The report of a training run, at its end or while it goes on."""

import contextlib
import json
import pathlib
from typing import TYPE_CHECKING, Any

from launch import app
from launch.train_plan import parameters
from sinkjax import limits, provenance

if TYPE_CHECKING:
  from sinkjax.train.run_config import TrainConfig


def write(
  config: "TrainConfig",
  workdir: pathlib.Path,
  request: dict[str, Any],
  records: list[dict[str, Any]],
  numbers: dict[str, Any],
  corpus: dict[str, Any] | None,
  *,
  complete: bool = True,
) -> None:
  """Writes figures, tables and the page, and summary.json if it is complete.

  Args:
    config: the run.
    workdir: its folder.
    request: the config as plain values.
    records: all that were logged.
    numbers: what else the summary says.
    corpus: where its texts come from.
    complete: whether the run has ended.
  """
  from sinkjax.report import train as report

  numbers = {"parameters": parameters(config.model), **numbers}
  meta = {
    "command": provenance.command("train"),
    "device": provenance.device(),
    "commit": provenance.commit(),
    "versions": provenance.versions(),
    "request": request,
    "corpus": corpus,
  }
  report.write(workdir, records, numbers, meta, complete=complete)


def write_so_far(
  config: "TrainConfig", workdir: pathlib.Path, request: dict[str, Any]
) -> None:
  """Writes the page of a run that goes on or was cut off, from its log alone.

  Args:
    config: the run.
    workdir: its folder.
    request: the config as plain values.

  Raises:
    ValueError: if nothing is measured yet.
  """
  log = workdir / "metrics.jsonl"
  if not log.exists():
    raise ValueError(f"{workdir} has no metrics.jsonl: no run yet")
  lines = limits.read_text(log).splitlines()
  records = []
  for line in lines:
    with contextlib.suppress(ValueError):  # the last one may be half written
      records.append(json.loads(line))
  with app.reading(log):
    kinds = {record["kind"] for record in records}
    done = max((record["step"] for record in records), default=0)
  if not {"train", "eval", "probe"} <= kinds:
    raise ValueError(f"{workdir} has no step yet: nothing to draw")
  with app.reading(log):
    # The last record suffices: the run counts skipped steps from its start.
    skipped = [r["skipped"] for r in records if r["kind"] == "train"][-1]
    numbers = {
      "tokens": done * config.batch * config.packing.length,
      "skipped": skipped,
    }
    write(config, workdir, request, records, numbers, None, complete=False)
  print(f"{done} of {config.steps} steps. Report: {workdir / 'report.html'}")
