"""What every launcher shares: flags, one-line errors, and a warm compiler.

`run(main, doc)` parses the flags and calls `main()`. A person never meets a
traceback: an error is one line and exit status 1, Ctrl-C one line and 130,
SIGTERM one line and 143, and a reader of the output that leaves, as `head`
does, no line at all.
"""

import contextlib
import functools
import logging as pylogging
import os
import pathlib
import signal
import sys
import threading
import traceback
import warnings
from collections.abc import Callable
from typing import Any

from absl import flags, logging

from launch import config_flags, flag_values
from sinkjax import limits

DEBUG = flags.DEFINE_bool("debug", False, "On an error, show the traceback.")
LONGEST = 300
"""Characters of an error: about four lines of a terminal."""

HELP = {"-h", "-help", "--help", "--helpfull", "-?"}


class EndNow(ValueError):
  """An error after which other threads and processes are not waited for."""


class Terminated(KeyboardInterrupt):
  """SIGTERM, after which the same is kept as after Ctrl-C."""


class Config:
  """The flags --config=FILE and --config.FIELD=VALUE."""

  def __init__(
    self, default: str | None, text: str, declared: Callable[[], Any]
  ):
    self._path = flags.DEFINE_string("config", default, text)
    self._declared = declared
    self.given: list[tuple[str, str]] = []

  @functools.cached_property
  def value(self) -> dict[str, Any]:
    """All fields of the file, with those of the command line put in.

    Raises:
      ValueError: as `config_flags.read`.
    """
    return config_flags.read(self._path.value, self.given, self._declared())


_configs: list[Config] = []


def config_file(
  default: str | None, text: str, declared: Callable[[], Any]
) -> Config:
  """Defines --config=FILE, and a flag --config.FIELD for each of its fields.

  Args:
    default: the file that is read without the flag.
    text: for --help.
    declared: gives the fields with their types, as `config_flags.read` takes
      them; called when the config is read, so that --help need not import them.
  """
  _configs.append(Config(default, text, declared))
  return _configs[-1]


def run(main: Callable[[], None], doc: str) -> None:
  """Parses flags, calls `main`, and exits.

  Args:
    main: reads its flags and does the work.
    doc: the launcher's docstring, shown by --help.
  """
  if signal.getsignal(signal.SIGINT) is signal.SIG_DFL:  # of `launch`
    signal.signal(signal.SIGINT, signal.default_int_handler)
  if signal.getsignal(signal.SIGTERM) is signal.SIG_DFL:
    signal.signal(signal.SIGTERM, _terminated)
  sys.unraisablehook = _interrupt_again
  try:
    if HELP & set(sys.argv[1:]):
      _show_help(doc)
    else:
      _parse()
      _quiet()
      main()
    sys.stdout.flush()
  except KeyboardInterrupt as stop:
    _say("\nstopped: nothing half written")
    # Python may end by the signal, if it came during an import.
    _end_now(143 if isinstance(stop, Terminated) else 130)
  except BrokenPipeError:
    # Python flushes again when it ends, and would complain again.
    for stream in (sys.stdout, sys.stderr):
      os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
    sys.exit(141)  # as a shell tells of a program that SIGPIPE ended
  except Exception as error:
    if flags.FLAGS.is_parsed() and DEBUG.value:
      traceback.print_exc()
    _say(f"error: {_one_line(error)}")
    if isinstance(error, EndNow):
      _end_now(1)
    sys.exit(1)


def _terminated(*_) -> None:
  raise Terminated


def _say(line: str) -> None:
  """Writes to the standard error, which may have nobody who reads it."""
  with contextlib.suppress(OSError):
    print(line, file=sys.stderr, flush=True)


def _end_now(status: int) -> None:
  with contextlib.suppress(OSError):
    sys.stdout.flush()
  os._exit(status)


def _interrupt_again(dropped: "sys.UnraisableHookArgs") -> None:
  """Sends Ctrl-C once more if it came where Python drops exceptions.

  JAX runs a callback at each garbage collection. An exception in a callback, or
  in `__del__`, is printed and forgotten, and the launcher would go on.
  """
  if not issubclass(dropped.exc_type, KeyboardInterrupt):
    if not (flags.FLAGS.is_parsed() and not DEBUG.value):
      sys.__unraisablehook__(dropped)
    return
  number = signal.SIGINT
  if dropped.exc_type is Terminated:
    number = signal.SIGTERM
  main = threading.main_thread().ident
  # By then the callback has returned; if it has not, this runs again.
  again = threading.Timer(0.05, signal.pthread_kill, (main, number))
  again.daemon = True  # a launcher that is done need not wait for it
  again.start()


