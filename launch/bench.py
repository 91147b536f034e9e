"""Times sinkjax beside its peers, in one run, and reports the ratios.

  python -m launch.bench --suite=load --out=out/bench-load

Suites:
  load   `sinkjax.load` of SmolLM2 (header, tokenizer, every weight in its
         place as a JAX array) against the gguf package on the same file, in
         processes that take turns. Each process loads twice: the first time
         (and its peak memory, above what the process held) and a warm time.

It writes bench.json and bench.md with medians, ratios, hardware and versions.
"""

import json
import pathlib
import statistics
import subprocess
import sys

from absl import flags

from launch import app

SUITE = flags.DEFINE_enum("suite", "load", ["load"], "What to time.")
OUT = flags.DEFINE_string("out", None, "The folder to write to.")
ROUNDS = flags.DEFINE_integer("rounds", 5, "Interleaved rounds.", lower_bound=1)
DRY_RUN = flags.DEFINE_bool(
  "dry_run", False, "Check everything, print the plan, write nothing."
)

_CHILD = """
import sys, time
import gguf, jax, sinkjax

def peak():  # ru_maxrss would start at the parent's
  status = open("/proc/self/status").read()
  return int(status.split("VmHWM:")[1].split()[0]) * 1024

def ours():
  return jax.tree.leaves(jax.block_until_ready(sinkjax.load(path).params))

def dequantise():
  return [gguf.quants.dequantize(t.data, t.tensor_type) for t in reader.tensors]

def read_and_dequantise():
  reader = gguf.GGUFReader(path)
  return [gguf.quants.dequantize(t.data, t.tensor_type) for t in reader.tensors]

def timed(f):
  start = time.perf_counter()
  kept = f()
  seconds = time.perf_counter() - start
  return seconds, sum(4 * x.size for x in kept)

jax.numpy.zeros(1).block_until_ready()
path, which = sys.argv[1:]
if which == "dequantise":
  reader = gguf.GGUFReader(path)
before = peak()
first, size = timed(globals()[which])
memory = (peak() - before) / size
print(first, memory, timed(globals()[which])[0])
"""
_LOADERS = {
  "ours": "sinkjax.load",
  "dequantise": "gguf, dequantise only",
  "read_and_dequantise": "gguf, read and dequantise",
}


def main() -> None:
  """Runs the suite and writes what came out."""
  if not OUT.value and not DRY_RUN.value:
    raise ValueError("--out is missing: the folder to write to")
  runs = len(_LOADERS) * ROUNDS.value
  if DRY_RUN.value:
    print(
      f"suite load: {runs} processes, memory about 1.6 GB, time about "
      f"{6 * runs} s; writes nothing (dry run)"
    )
    return
  from tqdm import tqdm

  from sinkjax.report import files
  from sinkjax.weights.registry import fetch

  out = pathlib.Path(OUT.value).expanduser()
  path = str(fetch("smollm2-135m"))
  found = {which: [] for which in _LOADERS}
  with tqdm(total=runs, unit="run", leave=False) as bar:
    for _ in range(ROUNDS.value):
      for which, results in found.items():
        results.append(_child(path, which))
        bar.update()
  rows = _summarise(found)
  summary = {
    "suite": "load", "rounds": ROUNDS.value, "rows": rows,
    "device": app.device(), "versions": app.versions(),
    "commit": app.commit(), "complete": True,
  }  # fmt: skip
  out.mkdir(parents=True, exist_ok=True)
  table = _markdown(rows, summary)
  files.write_text(out / "bench.md", table)
  files.write_json(out / "bench.json", summary)
  print(table)
  print(json.dumps({"ratios": {r["name"]: r["ratio"] for r in rows}}))


def _child(path: str, which: str) -> list[float]:
  """[first seconds, peak over float32 size, warm seconds] of one process."""
  done = subprocess.run(
    [sys.executable, "-c", _CHILD, path, which],
    capture_output=True, text=True, check=False,
  )  # fmt: skip
  if done.returncode:
    raise ValueError(f"a benchmark process failed: {done.stderr[-300:]}")
  return [float(word) for word in done.stdout.split()]


def _row(name, times, ours, memory=None) -> dict:
  """Medians, and the median over rounds of this time over ours."""
  ratios = [peer / own for peer, own in zip(times, ours, strict=True)]
  return {
    "name": name,
    "seconds": statistics.median(times),
    "seconds_min": min(times),
    "seconds_max": max(times),
    "peak_over_float32": memory and statistics.median(memory),
    "ratio": statistics.median(ratios),
  }


def _summarise(found) -> list[dict]:
  columns = {which: list(zip(*rows, strict=True))
             for which, rows in found.items()}  # fmt: skip
  rows = []
  for kind, at in (("warm", 2), ("first", 0)):
    for which, name in _LOADERS.items():
      memory = columns[which][1] if kind == "first" else None
      ours = columns["ours"][at]
      rows.append(_row(f"{kind}: {name}", columns[which][at], ours, memory))
  return rows


def _markdown(rows: list[dict], summary: dict) -> str:
  lines = [
    "| what | seconds (range) | peak memory / float32 size | time / ours |",
    "| --- | --- | --- | --- |",
  ]
  for row in rows:
    memory = row["peak_over_float32"]
    lines.append(
      f"| {row['name']} | {row['seconds']:.2f} ({row['seconds_min']:.2f} to "
      f"{row['seconds_max']:.2f}) | {'' if memory is None else f'{memory:.2f}'}"
      f" | {row['ratio']:.2f} |"
    )
  versions = ", ".join(f"{k} {v}" for k, v in summary["versions"].items())
  lines += ["", f"{summary['device']}; {versions}; {ROUNDS.value} rounds."]
  return "\n".join(lines) + "\n"


if __name__ == "__main__":
  app.run(main, __doc__)
