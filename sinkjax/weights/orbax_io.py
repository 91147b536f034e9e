"""A model as an Orbax folder, with a manifest of our own.

The folder holds `params/` (Orbax), `sinkjax.json` (config, and the shape, dtype
and SHA-256 of every array) and, where there is one, the tokenizer. Orbax
restores a flipped bit or another dtype without a word; the manifest does not.
"""

import hashlib
import json
import os
import pathlib
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp

from sinkjax import limits
from sinkjax.config import ModelConfig
from sinkjax.models.transformer import Params, param_shapes
from sinkjax.sharding import placed, to_host
from sinkjax.weights.assemble import check_params, flatten, nest
from sinkjax.weights.folders import check_new, new_folder
from sinkjax.weights.placement import ON_ONE, Placement
from sinkjax.weights.tokenizer import Tokenizer
from sinkjax.weights.validate import WeightsError, first_line

MANIFEST = "sinkjax.json"
SCHEMA = 1


def is_checkpoint(path: str | os.PathLike) -> bool:
  """Whether a folder was written by `save`."""
  return (pathlib.Path(path) / MANIFEST).is_file()


def digest(array: jax.Array) -> dict[str, Any]:
  """Shape, dtype and SHA-256 of an array, as a manifest has them."""
  array = to_host(array)
  # As bytes, because no memoryview of bfloat16 can be made: the buffer protocol
  # has no such type.
  data = np.ascontiguousarray(array).view(np.uint8).data
  return {
    "shape": list(array.shape),
    "dtype": str(array.dtype),
    "sha256": hashlib.sha256(data).hexdigest(),
  }


def save(
  path: str | os.PathLike,
  params: Params,
  cfg: ModelConfig,
  tokenizer: Tokenizer | None = None,
) -> None:
  """Writes an Orbax folder that `sinkjax.load` reads; exact.

  Args:
    path: the folder; it must not exist or be empty.
    params: the parameters; on this host, where there are several processes,
      of which one calls this.
    cfg: their config.
    tokenizer: saved as `tokenizer.json` where given.

  Raises:
    ValueError: if the folder is not empty or the parameters are not those of
      `cfg`; nothing is left behind then.
  """
  check_new(path)
  flat = check_params(cfg, params)
  manifest = {
    "schema": SCHEMA,
    "config": cfg.to_dict(),
    "arrays": {name: digest(array) for name, array in flat.items()},
  }
  with new_folder(path) as folder:
    with ocp.StandardCheckpointer(
      multiprocessing_options=_this_process_alone()
    ) as checkpointer:
      checkpointer.save(folder / "params", params)
    if tokenizer is not None:
      tokenizer.save(folder)
    (folder / MANIFEST).write_text(json.dumps(manifest, indent=1) + "\n")


def _this_process_alone() -> ocp.options.MultiprocessingOptions:
  """Orbax would have all processes of a run write one folder together."""
  if jax.process_count() == 1:
    return ocp.options.MultiprocessingOptions()
  mine = jax.process_index()
  return ocp.options.MultiprocessingOptions(
    primary_host=mine, active_processes={mine}, barrier_sync_key_prefix="model"
  )


def check(path: str | os.PathLike) -> ModelConfig:
  """The config of a folder that `save` wrote, checked against its arrays.

  Raises:
    WeightsError: as `load`, but for what stands in the arrays themselves.
  """
  path = pathlib.Path(path).absolute()
  cfg, arrays = _read_manifest(path / MANIFEST)
  _check_arrays(path, cfg, arrays)
  if not (path / "params").is_dir():
    raise WeightsError(f"{path}: the folder params, of the arrays, is missing")
  return cfg


def _check_arrays(
  path: pathlib.Path, cfg: ModelConfig, arrays: dict[str, Any]
) -> None:
  """Raises for an array of the manifest that the config does not ask for."""
  wanted = flatten(param_shapes(cfg))
  for name in sorted(set(wanted) ^ set(arrays)):
    raise WeightsError(f"{path}: array {name!r} is missing or unknown")
  for name, entry in arrays.items():
    want = wanted[name]
    if (entry["shape"], entry["dtype"]) != (list(want.shape), str(want.dtype)):
      raise WeightsError(
        f"{path}: array {name!r} is {entry['dtype']} {entry['shape']}, the "
        f"config asks for {want.dtype} {list(want.shape)}"
      )


def load(
  path: str | os.PathLike, place: Placement = ON_ONE
) -> tuple[Params, ModelConfig]:
  """Parameters and config of a folder that `save` wrote.

  Args:
    path: the folder.
    place: where the parameters go, in which dtype. Orbax reads each device's
      part for itself, in float32; the digests are those of whole arrays, so
      that one array at a time is on the host.

  Raises:
    WeightsError: for a damaged manifest, a missing array, another shape or
      dtype, or content that is not what was written, naming the array.
  """
  path = pathlib.Path(path).absolute()
  cfg, arrays = _read_manifest(path / MANIFEST)
  _check_arrays(path, cfg, arrays)
  shapes = param_shapes(cfg)
  if place.mesh is not None:
    shapes = placed(shapes, place.shardings(shapes))
  target = jax.tree.map(abstract, shapes)
  try:
    with ocp.StandardCheckpointer() as checkpointer:
      params = checkpointer.restore(path / "params", target)
  except Exception as error:  # Orbax and TensorStore raise many kinds
    reason = first_line(error)
    raise WeightsError(f"{path}: Orbax cannot restore: {reason}") from None
  flat = flatten(params)
  for name, entry in arrays.items():
    if digest(flat[name]) != entry:
      raise WeightsError(f"{path}: array {name!r} is not what was written")
    flat[name] = flat[name].astype(place.dtype)
  return nest(flat), cfg


def abstract(shape: jax.ShapeDtypeStruct) -> jax.ShapeDtypeStruct:
  """What Orbax is to restore, and where: on the first device by default."""
  where = getattr(shape, "sharding", None)
  if where is None:
    where = jax.sharding.SingleDeviceSharding(jax.devices()[0])
  return jax.ShapeDtypeStruct(shape.shape, shape.dtype, sharding=where)


def _read_manifest(path: pathlib.Path) -> tuple[ModelConfig, dict[str, Any]]:
  try:
    manifest = limits.read_json(path, limits.MANIFEST)
    if manifest["schema"] != SCHEMA:
      raise ValueError(f"schema {manifest['schema']!r}, expected {SCHEMA}")
    cfg = ModelConfig.from_dict(manifest["config"])
    arrays = {
      str(name): {key: entry[key] for key in ("shape", "dtype", "sha256")}
      for name, entry in manifest["arrays"].items()
    }
  except (
    AttributeError,
    KeyError,
    OSError,
    RecursionError,
    TypeError,
    ValueError,
  ) as error:
    raise WeightsError(f"{path}: no valid manifest: {error}") from None
  return cfg, arrays
