"""Devices that are described, not attached, and what their compilers make.

The compilers of TPUs (in libtpu) and of GPUs (in JAX's CUDA plugin) need no
device: they compile for a topology. Abstract arguments with shardings go in;
out come kernels, collectives, the memory of a device, or a refusal.
"""

import collections
import contextlib
import functools
import importlib.util
import math
import os
import re
from collections.abc import Iterator
from typing import Any, NamedTuple
from unittest import mock

import jax
import numpy as np
from jax.experimental import topologies
from jax.sharding import Mesh

from launch.accelerators import AXES, Machine
from sinkjax import sharding

# libtpu asks a server for what the machine is, and takes a lock for chips that
# only one process may use: here are none.
os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")
os.environ.setdefault("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")

PLUGINS = {
  "tpu": ("libtpu", "pip install 'sinkjax[tpu]'"),
  "gpu": ("jax_cuda12_plugin", "pip install 'sinkjax[cuda]'"),
}

H100 = """
gpu_device_info {
  core_count: 132 fpus_per_core: 128 clock_rate_ghz: 1.98
  threads_per_warp: 32
  threads_per_block_limit: 1024 threads_per_core_limit: 2048
  block_dim_limit_x: 2147483647
  block_dim_limit_y: 65535 block_dim_limit_z: 65535
  registers_per_core_limit: 65536 registers_per_block_limit: 65536
  shared_memory_per_block: 49152 shared_memory_per_core: 233472
  shared_memory_per_block_optin: 232448
  memory_bandwidth: 3352320000000 l2_cache_size: 52428800
  device_memory_size: 84929347584
  cuda_compute_capability { major: 9 }
}
runtime_version { major: 12 minor: 9 }
dnn_version_info { major: 9 minor: 20 }
platform_name: "CUDA"
device_description_str: "NVIDIA H100 80GB HBM3"
"""
"""The card's data sheet, as the compiler reads it."""

COLLECTIVES = (
  "all-gather", "all-reduce", "reduce-scatter", "all-to-all",
  "collective-permute", "collective-broadcast", "ragged-all-to-all",
)  # fmt: skip
_COLLECTIVE = re.compile(rf" ({'|'.join(COLLECTIVES)})(?:-start)?\(")
_SHAPE = re.compile(r"[a-z]\w*\[([\d,]*)\]")
_LISTED = re.compile(r"replica_groups=\{(\{[\d,{}]*\})\}")
_ORDER = r"\[([\d,]+)\](?:T\(([\d,]+)\))?"
_IOTA = re.compile(rf"replica_groups=\[([\d,]+)\]<={_ORDER}")
_NAMED = re.compile(
  rf"replica_groups=mesh\[([^\]]*)\](?:, device_ids=\({_ORDER}\))?"
  r" \{([^}:]*)\}"
)
_PAIRS = re.compile(r"source_target_pairs=\{(\{[\d,{}]*\})\}")
_KERNEL = re.compile(r'custom_call_target="([^"]+)"')


class NoCompilerError(ValueError):
  """That no compiler for some devices can be had here, and why."""


def platform(machine: Machine) -> str:
  """ "tpu" or "gpu"."""
  return "tpu" if machine.kind in AXES else "gpu"


@functools.cache
def devices(machine: Machine) -> tuple:
  """All devices of a machine that need not exist.

  Raises:
    NoCompilerError: where the compiler or a description is missing.
  """
  plugin, install = PLUGINS[platform(machine)]
  if importlib.util.find_spec(plugin) is None:
    raise NoCompilerError(f"the compiler is not installed: {install}")
  if jax.config.jax_platforms != "cpu":
    raise NoCompilerError("set JAX_PLATFORMS=cpu: devices are only described")
  found = ()
  if machine.grid and platform(machine) == "tpu":
    # The smallest that libtpu describes has four chips; a smaller slice has the
    # first of them.
    sizes = [max(size, 2) for size in machine.grid[:2]]
    shape = "x".join(map(str, [*sizes, *machine.grid[2:]]))
    name = f"{machine.kind}:{shape}"
    found = topologies.get_topology_desc(name, "tpu").devices
    most = math.prod(sizes) * math.prod(machine.grid[2:])
    found = found[: machine.devices] if len(found) == most else ()
  elif machine.grid and machine.kind == "h100":
    shape = "x".join(map(str, (1, *machine.grid)))
    found = topologies.get_topology_desc(
      "h100", "cuda", target_config=H100, topology=shape
    ).devices
  if not found:
    raise NoCompilerError(f"{machine.name} cannot be described to a compiler")
  return tuple(found)


