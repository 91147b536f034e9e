"""What a family is, and the one table of all of them."""

import dataclasses
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

from sinkjax.config import ModelConfig, RopeScaling
from sinkjax.weights.families._gguf_rope import scaling
from sinkjax.weights.families._metadata import Metadata
from sinkjax.weights.families._reader import Reader
from sinkjax.weights.formats.gguf import GGUFFile
from sinkjax.weights.layout import Leaf

Fields = dict[str, Any]
Scaling = Callable[[Metadata, GGUFFile, int], RopeScaling | None]


def _nothing(read: Metadata, fields: Fields) -> Fields:
  return {}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Gguf:
  """How llama.cpp stores a family.

  Attributes:
    architecture: `general.architecture` of its files.
    tensors: where each parameter lies in them.
    read_config: the fields of `ModelConfig` that differ from, or are not
      among, those that every file's metadata has: (metadata, those fields).
    marked_by: where two families share an architecture, the key below it that
      the files of this one alone have, as a number that is not 0.
    rope_keys: the keys under `{architecture}.rope.` that it reads beside those
      of `common_fields`; any other is refused.
    numbers: keys, without the architecture in front, that hold one number of
      each layer; to `tensors` each is a tensor, `{key}.{layer}`.
    ignored_tensors: names of tensors that are read with the config.
    rope_scaling: how positions are scaled: (metadata, file, rotated dimensions
      of a head).
  """

  architecture: str
  tensors: Callable[[ModelConfig], list[Leaf]]
  read_config: Callable[[Metadata, Fields], Fields] = _nothing
  marked_by: str = ""
  rope_keys: tuple[str, ...] = ()
  numbers: tuple[str, ...] = ()
  ignored_tensors: tuple[str, ...] = ()
  rope_scaling: Scaling = scaling


@dataclasses.dataclass(frozen=True, kw_only=True)
class Family:
  """All that is known of one architecture's files.

  Attributes:
    name: `model_type`, here and in Hugging Face's `config.json`.
    transformers_class: the class of transformers that runs it.
    read_config: from `config.json` to fields of `ModelConfig`; a key that is
      not there has this family's default.
    write_config: the way back, keys of `config.json`; the driver adds those
      that all families share and checks that both ways agree.
    tensors: where each parameter lies in the safetensors of a folder.
    also_called: other values of `model_type` that mean the same.
    defaults: what `config.json` may leave out, with the values that the class
      of transformers then has; a key that is there and `null` stays `null`.
      Names of special tokens do not belong here: the tokenizer has them.
    aliases: other spellings of keys of `config.json`, as the class's
      `attribute_map` has them, and the key that each means.
    optional_prefix: which checkpoints without an output matrix leave out in
      front of their tensors' names.
    ignored_tensors: patterns of names that may be there and are not read.
    constants: numbers of each layer that its checkpoints hold and that the
      model has in its code; written, since transformers asks for them.
    tokenizer: the class of transformers that reads the `vocab.json` and
      `merges.txt` of its folders, where these do not name one; else empty.
    read_through: what its folders are read through, where their tensors are
      not those of the model: of the folder, a view of it.
    gguf: `None` where llama.cpp does not have it under a name of its own.
    not_read: what of it is not supported, in words for the table of families;
      all else of it is, but for `ALL_LACK`.
  """

  name: str
  transformers_class: str
  read_config: Callable[[Reader], Fields]
  write_config: Callable[[ModelConfig], Fields]
  tensors: Callable[[ModelConfig], list[Leaf]]
  also_called: tuple[str, ...] = ()
  defaults: Fields = dataclasses.field(default_factory=dict)
  aliases: dict[str, str] = dataclasses.field(default_factory=dict)
  optional_prefix: str = "model."
  ignored_tensors: tuple[str, ...] = ()
  constants: dict[str, float] = dataclasses.field(default_factory=dict)
  tokenizer: str = ""
  read_through: Callable[[Any], Any] = lambda folder: folder
  gguf: Gguf | None = None
  not_read: str = ""


ALL_LACK = (
  "attention to another sequence or in both directions, GPT-2's scaling of "
  "scores by the layer, LoRA folders that are not merged, and weights "
  "quantised by GPTQ, AWQ, bitsandbytes, compressed-tensors or MLX"
)
"""What is not supported of any family."""

FAMILIES: dict[str, Family] = {}
"""Every family by its name."""


def register(family: Family) -> Family:
  """Adds a family to the table.

  Raises:
    ValueError: if one of its names is taken.
  """
  for name in (family.name, *family.also_called):
    if find(name) is not None:
      raise ValueError(f"the family {name!r} is registered already")
  form = family.gguf
  for other in _of_architecture(form and form.architecture):
    if other.gguf.marked_by == form.marked_by:
      raise ValueError(
        f"the GGUF architecture {form.architecture!r} is registered already"
      )
  FAMILIES[family.name] = family
  return family


def find(model_type: Any) -> Family | None:
  """The family that a `model_type` means."""
  for family in FAMILIES.values():
    if model_type == family.name or model_type in family.also_called:
      return family
  return None


def find_architecture(
  architecture: Any, metadata: Mapping[str, Any] = MappingProxyType({})
) -> Family | None:
  """The family that a GGUF file's `general.architecture` means.

  Args:
    architecture: as the file has it.
    metadata: the file's, by which families that share one are told apart.
  """
  found = _of_architecture(architecture)
  for family in found:
    mark = metadata.get(f"{architecture}.{family.gguf.marked_by}")
    if isinstance(mark, int | float) and mark:
      return family
  return next((f for f in found if not f.gguf.marked_by), None)


def _of_architecture(architecture: Any) -> list[Family]:
  if not isinstance(architecture, str):  # arrays compare entry by entry
    return []
  return [
    family
    for family in FAMILIES.values()
    if family.gguf and family.gguf.architecture == architecture
  ]
