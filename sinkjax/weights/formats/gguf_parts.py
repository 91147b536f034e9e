"""The names of a model in parts, as llama.cpp splits large GGUF files."""

import os
import re

MAX_PARTS = 4096
"""As of shards: parts are a few GB each, so models have hundreds."""

_PART = re.compile(r"(.+)-(\d{5})-of-(\d{5})\.gguf", re.DOTALL)


def parts(path: str | os.PathLike) -> list[str]:
  """The paths of all parts of a model, by the name of one of them.

  A name that is no part's is the only one.

  >>> parts("m-00002-of-00002.gguf")
  ['m-00001-of-00002.gguf', 'm-00002-of-00002.gguf']
  """
  found = _PART.fullmatch(os.fspath(path))
  if found is None:
    return [os.fspath(path)]
  stem, count = found[1], int(found[3])
  if not 1 <= int(found[2]) <= count <= MAX_PARTS:
    return [os.fspath(path)]
  return [f"{stem}-{i + 1:05d}-of-{count:05d}.gguf" for i in range(count)]
