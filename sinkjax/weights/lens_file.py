"""Jacobian lenses in safetensors: `save_lens` and `load_lens`."""

import json
import os

from sinkjax import artifacts
from sinkjax.config import ModelConfig
from sinkjax.transforms.lens import Lens
from sinkjax.weights.formats import rawfile, safetensors_header
from sinkjax.weights.formats.safetensors_io import open_folder

FORMAT = "sinkjax jacobian lens"
_ARRAYS = ("maps", "means", "final_mean")
_COUNTS = ("skip", "texts", "tokens")


def save_lens(path: str | os.PathLike, lens: Lens, cfg: ModelConfig) -> None:
  """Writes a lens as one safetensors file, atomically.

  The header says how it was fitted, and of which kind of model.

  Args:
    path: of the file.
    lens: from `fit_lens`.
    cfg: the model's config.

  Raises:
    ValueError: where the file cannot be written.
  """
  from safetensors.numpy import save

  about = {
    "format": FORMAT,
    "model": json.dumps(_model(cfg)),
    "layers": json.dumps(lens.layers),
    **{name: str(getattr(lens, name)) for name in _COUNTS},
  }
  arrays = {name: getattr(lens, name) for name in _ARRAYS}
  artifacts.write_bytes(path, save(arrays, metadata=about))


def load_lens(path: str | os.PathLike, cfg: ModelConfig) -> Lens:
  """Reads what `save_lens` wrote.

  Args:
    path: of the file.
    cfg: of the model that the lens is for.

  Raises:
    WeightsError: for another file, or the lens of another kind of model.
  """
  from safetensors import safe_open

  path = os.fspath(path)
  safetensors_header.read_header(path)  # refuses what is no safetensors file
  with safe_open(path, "numpy") as file:
    about = file.metadata() or {}
    if about.get("format") != FORMAT or not set(_ARRAYS) <= set(file.keys()):
      rawfile.refuse(path, "is no Jacobian lens; save_lens writes one")
  files = open_folder(path)
  arrays = {name: files.read_raw(name) for name in _ARRAYS}
  try:
    model = json.loads(about["model"])
    layers = tuple(int(layer) for layer in json.loads(about["layers"]))
    counts = {name: int(about[name]) for name in _COUNTS}
  except (KeyError, TypeError, ValueError):
    rawfile.refuse(path, "has a damaged header; save the lens again")
  if model != _model(cfg):
    given, want = (_words(x) for x in (model, _model(cfg)))
    rawfile.refuse(path, f"is the lens of {given}; this model is {want}")
  many, width = len(layers), cfg.d_model
  shapes = ((many, width, width), (many, width), (width,))
  for name, shape in zip(_ARRAYS, shapes, strict=True):
    if arrays[name].shape != shape:
      rawfile.refuse(
        path, f"has {name} of {list(arrays[name].shape)}, not {list(shape)}"
      )
  return Lens(**arrays, layers=layers, **counts)


def _model(cfg: ModelConfig) -> dict[str, object]:
  """What a lens can be told by; the weights themselves it does not know."""
  return {
    "model_type": cfg.model_type,
    "d_model": cfg.d_model,
    "n_layers": cfg.n_layers,
    "vocab_size": cfg.vocab_size,
  }


def _words(model: object) -> str:
  if not isinstance(model, dict):
    return "an unknown model"
  return ", ".join(f"{name} {value}" for name, value in model.items())
