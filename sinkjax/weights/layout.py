"""Between our parameter tree and the flat tensors of other formats.

A `Leaf` says where one of our parameters lies in a file and in which layout.
`assemble` fills our tree from a source of named tensors, `disassemble` is its
inverse; both are driven by the same list of leaves, so a format is a table.
`sinkjax.weights.offload` fills parts of it.

Ours: kernels are [in..., out...] and layers are stacked on axis 0.
"""

import concurrent.futures
import dataclasses
import functools
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple, Protocol, runtime_checkable

import jax
import numpy as np

from sinkjax.config import ModelConfig
from sinkjax.models.transformer import Params, param_shapes
from sinkjax.weights.validate import WeightsError

_ALIGNMENT = 64  # what JAX on the CPU needs to adopt a buffer uncopied


@dataclasses.dataclass(frozen=True)
class Leaf:
  """Where one parameter lies in a file.

  Attributes:
    path: ours, "blocks/attn/q/kernel".
    name: theirs, "{i}" standing for the layer.
    layout: "vector" (flat), "matrix" (as ours), "linear" ([out, in]) or
      "conv" ([in, out]).
    fused: `None`, or how q, k and v share one tensor: "thirds" (q, k, v one
      after the other along the output) or "heads" (interleaved by head).
    part: 0, 1 or 2, which of q, k, v, where fused.
    paired: rotary pairs stored as (2 j, 2 j + 1) rather than (j, j + K / 2).
    minus: subtracted on reading (norm scales stored as 1 + w).
  """

  path: str
  name: str
  layout: str = "vector"
  fused: str | None = None
  part: int = 0
  paired: bool = False
  minus: float = 0.0

  @property
  def per_layer(self) -> bool:
    """Whether the parameter is stacked over layers."""
    return "{i}" in self.name


@runtime_checkable
class Source(Protocol):
  """Named float32 tensors that can be read one by one, from threads too."""

  where: str

  def shapes(self) -> Mapping[str, tuple[int, ...]]:
    """The stored shape of every tensor."""
    ...

  def read(self, name: str, out: np.ndarray | None = None) -> np.ndarray:
    """One tensor, written into `out` where given."""
    ...


@runtime_checkable
class RowSource(Source, Protocol):
  """A source that can also read a few rows of a large matrix."""

  def read_rows(
    self, name: str, rows: Sequence[int], out: np.ndarray | None = None
  ) -> np.ndarray:
    """[rows, columns], written into `out` where given."""
    ...


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


@functools.lru_cache(maxsize=16)
def flat_shapes(cfg: ModelConfig) -> dict[str, tuple[int, ...]]:
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


def aligned_empty(shape: tuple[int, ...], dtype=np.float32) -> np.ndarray:
  """An uninitialised array that JAX on the CPU can adopt without a copy."""
  size = int(np.prod(shape)) * np.dtype(dtype).itemsize
  raw = np.empty(size + _ALIGNMENT, np.uint8)
  start = -raw.ctypes.data % _ALIGNMENT
  return raw[start : start + size].view(dtype).reshape(shape)


def _matrix_shape(path: str, shape: tuple[int, ...]) -> tuple[int, int]:
  """(in, out) of one of our kernels."""
  split = 2 if path.endswith("attn/o/kernel") else 1
  return int(np.prod(shape[:split])), int(np.prod(shape[split:]))


def as_stored(leaf: Leaf, slot: np.ndarray, cfg: ModelConfig) -> np.ndarray:
  """A view of our contiguous `slot` in the file's order, unfused.

  Paired leaves get extra axes, [H, K / 2, 2, ...], the same order in memory
  as the file's flat rows.
  """
  half = cfg.head_dim // 2
  if leaf.layout == "matrix":
    return slot
  if leaf.layout == "vector":
    flat = slot.reshape(-1)
    if leaf.paired:
      return flat.reshape(-1, 2, half).transpose(0, 2, 1)
    return flat
  matrix = slot.reshape(_matrix_shape(leaf.path, slot.shape))
  if leaf.paired:
    pairs = matrix.reshape(matrix.shape[0], -1, 2, half)
    order = (0, 1, 3, 2) if leaf.layout == "conv" else (1, 3, 2, 0)
    return pairs.transpose(order)
  return matrix if leaf.layout == "conv" else matrix.T


def stored_shape(leaf: Leaf, shape: tuple[int, ...]) -> tuple[int, ...]:
  """The shape that the file must have for our `shape` of one layer."""
  if leaf.layout == "matrix":
    return shape
  times = 3 if leaf.fused else 1
  if leaf.layout == "vector":
    return (times * int(np.prod(shape)),)
  rows, cols = _matrix_shape(leaf.path, shape)
  if leaf.layout == "conv":
    return (rows, times * cols)
  return (times * cols, rows)


