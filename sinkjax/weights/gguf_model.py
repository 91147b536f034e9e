"""GGUF files: config, tensors and tokenizer, by the family."""

import dataclasses
import os
import re
from collections.abc import Mapping, Sequence

import numpy as np

from sinkjax.config import ModelConfig
from sinkjax.models.transformer import Params
from sinkjax.weights import families, unsupported
from sinkjax.weights.assemble import Unread, assemble, check_names
from sinkjax.weights.families._gguf import (
  check_keys,
  common_fields,
  numbers_gguf,
)
from sinkjax.weights.families._gguf_rope import check_rope_keys
from sinkjax.weights.families._metadata import Metadata
from sinkjax.weights.formats.gguf import (
  GGUFFile,
  open_gguf,
  read_part,
  read_rows,
  read_tensor,
)
from sinkjax.weights.layout import Shape
from sinkjax.weights.placement import ON_ONE, Placement
from sinkjax.weights.tokenizer import Tokenizer
from sinkjax.weights.tokenizer_gguf import tokenizer_from_gguf
from sinkjax.weights.validate import WeightsError, fit_tokenizer

# The one is read with the config, the other is a table that can be computed.
_IGNORED = (r"^rope_freqs\.weight$", r"\.attn_rot_embd$")
# llama.cpp's converter writes [1, D], and its quantiser makes [D] of it.
_ONE_ROW = ".ffn_gate_inp_shexp.weight"


def config_from_gguf(file: GGUFFile) -> ModelConfig:
  """The config that a GGUF header describes.

  Raises:
    WeightsError: for an unknown architecture or RoPE scaling, or a key that
      is missing or of the wrong type or size.
  """
  architecture = file.metadata.get("general.architecture")
  family = families.find_architecture(architecture, file.metadata)
  if family is None:
    why = unsupported.reason(architecture)
    if why is not None:
      raise WeightsError(f"{file.path}: {architecture!r} is {why}")
    known = {f.gguf.architecture for f in families.FAMILIES.values() if f.gguf}
    raise WeightsError(
      f"{file.path}: unknown architecture {architecture!r}; known: "
      f"{sorted(known)}"
    )
  read = Metadata(file, architecture)
  check_rope_keys(read, family.gguf.rope_keys)
  try:
    fields = common_fields(read, file, family.gguf.rope_scaling)
    fields |= family.gguf.read_config(read, fields)
    check_keys(read)
    return ModelConfig(**fields, model_type=family.name)
  except WeightsError:
    raise
  except ArithmeticError as error:  # as in hf_config
    raise read.refused(error) from None
  except ValueError as error:
    raise WeightsError(f"{file.path}: {error}") from None


class _GGUFSource:
  def __init__(self, file: GGUFFile, numbers: Mapping[str, float]):
    self.file, self.where = file, str(file.path)
    self.numbers = {
      name: np.array([x], np.float32) for name, x in numbers.items()
    }

  def shapes(self) -> Mapping[str, Shape]:
    return dict.fromkeys(self.numbers, (1,)) | {
      name: t.shape[1:]
      if name.endswith(_ONE_ROW) and t.shape[:-1] == (1,)
      else t.shape
      for name, t in self.file.tensors.items()
    }

  def read(self, name: str, out: np.ndarray | None = None) -> np.ndarray:
    if name in self.numbers:
      found = self.numbers[name]
      if out is None:
        return found
      out[...] = found
      return out
    return read_tensor(self.file, name, out=out)

  def read_rows(
    self, name: str, rows: Sequence[int], out: np.ndarray | None = None
  ) -> np.ndarray:
    return read_rows(self.file, name, rows, out=out)

  def read_part(self, name: str, part: tuple[slice, ...]) -> np.ndarray:
    if name in self.numbers:
      return self.numbers[name][part]
    return read_part(self.file, name, part)


def load_header(path: str | os.PathLike) -> tuple[ModelConfig, Tokenizer]:
  """Config and tokenizer of a GGUF file; no weights are read.

  Raises:
    WeightsError: as `load_gguf`, but for damaged values of weights.
  """
  unread, tokenizer = open_model(path)
  check_names(*unread)
  return unread.cfg, tokenizer


def _header(file: GGUFFile) -> tuple[ModelConfig, Tokenizer]:
  cfg = config_from_gguf(file)
  try:
    tokenizer = tokenizer_from_gguf(file.metadata)
  except WeightsError as error:
    raise WeightsError(f"{file.path}: {error}") from None
  return fit_tokenizer(cfg, tokenizer, str(file.path)), tokenizer


def load_gguf(
  path: str | os.PathLike, place: Placement = ON_ONE
) -> tuple[Params, ModelConfig, Tokenizer]:
  """Parameters, config and tokenizer of a GGUF file.

  Args:
    path: the file.
    place: where the parameters go, in which dtype.

  Raises:
    WeightsError: one line about what is damaged, missing, extra or unknown.
  """
  unread, tokenizer = open_model(path)
  cfg, leaves, source, ignored = unread
  params = assemble(cfg, leaves, source, ignored=ignored, place=place)
  return params, cfg, tokenizer


def open_model(path: str | os.PathLike) -> tuple[Unread, Tokenizer]:
  """What `load_gguf` loads, before its weights are read."""
  file = open_gguf(path)
  cfg, tokenizer = _header(file)
  # Without the metadata: the tokens alone can be more than a layer.
  form = families.FAMILIES[cfg.model_type].gguf
  numbers = numbers_gguf(file, form.numbers, cfg.n_layers)
  source = _GGUFSource(dataclasses.replace(file, metadata={}), numbers)
  named = (f"^{re.escape(name)}$" for name in form.ignored_tensors)
  ignored = (*_IGNORED, *named)
  return Unread(cfg, form.tensors(cfg), source, ignored), tokenizer
