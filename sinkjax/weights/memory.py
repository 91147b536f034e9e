"""Memory that goes back to the system once a layer is dropped.

The C library keeps what is freed, for the next allocation; in a walk over
layers that threads read, this comes to several layers.
"""

import contextlib
import ctypes
import math
import mmap
from collections.abc import Mapping

import numpy as np

_M_MMAP_THRESHOLD = -3  # of malloc.h


def mapped_empty(shape: tuple[int, ...]) -> np.ndarray:
  """An uninitialised array whose pages go back to the system when it is freed.

  malloc would keep them, and those of each thread apart.
  """
  try:
    size = max(1, 4 * math.prod(shape))
    pages = mmap.mmap(-1, size, access=mmap.ACCESS_COPY)
  except OSError as error:
    raise MemoryError(f"no memory for float32 {shape}: {error}") from None
  return np.ndarray(shape, np.float32, pages)


def largest_first(shapes: Mapping[str, tuple[int, ...]]) -> list[str]:
  """Names of arrays in the order in which they are read one after the other.

  What reading one of them needs beside it then comes while little else is held.
  """
  return sorted(shapes, key=lambda name: -math.prod(shapes[name]))


def trim() -> None:
  """Gives the system what malloc keeps free, where malloc can do that.

  Compiling a small model's layer leaves several times that layer.
  """
  with contextlib.suppress(OSError, AttributeError):
    ctypes.CDLL(None).malloc_trim(0)


def return_freed() -> None:
  """Has the C library give back what is freed, from 1 MB on.

  glibc raises that border to 32 MB with use: the memory of a freed layer then
  stays in its heap, in pieces, and a walk's peak grows with its length.
  """
  with contextlib.suppress(AttributeError, OSError):  # another C library
    ctypes.CDLL(None).mallopt(_M_MMAP_THRESHOLD, 1 << 20)
