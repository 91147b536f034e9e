"""`open_layers`: a model on disk, read one layer at a time.

For models larger than memory: `Offloaded` has what `sinkjax.models.layerwise`
needs, and reads each piece from the file when it is asked for. With
`prefetch`, a thread reads the next layer while the last one is in use. The
embedding table is never read whole: rows for the tokens asked for, and
`UNEMBED_COLUMNS` rows at a time for the logits.

Sharp edges: no more than two layers are in memory if the caller waits for a
layer's results (`jax.block_until_ready`) before it asks for the next. JAX
computes after the call returns, so a caller that does not wait holds three. An
`Offloaded` is for one thread. If the file changes after it was opened, there is
an error where it became shorter; otherwise other weights are read unnoticed.
"""

import concurrent.futures
import dataclasses
import functools
import gc
import math
import operator
import os
import time
import weakref
from collections.abc import Callable, Iterator, Sequence

import jax
import numpy as np
from jaxtyping import Array, Int

from sinkjax.config import ModelConfig
from sinkjax.models.layerwise import UNEMBED_COLUMNS
from sinkjax.models.transformer import Columns, Params
from sinkjax.weights import memory, registry
from sinkjax.weights.assemble import (
  Job,
  Unread,
  check_names,
  default_workers,
  fill_all,
  flat_shapes,
  nest,
)
from sinkjax.weights.layout import Leaf, Linear
from sinkjax.weights.tokenizer import Tokenizer
from sinkjax.weights.validate import WeightsError, fit_tokenizer

_FLOAT = 4  # bytes
# A layer of fewer is read by one thread: each keeps 10 MB or so of scratch.
_ELEMENTS_A_WORKER = 1 << 25
# Computing with one layer takes less; who holds one for longer means to.
_PATIENCE_S = 60.0


