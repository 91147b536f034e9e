"""Which bytes a result was made from: a name or a path may come to hold others.

A model that is fetched by name is pinned by the SHA-256 that stands in the
registry. A file or a folder is known by the SHA-256 of its content; where
names, sizes and times of change are still those recorded, it is not read again.
"""

import functools
import hashlib
import pathlib
import re
from collections.abc import Callable, Mapping
from typing import Any

from sinkjax.weights import registry
from sinkjax.weights.formats import gguf, gguf_parts

_CARD = 10_000
"""Characters of a model card that are read: its header stands first."""


def of(
  name: str,
  *,
  without: pathlib.Path | None = None,
  progress: Callable[[int], Any] = lambda size: None,
) -> dict[str, Any]:
  """What a record keeps of a model's bytes.

  Args:
    name: as `registry.load` takes it; fetched if need be.
    without: a folder that is left out: of results, inside the model's.
    progress: called with the bytes done since the last call.

  Returns:
    {"sha256": of names and contents; "licence": where the files name one, else
    `None`; "contents": {name: SHA-256 of the file}; "files": [[name, bytes,
    time of change in ns]]}. A model of the registry has no "files".

  Cost: reading every file, once in a process.
  """
  if name in registry.REGISTRY:
    package = registry.REGISTRY[name]
    return {
      "sha256": _digest(sorted(package.files.items())),
      "licence": package.licence,
      "contents": dict(package.files),
    }
  path, found = registry.find(name), []
  paths = _files(path, without)
  marks = _mark(paths, path)
  for file, (name, size, changed) in zip(paths, marks, strict=True):
    found.append((name, _content(file, size, changed)))
    progress(size)
  return {
    "sha256": _digest(found),
    "licence": _licence(path),
    "contents": dict(found),
    "files": marks,
  }


def unchanged(
  recorded: Mapping[str, Any] | None,
  name: str,
  *,
  without: pathlib.Path | None = None,
) -> bool | None:
  """Whether a model's bytes are those of a record.

  Args:
    recorded: what `of` gave.
    name: as for `of`.
    without: as for `of`.

  Returns:
    `None` where the record does not say: it was written before records did.
    A registered model's bytes have never changed, so that there it is True.
  """
  if recorded is None:
    return True if name in registry.REGISTRY else None
  if recorded.get("files"):
    path = registry.find(name)
    if _mark(_files(path, without), path) == recorded["files"]:
      return True
  return of(name, without=without)["sha256"] == recorded["sha256"]


def made_from(
  recorded: Mapping[str, Any] | None, name: str, made: pathlib.Path
) -> bool:
  """Whether the results in a folder are of a model's bytes.

  Args:
    recorded: what `of` gave, as the results keep it.
    name: as for `of`.
    made: the folder of the results.

  Returns:
    `False` where the record does not say.

  Raises:
    ValueError: if the bytes have changed.
  """
  same = unchanged(recorded, name, without=made)
  if same is False:
    raise ValueError(
      f"{name} has changed since {made} was made from it; choose another --out "
      "or give --overwrite"
    )
  return bool(same)


def _files(
  path: pathlib.Path, without: pathlib.Path | None
) -> list[pathlib.Path]:
  """The model's files, hidden ones left out."""
  if path.is_file():
    named = [pathlib.Path(part) for part in gguf_parts.parts(path)]
    return named if all(part.is_file() for part in named) else [path]
  without = None if without is None else without.resolve()
  return sorted(
    file
    for file in path.rglob("*")
    if file.is_file()
    and not any(part.startswith(".") for part in file.relative_to(path).parts)
    # Links of the Hub's cache lead out of the folder; their names are in it.
    and (without is None or without not in file.parent.resolve().parents)
    and file.parent.resolve() != without
  )


@functools.lru_cache(maxsize=4096)  # experiments ask for one model in turn
def _content(file: pathlib.Path, size: int, changed: int) -> str:
  """A file's SHA-256; `size` and `changed` tell the cache of a new one."""
  with open(file, "rb") as stream:
    return hashlib.file_digest(stream, "sha256").hexdigest()


def _licence(path: pathlib.Path) -> str | None:
  """What a GGUF file's header or a folder's model card says."""
  if path.is_file():
    if registry.form_of(path, path.name) != "gguf":
      return None
    named = gguf.open_gguf(path).metadata.get("general.license")
    return named if isinstance(named, str) else None
  card = path / "README.md"
  if not card.is_file():
    return None
  with open(card, encoding="utf-8", errors="replace") as stream:
    head = stream.read(_CARD)
  # The card's header of YAML names one licence in a line of its own.
  match = re.match(r"---\n(?:.*\n)*?license: *['\"]?([\w.+-]+)", head)
  return match[1] if match else None


def _name(file: pathlib.Path, path: pathlib.Path) -> str:
  return file.relative_to(path).as_posix() if path.is_dir() else file.name


def _mark(paths: list[pathlib.Path], path: pathlib.Path) -> list[list[Any]]:
  states = [(file, file.stat()) for file in paths]
  return [[_name(f, path), s.st_size, s.st_mtime_ns] for f, s in states]


def _digest(parts: list[tuple[str, str]]) -> str:
  text = "\n".join(f"{sha} {name}" for name, sha in parts)
  return hashlib.sha256(text.encode("utf-8")).hexdigest()
