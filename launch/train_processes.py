"""Several processes that work together, and end together."""

import contextlib
import os
import sys
import threading
from collections.abc import Iterator

from launch import app

HEARTBEAT = 20
"""Seconds without an answer after which a process counts as dead: long enough
for a slow disk, short enough that the others do not wait in vain."""


WAIT = 50
"""Seconds that a process waits for the others to start: schedulers start them
together."""


def join(
  distributed: bool,
  coordinator: str | None,
  processes: int | None,
  process: int | None,
) -> bool:
  """Connects to the other processes; whether this is the one that writes.

  Args:
    distributed: whether the environment says how they find each other.
    coordinator: HOST:PORT of process 0, where it does not.
    processes: how many there are.
    process: the number of this one.

  Raises:
    ValueError: for flags that do not go together, or if no other process is
      found.
  """
  import jax

  by_hand = (coordinator, processes, process)
  if not distributed and by_hand == (None,) * 3:
    return True
  if not distributed and None in by_hand:
    raise ValueError("--coordinator, --processes and --process go together")
  given = {}
  if not distributed:
    names = ("coordinator_address", "num_processes", "process_id")
    given = dict(zip(names, by_hand, strict=True))
  try:
    with _waiting(coordinator, processes, process):
      jax.distributed.initialize(
        **given,
        heartbeat_timeout_seconds=HEARTBEAT,
        initialization_timeout=2 * WAIT,
        shutdown_timeout_seconds=HEARTBEAT,
      )
  except (RuntimeError, ValueError) as error:
    raise ValueError(
      f"the processes did not find each other: {error}"
    ) from None
  return jax.process_index() == 0


@contextlib.contextmanager
def _waiting(
  coordinator: str | None, processes: int | None, process: int | None
) -> Iterator[None]:
  """Says for whom this process waits, and ends it after `WAIT` seconds.

  JAX would wait for longer and then end it by a signal. Nothing is written yet.
  """
  me = "this process"
  if process is not None:
    me = f"process {process} of {processes}"
  others = "the other processes"
  if process:
    others = f"process 0 at {coordinator}"
  print(f"{me} waits for {others}", file=sys.stderr, flush=True)

  def give_up() -> None:
    line = f"error: {me} waited {WAIT} s for {others}; start all of them"
    print(line, file=sys.stderr, flush=True)
    os._exit(1)

  timer = threading.Timer(WAIT, give_up)
  timer.daemon = True
  timer.start()
  try:
    yield
  finally:
    timer.cancel()


@contextlib.contextmanager
def own_output() -> Iterator[None]:
  """Keeps the standard output for what Python prints.

  Gloo, by which processes on CPUs exchange arrays, greets there; its words go
  to the standard error.
  """
  sys.stdout.flush()
  kept, before = os.dup(1), sys.stdout
  os.dup2(2, 1)
  try:
    with os.fdopen(os.dup(kept), "w", encoding=before.encoding) as sys.stdout:
      yield
  finally:
    sys.stdout = before
    os.dup2(kept, 1)
    os.close(kept)


def wait() -> None:
  """Until all processes are here, however long one of them writes."""
  import jax

  if jax.process_count() > 1:
    from jax.experimental import multihost_utils

    multihost_utils.sync_global_devices("written")


def leave() -> None:
  """Disconnects from the other processes."""
  import jax

  if jax.process_count() > 1:
    jax.distributed.shutdown()


TRAINED = "the last complete checkpoint is intact"
"""What a training run that ends early leaves."""


@contextlib.contextmanager
def ending_together(left: str = TRAINED) -> Iterator[None]:
  """Ends this process at once on an error, where others would wait for it.

  Other processes wait for its part of a sum, and Orbax's threads for a disk.

  Args:
    left: what is there then.
  """
  import jax

  try:
    yield
  except BaseException as error:
    text = " ".join(str(error).split())[:300] or type(error).__name__
    count = jax.process_count()
    if isinstance(error, OSError) and _full(text):
      text = (
        f"the disk is full: {left}; free some space and run the same command "
        f"again ({text})"
      )
    elif count == 1 or not isinstance(error, Exception):
      raise
    else:
      text = (
        f"process {jax.process_index()} of {count}: {text}; if another process "
        f"died, {left}: start all of them again"
      )
    # A usual end would wait for threads and for the other processes, which wait
    # for this one.
    raise app.EndNow(text) from error


def _full(text: str) -> bool:
  """Whether an error of any library says that a disk or quota is full."""
  return any(
    words in text.lower()
    for words in ("space left", "quota exceeded", "file too large")
  )
