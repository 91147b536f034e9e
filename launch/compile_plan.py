"""What the compiler of some devices says of `launch.analyze`'s program.

`ask` runs this module in a process of its own: the compilers write to the
standard error, and devices that are there must not be taken.
"""

import json
import math
import os
import subprocess
import sys
import time
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
  from launch.accelerators import Machine
  from sinkjax.config import ModelConfig
  from sinkjax.sharding import MeshConfig

LONGEST = 600
"""Seconds that a compiler is given: 126 layers of one scan take it 20."""


def ask(
  cfg: "ModelConfig",
  machine: "Machine",
  mesh: "MeshConfig",
  rows: int,
  length: int,
) -> dict[str, Any]:
  """{"peak": bytes, "collectives": ..., "seconds": ...}, or {"refused": why}.

  Args:
    cfg: the model; its dtype is that of the weights, too.
    machine: the devices.
    mesh: how they are arranged.
    rows: texts at a time.
    length: tokens of each.
  """
  request = {
    "config": cfg.to_dict(),
    "machine": machine.name,
    "mesh": str(mesh),
    "rows": rows,
    "length": length,
  }
  try:
    ran = subprocess.run(
      [sys.executable, "-m", "launch.compile_plan"],
      input=json.dumps(request),
      capture_output=True,
      text=True,
      check=False,
      timeout=LONGEST,
      # The launcher's folder may be on the path only because it is the current
      # one.
      env={
        **os.environ,
        "PYTHONPATH": os.pathsep.join(filter(None, sys.path)),
        "JAX_PLATFORMS": "cpu",
      },
    )
  except subprocess.TimeoutExpired:
    return {"refused": f"it was not done within {LONGEST} s"}
  lines = ran.stdout.splitlines()
  if ran.returncode or not lines:
    last = (ran.stderr.strip().splitlines() or ["it said nothing"])[-1]
    return {"refused": last[:200]}
  return json.loads(lines[-1])


def compiled(request: dict[str, Any]) -> dict[str, Any]:
  """What `ask` returns."""
  import jax

  from launch import accelerators, described
  from sinkjax import sharding
  from sinkjax.analysis import sink_profile
  from sinkjax.config import ModelConfig
  from sinkjax.models.transformer import param_shapes

  jax.config.update("jax_platforms", "cpu")
  # What is compiled for devices that are not there cannot be loaded again.
  jax.config.update("jax_enable_compilation_cache", False)
  cfg = ModelConfig.from_dict(request["config"])
  machine = accelerators.machine(request["machine"])
  try:
    mesh = described.mesh(machine, sharding.MeshConfig.parse(request["mesh"]))
  except described.NoCompilerError as error:
    return {"refused": str(error)}
  shapes = jax.tree.map(
    lambda x: jax.ShapeDtypeStruct(x.shape, cfg.dtype), param_shapes(cfg)
  )
  params = sharding.placed(shapes, sharding.state_shardings(mesh, shapes))
  tokens = jax.ShapeDtypeStruct(
    (request["rows"], request["length"]),
    "int32",
    # As the launcher has them, which every device gets whole.
    sharding=sharding.everywhere(mesh),
  )
  start = time.monotonic()
  with described.backend(machine), jax.set_mesh(mesh):
    program = described.program(mesh, sink_profile.program(cfg), params, tokens)
  return {
    "peak": program.peak,
    "collectives": [
      [kind, list(axes), count, program.largest[kind, axes]]
      for (kind, axes), count in sorted(program.collectives.items())
    ],
    "seconds": time.monotonic() - start,
    "devices": math.prod(mesh.devices.shape),
  }


if __name__ == "__main__":
  print(json.dumps(compiled(json.load(sys.stdin))))
