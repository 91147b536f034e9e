"""Models of the Hugging Face Hub, by the Hub's own client and in its cache.

A name is `hf:org/name`, with `@revision` for a branch, a tag or a commit, and
with `:file.gguf` for one file of a repository. The client's settings hold:
`HF_HUB_OFFLINE`, `HF_HOME`, and `HF_TOKEN` for private repositories.
"""

import pathlib
import re
from typing import Any, NamedTuple

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
  match = _NAME.fullmatch(name)
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


def is_here(name: str) -> bool:
  """Whether what describes a model can be read without its weights.

  A GGUF file describes itself, and must be in the Hub's cache; what describes
  a folder is small and is fetched.

  Raises:
    WeightsError: as `parse`.
  """
  import huggingface_hub

  repo, revision, file = parse(name)
  if file is None:
    return True
  found = huggingface_hub.try_to_load_from_cache(repo, file, revision=revision)
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
  if file is not None:
    import huggingface_hub

    path = _call(
      name, huggingface_hub.hf_hub_download, repo, file, revision=revision
    )
    return pathlib.Path(path)
  patterns = (*_DESCRIPTION, *_WEIGHTS) if weights else _DESCRIPTION
  folder = _snapshot(name, repo, revision, patterns)
  if not any((folder / f).is_file() for f in ("config.json", "sinkjax.json")):
    raise WeightsError(f"{name}: {_what_is_there(name, repo, revision)}")
  return folder


def _snapshot(
  name: str, repo: str, revision: str | None, patterns: tuple[str, ...]
) -> pathlib.Path:
  import huggingface_hub

  path = _call(
    name,
    huggingface_hub.snapshot_download,
    repo,
    revision=revision,
    allow_patterns=list(patterns),
    ignore_patterns=list(_LEFT_OUT),
  )
  return pathlib.Path(path)


def _what_is_there(name: str, repo: str, revision: str | None) -> str:
  """Why a repository without a config cannot be read, and what to do."""
  import huggingface_hub

  names = _call(
    name, huggingface_hub.HfApi().list_repo_files, repo, revision=revision
  )
  files = sorted(n for n in names if n.endswith(".gguf"))
  if files:
    some = ", ".join(files[:4])
    return (
      f"the repository has GGUF files and no config.json: name one of them, "
      f"as hf:{repo}:{files[0]}; there are {len(files)}: {some}"
    )
  return "the repository has neither config.json nor a GGUF file"


def _call(name: str, function: Any, *args: Any, **kwargs: Any) -> Any:
  try:
    return function(*args, **kwargs)
  except Exception as error:  # the Hub's client raises many kinds
    raise WeightsError(
      f"{name} could not be fetched: {first_line(error)}"
    ) from None
