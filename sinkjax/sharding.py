"""Where arrays live: a mesh, and a rule for every parameter by its path.

The model says nothing of devices; the compiler splits its work by where its
arrays lie. What it must be told beside that is in `sinkjax.mesh_context`.

A mesh has three axes, or four. `data` copies the parameters and splits the
batch; `fsdp` splits the batch and one dimension of every large parameter (and
of its optimizer state), which is gathered layer by layer; `tensor` splits
heads, the MLP's hidden layer and the vocabulary. `expert` splits the experts of
a layer; what is no expert's is copied along it.
"""

import contextlib
import dataclasses
import re
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from sinkjax.sharding_rules import EXPERT, RULES

AXES = ("data", "fsdp", "tensor")
"""Of every mesh."""


@dataclasses.dataclass(frozen=True)
class MeshConfig:
  """Devices along each axis; -1 for one of them means all that are left.

  >>> MeshConfig.parse("data:4,fsdp:2")
  MeshConfig(data=4, fsdp=2, tensor=1, expert=1)
  """

  data: int = -1
  fsdp: int = 1
  tensor: int = 1
  expert: int = 1

  @classmethod
  def parse(cls, text: str) -> "MeshConfig":
    """From "data:4,fsdp:2,tensor:1"; axes that are not named have one device.

    Raises:
      ValueError: for another axis, one named twice, or no number.
    """
    sizes: dict[str, int] = {}
    for part in filter(None, (part.strip() for part in text.split(","))):
      name, colon, size = part.partition(":")
      if name not in (*AXES, EXPERT) or not colon or name in sizes:
        raise ValueError(
          f"--mesh={text}: {part!r} is no axis; write "
          "data:4,fsdp:2,tensor:1 with each axis once"
        )
      if not re.fullmatch(r"-1|[0-9]{1,7}", size.strip()):
        raise ValueError(
          f"--mesh={text}: {size!r:.40} is no number of devices, nor -1"
        )
      sizes[name] = int(size)
    return cls(**{"data": 1, **sizes})

  def __str__(self) -> str:
    """As `parse` reads it; axes of one device are left out.

    >>> str(MeshConfig(data=4, fsdp=2))
    'data:4,fsdp:2'
    """
    sizes = dataclasses.asdict(self)
    named = [f"{name}:{n}" for name, n in sizes.items() if n != 1]
    return ",".join(named) or "data:1"

  def by_axis(self, devices: int) -> dict[str, int]:
    """Devices along data, fsdp and tensor, and along expert if it is split.

    Raises:
      ValueError: if they do not multiply to `devices`.
    """
    sizes = dataclasses.asdict(self)
    free = [name for name, size in sizes.items() if size == -1]
    known = int(np.prod([size for size in sizes.values() if size != -1]))
    if len(free) == 1 and known > 0 and devices % known == 0:
      sizes[free[0]] = devices // known
    if sizes[EXPERT] == 1:
      del sizes[EXPERT]
    shown = ",".join(f"{name}:{size}" for name, size in sizes.items())
    count = int(np.prod(list(sizes.values())))
    if min(sizes.values()) < 1 or count != devices:
      raise ValueError(
        f"a mesh of {shown} needs {count if not free else known}"
        f" devices{' or a multiple' if free else ''}, there are {devices}"
      )
    return sizes


def make_mesh(
  config: MeshConfig, devices: Sequence[jax.Device] | None = None
) -> Mesh:
  """A mesh of all devices, or of these.

  Raises:
    ValueError: if the axes do not multiply to their number.
  """
  devices = jax.devices() if devices is None else devices
  sizes = config.by_axis(len(devices))
  kinds = (AxisType.Auto,) * len(sizes)
  return jax.make_mesh(
    tuple(sizes.values()), tuple(sizes), kinds, devices=devices
  )


def spec_of(path: Sequence[str]) -> PartitionSpec:
  """The axes of the parameter at a path: ("blocks", "attn", "q", "kernel").

  >>> tuple(spec_of(("blocks", "mlp", "down", "kernel")))
  (None, 'tensor', 'fsdp')
  """
  for end, axes in RULES.items():
    if tuple(path[-len(end) :]) == end:
      return PartitionSpec(*axes)
  return PartitionSpec()


