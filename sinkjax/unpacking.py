"""What archives hold, within bounds: one of some KB could fill the memory."""

import io
import lzma
import os
import pathlib
import tarfile
import zipfile

import numpy as np

from sinkjax import limits

ROOM = 256 << 20
"""Bytes that any archive may unpack to; a larger one to `limits.UNPACKED` times
its size. Recorded results have some MB."""


def npz(
  path: str | os.PathLike, raw: bytes, most: int | None = None
) -> dict[str, np.ndarray]:
  """The arrays of an .npz file.

  Args:
    path: for messages.
    raw: its content.
    most: bytes that all arrays may have; by default see `ROOM`.

  Raises:
    ValueError: for what is no such file, or has more bytes.
  """
  room = max(ROOM, limits.UNPACKED * len(raw)) if most is None else most
  try:
    with zipfile.ZipFile(io.BytesIO(raw)) as packed:
      size = sum(member.file_size for member in packed.infolist())
    if size > room:
      raise ValueError(f"{size} bytes unpacked, at most {room} are read")
    with np.load(io.BytesIO(raw), allow_pickle=False) as stored:
      return dict(stored)
  # Zipfile and NumPy raise a dozen kinds. One is MemoryError: of an array whose
  # header lies, all is asked for before its bytes are looked for.
  except Exception as error:
    raise _unreadable(path, ".npz", error) from None


def tar_xz(path: str | os.PathLike) -> dict[str, bytes]:
  """{name: content} of all files of a compressed archive.

  Raises:
    ValueError: for what is no such archive, unpacks to more than `ROOM`, or has
      a member that is no file, or would lie outside the archive's folder.
  """
  room = max(ROOM, limits.UNPACKED * limits.regular(path))
  try:
    with lzma.open(path, "rb") as packed:
      raw = packed.read(room + 1)
    if len(raw) > room:
      raise ValueError(f"it unpacks to more than {room} bytes")
    with tarfile.open(fileobj=io.BytesIO(raw), mode="r:") as tar:
      members = tar.getmembers()
      for member in members:
        name = pathlib.PurePosixPath(member.name)
        if not member.isreg() or name.is_absolute() or ".." in name.parts:
          raise ValueError(f"{member.name!r:.80} is no file of its folder")
      return {one.name: tar.extractfile(one).read() for one in members}
  except (
    OSError,
    EOFError,
    ValueError,
    lzma.LZMAError,
    tarfile.TarError,
  ) as error:
    raise _unreadable(path, "archive", error) from None


def _unreadable(
  path: str | os.PathLike, kind: str, error: Exception
) -> ValueError:
  reason = (str(error).splitlines() or [type(error).__name__])[0]
  return ValueError(f"{path}: not a readable {kind}: {reason}")
