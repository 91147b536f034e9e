"""Panics of a library in Rust, as errors of Python with one line.

A panic is no `Exception`, and before Python hears of it the library has written
it to the standard error, with a list of its own functions.
"""

import contextlib
import os
import sys
import tempfile
import threading
from collections.abc import Iterator

_ONE = threading.RLock()


class PanicError(ValueError):
  """What a library's panic says, in one line."""


@contextlib.contextmanager
def as_errors() -> Iterator[None]:
  """What is inside may panic, and then has written nothing.

  What else goes to the standard error meanwhile comes out afterwards, but for
  that of other threads in a panic. One thread at a time.

  Raises:
    PanicError: for a panic.

  Cost: about 0.1 ms.
  """
  with _ONE, contextlib.ExitStack() as stack:
    try:
      kept = os.dup(2)
      stack.callback(os.close, kept)
      written = stack.enter_context(tempfile.TemporaryFile())
      sys.stderr.flush()
      os.dup2(written.fileno(), 2)
    except (OSError, ValueError, AttributeError):  # no standard error, or disk
      kept = None
    panicked = False
    try:
      yield
    except (Exception, KeyboardInterrupt, SystemExit, GeneratorExit):
      raise
    except BaseException as panic:
      panicked = True
      lines = str(panic).splitlines() or [type(panic).__name__]
      raise PanicError(lines[0]) from None
    finally:
      if kept is not None:
        os.dup2(kept, 2)
        written.seek(0)
        with contextlib.suppress(OSError):
          while not panicked and (part := written.read(65536)):
            os.write(2, part)