def state_shardings(mesh: Mesh, state: Any) -> Any:
  """A sharding for every leaf of a pytree of parameters or of what optax keeps.

  A leaf's place follows from the end of its path, so the moments of a
  parameter lie where it lies; scalars and all else are copied.

  Args:
    mesh: of `make_mesh`.
    state: arrays or their shapes.

  Raises:
    ValueError: where an axis does not divide an array, naming the axis, its
      size, the array and its shape.
  """

  return jax.tree.map(
    lambda spec: NamedSharding(mesh, spec),
    _specs(dict(mesh.shape), state),
    is_leaf=lambda x: isinstance(x, PartitionSpec),
  )


def _specs(sizes: Mapping[str, int], state: Any) -> Any:
  split = set()

  def one(path, leaf):
    names = [str(getattr(key, "key", getattr(key, "name", ""))) for key in path]
    spec = spec_of(names)
    if len(spec) > len(leaf.shape):
      spec = PartitionSpec()
    # Most meshes have no axis of experts.
    spec = PartitionSpec(*(axis if axis in sizes else None for axis in spec))
    for axis, size in zip(spec, leaf.shape, strict=False):
      split.add(axis)
      if axis is not None and size % sizes[axis]:
        raise ValueError(
          f"mesh axis {axis}:{sizes[axis]} does not divide {size}, a "
          f"dimension of {'/'.join(filter(None, names))} {list(leaf.shape)}"
        )
    return spec

  specs = jax.tree_util.tree_map_with_path(one, state)
  if sizes.get(EXPERT, 1) > 1 and EXPERT not in split:
    raise ValueError(
      f"mesh axis expert:{sizes[EXPERT]} splits experts, of which this model "
      "has none"
    )
  return specs


