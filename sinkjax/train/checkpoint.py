"""Orbax folders, with a manifest of our own: a model, or the steps of a run.

A model's folder holds `params/` (Orbax), `sinkjax.json` (config, and the
shape, dtype and SHA-256 of every array) and, where there is one, the
tokenizer. Orbax restores a flipped bit or another dtype silently; the manifest
does not.
"""

import hashlib
import json
import os
import pathlib
import tempfile
import warnings
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp

from sinkjax.config import ModelConfig
from sinkjax.models.transformer import Params, param_shapes
from sinkjax.sharding import to_host
from sinkjax.weights.layout import check_params, flatten, nest
from sinkjax.weights.validate import WeightsError, first_line

MANIFEST = "sinkjax.json"
SCHEMA = 1


def is_checkpoint(path: str | os.PathLike) -> bool:
  """Whether a folder was written by `save`."""
  return (pathlib.Path(path) / MANIFEST).is_file()


def _digest(array) -> dict[str, Any]:
  array = to_host(array)
  data = np.ascontiguousarray(array).view(np.uint8).data
  return {
    "shape": list(array.shape),
    "dtype": str(array.dtype),
    "sha256": hashlib.sha256(data).hexdigest(),
  }


def save(
  path: str | os.PathLike, params: Params, cfg: ModelConfig, tokenizer=None
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
  path = pathlib.Path(path).absolute()
  if path.exists() and (not path.is_dir() or any(path.iterdir())):
    raise ValueError(f"{path} exists and is not an empty folder")
  flat = check_params(cfg, params)
  manifest = {
    "schema": SCHEMA,
    "config": cfg.to_dict(),
    "arrays": {name: _digest(array) for name, array in flat.items()},
  }
  path.parent.mkdir(parents=True, exist_ok=True)
  with tempfile.TemporaryDirectory(
    dir=path.parent, prefix=f".{path.name}."
  ) as work:
    folder = pathlib.Path(work) / "model"
    folder.mkdir()
    with ocp.StandardCheckpointer(
      multiprocessing_options=_this_process_alone()
    ) as checkpointer:
      checkpointer.save(folder / "params", params)
    if tokenizer is not None:
      tokenizer.save(folder)
    (folder / MANIFEST).write_text(json.dumps(manifest, indent=1) + "\n")
    if path.exists():
      path.rmdir()
    os.replace(folder, path)


def _this_process_alone() -> ocp.options.MultiprocessingOptions:
  """Orbax would have all processes of a run write one folder together."""
  if jax.process_count() == 1:
    return ocp.options.MultiprocessingOptions()
  mine = jax.process_index()
  return ocp.options.MultiprocessingOptions(
    primary_host=mine, active_processes={mine}, barrier_sync_key_prefix="model"
  )


def load_config(path: str | os.PathLike) -> ModelConfig:
  """The config of a folder that `save` wrote."""
  return _read_manifest(pathlib.Path(path) / MANIFEST)[0]


def load(path: str | os.PathLike) -> tuple[Params, ModelConfig]:
  """Parameters and config of a folder that `save` wrote.

  Raises:
    WeightsError: for a damaged manifest, a missing array, another shape or
      dtype, or content that is not what was written, naming the array.
  """
  path = pathlib.Path(path).absolute()
  cfg, arrays = _read_manifest(path / MANIFEST)
  target = jax.tree.map(_abstract, param_shapes(cfg))
  flat_target = flatten(target)
  for name in sorted(set(flat_target) ^ set(arrays)):
    raise WeightsError(f"{path}: array {name!r} is missing or unknown")
  for name, entry in arrays.items():
    want = flat_target[name]
    if (entry["shape"], entry["dtype"]) != (list(want.shape), str(want.dtype)):
      raise WeightsError(
        f"{path}: array {name!r} is {entry['dtype']} {entry['shape']}, the "
        f"config asks for {want.dtype} {list(want.shape)}"
      )
  try:
    with ocp.StandardCheckpointer() as checkpointer:
      params = checkpointer.restore(path / "params", target)
  except Exception as error:  # Orbax and TensorStore raise many kinds
    reason = first_line(error)
    raise WeightsError(f"{path}: Orbax cannot restore: {reason}") from None
  flat = flatten(params)
  for name, entry in arrays.items():
    if _digest(flat[name]) != entry:
      raise WeightsError(f"{path}: array {name!r} is not what was written")
  return nest(flat), cfg


def _abstract(shape: jax.ShapeDtypeStruct) -> jax.ShapeDtypeStruct:
  where = getattr(shape, "sharding", None)
  if where is None:
    where = jax.sharding.SingleDeviceSharding(jax.devices()[0])
  return jax.ShapeDtypeStruct(shape.shape, shape.dtype, sharding=where)


def _read_manifest(path: pathlib.Path) -> tuple[ModelConfig, dict[str, Any]]:
  try:
    manifest = json.loads(path.read_text("utf-8"))
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


class RunCheckpoints:
  """The saved steps of a run: written in the background, checked when read.

  Each step holds the state's arrays (Orbax) and `about`, a JSON value, with
  the SHA-256 of every array, so that a flipped bit, a cut file or an empty
  folder is found; the step before it is used then, and that is said.

  Args:
    folder: made if need be.
    keep: how many of the last steps stay; the one of least loss does too.
  """

  def __init__(self, folder: str | os.PathLike, *, keep: int = 2):
    if keep < 1:
      raise ValueError(f"keep must be at least 1, got {keep}")
    self._folder = pathlib.Path(folder).absolute()
    policies = ocp.checkpoint_managers
    self._manager = ocp.CheckpointManager(
      self._folder,
      options=ocp.CheckpointManagerOptions(
        preservation_policy=policies.AnyPreservationPolicy(
          [
            policies.LatestN(keep),
            policies.BestN(
              get_metric_fn=lambda metrics: metrics["loss"],
              reverse=True,
              n=1,
              keep_checkpoints_without_metrics=False,
            ),
          ]
        ),
        step_prefix=None,
        cleanup_tmp_directories=True,
      ),
    )

  def save(
    self, step: int, state: Any, about: Any, *, loss: float | None = None
  ) -> None:
    """Starts to write a step; the arrays are copied before it returns.

    Args:
      step: its number; one that is there already is left as it is.
      state: a pytree of arrays.
      about: whatever JSON holds.
      loss: by which the best step is told, if it is known.

    Raises:
      OSError: if an earlier step could not be written; the ones before it
        are whole.
    """
    self.wait()
    if step in self._manager.all_steps():
      return
    digests = {name: _digest(x) for name, x in _named(state).items()}
    self._manager.save(
      step,
      args=ocp.args.Composite(
        state=ocp.args.StandardSave(state),
        about=ocp.args.JsonSave({"about": about, "arrays": digests}),
      ),
      metrics=None if loss is None else {"loss": float(loss)},
    )

  def wait(self) -> None:
    """Returns when the last step is on the disk.

    Raises:
      OSError: if it could not be written.
    """
    try:
      self._manager.wait_until_finished()
    except Exception as error:  # Orbax and TensorStore raise many kinds
      raise OSError(
        f"{self._folder}: a checkpoint could not be written, those before it "
        f"are whole: {first_line(error)}"
      ) from None

  def steps(self) -> list[int]:
    """The numbers of what is there."""
    return sorted(self._manager.all_steps())

  def restore(self, like: Any) -> tuple[int, Any, Any] | None:
    """(step, state, about) of the last step that is whole, or `None`.

    Args:
      like: a pytree of arrays or their shapes, as the state has them; each
        comes back to where its `sharding` says.

    Raises:
      WeightsError: if there are steps and none is whole, or the last whole
        one is of another model.

    Warns:
      UserWarning: for each step that is damaged, naming it and what is wrong.
    """
    reasons = []
    for step in reversed(self.steps()):
      try:
        return (step, *self._read(step, like))
      except WeightsError as error:
        reasons.append(str(error))
        warnings.warn(f"{error}; trying the step before", stacklevel=2)
    if reasons:
      raise WeightsError(
        f"{self._folder}: none of {len(reasons)} saved steps is whole "
        f"({reasons[0]}); delete the folder to start anew"
      )
    return None

  def _read(self, step: int, like: Any) -> tuple[Any, Any]:
    where = self._folder / str(step)
    target = jax.tree.map(_abstract, like)
    try:
      manifest = self._manager.restore(
        step, args=ocp.args.Composite(about=ocp.args.JsonRestore())
      )["about"]
      arrays, about = dict(manifest["arrays"]), manifest["about"]
    except Exception as error:  # as above
      reason = first_line(error) or type(error).__name__
      raise WeightsError(f"{where}: no manifest: {reason}") from None
    for name, want in _named(target).items():
      entry = arrays.get(name)
      if entry is None or (entry["shape"], entry["dtype"]) != (
        list(want.shape),
        str(want.dtype),
      ):
        had = f"{entry['dtype']} {entry['shape']}" if entry else "missing"
        raise WeightsError(
          f"{where}: array {name!r} is {had}, this run has {want.dtype} "
          f"{list(want.shape)}"
        )
    try:
      state = self._manager.restore(
        step, args=ocp.args.Composite(state=ocp.args.StandardRestore(target))
      )["state"]
    except Exception as error:
      reason = first_line(error) or type(error).__name__
      raise WeightsError(f"{where}: cannot restore: {reason}") from None
    for name, array in _named(state).items():
      if _digest(array) != arrays[name]:
        raise WeightsError(f"{where}: array {name!r} is not what was written")
    return state, about

  def close(self) -> None:
    """Waits, and lets go of the folder."""
    self.wait()
    self._manager.close()


def _named(tree: Any) -> dict[str, Any]:
  """Leaves by path."""
  return {
    jax.tree_util.keystr(path): leaf
    for path, leaf in jax.tree_util.tree_flatten_with_path(tree)[0]
  }
