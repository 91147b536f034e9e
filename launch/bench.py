"""Times sinkjax and its peers in one run, and reports the ratios.

  python -m launch.bench --suite=jacobian --out=out/bench-jacobian

Suites (all on SmolLM2, except train):
  attention  one layer's attention and its derivatives, at 64 to 8192 tokens,
             against the pattern written and PyTorch
  jacobian   the exact map of Frobenius norms, 32 tokens, all layers, against
             jax.jacfwd, lax.map of jvp, torch.func.jacfwd and jacrev
  streaming  attention statistics at 2048 and 8192 tokens, against passes
             without them and transformers with output_attentions=True
  load       `sinkjax.load`, against the gguf package on the same file
  forward    logits, at 64 to 8192 tokens, against transformers on the same file
  generate   tokens one by one, against transformers and llama-cpp-python
  train      a training step with its data and log, against a PyTorch loop of
             the same model on the same windows, 4,096 tokens a step

Every measurement runs in its own process, and the processes take turns: in a
round each of them runs once. The ratio is a peer's time over ours in the same
round, as the median over rounds. The table also has operations per second,
their share of the rate of a large float32 matrix product in the same process
(for ours, the operations that are really done), and the peak memory above the
weights. --quick takes small sizes and one round, within 50 s.

--mesh=tensor:8 and --dtype=bfloat16 say where and how our model is held in the
suites that run one: jacobian, streaming, forward, generate.

It writes bench.json, bench.csv and bench.md, with hardware and versions. The
PyTorch peers need `pip install 'sinkjax[parity]'`.
"""

import importlib
import json
import pathlib
from types import ModuleType
from typing import Any

from absl import flags

from launch import app, devices
from sinkjax import artifacts, outputs, provenance

SUITES = (
  "attention",
  "jacobian",
  "streaming",
  "load",
  "forward",
  "generate",
  "train",
)
ON_DEVICES = ("jacobian", "streaming", "forward", "generate")
"""Suites that run a loaded model; ours is then where --mesh puts it."""

SUITE = flags.DEFINE_enum("suite", "load", SUITES, "What to time.")
OUT = flags.DEFINE_string("out", None, "The folder to write to.")
ROUNDS = flags.DEFINE_integer(
  "rounds", None, "Interleaved rounds; 3, or 1 with --quick.", lower_bound=1
)
QUICK = flags.DEFINE_bool("quick", False, "Small sizes, within 50 s.")
TOKENS = flags.DEFINE_integer(
  "tokens", None, "The length, instead of the suite's own.", lower_bound=2
)
PEERS = flags.DEFINE_list(
  "peers", None, "Only these peers, by their names in launch/suites/."
)
DRY_RUN = flags.DEFINE_bool(
  "dry_run", False, "Check everything, print the plan, write nothing."
)


def main() -> None:
  """Runs the suite and writes its table."""
  if not OUT.value and not DRY_RUN.value and not QUICK.value:
    raise ValueError("--out is missing: the folder to write to")
  if devices.words() and SUITE.value not in ON_DEVICES:
    raise ValueError(
      f"--mesh and --dtype go with --suite={'|'.join(ON_DEVICES)}, not with "
      f"{SUITE.value}"
    )
  suite = importlib.import_module(f"launch.suites.{SUITE.value}")
  peers = ["ours", *_chosen(suite)]
  cases = suite.cases(QUICK.value, TOKENS.value)
  rounds = ROUNDS.value or (1 if QUICK.value else 3)
  if DRY_RUN.value:
    names = ", ".join(case["case"] for case in cases)
    runs = rounds * len(cases) * len(peers)
    print(
      f"suite {SUITE.value}: {names}; {runs} processes one after the other, "
      "about a minute each at full size; writes nothing (dry run)"
    )
    return
  from tqdm import tqdm

  rows = []
  with tqdm(total=rounds * len(cases) * len(peers), leave=False) as bar:
    for case in cases:
      rows += _rows(suite, case, peers, rounds, bar)
      # A stop must not lose the cases that are done: a suite may run for an
      # hour.
      _write(rows, rounds, complete=case is cases[-1])
  _print(rows)


def _chosen(suite: ModuleType) -> list[str]:
  """The peers to run, without ours.

  Raises:
    ValueError: for one that the suite does not have.
  """
  others = [name for name in suite.PEERS if name != "ours"]
  unknown = set(PEERS.value or ()) - set(suite.PEERS)
  if unknown:
    raise ValueError(
      f"--peers={','.join(sorted(unknown))} is none of {list(suite.PEERS)}"
    )
  if PEERS.value:
    return [name for name in others if name in PEERS.value]
  # These peers alone would take longer than --quick promises.
  slow = getattr(suite, "SLOW", ()) if QUICK.value else ()
  return [name for name in others if name not in slow]