def _show_help(doc: str) -> None:
  print(doc.strip(), "\n\nFlags:")
  ours = (
    *("found_sinks", "edit_flag", "devices", "mesh_flag", "accelerator_flag"),
    "process_flags",
  )
  for module in ("__main__", *(f"launch.{name}" for name in ours), __name__):
    if flags.FLAGS.get_flags_for_module(module):
      print(flags.FLAGS.module_help(module))


def _parse() -> None:
  """Reads the command line.

  Raises:
    ValueError: for a word that is no flag, or a value that none can have.
  """
  words = sys.argv
  for config in _configs:
    words, config.given = config_flags.split(words)
  rest = flags.FLAGS(words)[1:]
  if rest:
    raise ValueError(f"unexpected argument {rest[0]!r}; flags are --name=VALUE")
  flag_values.check()


def printable(text: str) -> str:
  """A text that moves no cursor and colours nothing: for a terminal.

  Paths, files and models may hold control characters. They become U+FFFD;
  line breaks and tabs stay.

  >>> printable("a" + chr(27) + "[31m\tb")
  'a\ufffd[31m\tb'
  """
  return "".join(
    c if c.isprintable() or c in "\n\t" else "\ufffd" for c in text
  )


def _one_line(error: Exception) -> str:
  """An error in a line of at most `LONGEST` characters."""
  text = str(error).strip() or type(error).__name__
  if isinstance(error, OSError) and error.filename and error.strerror:
    # Of a path that a flag gave, as one that is too long, or not ours.
    return one_line(f"{os.fsdecode(error.filename)}: {error.strerror}")
  if not isinstance(error, (ValueError, flags.Error)):
    text = f"{type(error).__name__}: {text} (--debug shows where)"
  return one_line(text)


def one_line(text: str) -> str:
  """A text in a line of at most `LONGEST` characters that print."""
  text = printable(" ".join(text.split()))
  if len(text) <= LONGEST:
    return text
  # What is wrong stands at the beginning, what to do at the end.
  return f"{text[: LONGEST - 103]} ... {text[-98:]}"


def finished(
  out: pathlib.Path,
  request: dict[str, Any],
  *,
  model: str | None = None,
  overwrite: bool,
) -> dict[str, Any] | None:
  """What `summary.json` in `out` holds, if it is this very result.

  Args:
    out: the folder of --out, which need not exist.
    request: what was asked for, as `summary.json` keeps it.
    model: the model's name or path, if there is one; its bytes must be those
      that `summary.json` was made from.
    overwrite: whether whatever is there may go.

  Returns:
    The summary, `None` where the work is still to be done.

  Raises:
    ValueError: if `out` is a file, or holds the result of another command or
      of other bytes under the model's name.
  """
  if out.exists() and not out.is_dir():
    raise ValueError(f"--out={out} is a file, not a folder")
  if overwrite or not (out / "summary.json").exists():
    return None
  try:
    old = limits.read_json(out / "summary.json", limits.MANIFEST)
  except ValueError:
    old = {}
  old = old if isinstance(old, dict) else {}
  if old.get("complete") is True and old.get("request") == request:
    from sinkjax.weights import identity

    weights = old.get("weights")
    if model is not None and not identity.made_from(weights, model, out):
      print(
        f"{out} does not say which bytes of {model} it was made from: measured "
        "again"
      )
      return None
    print(f"Already done: {out}. Give --overwrite to measure again.")
    return old
  raise ValueError(
    f"{out} holds the result of another command; choose another --out or give "
    "--overwrite"
  )


def reading(path: pathlib.Path) -> contextlib.AbstractContextManager[None]:
  """Says which file of an earlier command lacks what is looked for.

  Args:
    path: the file.

  Raises:
    ValueError: as `limits.lacking`, within the context.
  """
  return limits.lacking(
    path.parent,
    f"{path} is damaged, or of another version",
    "give --overwrite, or another --out",
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
  warnings.filterwarnings("ignore", category=DeprecationWarning)
  if not DEBUG.value:
    # A cache that cannot be written, as on a full disk, costs time alone.
    warnings.filterwarnings("ignore", ".* persistent compilation cache")
    # Python adds the line of code that warns, which says nothing to a user.
    warnings.formatwarning = lambda message, *_: (
      f"warning: {one_line(str(message))}\n"
    )
    # Orbax logs the traceback of what it raises, too; so does asyncio, whose
    # tasks Orbax runs. What a thread of theirs raises comes to the main thread
    # as an error where it matters.
    logging.set_verbosity(logging.FATAL)
    for name in ("asyncio", "concurrent.futures", "tensorboardX"):
      pylogging.getLogger(name).setLevel(pylogging.CRITICAL + 1)
    threading.excepthook = lambda _: None


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
