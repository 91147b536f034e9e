"""Measures a piece of work in a process of its own."""

import json
import os
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
  from sinkjax.config import ModelConfig
  from sinkjax.weights.registry import Model
  from sinkjax.weights.tokenizer import Tokenizer

TEXT = (
  "The harbour was quiet before dawn. Two fishermen loaded their nets into a "
  "small blue boat and pushed it from the stones. The water was flat and the "
  "sky had no colour yet. By noon the wind had come round to the north, and "
  "they turned for home with the boat half full and nothing left to say. "
)


def run(
  suite: str, name: str, case: dict[str, Any], words: Sequence[str] = ()
) -> dict[str, Any]:
  """What `measure(name, case)` of a suite returns, run in a new process.

  Where it dies of memory, or a package is missing, the result is
  `{"note": why}`.

  Args:
    suite: its module.
    name: of the peer.
    case: a size.
    words: flags of `launch.devices`, as on a command line.

  Raises:
    ValueError: if it fails for another reason.
  """
  code = (
    "import json, sys; from launch.suites import measure; "
    f"measure.child({suite!r}, {name!r}, json.loads(sys.argv[1]), sys.argv[2:])"
  )
  done = subprocess.run(
    [sys.executable, "-c", code, json.dumps(case), *words],
    capture_output=True,
    text=True,
    check=False,
  )
  if done.returncode == 0:
    # Packages may print as well; the result comes last.
    return json.loads(done.stdout.splitlines()[-1])
  error = done.stderr.strip()
  words = ("RESOURCE_EXHAUSTED", "MemoryError", "allocate memory", "bad_alloc")
  # Linux ends a process that exhausts the memory by SIGKILL.
  if done.returncode == -9 or any(word in error for word in words):
    return {"note": f"out of memory ({total_memory() / 1e9:.0f} GB)"}
  if "ModuleNotFoundError" in error:
    return {"note": "not installed: pip install 'sinkjax[parity]'"}
  raise ValueError(f"{suite}, {name}: a process failed: {error[-400:]}")


def child(
  suite: str, name: str, case: dict[str, Any], words: Sequence[str] = ()
) -> None:
  """Runs one measurement and prints it as the last line."""
  import importlib
  import warnings

  from absl import flags

  from launch import app, devices  # noqa: F401  it defines the flags

  flags.FLAGS(["bench", *words])

  warnings.filterwarnings("ignore")
  if not name.startswith("torch"):
    app.warm_compiler()
  module = importlib.import_module(f"launch.suites.{suite}")
  print(json.dumps(module.measure(name, case)))


def total_memory() -> int:
  """Bytes of this machine."""
  return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def limit_memory() -> None:
  """Makes an allocation beyond the machine's memory fail, not kill."""
  resource.setrlimit(resource.RLIMIT_AS, (total_memory(), total_memory()))


def _status(field: str) -> int:
  with open("/proc/self/status") as stream:
    for line in stream:
      if line.startswith(field):
        return int(line.split()[1]) * 1024
  raise ValueError(f"no {field} in /proc/self/status")


class Peak:
  """The peak memory above what the process holds when this is made."""

  def __init__(self):
    with open("/proc/self/clear_refs", "w") as stream:
      # 5 resets VmHWM, the peak, to the present size: see proc(5).
      stream.write("5")
    self.before = _status("VmRSS")

  def bytes(self) -> int:
    return _status("VmHWM") - self.before


def seconds(work: Callable[[], Any]) -> float:
  """How long one call takes; it must wait for its own result."""
  start = time.perf_counter()
  work()
  return time.perf_counter() - start


def torch_rate(size: int = 2048) -> float:
  """Flop/s of a large float32 matrix product in torch, the best of three."""
  import torch

  a = torch.ones(size, size)
  # The first product also pays for starting torch's threads.
  a @ a
  return 2 * size**3 / min(seconds(lambda: a @ a) for _ in range(3))


def ours() -> "Model":
  """SmolLM2 where --mesh puts it, in --dtype."""
  from launch import devices

  return devices.load("smollm2-135m")


def torch_model(attention: str = "eager"):
  """SmolLM2 in transformers, from the very file that sinkjax reads."""
  import torch
  import transformers

  from sinkjax.weights.registry import fetch

  transformers.utils.logging.disable_progress_bar()
  torch.set_num_threads(len(os.sched_getaffinity(0)))
  path = fetch("smollm2-135m")
  model = transformers.AutoModelForCausalLM.from_pretrained(
    path.parent,
    gguf_file=path.name,
    dtype=torch.float32,
    attn_implementation=attention,
  )
  return model.eval().requires_grad_(False)


def text_ids(tokenizer: "Tokenizer", length: int) -> list[int]:
  """That many ids of the built-in text, repeated as often as needed."""
  ids = tokenizer.encode(TEXT)
  return (ids * (1 + length // len(ids)))[:length]


def forward_flops(
  cfg: "ModelConfig", length: int, *, logits: bool = True
) -> float:
  """Operations of a causal forward pass over `length` tokens."""
  heads = cfg.n_heads * cfg.head_dim
  keys = 2 * cfg.n_kv_heads * cfg.head_dim
  mlp = (3 if cfg.gated_mlp else 2) * cfg.mlp_width
  # Scores and mixture need 2 H K T operations each for a token, and the causal
  # half of both is counted; the factor 2 of an operation comes last.
  layer = cfg.d_model * (2 * heads + keys + mlp) + heads * length
  head = cfg.d_model * cfg.vocab_size if logits else 0
  return 2.0 * length * (cfg.n_layers * layer + head)


def summarise(results: list[dict[str, Any]], ours: list[dict[str, Any]]):
  """One row: medians over rounds, and the time over that of ours.

  Args:
    results: what `measure` returned, round by round.
    ours: the same of ours, in the same rounds.
  """
  notes = [r["note"] for r in results if r.get("note")]
  row = {"note": notes[0] if notes else "", "seconds": None, "ratio": None}
  timed = [r for r in results if "seconds" in r]
  if not timed:
    return row
  times = [r["seconds"] for r in timed]
  row |= {
    "seconds": statistics.median(times),
    "seconds_min": min(times),
    "seconds_max": max(times),
  }
  pairs = [
    r["seconds"] / o["seconds"]
    for r, o in zip(results, ours, strict=True)
    if "seconds" in r and "seconds" in o
  ]
  row["ratio"] = statistics.median(pairs) if pairs else None
  for field in ("peak_bytes", "rate", "share", "difference", "overhead"):
    values = [r[field] for r in timed if r.get(field) is not None]
    row[field] = statistics.median(values) if values else None
  return row
