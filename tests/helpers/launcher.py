"""Launchers in processes of their own, of which only one imports JAX.

`run("analyze", "--help")` is `subprocess.run` of `python -m launch.analyze` in
the repository's root, but the process is forked from a server that has imported
what launchers import: that takes three seconds, and tests start dozens.
"""

import atexit
import contextlib
import multiprocessing
import os
import pathlib
import runpy
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping
from typing import Any

ROOT = pathlib.Path(__file__).parents[2]
IMPORTED = (
  "sinkjax",
  "flax.linen",
  "grain",
  "jinja2",
  "matplotlib.backends.backend_agg",
  "matplotlib.figure",
  "optax",
  "orbax.checkpoint",
  "tensorboardX",
  "tokenizers",
  "tqdm",
)
_server = multiprocessing.get_context("forkserver")
_server.set_forkserver_preload(list(IMPORTED))


class Launched:
  """A launcher that runs, with the methods of `subprocess.Popen`.

  Args:
    name: of the launcher.
    *flags: its command line.
    env: variables beside those of this process.
    first: called in the new process before the launcher starts, to make
      something fail there; a function of a module, or a partial of one.
  """

  def __init__(
    self,
    name: str,
    *flags: str,
    env: Mapping[str, str] = {},
    first: Callable[[], None] | None = None,
  ):
    self.args = (name, *flags)
    self._folder = tempfile.TemporaryDirectory()
    self._files = [f"{self._folder.name}/{x}" for x in ("out", "err")]
    variables = {**os.environ, **env}
    # Daemons end with the tests, whatever these do.
    self._process = _server.Process(
      target=_launch,
      args=(name, flags, variables, *self._files, first),
      daemon=True,
    )
    self._process.start()

  @property
  def returncode(self) -> int | None:
    """The exit status, negative for a signal; `None` while it runs."""
    return self._process.exitcode

  def poll(self) -> int | None:
    """The exit status, `None` while it runs."""
    return self._process.exitcode

  def send_signal(self, number: int) -> None:
    """Sends a signal, unless it has ended."""
    if self.poll() is None:
      os.kill(self._process.pid, number)

  def errors(self) -> str:
    """What is on the standard error so far."""
    path = pathlib.Path(self._folder.name, "err")
    return path.read_text() if path.exists() else ""

  def kill(self) -> None:
    """Ends it at once."""
    self._process.kill()

  def communicate(self, timeout: float | None = None) -> tuple[str, str]:
    """Waits for its end; (standard output, standard error).

    Raises:
      subprocess.TimeoutExpired: if it still runs by then.
    """
    self._process.join(timeout)
    if self.poll() is None:
      raise subprocess.TimeoutExpired(self.args, timeout)
    return tuple(pathlib.Path(path).read_text() for path in self._files)


def run(
  name: str, *flags: str, timeout: float = 300, **more: Any
) -> subprocess.CompletedProcess:
  """A launcher from start to end, with its output as text."""
  launched = Launched(name, *flags, **more)
  try:
    out, err = launched.communicate(timeout)
  except BaseException:
    launched.kill()
    raise
  return subprocess.CompletedProcess(
    launched.args, launched.returncode, out, err
  )


def _launch(
  name: str,
  flags: tuple[str, ...],
  env: Mapping[str, str],
  out: str,
  err: str,
  first: Callable[[], None] | None,
) -> None:
  """`python -m launch.NAME FLAGS` in a forked process."""
  for number, path in ((1, out), (2, err)):
    file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(file, number)
  os.environ.clear()
  os.environ.update(env)
  os.chdir(ROOT)
  sys.argv = [name, *flags]
  if first is not None:
    first()
  with contextlib.ExitStack() as at_exit:
    # A forked process ends without what was registered for its end.
    atexit.register = at_exit.callback
    at_exit.callback(sys.stdout.flush)
    runpy.run_module(f"launch.{name}", run_name="__main__", alter_sys=True)
