"""Our parameter tree from the flat tensors of a file, and back.

`assemble` fills our tree from a source of named tensors and `disassemble` is
its inverse; both follow a list of leaves (`sinkjax.weights.layout`), so a
format is a table. `sinkjax.weights.offload` fills parts of the tree.

Layers are stacked on axis 0 of each parameter under "blocks".
"""

import concurrent.futures
import functools
import math
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from numpy.typing import DTypeLike

from sinkjax.config import ModelConfig
from sinkjax.models.transformer import Params, param_shapes
from sinkjax.weights import memory
from sinkjax.weights.layout import Leaf, RowSource, Shape, Source
from sinkjax.weights.placement import ON_ONE, Placement, shards
from sinkjax.weights.validate import WeightsError

# Bytes: JAX on the CPU adopts a buffer without a copy where it is so aligned.
_ALIGNMENT = 64


class Unread(NamedTuple):
  """A model of which only the headers have been read.

  Attributes:
    cfg: its config.
    leaves: where each parameter lies.
    source: its tensors.
    ignored: patterns of tensor names that may be there and are not read.
  """

  cfg: ModelConfig
  leaves: list[Leaf]
  source: RowSource
  ignored: tuple[str, ...]


class Job(NamedTuple):
  """A tensor of a file, still to be read.

  Attributes:
    leaf: the parameter that it is of.
    name: its name.
    slot: where it goes, of our shape.
    source: what it is read from.
  """

  leaf: Leaf
  name: str
  slot: np.ndarray
  source: Source

  def run(self) -> None:
    """Reads it."""
    self.leaf.read(self.source, self.name, self.slot)


class PartJob(NamedTuple):
  """A part of a tensor of a file, still to be read.

  Attributes:
    leaf: the parameter that it is of.
    name: its name.
    slot: where the part goes.
    source: what it is read from.
    shape: of the whole tensor, in our order.
    index: the part of it.
  """

  leaf: Leaf
  name: str
  slot: np.ndarray
  source: Source
  shape: Shape
  index: tuple[slice, ...]

  def run(self) -> None:
    """Reads it."""
    leaf, name, slot, source, shape, index = self
    leaf.read_part(source, name, shape, index, slot)


@functools.lru_cache(maxsize=16)
def flat_shapes(cfg: ModelConfig) -> dict[str, Shape]:
  """Our parameters' paths, joined by "/", and their shapes."""
  shapes = flatten(param_shapes(cfg))
  return {path: tuple(value.shape) for path, value in shapes.items()}


def nest(flat: Mapping[str, Any]) -> Params:
  """`{"a/b": x}` to `{"a": {"b": x}}`."""
  tree: Params = {}
  for path, value in flat.items():
    *parents, last = path.split("/")
    node = tree
    for parent in parents:
      node = node.setdefault(parent, {})
    node[last] = value
  return tree


