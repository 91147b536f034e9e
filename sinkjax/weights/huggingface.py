"""Hugging Face model folders: `config.json` and safetensors, in and out."""

import json
import os
import pathlib
import re
from collections.abc import Iterable, Mapping, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from sinkjax.config import ModelConfig
from sinkjax.models.transformer import Params
from sinkjax.weights import families, quantised
from sinkjax.weights.assemble import Unread, assemble, check_names, disassemble
from sinkjax.weights.dequantised import Dequantised
from sinkjax.weights.folders import check_new, new_folder, read_json
from sinkjax.weights.formats import safetensors_io
from sinkjax.weights.hf_config import config_from_hf, config_to_hf
from sinkjax.weights.layout import Leaf, Shape
from sinkjax.weights.placement import ON_ONE, Placement
from sinkjax.weights.projected import Projected
from sinkjax.weights.tokenizer import Tokenizer
from sinkjax.weights.validate import WeightsError

# Buffers that old checkpoints carry and that hold no weight.
_IGNORED = (
  r"\.attn\.(masked_)?bias$",
  r"\.attention\.(masked_)?bias$",
  r"rotary_emb\.inv_freq$",
)
# Elements: rows of tied matrices are compared 4 MB at a time.
_COMPARED = 1 << 20


class _FolderSource:
  """The folder's tensors under the names that a family gives them."""

  def __init__(
    self,
    folder: safetensors_io.SafetensorsFolder | Dequantised | Projected,
    wanted: Iterable[str],
    optional_prefix: str,
    where: str,
  ):
    self.folder, self.where = folder, where
    # Checkpoints of the model without its output matrix lack the prefix.
    inside = {
      name.removeprefix(optional_prefix).split(".")[0]
      for name in wanted
      if optional_prefix and name.startswith(optional_prefix)
    }
    self._names = {}
    for name in folder.tensors:
      full = _without_wrapper(name)
      if full.split(".")[0] in inside:
        full = optional_prefix + full
      if full in self._names:
        raise WeightsError(
          f"{where}: both {self._names[full]!r} and {name!r} are {full!r}"
        )
      self._names[full] = name

  def shapes(self) -> Mapping[str, Shape]:
    return {n: self.folder.tensors[t].shape for n, t in self._names.items()}

  def check_dtype(self, name: str) -> None:
    self.folder.check_dtype(self._names[name])

  def read(self, name: str, out: np.ndarray | None = None) -> np.ndarray:
    return self.folder.read(self._names[name], out=out)

  def read_rows(
    self, name: str, rows: Sequence[int], out: np.ndarray | None = None
  ) -> np.ndarray:
    return self.folder.read_rows(self._names[name], rows, out=out)

  def read_part(self, name: str, part: tuple[slice, ...]) -> np.ndarray:
    return self.folder.read_part(self._names[name], part)


def _without_wrapper(name: str) -> str:
  """A language model's tensor without what a multimodal one puts around."""
  for prefix in ("model.language_model.", "language_model.model."):
    if name.startswith(prefix):
      return "model." + name[len(prefix) :]
  return name.removeprefix("language_model.")


def load_config(path: str | os.PathLike) -> ModelConfig:
  """The config of a Hugging Face folder."""
  where = pathlib.Path(path) / "config.json"
  return config_from_hf(read_json(where), str(where))


def check(path: str | os.PathLike) -> ModelConfig:
  """The config, checked against the names and shapes in the weights' headers.

  Raises:
    WeightsError: as `load`, but for damaged values of weights.
  """
  unread = open_model(path, compare=False)
  shapes = check_names(*unread)
  for leaf in unread.leaves:
    for _, name in leaf.places(shapes[leaf.path]):
      unread.source.check_dtype(name)
  return unread.cfg


def load(
  path: str | os.PathLike, place: Placement = ON_ONE
) -> tuple[Params, ModelConfig]:
  """Parameters and the config of a Hugging Face folder.

  Args:
    path: the folder.
    place: where the parameters go, in which dtype.

  Raises:
    WeightsError: one line about what is damaged, missing, extra or unknown.
  """
  unread = open_model(path)
  cfg, leaves, source, ignored = unread
  return assemble(cfg, leaves, source, ignored=ignored, place=place), cfg


