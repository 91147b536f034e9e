"""Models of the Hugging Face Hub, by the Hub's own client and in its cache.

A name is `hf:org/name`, with `@revision` for a branch, a tag or a commit, and
with `:file.gguf` for one file of a repository. The client's settings hold:
`HF_HUB_OFFLINE`, `HF_HOME`, and `HF_TOKEN` for private repositories.
"""

import pathlib
import re
from collections.abc import Iterable
from typing import Any, NamedTuple

from sinkjax.weights.formats import gguf_parts
from sinkjax.weights.validate import WeightsError, first_line

PREFIX = "hf:"
# Pickles are never read, so they are not fetched.
_DESCRIPTION = ("*.json", "*.jinja", "*.model", "merges.txt")
_WEIGHTS = ("*.safetensors",)
# Parts of a repository in folders of their own are other formats of the model.
_LEFT_OUT = ("*/*",)
_NAME = re.compile(
  r"hf:(?P<repo>[\w.-]+/[\w.-]+)(@(?P<revision>[^:]+))?(:(?P<file>[^:]+))?"
)


class HubName(NamedTuple):
  """The parts of a name.

  Attributes:
    repo: "org/name".
    revision: a branch, a tag or a commit; `None` for the main branch.
    file: a GGUF file of the repository, or `None` for a model folder.
  """

  repo: str
  revision: str | None
  file: str | None


def parse(name: str) -> HubName:
  """The parts of a name.

  Raises:
    WeightsError: for a name of another form, or a file that is not GGUF.
  """
  match = _NAME.fullmatch(name) if name.isprintable() else None
  # Such a part would lead to another address, and to another folder here.
  if match and {".", ".."} & set(re.split(r"[:/@]", name)):
    match = None
  if match is None:
    raise WeightsError(
      f"{name!r} is no name of a model on the Hub: expected hf:org/name, "
      "hf:org/name@revision or hf:org/name:file.gguf"
    )
  found = HubName(match["repo"], match["revision"], match["file"])
  if found.file is not None and not found.file.endswith(".gguf"):
    raise WeightsError(
      f"{name!r}: only a .gguf file can be named; without a file, config.json "
      "and the safetensors of the repository are read"
    )
  return found


def with_revision(name: str, revision: str) -> str:
  """The name of a model at a branch, a tag or a commit.

  Raises:
    WeightsError: for a name that is not of the Hub, or has a revision.

  >>> with_revision("hf:org/name:model.gguf", "v2")
  'hf:org/name@v2:model.gguf'
  """
  if not name.startswith(PREFIX):
    raise WeightsError(
      f"revision={revision!r} goes with a name of the Hub, as hf:org/name; got "
      f"{name!r}"
    )
  repo, given, file = parse(name)
  if given is not None:
    raise WeightsError(f"{name!r} has a revision, and {revision!r} is another")
  return f"{PREFIX}{repo}@{revision}" + (f":{file}" if file else "")


def is_here(name: str) -> bool:
  """Whether what describes a model can be read without its weights.

  A GGUF file describes itself, and must be in the Hub's cache; what describes
  a folder is small and is fetched.

  Raises:
    WeightsError: as `parse`.
  """
  repo, revision, file = parse(name)
  if file is None:
    return True
  found = _call(
    name,
    "try_to_load_from_cache",
    repo_id=repo,
    filename=file,
    revision=revision,
  )
  return isinstance(found, str)


def fetch(name: str, *, weights: bool = True) -> pathlib.Path:
  """The path of a model in the Hub's cache, fetched if need be.

  Args:
    name: see the module.
    weights: whether the weights must be there, too.

  Raises:
    WeightsError: for a name of another form, a repository, revision or file
      that is out of reach, or a repository that holds no model we can read.
  """
  repo, revision, file = parse(name)
  at = {"repo_id": repo, "revision": revision}
  if file is not None:
    # All parts of a model in parts are read, whichever is named.
    there = {
      part: _call(name, "hf_hub_download", filename=part, **at)
      for part in gguf_parts.parts(file)
    }
    return pathlib.Path(there[file])
  patterns = (*_DESCRIPTION, *_WEIGHTS) if weights else _DESCRIPTION
  folder = _call(
    name,
    "snapshot_download",
    allow_patterns=list(patterns),
    ignore_patterns=list(_LEFT_OUT),
    **at,
  )
  if not (pathlib.Path(folder) / "config.json").is_file():
    there = _call(name, "list_repo_files", **at)
    raise WeightsError(f"{name}: {_without_config(repo, there)}")
  return pathlib.Path(folder)


def _without_config(repo: str, names: Iterable[str]) -> str:
  """Why a repository without a config cannot be read, and what to do."""
  files = sorted(name for name in names if name.endswith(".gguf"))
  if not files:
    return "the repository has neither config.json nor a GGUF file"
  return (
    "the repository has GGUF files and no config.json: name one of them, as "
    f"hf:{repo}:{files[0]}; there are {len(files)}: {', '.join(files[:4])}"
  )


def _call(name: str, function: str, **arguments: Any) -> Any:
  """What a function of the Hub's client returns."""
  import huggingface_hub  # where it is needed: most models come from elsewhere

  try:
    return getattr(huggingface_hub, function)(**arguments)
  except Exception as error:  # the client raises many kinds
    raise WeightsError(
      f"{name} could not be fetched: {first_line(error)}"
    ) from None
