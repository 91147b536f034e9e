"""Where the parameters of a model go, and in which dtype."""

import dataclasses
from typing import Any

import jax
from jax.sharding import Mesh, NamedSharding

from sinkjax import sharding
from sinkjax.weights.layout import Shape

DTYPES = ("float32", "bfloat16")
"""What weights are held in."""


@dataclasses.dataclass(frozen=True)
class Placement:
  """Devices and dtype of a model's parameters.

  Attributes:
    mesh: of `sinkjax.sharding.make_mesh`, over which the parameters are split
      by the rules there; `None` for the default device.
    dtype: one of `DTYPES`.

  Raises:
    ValueError: for another dtype.
  """

  mesh: Mesh | None = None
  dtype: str = "float32"

  def __post_init__(self):
    if self.dtype not in DTYPES:
      raise ValueError(
        f"weights are held in one of {list(DTYPES)}, got {self.dtype!r}"
      )

  def shardings(self, shapes: Any) -> Any:
    """Of every parameter, `None` without a mesh.

    Args:
      shapes: a pytree of shapes with dtypes.

    Raises:
      ValueError: for a mesh that cannot hold them, with those that can.
    """
    if self.mesh is None:
      return jax.tree.map(lambda _: None, shapes)
    sharding.check_fits(dict(self.mesh.shape), shapes)
    return sharding.state_shardings(self.mesh, shapes)


ON_ONE = Placement()
"""The default device, in float32."""


def shards(
  where: NamedSharding | None, shape: Shape
) -> list[tuple[tuple[slice, ...], list[jax.Device | None]]]:
  """The parts of an array that this process holds, and the devices of each.

  Args:
    where: as `Placement.shardings` has it.
    shape: of the whole array.
  """
  if where is None:
    return [(tuple(slice(0, size) for size in shape), [None])]
  holders: dict[tuple[tuple[int, int], ...], list[jax.Device | None]] = {}
  for device, index in where.addressable_devices_indices_map(shape).items():
    part = tuple(
      at.indices(size)[:2] for at, size in zip(index, shape, strict=True)
    )
    holders.setdefault(part, []).append(device)
  return [
    (tuple(slice(start, stop) for start, stop in part), devices)
    for part, devices in holders.items()
  ]
