"""Devices that are described, and what tests ask of the programs for them."""

import functools

import pytest
from jax.sharding import Mesh

from launch import accelerators, described
from launch.described import Program, axes_of, program
from sinkjax import sharding

__all__ = ["Program", "axes_of", "program"]

PLACES = {"tpu": "v5e:2x2", "gpu": "h100:4"}
MESHES = (
  "data:4", "fsdp:4", "tensor:4", "data:2,fsdp:2", "data:2,tensor:2",
  "fsdp:2,tensor:2",
)  # fmt: skip

ALLOWED = {
  "all-gather": ("fsdp",),
  "collective-permute": ("fsdp",),
  "reduce-scatter": ("fsdp",),
  "all-reduce": sharding.AXES,
}
"""Axes of the mesh along which devices may exchange what.

A parameter that fsdp splits is gathered for its layer, a small one by permutes
around a ring, and its gradient scattered back. All else that devices have to
tell each other are sums: of gradients over rows, and of what the heads and the
hidden units of each contribute to the residual and to the logits' normaliser.
So no parameter is gathered along tensor, and no activation along any axis.
"""


def machine(name: str) -> accelerators.Machine:
  """Of "v5e:2x2", or of GPUs "h100:4" and, of two nodes, "h100:2x8"."""
  kind, _, sizes = name.partition(":")
  if kind not in accelerators.AXES:
    nodes, _, gpus = sizes.rpartition("x")
    name = f"{int(nodes or 1) * int(gpus)}x{kind}"
  return accelerators.machine(name)


def kind(name: str) -> str:
  """ "tpu" or "gpu", of "v5e:2x2" or "h100:4"."""
  return described.platform(machine(name))


@functools.cache
def devices(name: str) -> tuple:
  """All devices of a topology; the test is skipped where that cannot be."""
  try:
    return described.devices(machine(name))
  except described.NoCompilerError as error:
    pytest.skip(str(error))


def mesh(name: str, axes: str) -> Mesh:
  """Of all devices of a topology, "data:2,fsdp:2"; of one for ""."""
  devices(name)
  if axes:
    return described.mesh(machine(name), sharding.MeshConfig.parse(axes))
  one = "h100:1" if kind(name) == "gpu" else name.partition(":")[0]
  return described.mesh(machine(one), sharding.MeshConfig(data=1))


def backend(name: str):
  """Traces what JAX would trace on these devices."""
  return described.backend(machine(name))


def check(
  program: Program, *, kernel: str | None = None, gathered: int = 0
) -> None:
  """Only the exchanges that are `ALLOWED`, and the kernel if one is named.

  Prints what there is: `pytest -rP` shows it.

  Args:
    program: what was compiled.
    kernel: how a custom call's name begins.
    gathered: elements that an array may have to be gathered along any axis: a
      statistic that is returned, or sorted for a median, is small.
  """
  print(f"{program.peak / 1e9:.3f} GB, {dict(program.collectives)}")
  unexpected = {
    key: size
    for key, size in program.largest.items()
    if not set(key[1]) <= set(ALLOWED.get(key[0], ()))
    and not (key[0] == "all-gather" and size <= gathered)
  }
  assert not unexpected, program
  if kernel:
    assert any(name.startswith(kernel) for name in program.kernels), program
