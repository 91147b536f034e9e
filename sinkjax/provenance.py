"""Where a result comes from: the command, the commit, versions, the device."""

import os
import pathlib
import shlex
import sys


def command(launcher: str) -> str:
  """The command line that runs this again."""
  return shlex.join(["python", "-m", f"launch.{launcher}", *sys.argv[1:]])


def processor(key: str) -> str:
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
  for name in (
    "jax",
    "jaxlib",
    "flax",
    "numpy",
    "tokenizers",
    "gguf",
    "safetensors",
  ):
    found[name] = metadata.version(name)
  return found


def commit() -> str | None:
  """The commit of the checkout that runs, with "+" if it is changed."""
  import subprocess

  root = pathlib.Path(__file__).parents[1]
  if not (root / ".git").exists():
    return None

  def git(*words):
    return subprocess.run(
      ["git", "-C", str(root), *words],
      capture_output=True,
      text=True,
      check=True,
    ).stdout.strip()

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
  model = processor("model name") or platform.machine()
  return f"CPU, {os.cpu_count()} cores, {model}"
