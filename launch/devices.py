"""--mesh and --dtype: where a model's weights lie, and in which precision.

`load` is what a launcher calls in place of `sinkjax.load`. `planned` says what
lies on a device, for a dry run, which needs neither devices nor weights.
"""

import dataclasses
import math
import os
import sys
from typing import TYPE_CHECKING, Any

from absl import flags

from launch.mesh_flag import MESH

if TYPE_CHECKING:  # imported where they are needed: --help should be quick
  from sinkjax.config import ModelConfig
  from sinkjax.sharding import MeshConfig
  from sinkjax.weights.registry import Model

DTYPE = flags.DEFINE_enum(
  "dtype",
  None,
  ["float32", "bfloat16"],
  "What weights and activations are held in; norms, softmax and metrics "
  "accumulate in float32 in either case. bfloat16 halves the memory and keeps "
  "two to three digits; launch.jacobian then still differentiates in float32. "
  "By default float32, but for a training run whose config says otherwise.",
)


EASY = 4
"""How many times the weights must fit a device to be copied to each: what an
analysis holds beside them is then no reason to split them."""


def load(name: str, *, local: bool = False) -> "Model":
  """The model in the shards that --mesh says, which becomes JAX's own mesh.

  Args:
    name: as for `sinkjax.load`.
    local: of several processes, each has a mesh of its own devices and the
      whole model on it.

  Raises:
    ValueError: for a mesh that this machine or the model does not allow.
    WeightsError: as `sinkjax.load`.
  """
  import jax

  from sinkjax import sharding
  from sinkjax.weights import registry

  found = jax.local_devices() if local else jax.devices()
  if MESH.value == "auto" and len(found) == 1:
    return registry.load(name, dtype=DTYPE.value)
  registry.find(name)  # `peek` fetches nothing
  cfg, _, _ = registry.peek(name)
  config, mesh = _config(cfg, len(found)), None
  if config is not None:
    mesh = sharding.make_mesh(config, found)
    jax.set_mesh(mesh)  # the model tells the compiler to split rows by it
  return registry.load(name, mesh=mesh, dtype=DTYPE.value)


def process_bytes() -> int:
  """What this process has already, where arrays are on the same memory.

  It has then imported what the measurement imports. On accelerators arrays are
  in a memory of their own: 0.
  """
  import resource

  import jax

  if jax.default_backend() != "cpu":
    return 0
  # Linux counts in KiB, macOS in bytes.
  unit = 1 if sys.platform == "darwin" else 1024
  return unit * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def check_offload(offload: bool) -> None:
  """Refuses flags that --offload does not know.

  Raises:
    ValueError: naming them.
  """
  if offload and (MESH.value != "auto" or DTYPE.value is not None):
    raise ValueError(
      "--offload reads one layer at a time to one device, in float32: leave "
      "out --mesh and --dtype, or --offload"
    )


def words() -> list[str]:
  """The flags of this module that were given, for another process."""
  asked = () if MESH.value == "auto" else (f"--mesh={MESH.value}",)
  return [*asked, *([f"--dtype={DTYPE.value}"] if DTYPE.value else [])]


def request() -> dict[str, Any]:
  """What decides a result: not the mesh, which changes only the rounding."""
  return {} if DTYPE.value in (None, "float32") else {"dtype": DTYPE.value}


def described(params: Any) -> dict[str, Any]:
  """What a summary says of the weights: {"mesh": ..., "dtype": ...}.

  Args:
    params: the parameters, or weights read layer by layer.
  """
  import jax

  leaf = jax.tree.leaves(params)[0]
  if not isinstance(leaf, jax.Array):
    return {"mesh": None, "weights_dtype": "float32"}
  mesh = getattr(leaf.sharding, "mesh", None)
  return {
    "mesh": None if mesh is None else dict(mesh.shape),
    "weights_dtype": str(leaf.dtype),
  }


def planned(cfg: "ModelConfig") -> tuple[int, str]:
  """(bytes of weights on a device, what to say of the devices).

  Args:
    cfg: the model.

  Raises:
    ValueError: for a mesh that cannot hold it.
  """
  import jax

  from sinkjax import sharding
  from sinkjax.models.transformer import param_shapes

  shapes, item = param_shapes(cfg), item_bytes()
  whole = item * sum(x.size for x in jax.tree.leaves(shapes))
  config = _config(cfg, None)
  if config is None:
    return whole, "one device"
  sizes = config.by_axis(_asked(config))
  share = sharding.largest_share(sizes, shapes)
  count = math.prod(sizes.values())
  return item * share, f"each of {count} devices, --mesh={config}"


def _config(cfg: "ModelConfig", devices: int | None) -> "MeshConfig | None":
  """The mesh for a model; `None` for one device without --mesh.

  Args:
    cfg: the model.
    devices: how many there are; `None` where they need not be there, and as
      many are taken as --mesh names.
  """
  import jax

  from sinkjax import sharding
  from sinkjax.models.transformer import param_shapes

  shapes = param_shapes(cfg)
  if MESH.value == "auto":
    return _automatic(
      shapes, jax.device_count() if devices is None else devices
    )
  config = sharding.MeshConfig.parse(MESH.value)
  sizes = config.by_axis(_asked(config) if devices is None else devices)
  sharding.check_fits(sizes, shapes)
  return config


def _automatic(shapes: Any, count: int) -> "MeshConfig | None":
  """The mesh of so many devices; `None` for one."""
  import jax

  from sinkjax import sharding

  if count == 1:
    return None
  weights = item_bytes() * sum(x.size for x in jax.tree.leaves(shapes))
  # To split a small model makes devices wait for each other and saves nothing.
  if EASY * weights < _room():
    return sharding.MeshConfig(data=count)
  return sharding.fitting(count, shapes)[0]


def item_bytes() -> int:
  """Of a weight, as --dtype says."""
  return 2 if DTYPE.value == "bfloat16" else 4


def _room() -> float:
  """Bytes of a device's memory; the CPU's devices share that of the machine."""
  import jax

  stats = jax.local_devices()[0].memory_stats() or {}
  if "bytes_limit" in stats:
    return stats["bytes_limit"]
  machine = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
  return machine / jax.local_device_count()


def _asked(config: "MeshConfig") -> int:
  """The devices that a mesh names, or all there are where one axis is -1."""
  import jax

  sizes = dataclasses.astuple(config)
  return jax.device_count() if -1 in sizes else math.prod(sizes)
