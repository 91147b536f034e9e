"""A launcher that is interrupted, or whose reader leaves, says no traceback."""

import os
import pathlib
import signal
import subprocess
import sys
import time

import pytest

from launch import app

ROOT = pathlib.Path(__file__).parents[2]


def start(*arguments):
  """Python as a person starts it, with Ctrl-C not ignored."""
  # A background shell hands down that Ctrl-C is ignored; a handler is not.
  ours = signal.signal(signal.SIGINT, signal.default_int_handler)
  process = subprocess.Popen(
    [sys.executable, *arguments],
    cwd=ROOT,
    stdout=subprocess.PIPE,
    stderr=subprocess.PIPE,
    text=True,
  )
  signal.signal(signal.SIGINT, ours)
  return process


def test_a_reader_that_leaves_is_no_error():
  """As `| head -1` does; its pipe is closed before anything is written."""
  process = start("-m", "launch.reproduce", "--help")
  process.stdout.close()
  assert process.stderr.read() == ""
  assert process.wait(60) == 141  # as a shell says of SIGPIPE


@pytest.mark.thorough
@pytest.mark.parametrize("stream", [1, 2])
def test_a_closed_stream_is_no_error(tmp_path, stream):
  """As `2>&-` does: the next file that is opened must not take its place."""
  file = tmp_path / "file"
  program = f"""
import os
from launch import app
def main():
  os.close(0)  # so that only what is closed below is free
  with open({str(file)!r}, "w") as kept:
    print("said")
    raise ValueError("wrong")
app.run(main, "")
"""
  process = subprocess.run(
    [sys.executable, "-c", program],
    cwd=ROOT,
    capture_output=True,
    text=True,
    check=False,
    preexec_fn=lambda: os.close(stream),
  )
  assert process.returncode == 1 and file.read_text() == ""
  said = [process.stdout, process.stderr]
  assert said[stream - 1] == "" and "Traceback" not in "".join(said)
  assert said[2 - stream].strip() in ("said", "error: wrong")


@pytest.mark.thorough
def test_an_error_that_nobody_reads_is_no_traceback():
  process = start("-m", "launch.convert", "--nope")
  process.stderr.close()
  assert process.stdout.read() == "" and process.wait(60) == 1


@pytest.mark.thorough
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_both_signals_clean_up(tmp_path, number):
  program = f"""
import pathlib, signal, sys, time
from launch import app
from sinkjax import outputs
def main():
  with outputs.alone(pathlib.Path({str(tmp_path)!r}, "a", "b")):
    pathlib.Path({str(tmp_path)!r}, "a", "b", "part").touch()
    print("begun", flush=True)
    time.sleep(30)
app.run(main, "")
"""
  process = start("-c", program)
  assert process.stdout.readline() == "begun\n"
  process.send_signal(number)
  _, err = process.communicate(timeout=60)
  assert process.returncode == 128 + number
  assert err.strip() == "stopped: nothing half written"
  assert not list(tmp_path.iterdir())


@pytest.mark.thorough
def test_a_thread_s_error_is_no_traceback():
  """Where it matters, the main thread has the error as well."""
  program = """
import threading
from launch import app
def main():
  thread = threading.Thread(target=lambda: 1 / 0)
  thread.start()
  thread.join()
  raise OSError("the\\nreason " + "x" * 900)
app.run(main, "")
"""
  _, err = start("-c", program).communicate(timeout=60)
  assert err.count("\n") == 1 and len(err) < 310, err
  assert err.startswith("error: OSError: the reason xx")


def test_an_interrupt_that_python_drops_comes_again():
  """An exception in a callback of the garbage collector is dropped."""
  program = """
import gc, signal, time
from launch import app
def main():
  gc.callbacks.append(
    lambda phase, _: phase == "start" and signal.raise_signal(signal.SIGINT)
  )
  gc.collect()
  gc.callbacks.pop()
  time.sleep(30)
app.run(main, "")
"""
  process = start("-c", program)
  _, err = process.communicate(timeout=60)
  assert process.returncode == 130, err
  assert err.strip() == "stopped: nothing half written"


@pytest.mark.skipif(
  not pathlib.Path("/proc/self/maps").exists(), reason="needs Linux's /proc"
)
def test_an_interrupt_while_jax_is_imported():
  process = start("-m", "launch.train", "--dry_run")
  maps = pathlib.Path(f"/proc/{process.pid}/maps")
  while "jaxlib" not in maps.read_text() and process.poll() is None:
    time.sleep(0.005)
  process.send_signal(signal.SIGINT)
  out, err = process.communicate(timeout=60)
  assert process.returncode in (-signal.SIGINT, 130)
  assert out == "" and "Traceback" not in err and err.count("\n") <= 2


@pytest.mark.parametrize("size", [10, 300, 301, 5000])
def test_an_error_is_short_and_keeps_both_ends(size):
  text = app._one_line(ValueError("wrong: " + "x" * size + "; do this"))
  assert text.startswith("wrong: x") and text.endswith("; do this")
  assert len(text) <= app.LONGEST and (" ... " in text) == (size >= 300)


@pytest.mark.parametrize("name", ["a" * 300, "é" * 200, "x" * 255 + "\n"])
def test_a_path_that_the_system_refuses(tmp_path, name):
  with pytest.raises(OSError) as error:
    (tmp_path / name).stat()
  line = app._one_line(error.value)
  assert line.startswith(f"{tmp_path}/{name[:20]}")
  assert line.endswith(": File name too long") and line.isprintable()
  assert len(line) <= app.LONGEST


def test_no_control_character_reaches_a_terminal():
  every = "".join(map(chr, [*range(256), 0x2028, 0x202E, 0xFEFF]))
  assert all(c.isprintable() or c in "\n\t" for c in app.printable(every))
  line = app._one_line(ValueError("a\x1b[31m\rb\nc\x9b"))
  assert line.isprintable() and line == "a\ufffd[31m b c\ufffd"
