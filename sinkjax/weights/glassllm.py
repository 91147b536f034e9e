"""The two small models of the `glassllm` package: an .npz and a .json.

Llama blocks without biases, tied embeddings, rotary pairs side by side;
kernels are stored [in, out] as float16.
"""

import json
import os
import pathlib
import zipfile
from collections.abc import Mapping

import numpy as np

from sinkjax.config import ModelConfig
from sinkjax.models.transformer import Params
from sinkjax.weights.assemble import assemble
from sinkjax.weights.layout import Kernel, Layout, Leaf, Shape
from sinkjax.weights.placement import ON_ONE, Placement
from sinkjax.weights.tokenizer import Tokenizer
from sinkjax.weights.tokenizer_files import tokenizer_from_glassllm
from sinkjax.weights.validate import WeightsError, first_line, fit_tokenizer

# Unpacked: the package has 3 MB, and a zip of a few KB can hold any size.
_MAX_BYTES = 64 << 20
_FIELDS = {
  "vocab_size": "vocab_size",
  "d_model": "d_model",
  "n_layers": "n_layers",
  "n_heads": "n_heads",
  "n_kv_heads": "n_kv_heads",
  "max_len": "max_len",
  "rope_base": "rope_base",
  "eps": "norm_eps",
}
_ROTATED = Kernel(interleaved_rope=True)
LEAVES = [
  Leaf("embed", "E", Layout()),
  Leaf("final_norm/scale", "norm_f.gamma"),
  Leaf("blocks/attn_norm/scale", "blocks.{i}.norm1.gamma"),
  Leaf("blocks/mlp_norm/scale", "blocks.{i}.norm2.gamma"),
  Leaf("blocks/attn/q/kernel", "blocks.{i}.attn.W_Q", _ROTATED),
  Leaf("blocks/attn/k/kernel", "blocks.{i}.attn.W_K", _ROTATED),
  Leaf("blocks/attn/v/kernel", "blocks.{i}.attn.W_V", Kernel()),
  Leaf("blocks/attn/o/kernel", "blocks.{i}.attn.W_O", Kernel(inputs=2)),
  Leaf("blocks/mlp/gate/kernel", "blocks.{i}.ffn.W1", Kernel()),
  Leaf("blocks/mlp/up/kernel", "blocks.{i}.ffn.W3", Kernel()),
  Leaf("blocks/mlp/down/kernel", "blocks.{i}.ffn.W2", Kernel()),
]


class _NpzSource:
  def __init__(self, arrays: dict[str, np.ndarray], where: str):
    self.arrays, self.where = arrays, where

  def shapes(self) -> Mapping[str, Shape]:
    return {name: array.shape for name, array in self.arrays.items()}

  def read(self, name: str, out: np.ndarray | None = None) -> np.ndarray:
    array = self.arrays[name].astype(np.float32)
    if not np.all(np.isfinite(array)):
      raise WeightsError(f"{self.where}: tensor {name!r} is not finite")
    if out is None:
      return array
    out[...] = array.reshape(out.shape)
    return out


def _read_npz(path: pathlib.Path) -> dict[str, np.ndarray]:
  """Every array of the file; never a pickle, never more than 64 MiB."""
  try:
    with zipfile.ZipFile(path) as archive:
      total = sum(info.file_size for info in archive.infolist())
    if total > _MAX_BYTES:
      raise WeightsError(
        f"{path}: {total} bytes, at most {_MAX_BYTES} are read"
      )
    with np.load(path, allow_pickle=False) as data:
      arrays = {name: data[name] for name in data.files}
  except WeightsError:
    raise
  except Exception as error:  # zipfile and numpy raise a dozen kinds
    reason = first_line(error)
    raise WeightsError(f"{path}: not a readable .npz: {reason}") from None
  for name, array in arrays.items():
    if name != "__config__" and array.dtype not in (np.float16, np.float32):
      raise WeightsError(f"{path}: tensor {name!r} has dtype {array.dtype}")
  return arrays


def load_glassllm(
  folder: str | os.PathLike, language: str, place: Placement = ON_ONE
) -> tuple[Params, ModelConfig, Tokenizer]:
  """Parameters, config and tokenizer of "en" or "pt".

  Args:
    folder: of the package's files.
    language: "en" or "pt".
    place: where the parameters go, in which dtype.

  Raises:
    WeightsError: one line about what is damaged or missing.
  """
  path = pathlib.Path(folder) / f"{language}.npz"
  arrays = _read_npz(path)
  try:
    values = json.loads(str(arrays.pop("__config__")))
    fields = {ours: values[theirs] for theirs, ours in _FIELDS.items()}
    width, heads = fields["d_model"], fields["n_heads"]
    cfg = ModelConfig(
      **fields,
      head_dim=width // heads,
      # The file does not tell this width; the tensors' shapes are checked by
      # it.
      d_ff=int(8 * width / 3),
      tie_embeddings=True,
    )
  except (KeyError, TypeError, ValueError, ZeroDivisionError) as error:
    raise WeightsError(f"{path}: no valid config: {error}") from None
  tokenizer = tokenizer_from_glassllm(
    pathlib.Path(folder) / f"{language}.tokenizer.json"
  )
  cfg = fit_tokenizer(cfg, tokenizer, str(path))
  source = _NpzSource(arrays, str(path))
  params = assemble(cfg, LEAVES, source, place=place)
  return params, cfg, tokenizer
