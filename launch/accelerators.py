"""Accelerators that need not be there: 8xh100, v5e:4x4, 4xa100-40."""

import math
import re
from typing import NamedTuple


class Chip(NamedTuple):
  """A device, by its maker's data sheet.

  Attributes:
    flops: dense bfloat16 operations a second.
    wide_flops: those in float32, as our config's precision has them.
    memory: bytes.
    memory_rate: bytes a second between memory and cores.
    link_rate: bytes a second that a device sends to others, all links together.
  """

  flops: float
  wide_flops: float
  memory: float
  memory_rate: float
  link_rate: float


# A TPU makes a float32 product of six bfloat16 ones.
CHIPS = {
  "a100": Chip(312e12, 19.5e12, 80e9, 2.0e12, 300e9),
  "a100-40": Chip(312e12, 19.5e12, 40e9, 1.6e12, 300e9),
  "h100": Chip(989e12, 67e12, 80e9, 3.35e12, 450e9),
  "h200": Chip(989e12, 67e12, 141e9, 4.8e12, 450e9),
  "b200": Chip(2250e12, 75e12, 180e9, 8.0e12, 900e9),
  "v4": Chip(275e12, 275e12 / 6, 32e9, 1.2e12, 300e9),
  "v5e": Chip(197e12, 197e12 / 6, 16e9, 0.82e12, 200e9),
  "v5p": Chip(459e12, 459e12 / 6, 95e9, 2.77e12, 600e9),
  "v6e": Chip(918e12, 918e12 / 6, 32e9, 1.64e12, 448e9),
}

AXES = {"v4": 3, "v5p": 3, "v5e": 2, "v6e": 2}
"""Of the torus or grid that a TPU's chips stand in."""

NODE = 8
"""GPUs of a machine."""

MOST = 1 << 20
"""Devices: a pod of TPUs has 9,216, and the largest clusters 200,000."""

NETWORK = 50e9
"""Bytes a second of a GPU to those of other machines: 400 Gbit/s."""


class Machine(NamedTuple):
  """Some devices of one kind.

  Attributes:
    name: as the flag has it.
    kind: a key of `CHIPS`.
    devices: how many.
    grid: of a TPU's chips, or (machines, devices of each); `None` where the
      number tells of no grid.
  """

  name: str
  kind: str
  devices: int
  grid: tuple[int, ...] | None

  @property
  def chip(self) -> Chip:
    """Its data sheet."""
    return CHIPS[self.kind]


def machine(text: str) -> Machine:
  """The devices of "8xh100", "v5e:4x4" or "h200".

  Raises:
    ValueError: for an unknown accelerator, naming the known ones.
  """
  grid = re.fullmatch(r"(v\d\w?):(\d{1,9}(?:x\d{1,9})+)", text)
  number = re.fullmatch(r"(?:(\d{1,9})x)?([a-z]\w*(?:-\d+)?)", text)
  kind = grid[1] if grid else number[2] if number else ""
  sizes = tuple(map(int, grid[2].split("x"))) if grid else ()
  count = math.prod(sizes) if grid else int(number[1] or 1) if number else 0
  if count > MOST:
    raise ValueError(
      f"--accelerator={text} has more than {MOST} devices, as no machine has"
    )
  if kind not in CHIPS or not count or (grid and len(sizes) != AXES.get(kind)):
    raise ValueError(
      f"--accelerator={text}: write a number and one of {list(CHIPS)}, like "
      "8xh100, or a TPU's chips along each axis, like v5e:4x4 or v5p:4x4x4"
    )
  return Machine(text, kind, count, sizes or _grid(kind, count))


def _grid(kind: str, count: int) -> tuple[int, ...] | None:
  """What a number of devices usually stands in."""
  if kind not in AXES:
    if count <= NODE:
      return (1, count)
    return None if count % NODE else (count // NODE, NODE)
  sizes = [1] * AXES[kind]
  while math.prod(sizes) < count:
    sizes[sizes.index(min(sizes))] *= 2
  sizes.sort(key=lambda size: (size == 1, size))  # v5p:2x2x1, as it is sold
  return tuple(sizes) if math.prod(sizes) == count else None
