"""Command lines: `python -m launch.NAME --help`."""

import contextlib
import os
import signal
import sys

# Where a standard stream is closed, the next file that is opened would get its
# number, and what is printed would end up in that file.
for _number in (0, 1, 2):
  try:
    os.fstat(_number)
  except OSError:
    os.open(os.devnull, os.O_RDWR)  # takes the lowest free number
with contextlib.suppress(OSError):
  sys.stdout = sys.stdout or os.fdopen(1, "w")
  sys.stderr = sys.stderr or os.fdopen(2, "w")

# XLA reads this when JAX is imported, which some launchers do before they look
# at their flags; its warnings are about its own work.
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

# While a launcher imports, Ctrl-C ends it at once: JAX does not survive an
# exception in the middle of its import, and there is nothing to clean up yet.
# `app.run` turns it into KeyboardInterrupt. Python sets argv[0] to "-m" only
# while it looks for a module to run; SIGINT may also be ignored, as by nohup.
if (
  sys.argv[:1] == ["-m"]
  and signal.getsignal(signal.SIGINT) is signal.default_int_handler
):
  signal.signal(signal.SIGINT, signal.SIG_DFL)
