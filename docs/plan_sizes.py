"""Plans the analysis of large models: docs/results/sizes/plans.csv.

  python docs/plan_sizes.py

Needs the models' `config.json` alone. Where JAX's plugin for a row's devices is
installed, their compiler makes the program; else the row keeps what it said
when this ran last, if its program is the same. Once with '.[tpu]' and once with
'.[cuda]' fills all rows.
"""

import pathlib
import sys

DOCS = pathlib.Path(__file__).parent
ROOT = DOCS.parent
sys.path.insert(0, str(ROOT))  # the code beside this file

from launch import accelerator_plan, compile_plan  # noqa: E402
from sinkjax import artifacts  # noqa: E402
from sinkjax.weights import registry  # noqa: E402

CONFIGS = ROOT / "tests" / "launch" / "sizes"
FILE = DOCS / "results" / "sizes" / "plans.csv"
LENGTH = 64
"""Tokens of the one text: as many as published sink rates use."""

ROWS = (
  ("llama-3.1-8b", "Llama 3.1 8B", "h100", "v5e:4x4"),
  ("llama-3.1-70b", "Llama 3.1 70B", "8xh100", "v5e:4x4"),
  ("llama-3.1-405b", "Llama 3.1 405B", "16xh100", "v5p:4x4x4"),
  ("gpt-oss-20b", "gpt-oss 20B", "h100", "v5e:2x4"),
  ("gpt-oss-120b", "gpt-oss 120B", "8xh100", "v5p:2x2x2"),
  ("deepseek-v3", "DeepSeek V3", "64xh100", "v5p:4x4x4"),
)
PROGRAM = ("model", "devices", "mesh", "parameters")
SAID = ("compiler_gb", "compiler_seconds", "exchanges")
"""Columns that are the compiler's."""


def row(folder: str, model: str, devices: str) -> tuple:
  """(plan, a row without the compiler's columns)."""
  cfg, _, parameters = registry.peek(CONFIGS / folder)
  plan = accelerator_plan.make(cfg, devices, "auto", "bfloat16", 1, LENGTH)
  one = plan.estimate
  return plan, {
    "model": model,
    "parameters": round(parameters / 1e9, 1),
    "devices": devices,
    "mesh": str(plan.mesh),
    "memory_gb": round(one.memory / 1e9, 2),
    "weights_gb": round(one.weights / 1e9, 2),
    "room_gb": plan.machine.chip.memory / 1e9,
    "layer_mb": round(sum(x.bytes for x in one.exchanges) / 1e6, 1),
    "tflop": round(one.flops / 1e12, 2),
    "ms": round(1000 * one.time, 2),
    "limit": one.limit if plan.fits else "memory too small",
  }


def main() -> None:
  """Writes the table."""
  old = {}
  if FILE.exists():
    header, found = artifacts.read_csv(FILE)
    for values in found:
      known = dict(zip(header, values, strict=True))
      old[tuple(str(known[name]) for name in PROGRAM)] = known
  rows = []
  for folder, model, *places in ROWS:
    for devices in places:
      plan, values = row(folder, model, devices)
      said = compile_plan.ask(
        plan.cfg, plan.machine, plan.mesh, plan.rows, plan.length
      )
      print(devices, model, said, flush=True)
      known = old.get(tuple(str(values[name]) for name in PROGRAM), {})
      kept = {name: known.get(name, "") for name in SAID}
      if "peak" in said:
        kept = {
          "compiler_gb": round(said["peak"] / 1e9, 2),
          "compiler_seconds": round(said["seconds"]),
          "exchanges": _exchanges(said["collectives"]),
        }
      rows.append({**values, **kept})
  FILE.parent.mkdir(parents=True, exist_ok=True)
  artifacts.write_csv(FILE, list(rows[0]), [list(one.values()) for one in rows])


def _exchanges(collectives: list) -> str:
  several = [
    f"{count} {kind} {'+'.join(axes)}" for kind, axes, count, _ in collectives
  ]
  return ", ".join(several) or "none"


if __name__ == "__main__":
  main()