def mesh(machine: Machine, axes: sharding.MeshConfig) -> Mesh:
  """Of all devices of a machine.

  Raises:
    NoCompilerError: as `devices`.
    ValueError: for a mesh of another number of devices.
  """
  found = devices(machine)
  sizes = axes.by_axis(len(found))
  kinds = (jax.sharding.AxisType.Auto,) * len(sizes)
  placed = np.array(found).reshape(tuple(sizes.values()))
  return Mesh(placed, tuple(sizes), axis_types=kinds)


@contextlib.contextmanager
def backend(machine: Machine) -> Iterator[None]:
  """Traces what JAX would trace on these devices."""
  jax.clear_caches()  # a trace holds the choices made for another backend
  with mock.patch.object(jax, "default_backend", lambda: platform(machine)):
    yield
  jax.clear_caches()


class Program(NamedTuple):
  """What a compiler made of a function.

  Attributes:
    collectives: how many there are of each (kind, axes of the mesh).
    largest: elements of the largest array of each.
    kernels: names of custom calls.
    peak: bytes on a device.
  """

  collectives: collections.Counter
  largest: dict[tuple[str, tuple[str, ...]], int]
  kernels: collections.Counter
  peak: int


def program(mesh: Mesh, jitted: Any, *args: Any, **kwargs: Any) -> Program:
  """Lowers for abstract arguments that lie on a mesh, and compiles."""
  compiled = jitted.lower(*args, **kwargs).compile()
  text = compiled.as_text()
  collectives, largest = collections.Counter(), collections.defaultdict(int)
  for line in text.splitlines():
    if match := _COLLECTIVE.search(line):
      key = match[1], axes_of(mesh, line)
      collectives[key] += 1
      shapes = _SHAPE.findall(line[: match.start()])
      sizes = [math.prod(_numbers(shape)) for shape in shapes]
      largest[key] = max(largest[key], *sizes)
  kernels = collections.Counter(_KERNEL.findall(text))
  peak = compiled.memory_analysis().peak_memory_in_bytes
  return Program(collectives, dict(largest), kernels, peak)


def axes_of(mesh: Mesh, line: str) -> tuple[str, ...]:
  """The axes along which a collective's devices differ; all if not told.

  Raises:
    ValueError: for groups in a notation that is not known here.
  """
  groups, differ = _groups(mesh.size, line), set()
  if groups is None:
    return mesh.axis_names
  for group in groups:
    places = np.unravel_index(group, mesh.devices.shape)
    for axis, at in zip(mesh.axis_names, places, strict=True):
      if len(set(at.tolist())) > 1:
        differ.add(axis)
  return tuple(axis for axis in mesh.axis_names if axis in differ)


def _groups(size: int, line: str):
  """Numbers of the devices of each group, in any of the notations."""
  if match := _LISTED.search(line):  # {{0,1},{2,3}}
    return [_numbers(group) for group in match[1].strip("{}").split("},{")]
  if match := _IOTA.search(line):  # [2,2]<=[2,2]T(1,0)
    shape, *order = match.groups()
    return _ordered(size, *order).reshape(_numbers(shape))
  if match := _NAMED.search(line):  # mesh['axis_0'=2,'axis_1'=2] {'axis_0'}
    axes, *order, chosen = match.groups()
    axes = [axis.partition("=") for axis in axes.split(",")]
    names = [name for name, _, _ in axes]
    shape = [int(number) for _, _, number in axes]
    at = [names.index(name) for name in chosen.split(",")]
    ids = _ordered(size, *order).reshape(shape)
    ids = np.moveaxis(ids, at, range(-len(at), 0))
    return ids.reshape(-1, math.prod(ids.shape[-len(at) :]))
  if match := _PAIRS.search(line):  # source_target_pairs={{0,1},{1,0}}
    return [_numbers(pair) for pair in match[1].strip("{}").split("},{")]
  if "replica_groups=" in line and "replica_groups={}" not in line:
    raise ValueError(f"no known notation of groups: {line}")
  return None


def _ordered(size: int, shape: str | None, axes: str | None):
  """Devices numbered in another order: [2,2]T(1,0)."""
  ids = np.arange(size)
  if shape:
    ids = ids.reshape(_numbers(shape))
  return ids.transpose(_numbers(axes)) if axes else ids


def _numbers(text: str) -> list[int]:
  return [int(number) for number in text.split(",") if number]
