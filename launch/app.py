"""What every launcher shares: flags, one-line errors, and a warm compiler.

`run(main, doc)` parses the flags and calls `main()`. A person never meets a
traceback: an error is one line and exit status 1, Ctrl-C one line and 130.
"""

import os
import sys
import traceback
import warnings
from collections.abc import Callable

from absl import flags

DEBUG = flags.DEFINE_bool("debug", False, "On an error, show the traceback.")


def run(main: Callable[[], None], doc: str) -> None:
  """Parses flags, calls `main`, and exits.

  Args:
    main: reads its flags and does the work.
    doc: the launcher's docstring, shown by --help.
  """
  names = {"-h", "-help", "--help", "--helpfull", "-?"}
  if names & set(sys.argv[1:]):
    print(doc.strip(), "\n\nFlags:")
    for module in ("__main__", "launch.app"):
      print(flags.FLAGS.module_help(module))
    sys.exit(0)
  try:
    rest = flags.FLAGS(sys.argv)[1:]
    if rest:
      raise ValueError(f"unexpected argument {rest[0]!r}; flags are --name=...")
    _quiet()
    main()
  except KeyboardInterrupt:
    print("\nstopped: nothing half written", file=sys.stderr)
    sys.exit(130)
  except Exception as error:
    if flags.FLAGS.is_parsed() and DEBUG.value:
      traceback.print_exc()
    print(f"error: {_one_line(error)}", file=sys.stderr)
    sys.exit(1)


def _one_line(error: Exception) -> str:
  text = " ".join(str(error).split()) or type(error).__name__
  if isinstance(error, (ValueError, flags.Error)):
    return text
  return f"{type(error).__name__}: {text} (--debug shows where)"


def _quiet() -> None:
  """Keeps the terminal for what the launcher says."""
  os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
  warnings.filterwarnings("ignore", category=DeprecationWarning)


def warm_compiler() -> None:
  """Compiled programs are kept in the cache folder, between processes.

  One folder for each kind of processor: a home shared by different machines
  must not hand one's machine code to another.
  """
  import hashlib

  import jax

  from sinkjax.weights.registry import cache_folder

  kind = hashlib.sha256((device() + _processor("flags")).encode())
  folder = cache_folder() / "compiled" / kind.hexdigest()[:12]
  jax.config.update("jax_compilation_cache_dir", str(folder))
  jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.3)


def _processor(key: str) -> str:
  """A field of the first processor, "" where the system does not tell."""
  try:
    with open("/proc/cpuinfo") as stream:
      for line in stream:
        if line.startswith(key):
          return line.split(":", 1)[1].strip()
  except OSError:
    pass
  return ""


def versions() -> dict[str, str]:
  """Python's, ours and our packages' versions, for summaries."""
  import importlib.metadata as metadata
  import platform

  import sinkjax

  found = {"python": platform.python_version(), "sinkjax": sinkjax.__version__}
  for name in ("jax", "jaxlib", "flax", "numpy", "tokenizers", "gguf",
               "safetensors"):  # fmt: skip
    found[name] = metadata.version(name)
  return found


def commit() -> str | None:
  """The commit of the checkout that runs, with "+" if it is changed."""
  import pathlib
  import subprocess

  root = pathlib.Path(__file__).parents[1]
  if not (root / ".git").exists():
    return None

  def git(*words):
    return subprocess.run(
      ["git", "-C", str(root), *words],
      capture_output=True, text=True, check=True,
    ).stdout.strip()  # fmt: skip

  try:
    changed = git("status", "--porcelain", "--untracked-files=no")
    return git("rev-parse", "--short=12", "HEAD") + ("+" if changed else "")
  except (OSError, subprocess.CalledProcessError):
    return None


def device() -> str:
  """The device that JAX runs on, in words."""
  import platform

  import jax

  first = jax.devices()[0]
  if first.platform != "cpu":
    return f"{jax.device_count()} x {first.device_kind}"
  model = _processor("model name") or platform.machine()
  return f"CPU, {os.cpu_count()} cores, {model}"
