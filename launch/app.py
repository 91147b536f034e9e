"""What every launcher shares: flags, one-line errors, and a warm compiler.

`run(main, doc)` parses the flags and calls `main()`. A person never meets a
traceback: an error is one line and exit status 1, Ctrl-C one line and 130.
"""

import json
import os
import pathlib
import sys
import traceback
import warnings
from collections.abc import Callable
from typing import Any

from absl import flags, logging

DEBUG = flags.DEFINE_bool("debug", False, "On an error, show the traceback.")


def config_file(default: str | None, text: str):
  """The flag --config; a field that there is not ends with one line.

  ml_collections looks the fields up when the flag is defined, not when flags
  are parsed.

  Args:
    default: the file that is taken.
    text: for --help.
  """
  from ml_collections import config_flags

  try:
    return config_flags.DEFINE_config_file("config", default, text)
  except AttributeError as error:
    sys.exit(f"error: --config has no field {_one_line(ValueError(error))}")


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
    rest = _parsed()
    if rest:
      raise ValueError(f"unexpected argument {rest[0]!r}; flags are --name=...")
    _quiet()
    main()
  except KeyboardInterrupt:
    print("\nstopped: nothing half written", file=sys.stderr)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(130)  # Python may end by the signal, if it came during an import
  except Exception as error:
    if flags.FLAGS.is_parsed() and DEBUG.value:
      traceback.print_exc()
    print(f"error: {_one_line(error)}", file=sys.stderr)
    sys.exit(1)


def _parsed() -> list[str]:
  """What is left of the command line when the flags are read.

  Raises:
    ValueError: also for a field that --config does not have.
  """
  try:
    return flags.FLAGS(sys.argv)[1:]
  except (AttributeError, KeyError) as error:  # of a part of the config
    name = str(error.args[0]).strip("\"'")
    raise ValueError(
      f"--config has no field {name!r}; the file that it names has them all"
    ) from None


def _one_line(error: Exception) -> str:
  text = str(error).strip()
  head, told, tail = text.partition("Traceback (most recent call last):")
  if told:  # a flag's parser tells of another error, at length
    text = f"{head} {tail.splitlines()[-1]}"
  text = " ".join(text.split()) or type(error).__name__
  if isinstance(error, (ValueError, flags.Error)):
    return text
  return f"{type(error).__name__}: {text} (--debug shows where)"


def finished(
  out: pathlib.Path, request: dict[str, Any], *, overwrite: bool
) -> dict[str, Any] | None:
  """What `summary.json` in `out` holds, if it is this very result.

  Args:
    out: the folder of --out, which need not exist.
    request: what was asked for, as `summary.json` keeps it.
    overwrite: whether whatever is there may go.

  Returns:
    The summary, `None` where the work is still to be done.

  Raises:
    ValueError: if `out` is a file or holds another command's result.
  """
  if out.exists() and not out.is_dir():
    raise ValueError(f"--out={out} is a file, not a folder")
  if overwrite:
    return None
  try:
    old = json.loads((out / "summary.json").read_text("utf-8"))
  except FileNotFoundError:
    return None
  except (OSError, ValueError):
    old = {}
  if old.get("complete") is True and old.get("request") == request:
    print(f"Already done: {out}. Give --overwrite to measure again.")
    return old
  raise ValueError(
    f"{out} holds the result of another command; choose another --out or give "
    "--overwrite"
  )


def duration(seconds: float) -> str:
  """A length of time in words.

  >>> duration(41.3), duration(150), duration(8000)
  ('41 s', '2.5 min', '2.2 h')
  """
  if seconds < 90:
    return f"{max(1, seconds):.0f} s"
  if seconds < 5400:
    return f"{seconds / 60:.{int(seconds < 600)}f} min"
  return f"{seconds / 3600:.1f} h"


def _quiet() -> None:
  """Keeps the terminal for what the launcher says."""
  os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
  warnings.filterwarnings("ignore", category=DeprecationWarning)
  if not DEBUG.value:  # Orbax logs the traceback of what it raises, too
    logging.set_verbosity(logging.FATAL)


def warm_compiler() -> None:
  """Compiled programs are kept in the cache folder, between processes.

  One folder for each kind of processor: a home shared by different machines
  must not hand one's machine code to another.
  """
  import hashlib

  import jax

  from sinkjax import provenance
  from sinkjax.weights.packages import cache_folder

  kind = hashlib.sha256(
    (provenance.device() + provenance.processor("flags")).encode()
  )
  folder = cache_folder() / "compiled" / kind.hexdigest()[:12]
  jax.config.update("jax_compilation_cache_dir", str(folder))
  jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.3)