def _read_part(unread: Unread, leaves: list[Leaf], index: int = 0) -> Params:
  """The parameters of some leaves, of one layer where they are stacked."""
  ours, slots, jobs = flat_shapes(unread.cfg), {}, []
  for leaf in leaves:
    shape = ours[leaf.path]
    # Several leaves may have parts of one parameter, and where none has a
    # layer's part, it stays the zeros of fresh pages.
    slot = slots.get(leaf.path)
    if slot is None:
      slot = memory.mapped_empty(shape[1:] if leaf.per_layer else shape)
      slots[leaf.path] = slot
    for at, name in leaf.places(slot.shape, index):
      jobs.append(Job(leaf, name, slot[at], unread.source))
  elements = sum(slot.size for slot in slots.values())
  fill_all(jobs, min(default_workers(), 1 + elements // _ELEMENTS_A_WORKER))
  return nest(slots)


def _read_layer(unread: Unread, index: int) -> Params:
  leaves = [leaf for leaf in unread.leaves if leaf.per_layer]
  return _read_part(unread, leaves, index)["blocks"]


def _read_rows(unread: Unread, leaf: Leaf, rows: Sequence[int]) -> np.ndarray:
  """Rows of one of the large matrices, the columns of the unembedding.

  Returns:
    [D, rows] of the unembedding, [rows, D] of another table, as ours are.
  """
  shape = (len(rows), unread.cfg.d_model)
  slot = memory.mapped_empty(shape[::-1] if leaf.path == "unembed" else shape)
  view = leaf.layout.in_file_order(slot)
  stored = [leaf.layout.stored_row(row) for row in rows]
  unread.source.read_rows(leaf.name, stored, out=view)
  return slot


class _Ahead:
  """Reads one layer ahead, in a thread that lives as long as one walk.

  One thread, since malloc keeps what each thread frees.
  """

  def __init__(self, read: Callable[[int], Params]):
    self._read = read
    self._pool = self._future = self._index = None

  def take(self, index: int) -> Params:
    """The layer: the one that was read ahead, or read now."""
    future, self._future = self._future, None
    if future is not None and self._index == index:
      return future.result()
    if future is not None:
      concurrent.futures.wait([future])
    del future  # what it read goes before another is read
    return self._read(index)

  def start(self, index: int) -> None:
    """Reads a layer in the background."""
    if self._pool is None:
      self._pool = concurrent.futures.ThreadPoolExecutor(1, "sinkjax-layer")
    self._index, self._future = index, self._pool.submit(self._read, index)

  def stop(self) -> None:
    """Ends the thread and drops what it read."""
    pool, self._pool, self._future = self._pool, None, None
    if pool is not None:
      pool.shutdown()


class _Given:
  """Layers that were handed out, to tell when they are gone.

  A layer lies in buffers of ours, which JAX on the CPU adopts: its arrays end
  when the caller drops them, the buffers when computations are done, too.
  """

  def __init__(self):
    self._alive: list[tuple[weakref.ref, weakref.ref]] = []

  def hand_out(self, arrays: Params) -> Params:
    """The same as JAX arrays."""
    layer = jax.tree.map(jax.device_put, arrays)
    pairs = zip(jax.tree.leaves(arrays), jax.tree.leaves(layer), strict=True)
    self._alive += [(weakref.ref(a), weakref.ref(x)) for a, x in pairs]
    return layer

  def wait(self) -> None:
    """Until nothing computes with layers that the caller has dropped."""
    end = time.monotonic() + _PATIENCE_S
    while time.monotonic() < end:
      gc.collect(0)  # JAX lets go of our buffers when Python collects
      self._alive = [pair for pair in self._alive if pair[0]() is not None]
      if all(array() is not None for _, array in self._alive):
        return
      time.sleep(0.001)
    self._alive = []  # somebody else holds them: never wait for them again


class Offloaded:
  """Weights on disk, a `sinkjax.models.layerwise.Layers`.

  Everything comes out float32 and bit for bit as `sinkjax.load` gives it.
  Made by `open_layers`; a context manager that ends with `close`.

  Attributes:
    cfg: the model's config.
    tokenizer: its tokenizer, or `None` where the folder has none.
    where: the file or folder.
  """

  def __init__(
    self, unread: Unread, tokenizer: Tokenizer | None, *, prefetch: bool = True
  ):
    check_names(*unread)
    self.cfg, self.tokenizer = unread.cfg, tokenizer
    self.where = unread.source.where
    self._unread, self._prefetch = unread, prefetch
    self._given = _Given()
    self._ahead = _Ahead(functools.partial(_read_layer, unread))

  def embedding(self, tokens: Int[Array, "..."]) -> jax.Array:
    """Rows of the embedding table, and no other row is read.

    Args:
      tokens: ids of any shape.

    Raises:
      ValueError: for an id outside the vocabulary.
      WeightsError: for a damaged file.
    """
    return self._rows("embed", "token id", tokens, self.cfg.vocab_size)

  def position_embedding(self, positions: Int[Array, "..."]) -> jax.Array:
    """Rows of the table of learned positions; see `embedding`."""
    if self.cfg.positions != "learned":
      raise ValueError(f"{self.where}: has no table of positions")
    return self._rows("positions", "position", positions, self.cfg.max_len)

  def layer(self, index: int) -> Params:
    """One block's parameters, without the layer axis.

    Starts reading the next layer, where there is one and `prefetch` is on:
    ask for layers in order, and let go of each before the next.

    Raises:
      IndexError: if there is no such layer.
      WeightsError: for a damaged file, also where a thread met it.
    """
    index = operator.index(index)
    if not 0 <= index < self.cfg.n_layers:
      raise IndexError(f"layer {index} of {self.cfg.n_layers}")
    self._given.wait()
    memory.trim()
    try:
      arrays = self._ahead.take(index)
    except BaseException:
      self._ahead.stop()
      raise
    layer = self._given.hand_out(arrays)
    if index + 1 == self.cfg.n_layers:
      self._ahead.stop()
    elif self._prefetch:
      self._ahead.start(index + 1)
    return layer

  def embedding_norm(self) -> Params:
    """The parameters of the norm behind the embedding; empty without one."""
    return self._norm("embed_norm")

  def final_norm(self) -> Params:
    """The parameters of the norm before the logits."""
    return self._norm("final_norm")

  def _norm(self, name: str) -> Params:
    leaves = [x for x in self._unread.leaves if x.path.startswith(f"{name}/")]
    norm = _read_part(self._unread, leaves).get(name, {})
    return jax.tree.map(jax.device_put, norm)

  def unembedding(self) -> Iterator[Columns]:
    """The unembedding, `UNEMBED_COLUMNS` columns after the other."""
    leaf = self._leaf("embed" if self.cfg.tie_embeddings else "unembed")
    leaf = dataclasses.replace(leaf, path="unembed", layout=Linear())
    bias = None
    if self.cfg.unembed_bias:
      one = self._leaf("unembed_bias")
      bias = _read_part(self._unread, [one])["unembed_bias"]
    memory.trim()
    vocab = self.cfg.vocab_size
    for start in range(0, vocab, UNEMBED_COLUMNS):
      rows = range(start, min(start + UNEMBED_COLUMNS, vocab))
      kernel = jax.device_put(_read_rows(self._unread, leaf, rows))
      part = (
        None if bias is None else jax.device_put(bias[rows.start : rows.stop])
      )
      yield Columns(kernel, part)

  def close(self) -> None:
    """Drops the layer that was read ahead and ends its thread.

    Only a walk that stops before the last layer needs it. Layers can still
    be read afterwards.
    """
    self._ahead.stop()

  def __enter__(self) -> "Offloaded":
    return self

  def __exit__(self, *_) -> None:
    self.close()

  def _leaf(self, path: str):
    return next(leaf for leaf in self._unread.leaves if leaf.path == path)

  def _rows(
    self, path: str, what: str, ids: Int[Array, "..."], size: int
  ) -> jax.Array:
    ids = np.asarray(ids)
    if not np.issubdtype(ids.dtype, np.integer):
      raise ValueError(f"{what}s must be integers, got {ids.dtype}")
    if ids.size and not 0 <= ids.min() <= ids.max() < size:
      wrong = ids.min() if ids.min() < 0 else ids.max()
      raise ValueError(f"{what} {wrong} is outside the table of {size}")
    rows = _read_rows(self._unread, self._leaf(path), ids.ravel())
    return jax.device_put(rows.reshape(*ids.shape, self.cfg.d_model))


def open_layers(
  name_or_path: str | os.PathLike, *, prefetch: bool = True
) -> Offloaded:
  """A model whose weights are read from disk when they are asked for.

  Args:
    name_or_path: as for `sinkjax.load`, but only what is stored as a .gguf
      file or as a Hugging Face folder of safetensors.
    prefetch: read the next layer in the background.

  Returns:
    The opened model. Headers and the tokenizer are read and checked; of the
    weights, only what decides whether a model is tied.

  Raises:
    WeightsError: one line about what is unknown, damaged or out of reach, or
      about a format that cannot be read by layers.
  """
  name = os.fspath(name_or_path)
  path = registry.find(name)
  form = registry.form_of(path, name)
  if form == "gguf":
    from sinkjax.weights import gguf_model

    unread, tokenizer = gguf_model.open_model(path)
  elif form == "huggingface":
    from sinkjax.weights import huggingface
    from sinkjax.weights.tokenizer_files import tokenizer_from_folder

    unread = huggingface.open_model(path)
    tokenizer = tokenizer_from_folder(path)
    cfg = fit_tokenizer(unread.cfg, tokenizer, str(path))
    unread = unread._replace(cfg=cfg)
  else:
    raise WeightsError(
      f"{name}: stored as {form}; layers are read one by one only from a .gguf "
      "file or a Hugging Face folder: python -m launch.convert "
      f"--model={name} --to=hf --out=FOLDER"
    )
  memory.return_freed()
  return Offloaded(unread, tokenizer, prefetch=prefetch)


def peak_estimate(cfg: ModelConfig) -> int:
  """Bytes of weights that an analysis with `open_layers` holds at most.

  While the blocks run, that is one layer in use and one read ahead; after
  them, the last layer may still be held beside one piece of the unembedding
  in use and one being read. A few MB for decoding come on top.

  Args:
    cfg: the model.
  """
  layer = sum(
    math.prod(shape[1:])
    for path, shape in flat_shapes(cfg).items()
    if path.startswith("blocks/")
  )
  piece = cfg.d_model * min(cfg.vocab_size, UNEMBED_COLUMNS)
  return _FLOAT * max(2 * layer, layer + 2 * piece)