def fitting(devices: int, state: Any) -> list[MeshConfig]:
  """The meshes of this many devices that can hold this, of those first that
  split heads most, then parameters, and experts least.

  Args:
    devices: how many.
    state: arrays or their shapes.
  """
  found = []
  for tensor in _divisors(devices)[::-1]:
    for fsdp in _divisors(devices // tensor)[::-1]:
      rest = devices // tensor // fsdp
      for expert in _divisors(rest):
        config = MeshConfig(rest // expert, fsdp, tensor, expert)
        with contextlib.suppress(ValueError):
          _specs(dataclasses.asdict(config), state)
          found.append(config)
  return found


def _divisors(number: int) -> list[int]:
  return [n for n in range(1, number + 1) if number % n == 0]


def check_fits(sizes: Mapping[str, int], state: Any) -> None:
  """Whether a mesh can hold this.

  Args:
    sizes: devices along each axis.
    state: arrays or their shapes.

  Raises:
    ValueError: as `state_shardings`, with the meshes that can.
  """
  try:
    _specs(sizes, state)
  except ValueError as error:
    devices = int(np.prod(list(sizes.values())))
    meshes = ", or ".join(map(str, fitting(devices, state)[:4]))
    raise ValueError(
      f"{error}; of {devices} devices, take --mesh={meshes}"
    ) from None


def largest_share(sizes: Mapping[str, int], state: Any) -> int:
  """Elements of this on a device of a mesh that can hold it.

  Args:
    sizes: devices along each axis.
    state: arrays or their shapes.
  """
  specs = jax.tree.leaves(
    _specs(sizes, state), is_leaf=lambda x: isinstance(x, PartitionSpec)
  )
  return sum(
    leaf.size // int(np.prod([sizes[axis] for axis in spec if axis]))
    for leaf, spec in zip(jax.tree.leaves(state), specs, strict=True)
  )


def check_divides(sizes: Mapping[str, int], state: Any, rows: int) -> None:
  """Whether a mesh that need not exist can hold this.

  Args:
    sizes: devices along each axis.
    state: arrays or their shapes.
    rows: of a batch, worked through at a time.

  Raises:
    ValueError: as `state_shardings` and `batch_sharding`.
  """
  _specs(sizes, state)
  _check_rows(sizes, rows)


def _check_rows(sizes: Mapping[str, int], rows: int) -> None:
  if rows % (sizes["data"] * sizes["fsdp"]):
    raise ValueError(
      f"mesh axes data:{sizes['data']} and fsdp:{sizes['fsdp']} do not divide "
      f"the {rows} rows that are worked through at a time"
    )


def batch_sharding(mesh: Mesh, size: int) -> NamedSharding:
  """Rows of a batch over data and fsdp.

  Args:
    mesh: of `make_mesh`.
    size: B, rows of a batch, or of a part that is worked through at a time.

  Raises:
    ValueError: if these axes do not divide it.
  """
  _check_rows(dict(mesh.shape), size)
  return NamedSharding(mesh, PartitionSpec(("data", "fsdp")))


def share(mesh: Mesh, size: int) -> tuple[int, int]:
  """(this process's number, how many) of equal shares of a batch's rows.

  Processes that hold the same rows, as under `tensor` across hosts, get the
  same number.

  Raises:
    ValueError: if this process's rows are no such share.
  """
  sharding = batch_sharding(mesh, size)
  held = {
    index[0].indices(size)[:2]
    for index in sharding.addressable_devices_indices_map((size,)).values()
  }
  low, high = min(a for a, _ in held), max(b for _, b in held)
  rows = high - low
  if sum(b - a for a, b in held) != rows or size % rows or low % rows:
    raise ValueError(
      f"this process holds rows {sorted(held)} of a batch of {size}: put "
      "devices of a process side by side along data and fsdp"
    )
  return low // rows, size // rows


def local_to_global(
  sharding: NamedSharding, local: Mapping[str, np.ndarray]
) -> dict[str, jax.Array]:
  """This process's rows of a batch as parts of arrays over all devices."""
  return {
    name: jax.make_array_from_process_local_data(sharding, rows)
    for name, rows in local.items()
  }


def place(shardings: Any, whole: Any) -> Any:
  """Arrays that every process holds whole, as arrays over all devices.

  Args:
    shardings: one for all, or a pytree of them like `whole`.
    whole: arrays.
  """
  if isinstance(shardings, NamedSharding):
    shardings = jax.tree.map(lambda _: shardings, whole)
  return jax.tree.map(
    lambda x, sharding: jax.make_array_from_callback(
      np.shape(x), sharding, lambda index: np.asarray(x)[index]
    ),
    whole,
    shardings,
  )


def placed(shapes: Any, shardings: Any) -> Any:
  """Shapes that say where their arrays will lie."""
  return jax.tree.map(
    lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s),
    shapes,
    shardings,
  )


def everywhere(mesh: Mesh) -> NamedSharding:
  """A copy on every device."""
  return NamedSharding(mesh, PartitionSpec())


def to_host(array: jax.Array, dtype: Any = None) -> np.ndarray:
  """The whole array on this host; every process of a run must call it.

  Args:
    array: of JAX, or what NumPy makes an array of.
    dtype: of the copy; `None` for that of the array.

  Memory: one copy of this array on every device while it is gathered.
  """
  if not isinstance(array, jax.Array) or array.is_fully_addressable:
    return np.asarray(array, dtype)
  if not array.is_fully_replicated:
    copied = everywhere(array.sharding.mesh)
    array = jax.jit(lambda x: x, out_shardings=copied)(array)
  return np.asarray(array.addressable_data(0), dtype)


def tree_to_host(tree: Any) -> Any:
  """`to_host` of every leaf, gathered by one program."""
  leaves = jax.tree.leaves(tree)
  far = [x for x in leaves if not getattr(x, "is_fully_addressable", True)]
  if far:
    place = everywhere(far[0].sharding.mesh)
    tree = jax.jit(_same, out_shardings=place)(tree)
  return jax.tree.map(to_host, tree)


def _same(tree: Any) -> Any:  # by its name JAX knows what it has compiled
  return tree
