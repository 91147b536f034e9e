"""Command lines: `python -m launch.NAME --help`."""

import signal
import sys

# While a launcher imports, Ctrl-C ends it at once: JAX does not survive an
# exception in the middle of its import, and there is nothing to clean up yet.
# `app.run` turns it into KeyboardInterrupt. Python sets argv[0] to "-m" only
# while it looks for a module to run; SIGINT may also be ignored, as by nohup.
if (
  sys.argv[:1] == ["-m"]
  and signal.getsignal(signal.SIGINT) is signal.default_int_handler
):
  signal.signal(signal.SIGINT, signal.SIG_DFL)