def _rows(
  suite: ModuleType,
  case: dict[str, Any],
  peers: list[str],
  rounds: int,
  bar: Any,
) -> list[dict[str, Any]]:
  """The table's rows of one size, ours first; `bar` advances by a process."""
  from launch.suites import measure

  found = {name: [] for name in peers}
  # Peers take turns within a round, because the speed of a machine drifts:
  # times of one round can be compared with each other.
  for _ in range(rounds):
    results = {}
    for name in peers:
      bar.set_description(f"{case['case']}: {name}")
      earlier = found[name][0] if found[name] else {}
      if "note" in earlier:  # it would run out of memory again
        results[name] = earlier
      else:
        results[name] = measure.run(SUITE.value, name, case, devices.words())
      bar.update()
    if hasattr(suite, "compare"):
      suite.compare(results)
    for name, result in results.items():
      found[name].append(result)
  return [
    {
      "case": case["case"],
      "peer": name,
      "name": suite.PEERS[name],
      **measure.summarise(results, found["ours"]),
    }
    for name, results in found.items()
  ]


def _write(rows: list[dict], rounds: int, *, complete: bool) -> None:
  """The files, after every case, and at the end the table."""

  summary = {
    "suite": SUITE.value,
    "rounds": rounds,
    "quick": QUICK.value,
    "rows": rows,
    "mesh": devices.MESH.value,
    "dtype": devices.DTYPE.value,
    "device": provenance.device(),
    "versions": provenance.versions(),
    "commit": provenance.commit(),
    "complete": complete,
  }
  for package in ("torch", "transformers", "llama-cpp-python"):
    version = _version(package)
    if version:
      summary["versions"][package] = version
  table = _markdown(rows, summary)
  if complete:
    print(table)
  if OUT.value:
    out = pathlib.Path(OUT.value).expanduser()
    with outputs.alone(out):
      artifacts.write_text(out / "bench.md", table)
      artifacts.write_csv(out / "bench.csv", list(_COLUMNS), _cells(rows))
      artifacts.write_json(out / "bench.json", summary)


def _print(rows: list[dict]) -> None:
  """The ratios, as one JSON line."""
  ratios = {
    # The ratio is `None` where a peer ran out of memory or is not installed.
    f"{row['case']}: {row['peer']}": row["ratio"] and round(row["ratio"], 3)
    for row in rows
    if row["peer"] != "ours"
  }
  print(json.dumps({"ratios": ratios}))


def _version(package: str) -> str | None:
  import importlib.metadata as metadata

  try:
    return metadata.version(package)
  except metadata.PackageNotFoundError:
    return None


_COLUMNS = (
  "case",
  "peer",
  "seconds",
  "seconds_min",
  "seconds_max",
  "ratio",
  "peak_bytes",
  "rate",
  "share",
  "difference",
  "overhead",
  "note",
)


def _cells(rows: list[dict]) -> list[list]:
  return [
    ["" if row.get(c) is None else row[c] for c in _COLUMNS] for row in rows
  ]


def _time(seconds: float) -> str:
  """Three digits, and never fewer than two after the point."""
  return f"{seconds:.2f}" if seconds >= 1 else f"{seconds:.3g}"


def _markdown(rows: list[dict], summary: dict) -> str:
  def shown(value: float | None, form: str, scale: float = 1.0) -> str:
    return "" if value is None else format(value * scale, form)

  lines = [
    "| size | what | seconds (range) | time / ours | Gflop/s | share of matrix "
    "product | peak GB above weights | differs from ours |",
    "| --- | --- | --- | --- | --- | --- | --- | --- |",
  ]
  for row in rows:
    get = row.get
    if get("seconds") is None:
      cells = [row["note"], *[""] * 5]
    else:
      cells = [
        f"{_time(row['seconds'])} ({_time(row['seconds_min'])} to "
        f"{_time(row['seconds_max'])})",
        shown(get("ratio"), ".2f"),
        shown(get("rate"), ".0f", 1e-9),
        shown(get("share"), ".0%"),
        # With "z" a value that rounds to zero has no sign.
        shown(get("peak_bytes"), "z.2f", 1e-9),
        shown(get("difference"), ".0e"),
      ]
    name = row["name"]
    if get("overhead") is not None:
      name += f" (data and log add {row['overhead']:.1%})"
    lines.append(f"| {row['case']} | {name} | {' | '.join(cells)} |")
  versions = ", ".join(f"{k} {v}" for k, v in summary["versions"].items())
  lines += [
    "",
    f"{summary['device']}; {versions}; {summary['rounds']} rounds; "
    f"commit {summary['commit']}.",
  ]
  return "\n".join(lines) + "\n"


if __name__ == "__main__":
  app.run(main, __doc__)
