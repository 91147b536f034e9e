"""A model as an Orbax folder, with a manifest of our own.

The folder holds `params/` (Orbax), `sinkjax.json` (config, and the shape, dtype
and SHA-256 of every array) and, where there is one, the tokenizer. Orbax
restores a flipped bit or another dtype without a word; the manifest does not.
"""

import hashlib
import json
import math
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
from sinkjax.weights import memory
from sinkjax.weights.assemble import check_params, flatten, nest
from sinkjax.weights.folders import (
  check_new,
  new_folder,
  read_bytes,
  require_inside,
)
from sinkjax.weights.placement import ON_ONE, Placement
from sinkjax.weights.tokenizer import Tokenizer
from sinkjax.weights.validate import WeightsError, first_line

MANIFEST = "sinkjax.json"
SCHEMA = 1
TOGETHER = 8 << 20
"""Bytes of arrays that Orbax restores at a time, or one larger array: it holds
a second copy of them meanwhile. Of small ones many: a call takes 20 ms."""


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
    manifest["files"] = {
      name: _sha256(folder / name) for name in _beside(folder)
    }
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
  _check_files(path)
  _check_params(path)
  return cfg


def _check_arrays(
  path: pathlib.Path, cfg: ModelConfig, arrays: dict[str, Any]
) -> None:
  """Raises for an array of the manifest that the config does not ask for."""
  wanted = flatten(param_shapes(cfg))
  for name in sorted(set(wanted) ^ set(arrays)):
    raise WeightsError(f"{path}: array {name!r:.80} is missing or unknown")
  for name, entry in arrays.items():
    want = wanted[name]
    if (entry["shape"], entry["dtype"]) != (list(want.shape), str(want.dtype)):
      raise WeightsError(
        f"{path}: array {name!r} is {entry['dtype']} {entry['shape']}, the "
        f"config asks for {want.dtype} {list(want.shape)}"
      )


def _beside(path: pathlib.Path) -> list[str]:
  """Names of the files that a tokenizer is read from."""
  return sorted(
    file.name
    for file in path.iterdir()
    if file.suffix in (".json", ".jinja", ".model", ".txt")
    and file.name != MANIFEST
    and not file.name.startswith(".")
  )


def _sha256(path: pathlib.Path) -> str:
  raw = read_bytes(path)
  return hashlib.sha256(raw).hexdigest()


def _check_files(path: pathlib.Path) -> None:
  """Raises for a tokenizer that is not the one that was saved."""
  recorded = limits.read_json(path / MANIFEST, limits.MANIFEST).get("files")
  if recorded is None:  # of before they were listed
    return
  if not isinstance(recorded, dict):
    raise WeightsError(f"{path / MANIFEST}: files must be an object")
  for name in sorted({*recorded, *_beside(path)}):
    if name not in recorded:
      raise WeightsError(f"{path / name}: not listed in {MANIFEST}")
    if name not in _beside(path) or _sha256(path / name) != recorded[name]:
      raise WeightsError(f"{path / name!s:.200}: not what was written")


def _check_params(path: pathlib.Path) -> None:
  params = path / "params"
  if not params.is_dir():
    raise WeightsError(f"{path}: the folder params, of the arrays, is missing")
  check_tree(path, params)


def check_tree(path: pathlib.Path, inner: pathlib.Path) -> None:
  """Raises for what Orbax would open, though nobody should.

  A pipe would be waited for, and what a link leads to would be copied.

  Args:
    path: the folder out of which no link may lead.
    inner: the folder in it that Orbax reads.

  Raises:
    WeightsError: naming the pipe, the device or the link.
  """
  require_inside(path, str(inner.relative_to(path)), inner)
  for folder, folders, files in os.walk(inner):
    for name in (*folders, *files):
      one = pathlib.Path(folder, name)
      require_inside(path, str(one.relative_to(path)), one)
      if name in files:
        try:
          limits.regular(one)
        except ValueError as error:
          raise WeightsError(str(error)) from None


def load(
  path: str | os.PathLike, place: Placement = ON_ONE
) -> tuple[Params, ModelConfig]:
  """Parameters and config of a folder that `save` wrote.

  Args:
    path: the folder.
    place: where the parameters go, in which dtype. Orbax reads each device's
      part for itself, in float32; the digests are those of whole arrays, so
      that one array at a time is on the host.

  Cost: beside the parameters two float32 copies of the largest array, one of
  them Orbax's own, and about 50 MB.

  Raises:
    WeightsError: for a damaged manifest, a missing array, another shape or
      dtype, or content that is not what was written, naming the array.
  """
  path = pathlib.Path(path).absolute()
  cfg, arrays = _read_manifest(path / MANIFEST)
  _check_arrays(path, cfg, arrays)
  _check_files(path)
  _check_params(path)
  shapes = param_shapes(cfg)
  if place.mesh is not None:
    shapes = placed(shapes, place.shardings(shapes))
  targets = flatten(jax.tree.map(abstract, shapes))
  found: dict[str, Any] = dict.fromkeys(targets)
  with ocp.PyTreeCheckpointer() as checkpointer:
    for names in _groups(targets):
      try:
        some = {name: targets[name] for name in names}
        arrived = _restored(checkpointer, path, some)
      except Exception as error:  # Orbax and TensorStore raise many kinds
        reason = first_line(error)
        raise WeightsError(f"{path}: Orbax cannot restore: {reason}") from None
      for name in names:
        array = arrived.pop(name)
        if digest(array) != arrays[name]:
          raise WeightsError(f"{path}: array {name!r} is not what was written")
        # What is converted later would keep the array until then.
        found[name] = jax.block_until_ready(array.astype(place.dtype))
      del array
      memory.trim()
  return nest(found), cfg


def _groups(targets: dict[str, jax.ShapeDtypeStruct]) -> list[list[str]]:
  """Names of arrays that are restored together, the largest first."""
  groups: list[list[str]] = []
  room = 0
  for name in memory.largest_first({n: t.shape for n, t in targets.items()}):
    size = math.prod(targets[name].shape) * targets[name].dtype.itemsize
    if not groups or size > room:
      groups.append([])
      room = TOGETHER
    groups[-1].append(name)
    room -= size
  return groups


def _restored(
  checkpointer: ocp.PyTreeCheckpointer,
  path: pathlib.Path,
  targets: dict[str, jax.ShapeDtypeStruct],
) -> dict[str, jax.Array]:
  """Some arrays of a folder that `save` wrote."""
  item = nest(targets)
  how = ocp.checkpoint_utils.construct_restore_args(item)
  found = checkpointer.restore(
    path / "params",
    args=ocp.args.PyTreeRestore(
      item=item, restore_args=how, partial_restore=True
    ),
  )
  return flatten(found)


def abstract(shape: jax.ShapeDtypeStruct) -> jax.ShapeDtypeStruct:
  """What Orbax is to restore, and where: on the first device by default."""
  where = getattr(shape, "sharding", None)
  if where is None:
    where = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
  return jax.ShapeDtypeStruct(shape.shape, shape.dtype, sharding=where)


def _read_manifest(path: pathlib.Path) -> tuple[ModelConfig, dict[str, Any]]:
  try:
    require_inside(path.parent, path.name, path)
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