def open_model(path: str | os.PathLike, *, compare: bool = True) -> Unread:
  """What `load` loads, before its weights are read.

  Args:
    path: the folder.
    compare: read the output matrix that a tied model may store, which must be
      the embedding.
  """
  where = pathlib.Path(path) / "config.json"
  values = read_json(where)
  cfg = config_from_hf(values, str(where))
  family = families.FAMILIES[cfg.model_type]
  leaves = family.tensors(cfg)
  folder = safetensors_io.open_folder(path)
  how = quantised.stated(values)
  source = _FolderSource(
    family.read_through(folder if how is None else Dequantised(folder, how)),
    [leaf.name for leaf in leaves],
    family.optional_prefix,
    str(path),
  )
  ignored = [*_IGNORED, *family.ignored_tensors]
  if cfg.tie_embeddings:
    untied = family.tensors(cfg.replace(tie_embeddings=False))
    unembed = _name_of("unembed", untied)
    ignored.append(f"^{re.escape(unembed)}$")
    if compare:
      _check_tied(source, _name_of("embed", leaves), unembed)
  return Unread(cfg, leaves, source, tuple(ignored))


def _name_of(path: str, leaves: Iterable[Leaf]) -> str:
  return next(leaf.name for leaf in leaves if leaf.path == path)


def _check_tied(source: _FolderSource, embed: str, unembed: str) -> None:
  """A tied model may store its output matrix, if it is the embedding."""
  shapes = source.shapes()
  if unembed not in shapes or embed not in shapes:
    return
  if shapes[unembed] != shapes[embed] or not _equal(source, unembed, embed):
    raise WeightsError(
      f"{source.where}: tie_word_embeddings is true, but {unembed!r} differs "
      f"from {embed!r}"
    )


def _equal(source: _FolderSource, a: str, b: str) -> bool:
  """Whether two tensors of one shape are equal; a few rows at a time."""
  shape = source.shapes()[a]
  if len(shape) != 2:
    return np.array_equal(source.read(a), source.read(b))
  step = max(1, _COMPARED // shape[1])
  for start in range(0, shape[0], step):
    rows = range(start, min(start + step, shape[0]))
    if not np.array_equal(source.read_rows(a, rows), source.read_rows(b, rows)):
      return False
  return True


def save(
  path: str | os.PathLike,
  params: Params,
  cfg: ModelConfig,
  tokenizer: Tokenizer | None = None,
) -> None:
  """Writes a folder that transformers and `sinkjax.load` read, exactly.

  Tensors are in float32, or in bfloat16 where every parameter is.

  Args:
    path: the folder; it must not exist or be empty.
    params: the parameters.
    cfg: their config.
    tokenizer: saved as `tokenizer.json` where given.

  Raises:
    ValueError: if the folder is not empty or `cfg` has no such form; nothing
      is left behind then.
  """
  from safetensors.numpy import save_file

  check_new(path)
  config = config_to_hf(cfg)
  narrow = all(x.dtype == jnp.bfloat16 for x in jax.tree.leaves(params))
  dtype = np.dtype(jnp.bfloat16 if narrow else np.float32)
  config["torch_dtype"] = dtype.name
  family = families.FAMILIES[cfg.model_type]
  tensors = disassemble(cfg, family.tensors(cfg), params)
  for name, value in family.constants.items():
    for i in range(cfg.n_layers):
      tensors[name.replace("{i}", str(i))] = np.array(value, np.float32)
  for name, array in tensors.items():  # one by one, and float32 as it is
    tensors[name] = array.astype(dtype, copy=False)
  with new_folder(path) as folder:
    metadata = {"format": "pt"}  # transformers refuses a file without it
    save_file(tensors, folder / "model.safetensors", metadata=metadata)
    if tokenizer is not None:
      tokenizer.save(folder)
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n")