def _part(leaf: Leaf, stored: np.ndarray, cfg: ModelConfig) -> np.ndarray:
  """q, k or v of a fused tensor."""
  if leaf.fused == "thirds":
    axis = 1 if leaf.layout == "conv" else 0
    return np.split(stored, 3, axis=axis)[leaf.part]
  heads = stored.reshape(cfg.n_heads, 3, cfg.head_dim, *stored.shape[1:])
  return heads[:, leaf.part].reshape(-1, *stored.shape[1:])


def _fuse(leaf: Leaf, parts: list[np.ndarray], cfg: ModelConfig) -> np.ndarray:
  """The inverse of `_part`, for q, k, v in order."""
  if leaf.fused == "thirds":
    return np.concatenate(parts, axis=1 if leaf.layout == "conv" else 0)
  tail = parts[0].shape[1:]
  split = [p.reshape(cfg.n_heads, 1, cfg.head_dim, *tail) for p in parts]
  return np.concatenate(split, axis=1).reshape(-1, *tail)


def _fill(leaf: Leaf, slot: np.ndarray, source: Source, cfg, name) -> None:
  view = as_stored(leaf, slot, cfg)
  if leaf.fused:
    view[...] = _part(leaf, source.read(name), cfg).reshape(view.shape)
  else:
    source.read(name, out=view)
  if leaf.minus:
    slot -= np.float32(leaf.minus)


def check_names(
  cfg: ModelConfig, leaves: list[Leaf], source: Source, ignored: Iterable[str]
) -> dict[str, tuple[int, ...]]:
  """Our shapes, if the source's tensors are exactly those of `leaves`.

  Raises:
    WeightsError: naming the first missing, extra or mis-shaped tensor.
  """
  ours, theirs = flat_shapes(cfg), source.shapes()
  unmapped = set(ours) - {leaf.path for leaf in leaves}
  if unmapped:
    raise WeightsError(
      f"{source.where}: a {cfg.model_type} file cannot hold "
      f"{sorted(unmapped)[0]}, which the config asks for"
    )
  wanted = set()
  for leaf in leaves:
    shape = ours[leaf.path][1:] if leaf.per_layer else ours[leaf.path]
    shape = stored_shape(leaf, shape)
    for i in range(cfg.n_layers if leaf.per_layer else 1):
      name = leaf.name.format(i=i)
      if name not in theirs:
        raise WeightsError(f"{source.where}: tensor {name!r} is missing")
      if tuple(theirs[name]) != shape:
        raise WeightsError(
          f"{source.where}: tensor {name!r} has shape {tuple(theirs[name])}, "
          f"the config asks for {shape}"
        )
      wanted.add(name)
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

  Raises:
    WeightsError: for a missing, extra or mis-shaped tensor, before reading.
  """
  ours = check_names(cfg, leaves, source, ignored)
  buffers = {path: aligned_empty(shape) for path, shape in ours.items()}
  jobs = []
  for leaf in leaves:
    buffer = buffers[leaf.path]
    if leaf.per_layer:
      for i in range(cfg.n_layers):
        jobs.append((leaf, buffer[i], source, cfg, leaf.name.format(i=i)))
    else:
      jobs.append((leaf, buffer, source, cfg, leaf.name))
  fill_all(jobs, workers or default_workers())
  return nest({path: jax.device_put(b) for path, b in buffers.items()})


def default_workers() -> int:
  """Decoding threads: one a core, 8 at most."""
  return min(8, os.cpu_count() or 1)


def fill_all(jobs: list[tuple], workers: int) -> None:
  """Reads tensors into their places, in threads, the largest first.

  Args:
    jobs: (leaf, our buffer for one layer, source, cfg, name in the source).
    workers: threads; with 1, the caller's own.

  Raises:
    WeightsError: the first of them; the other jobs are then dropped.
  """
  jobs.sort(key=lambda job: -job[1].size)
  if workers == 1:
    for job in jobs:
      _fill(*job)
    return
  with concurrent.futures.ThreadPoolExecutor(workers) as pool:
    futures = [pool.submit(_fill, *job) for job in jobs]
    try:
      for future in futures:
        future.result()
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
  tensors: dict[str, Any] = {}
  for leaf in leaves:
    values = np.asarray(flat[leaf.path], np.float32)
    for i in range(cfg.n_layers if leaf.per_layer else 1):
      slot = np.ascontiguousarray(values[i] if leaf.per_layer else values)
      stored = np.ascontiguousarray(as_stored(leaf, slot, cfg))
      if leaf.minus:
        stored = stored + np.float32(leaf.minus)
      name = leaf.name.format(i=i)
      if not leaf.fused:
        tensors[name] = stored
        continue
      parts = tensors.setdefault(name, [None, None, None])
      parts[leaf.part] = stored
      if all(part is not None for part in parts):
        tensors[name] = _fuse(leaf, parts, cfg)
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
