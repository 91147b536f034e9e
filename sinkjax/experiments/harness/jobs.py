"""Many training runs as one command: each finished run is kept, none twice.

A run's outcome is `FOLDER/runs/NAME.json`, `complete` last, so the same
command goes on after an interruption. A run that somebody works on is locked:
the same command in another shell, or on another host that shares the folder,
takes the runs that are left, and every device of a process takes some.
"""

import concurrent.futures
import contextlib
import fcntl
import json
import pathlib
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax

from sinkjax import artifacts

Advance = Callable[[int], Any]
"""Told how many steps of a run are done."""

WAIT = 2.0
"""Seconds between two looks at runs that somebody else works on."""


class Job(NamedTuple):
  """A training run, ready to start.

  Attributes:
    name: of its file.
    steps: it takes, for the progress bar.
    request: what decides its outcome, as plain values.
    work: `work(folder, device, advance) -> outcome`, a dictionary of plain
      values; the folder is the run's own, for checkpoints, and is left to it.
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
    jobs: with names of their own.
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
  runs = folder / "runs"
  runs.mkdir(parents=True, exist_ok=True)
  devices = jax.local_devices() if devices is None else list(devices)
  total, done, guard = sum(job.steps for job in jobs), {}, threading.Lock()

  def tell(job, steps):
    with guard:
      done[job.name] = min(steps, job.steps)
      progress(sum(done.values()), total)

  def outcome(job):
    """What is on disk, `None` for a run that is not complete."""
    found = _read(runs / f"{job.name}.json")
    if found is not None and found["request"] != artifacts.plain(job.request):
      raise ValueError(
        f"{runs / job.name}.json is of another config; choose another --out "
        "or give --overwrite"
      )
    if found is not None:
      tell(job, job.steps)
    return found

  def attempt(job, device):
    with _lock(runs / f"{job.name}.lock") as mine:
      if not mine or outcome(job) is not None:
        return
      start = time.monotonic()
      with jax.default_device(device):
        found = job.work(runs / job.name, device, lambda n: tell(job, n))
      artifacts.write_json(
        runs / f"{job.name}.json",
        {
          "name": job.name,
          "request": job.request,
          "made_on": made_on(device),
          **found,  # a copied run tells its own
          "seconds": time.monotonic() - start,
          "complete": True,
        },
      )
      tell(job, job.steps)

  left = [job for job in jobs if outcome(job) is None]
  while left:
    with _workers(len(devices)) as pool:
      free = list(devices)

      def one(job, free=free):
        with guard:
          device = free.pop()
        try:
          attempt(job, device)
        finally:
          with guard:
            free.append(device)

      for future in [pool.submit(one, job) for job in left]:
        future.result()
    left = [job for job in left if outcome(job) is None]
    if left:  # others work on these
      time.sleep(WAIT)
  return [outcome(job) for job in jobs]


def made_on(device: jax.Device) -> str:
  """What a run of this process is made on, in words."""
  return f"{device.device_kind}, jax {jax.__version__}"


def makers(folder: pathlib.Path) -> list[str]:
  """What the runs in a folder were made on, each once, in order."""
  found = complete(folder).values()
  return sorted({one["made_on"] for one in found if "made_on" in one})


def complete(folder: pathlib.Path) -> dict[str, dict[str, Any]]:
  """{name: outcome} of the runs in a folder that are complete."""
  paths = artifacts.files(folder / "runs", ".json")
  found = {path.stem: _read(path) for path in paths}
  return {name: one for name, one in found.items() if one is not None}


def seconds_of(folder: pathlib.Path) -> float:
  """What all runs in a folder and below took, each by its process's clock."""
  packed = (p for p in artifacts.archived(folder) if p.parent.name == "runs")
  paths = {*folder.rglob("runs/*.json"), *packed}
  found = [_read(path) for path in sorted(paths)]
  return sum(one["seconds"] for one in found if one is not None)


@contextlib.contextmanager
def _workers(count: int) -> Iterator[concurrent.futures.Executor]:
  """A pool that drops what has not begun when something fails."""
  pool = concurrent.futures.ThreadPoolExecutor(count)
  try:
    yield pool
  finally:
    pool.shutdown(cancel_futures=True)


@contextlib.contextmanager
def _lock(path: pathlib.Path) -> Iterator[bool]:
  """Whether this process holds the run while the block lasts."""
  with open(path, "w") as stream:
    try:
      fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
      yield False
      return
    yield True


def _read(path: pathlib.Path) -> dict[str, Any] | None:
  try:
    found = json.loads(artifacts.read_bytes(path))
  except (OSError, ValueError):
    return None
  return found if found.get("complete") is True else None
