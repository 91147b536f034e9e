"""Windows to batches, by grain: shuffled by seed, read ahead, resumed exactly.

The windows are planned once; every epoch visits all of them in another order.
Batch n does not depend on how many processes share it, so that one process can
resume a run that was saved by four.
"""

import dataclasses
import hashlib
import json
from typing import Any

import grain
import numpy as np

from sinkjax.data.packing import Windows


class StateError(ValueError):
  """A saved state that belongs to other data than the pipeline's."""


class Batches:
  """An endless iterator of batches, {"tokens": [B / processes, T], ...}.

  Args:
    windows: the windows to visit.
    batch: B, windows of a batch over all processes.
    seed: of the order.
    process: this process's number; it gets its share of every batch.
    processes: how many share a batch; divides B.
    threads: how many read ahead; with 0, a batch is read when it is asked for.

  Raises:
    ValueError: for a batch that the processes cannot share, or one larger
      than the data.
  """

  def __init__(
    self,
    windows: Windows,
    *,
    batch: int,
    seed: int = 0,
    process: int = 0,
    processes: int = 1,
    threads: int = 2,
  ):
    if batch < 1 or batch % processes:
      raise ValueError(
        f"a batch of {batch} windows cannot be shared by {processes} processes"
      )
    if batch > len(windows):
      raise ValueError(
        f"a batch of {batch} windows is more than the {len(windows)} of the "
        f"corpus at {windows.packing.length} tokens each"
      )
    self._about = {
      "corpus": windows.corpus.digest,
      "packing": dataclasses.asdict(windows.packing),
      "bos_id": windows.bos_id,
      "eos_id": windows.eos_id,
      "batch": batch,
      "seed": seed,
    }
    # As many as can be: grain counts windows in 64 bits.
    epochs = (1 << 60) // len(windows)
    data = grain.MapDataset.range(len(windows)).shuffle(seed).repeat(epochs)
    data = data.batch(batch // processes)[process::processes]
    data = data.map(windows.rows)  # a batch at a time, not a window
    options = grain.ReadOptions(
      num_threads=threads, prefetch_buffer_size=max(1, 4 * threads)
    )
    self._iterator = iter(data.to_iter_dataset(options))
    self.epoch_batches = len(windows) / batch

  def __iter__(self) -> "Batches":
    return self

  def __next__(self) -> dict[str, np.ndarray]:
    return next(self._iterator)

  def state(self) -> dict[str, Any]:
    """The place in the data, and the data, as plain values."""
    return {"iterator": self._iterator.get_state(), "about": self._about}

  def restore(self, state: dict[str, Any]) -> None:
    """Continues where `state` was taken, in any process.

    Raises:
      StateError: for a state of another corpus, packing, batch or seed, with
        both values.
    """
    found = state["about"]
    for name, mine in self._about.items():
      if found.get(name) != mine:
        raise StateError(
          f"the saved data state has {name} {_short(found.get(name))}, this "
          f"run has {_short(mine)}: resume with the same data, or start anew"
        )
    self._iterator.set_state(state["iterator"])

  def fingerprint(self) -> str:
    """Twelve digits, different for other data."""
    text = json.dumps(self._about, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def _short(value: Any) -> str:
  if isinstance(value, str):
    return value[:12]
  if isinstance(value, dict):
    return json.dumps(value, sort_keys=True)
  return repr(value)