def flatten(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
  """The inverse of `nest`."""
  flat: dict[str, Any] = {}
  for key, value in tree.items():
    if isinstance(value, Mapping):
      flat.update(flatten(value, f"{prefix}{key}/"))
    else:
      flat[prefix + key] = value
  return flat


def aligned_empty(shape: Shape, dtype: DTypeLike = np.float32) -> np.ndarray:
  """An uninitialised array that JAX on the CPU can adopt without a copy."""
  size = math.prod(shape) * np.dtype(dtype).itemsize
  raw = np.empty(size + _ALIGNMENT, np.uint8)
  start = -raw.ctypes.data % _ALIGNMENT
  return raw[start : start + size].view(dtype).reshape(shape)


def check_names(
  cfg: ModelConfig, leaves: list[Leaf], source: Source, ignored: Iterable[str]
) -> dict[str, Shape]:
  """Our shapes, if the source's tensors are exactly those of `leaves`.

  Raises:
    WeightsError: naming the first missing, extra or mis-shaped tensor.
  """
  ours, theirs = flat_shapes(cfg), source.shapes()
  paths = {leaf.path for leaf in leaves}
  for path in sorted(set(ours) - paths):
    raise WeightsError(
      f"{source.where}: a {cfg.model_type} file cannot hold {path}, which the "
      "config asks for"
    )
  for path in sorted(paths - set(ours)):
    raise WeightsError(
      f"{source.where}: a {cfg.model_type} file holds {path}, which a model of "
      "this config does not have"
    )
  wanted = set()
  for leaf in leaves:
    for index, name in leaf.places(ours[leaf.path]):
      shape = leaf.layout.stored_shape(ours[leaf.path][len(index) :])
      if name not in theirs:
        why = ""
        if leaf.path == "unembed":
          why = ": the model has no head, and its config does not tie one"
        raise WeightsError(f"{source.where}: tensor {name!r} is missing{why}")
      if tuple(theirs[name]) != shape:
        raise WeightsError(
          f"{source.where}: tensor {name!r} has shape {tuple(theirs[name])}, "
          f"the config asks for {shape}"
        )
      wanted.add(name)
  # An empty pattern would match every name.
  skip = re.compile("|".join(ignored)) if ignored else None
  for name in theirs:
    if name not in wanted and not (skip and skip.search(name)):
      raise WeightsError(
        f"{source.where}: tensor {name!r} has no place in a "
        f"{cfg.model_type} model of this config"
      )
  return ours


def assemble(
  cfg: ModelConfig,
  leaves: list[Leaf],
  source: Source,
  *,
  ignored: Iterable[str] = (),
  workers: int | None = None,
  place: Placement = ON_ONE,
) -> Params:
  """Our parameter tree from a source of tensors.

  Every tensor is decoded straight into its place in the stacked buffer, and
  the buffer is handed to JAX without a copy where the device is the CPU, so
  the peak is the parameters themselves plus one tile for each worker.

  Args:
    cfg: the model.
    leaves: where each parameter lies.
    source: the file.
    ignored: patterns of tensor names that may be there and are not read.
    workers: decoding threads, one a core (8 at most) by default.
    place: where the parameters go, in which dtype. Anywhere but on one device
      in float32, the parts go there one after the other, those of the largest
      parameter first, and this host holds no more beside them than one part,
      with a tensor's part in float32 for each worker.

  Raises:
    ValueError: for a mesh that cannot hold the parameters.
    WeightsError: for a missing, extra or mis-shaped tensor, before reading.
  """
  ours = check_names(cfg, leaves, source, ignored)
  if place != ON_ONE:
    where = flatten(place.shardings(param_shapes(cfg)))
    workers = workers or default_workers()
    found = dict.fromkeys(ours)
    for path in memory.largest_first(ours):
      found[path] = _in_parts(
        [leaf for leaf in leaves if leaf.path == path],
        source,
        ours[path],
        where[path],
        place.dtype,
        workers,
      )
      memory.trim()
    return nest(found)
  buffers = {path: aligned_empty(shape) for path, shape in ours.items()}
  for path in {leaf.path for leaf in leaves if leaf.layers is not None}:
    buffers[path].fill(0)  # nothing is read where no leaf has a layer
  jobs = []
  for leaf in leaves:
    slots = buffers[leaf.path]
    for index, name in leaf.places(slots.shape):
      jobs.append(Job(leaf, name, slots[index], source))
  fill_all(jobs, workers or default_workers())
  return nest({path: jax.device_put(b) for path, b in buffers.items()})


def _in_parts(
  leaves: list[Leaf],
  source: Source,
  shape: Shape,
  where: jax.sharding.NamedSharding | None,
  dtype: str,
  workers: int,
) -> jax.Array:
  """A parameter of which every device's part is read for itself.

  Args:
    leaves: all that are of it.
    source: the file.
    shape: of the parameter.
    where: the devices, or `None` for one.
    dtype: that it gets.
    workers: threads.
  """
  arrays = []
  for index, devices in shards(where, shape):
    part = aligned_empty(tuple(at.stop - at.start for at in index), dtype)
    if any(leaf.layers is not None for leaf in leaves):
      part.fill(0)
    jobs = []
    for leaf in leaves:
      for at, name in leaf.places(shape):
        n = len(at)  # layers and experts, which no rule splits
        whole, inside = shape[n:], index[n:]
        jobs.append(PartJob(leaf, name, part[at], source, whole, inside))
    fill_all(jobs, workers)
    # One after the other: the next part must not be read while this one waits
    # on the host for its device.
    arrays += [
      jax.block_until_ready(jax.device_put(part, device)) for device in devices
    ]
  if where is None:
    return arrays[0]
  return jax.make_array_from_single_device_arrays(shape, where, arrays)


def default_workers() -> int:
  """Decoding threads: one a core, 8 at most: each keeps 10 MB of scratch."""
  return min(8, os.cpu_count() or 1)


def fill_all(jobs: Sequence[Job | PartJob], workers: int) -> None:
  """Reads tensors into their places, in threads, the largest first.

  Args:
    jobs: in any order.
    workers: threads; with 1, the caller's own.

  Raises:
    WeightsError: the first of them; the other jobs are then dropped.
  """
  # A large tensor that starts last would leave the other threads idle.
  jobs = sorted(jobs, key=lambda job: -job.slot.size)
  if workers == 1:
    for job in jobs:
      job.run()
    return
  with concurrent.futures.ThreadPoolExecutor(workers) as pool:
    futures = [pool.submit(job.run) for job in jobs]
    try:
      for future in futures:
        future.result()
    # An interrupt, too: the pool would otherwise read all that is still queued.
    except BaseException:
      pool.shutdown(cancel_futures=True)
      raise


def disassemble(
  cfg: ModelConfig, leaves: list[Leaf], params: Params
) -> dict[str, np.ndarray]:
  """The named tensors of a file, from our parameters; exact.

  Raises:
    WeightsError: where `params` do not fit `cfg`.
  """
  flat = check_params(cfg, params)
  tensors: dict[str, np.ndarray] = {}
  # Several leaves may share a fused tensor: it is whole when as many elements
  # were written as it has.
  unwritten: dict[str, int] = {}
  for leaf in leaves:
    values = np.ascontiguousarray(flat[leaf.path], np.float32)
    for index, name in leaf.places(values.shape):
      slot = values[index]
      shape = leaf.layout.stored_shape(slot.shape)
      tensor = tensors.setdefault(name, np.empty(shape, np.float32))
      if tensor.shape != shape:
        raise WeightsError(
          f"tensor {name!r} would need both shape {tensor.shape} and {shape}"
        )
      spare = leaf.layout.spare(slot.shape)
      unwritten.setdefault(name, tensor.size - spare)
      leaf.write(slot, tensor)
      unwritten[name] -= slot.size
  for name, missing in unwritten.items():
    if missing:
      raise WeightsError(
        f"tensor {name!r}: {missing} of its elements belong to no parameter"
      )
  return tensors


def check_params(cfg: ModelConfig, params: Params) -> dict[str, Any]:
  """The flat parameters, if they are exactly those of `cfg`.

  Raises:
    WeightsError: naming the first missing, extra or mis-shaped parameter.
  """
  flat, ours = flatten(params), flat_shapes(cfg)
  for path in sorted(set(flat) ^ set(ours)):
    state = "missing" if path in ours else "not part of this config"
    raise WeightsError(f"parameter {path!r} is {state}")
  for path, shape in ours.items():
    if tuple(flat[path].shape) != shape:
      raise WeightsError(
        f"parameter {path!r} has shape {tuple(flat[path].shape)}, the config "
        f"asks for {shape}"
      )
  return flat
