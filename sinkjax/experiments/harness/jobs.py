"""Many training runs as one command: a finished run is kept and not repeated.

A run's outcome is `FOLDER/runs/NAME.json`, with `complete` last, so the same
command resumes after an interruption. A run in progress has a lease: the same
command in another shell, or on another host that shares the folder, takes the
runs that are left and those of processes that have died, and every device of a
process takes some.
"""

import concurrent.futures
import contextlib
import json
import pathlib
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax

from sinkjax import artifacts
from sinkjax.experiments.harness import leases

Advance = Callable[[int], Any]
"""Called with the number of a run's steps that are done."""


class Job(NamedTuple):
  """A training run, ready to start.

  Attributes:
    name: of its file.
    steps: how many it takes, for the progress bar.
    request: all that decides its outcome, as plain values.
    work: `work(folder, device, advance) -> outcome`, a dictionary of plain
      values; the folder is the run's own, for checkpoints, and stays.
  """

  name: str
  steps: int
  request: Mapping[str, Any]
  work: Callable[[pathlib.Path, jax.Device, Advance], Mapping[str, Any]]


def run_jobs(
  jobs: Sequence[Job],
  folder: pathlib.Path,
  *,
  progress: Callable[[int, int], Any] = lambda done, total: None,
  devices: Sequence[jax.Device] | None = None,
) -> list[dict[str, Any]]:
  """The outcome of every job, in their order.

  Args:
    jobs: each with a name of its own.
    folder: `runs` is made in it.
    progress: called with (steps done, steps in all).
    devices: that share the work; this process's if `None`.

  Raises:
    ValueError: for two jobs of one name, or a folder with runs of another
      request.

  Cost: that of the jobs, divided by the devices.
  """
  names = [job.name for job in jobs]
  if len(set(names)) != len(names):
    raise ValueError(f"two runs have one name: {sorted(names)}")
  devices = jax.local_devices() if devices is None else list(devices)
  runs = _Runs(folder / "runs", sum(job.steps for job in jobs), progress)
  left = [job for job in jobs if runs.outcome(job) is None]
  while left:
    free = list(devices)

    # The default binds the list of this round, which a closure would not.
    def one(job: Job, free: list[jax.Device] = free) -> None:
      device = free.pop()  # there are as many threads as devices
      try:
        runs.attempt(job, device)
      finally:
        free.append(device)

    with _workers(len(devices)) as pool:
      for future in [pool.submit(one, job) for job in left]:
        # An error of a run would otherwise stay hidden in its future.
        future.result()
    left = [job for job in left if runs.outcome(job) is None]
    if left:  # other processes work on these
      runs.tell_holders(left)
      time.sleep(leases.WAIT)
  return [runs.outcome(job) for job in jobs]


class _Runs:
  """Outcomes in a folder, and the progress of all of them."""

  def __init__(
    self, folder: pathlib.Path, total: int, progress: Callable[[int, int], Any]
  ):
    folder.mkdir(parents=True, exist_ok=True)
    self._folder, self._total, self._progress = folder, total, progress
    self._done: dict[str, int] = {}
    self._watch = leases.Watch()
    # Every device has a thread of its own, and all report to one progress bar.
    self._guard = threading.Lock()

  def _advance(self, job: Job, steps: int) -> None:
    with self._guard:
      self._done[job.name] = min(steps, job.steps)
      self._progress(sum(self._done.values()), self._total)

  def outcome(self, job: Job) -> dict[str, Any] | None:
    """What is on disk, `None` for a run that is not complete."""
    path = self._folder / f"{job.name}.json"
    found = _read(path)
    if found is None:
      return None
    if found["request"] != artifacts.plain(job.request):
      raise ValueError(
        f"{path} is of another config; choose another --out or give --overwrite"
      )
    self._advance(job, job.steps)
    return found

  def attempt(self, job: Job, device: jax.Device) -> None:
    """Runs a job, unless another process does or did so."""
    with (
      contextlib.suppress(leases.TakenOverError),
      self._watch.hold(self._folder / job.name) as lease,
    ):
      # Another process may have finished the run since the caller looked.
      if lease is None or self.outcome(job) is not None:
        return
      start = time.monotonic()

      def advance(steps: int) -> None:
        lease.require()
        self._advance(job, steps)

      with jax.default_device(device):
        found = job.work(self._folder / job.name, device, advance)
      lease.require()
      outcome = {
        "name": job.name,
        "request": job.request,
        "made_on": made_on(device),
        **found,  # a copied run keeps what it was made on
        "seconds": time.monotonic() - start,
        "complete": True,
      }
      artifacts.write_json(self._folder / f"{job.name}.json", outcome)
      self._advance(job, job.steps)

  def tell_holders(self, jobs: Sequence[Job]) -> None:
    """Says once of each process that is waited for what it works on."""
    for job in jobs:
      self._watch.tell(self._folder / job.name)


def made_on(device: jax.Device) -> str:
  """The device and the version of JAX that a run is made on, in words."""
  return f"{device.device_kind}, jax {jax.__version__}"


def makers(folder: pathlib.Path) -> list[str]:
  """The different `made_on` of the runs in a folder, sorted."""
  found = complete(folder).values()
  return sorted({one["made_on"] for one in found if "made_on" in one})


def complete(folder: pathlib.Path) -> dict[str, dict[str, Any]]:
  """{name: outcome} of the complete runs in a folder."""
  paths = artifacts.files(folder / "runs", ".json")
  found = {path.stem: _read(path) for path in paths}
  return {name: one for name, one in found.items() if one is not None}


def seconds_of(folder: pathlib.Path) -> float:
  """The time that all runs in a folder and below it took, added up."""
  packed = (p for p in artifacts.archived(folder) if p.parent.name == "runs")
  paths = {*folder.rglob("runs/*.json"), *packed}
  found = [_read(path) for path in sorted(paths)]
  return sum(one["seconds"] for one in found if one is not None)


@contextlib.contextmanager
def _workers(count: int) -> Iterator[concurrent.futures.Executor]:
  """A pool of threads that, on an error, drops the jobs not yet started."""
  pool = concurrent.futures.ThreadPoolExecutor(count)
  try:
    yield pool
  finally:
    pool.shutdown(cancel_futures=True)


def _read(path: pathlib.Path) -> dict[str, Any] | None:
  try:
    found = json.loads(artifacts.read_bytes(path))
  except (OSError, ValueError):
    return None
  whole = isinstance(found, dict) and found.get("complete") is True
  return found if whole else None
