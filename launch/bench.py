"""Times sinkjax beside its peers, in one run, and reports the ratios.

  python -m launch.bench --suite=load --out=out/bench-load

Suites:
  load   `sinkjax.load` of SmolLM2 (header, tokenizer, every weight in its
         place as a JAX array) against the gguf package on the same file. Warm
         times alternate in one process after a first load; first times and
         peak memory (above what the process held) are of fresh processes.

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

_PEERS = """
import statistics, sys, time
import gguf, jax, sinkjax

def peak():  # ru_maxrss would start at the parent's
  status = open("/proc/self/status").read()
  return int(status.split("VmHWM:")[1].split()[0]) * 1024

def ours():
  return jax.tree.leaves(jax.block_until_ready(sinkjax.load(path).params))

def dequantise(reader=None):
  reader = reader or gguf.GGUFReader(path)
  return [gguf.quants.dequantize(t.data, t.tensor_type) for t in reader.tensors]

def timed(f, *args):
  start = time.perf_counter()
  kept = f(*args)
  seconds = time.perf_counter() - start
  return seconds, sum(4 * x.size for x in kept)

jax.numpy.zeros(1).block_until_ready()
path, which, rounds = sys.argv[1], sys.argv[2], int(sys.argv[3])
"""
_WARM = (
  _PEERS
  + """
reader = gguf.GGUFReader(path)
timed(ours), timed(dequantise, reader)
for _ in range(rounds):
  print(timed(ours)[0], timed(dequantise, reader)[0], timed(dequantise)[0])
"""
)
_FIRST = (
  _PEERS
  + """
before = peak()
seconds, size = timed({"ours": ours, "gguf": dequantise}[which])
print(seconds, (peak() - before) / size)
"""
)


def main() -> None:
  """Runs the suite and writes what came out."""
  if not OUT.value and not DRY_RUN.value:
    raise ValueError("--out is missing: the folder to write to")
  if DRY_RUN.value:
    runs = 2 * ROUNDS.value
    print(
      f"suite load: {runs + 1} processes, memory about 1.6 GB, time about "
      f"{6 * runs + 3 * ROUNDS.value} s; writes nothing (dry run)"
    )
    return
  from tqdm import tqdm

  from sinkjax.report import files
  from sinkjax.weights.registry import fetch

  out = pathlib.Path(OUT.value).expanduser()
  path = str(fetch("smollm2-135m"))
  first = {"ours": [], "gguf": []}
  with tqdm(total=2 * ROUNDS.value + 1, unit="run", leave=False) as bar:
    warm = _child(_WARM, path, "both")
    bar.update()
    for _ in range(ROUNDS.value):
      for name, results in first.items():
        results += _child(_FIRST, path, name)
        bar.update()
  rows = _summarise(warm, first)
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


def _child(code: str, path: str, which: str) -> list[list[float]]:
  """The numbers that one process prints, a list a line."""
  done = subprocess.run(
    [sys.executable, "-c", code, path, which, str(ROUNDS.value)],
    capture_output=True, text=True, check=False,
  )  # fmt: skip
  if done.returncode:
    raise ValueError(f"a benchmark process failed: {done.stderr[-300:]}")
  return [list(map(float, line.split())) for line in done.stdout.splitlines()]


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


def _summarise(warm, first) -> list[dict]:
  ours, dequantise, read = zip(*warm, strict=True)
  mine, mine_memory = zip(*first["ours"], strict=True)
  peer, peer_memory = zip(*first["gguf"], strict=True)
  return [
    _row("warm: sinkjax.load", ours, ours),
    _row("warm: gguf, dequantise only", dequantise, ours),
    _row("warm: gguf, read and dequantise", read, ours),
    _row("first: sinkjax.load", mine, mine, mine_memory),
    _row("first: gguf, read and dequantise", peer, mine, peer_memory),
  ]


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
