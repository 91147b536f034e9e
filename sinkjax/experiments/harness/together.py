"""One experiment on one model that several processes hold together.

Every process runs the experiment on the same texts in the same order, because
each holds a part of the model. Process 0 alone has a folder: it says which
experiment is measured, keeps the parts that are finished, and hands each to
the others, so that all of them go on from the same numbers.
"""

import io
import json
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np

from sinkjax import mesh_context, sharding
from sinkjax.experiments.harness.kept import flat, nested, plainly

SMALLEST = 1024
"""Bytes of the shortest message. A length is a power of two, because JAX
compiles an exchange for each."""

APART = "leave out --distributed, --coordinator, --processes and --process"
"""What to do about an experiment that several processes cannot measure."""


def several() -> bool:
  """Whether this process is one of several that know each other."""
  return jax.process_count() > 1


def told(message: bytes = b"") -> bytes:
  """What process 0 says; every process must call it.

  Args:
    message: of process 0; that of others is not read.
  """
  from jax.experimental import multihost_utils

  say = multihost_utils.broadcast_one_to_all
  # An int32: JAX would cut longer ones, and no message has 2 GB.
  size = int(say(np.int32(len(message))))
  room = max(SMALLEST, 1 << (size - 1).bit_length()) if size else SMALLEST
  data = np.zeros(room, np.uint8)
  if jax.process_index() == 0:
    data[: len(message)] = np.frombuffer(message, np.uint8)
  return np.asarray(say(data))[:size].tobytes()


def begin(name: str, request: Mapping[str, Any]) -> None:
  """Has the other processes measure an experiment, too: see `help_all`.

  Args:
    name: of the experiment; "" where nothing is left.
    request: what is asked for, as its file has it.
  """
  if several():
    told(json.dumps([name, request]).encode())


def help_all(requests: Mapping[str, Any], subject: Callable[[], Any]) -> None:
  """What a process does that does not write: its part of each measurement.

  Args:
    requests: of `runner`, by name.
    subject: gives the model.

  Raises:
    ValueError: where process 0 was started for something else.
  """
  while True:
    name, asked = json.loads(told())
    if not name:
      return
    request = requests.get(name)
    if request is None or json.loads(_plain(request)) != asked:
      raise ValueError(
        f"process 0 measures {name} with other flags than this process has: "
        "start all processes by the same command"
      )
    model = subject()._replace(kept=Handed(None))
    measured(request.entry.load().measure, name, model, request.config)


def _plain(request: Any) -> str:
  return json.dumps(request.plain())


def measured(
  measure: Callable, name: str, model: Any, config: Any, **more: Any
) -> Any:
  """`measure(model, config, **more)`, with its arrays on this host.

  Args:
    measure: of an experiment.
    name: the experiment's.
    model: that is measured.
    config: of the experiment.
    **more: what else `measure` is given.

  Raises:
    ValueError: for an experiment that reads an array of which other processes
      hold parts, naming it.
  """
  if not several():
    return measure(model, config, **more)
  try:
    with mesh_context.copied_outputs():
      found = measure(model, config, **more)
      # Whoever writes must not wait for a process that does not.
      return type(found)(
        **{key: _on_host(value) for key, value in vars(found).items()}
      )
  except RuntimeError as error:
    # JAX's words for reading what lies elsewhere.
    if "non-addressable" not in str(error):
      raise
    raise ValueError(
      f"{name} reads arrays of which other processes hold parts, so it runs in "
      f"one process: {APART}"
    ) from error


def _on_host(nest: Any) -> Any:
  if isinstance(nest, jax.Array):
    return sharding.to_host(nest)
  # Not by `jax.tree`, which sorts the keys of a dict, here of two kinds.
  if isinstance(nest, dict):
    return {key: _on_host(value) for key, value in nest.items()}
  if type(nest) in (list, tuple):
    return type(nest)(map(_on_host, nest))
  return nest


class Handed:
  """`Subject.kept` of several processes: as process 0 keeps it.

  Args:
    kept: of process 0; `None` in the others.
  """

  def __init__(self, kept: Any):
    self._kept = kept

  def __call__(
    self, what: str, make: Callable, *args: Any, **kwargs: Any
  ) -> Any:
    """The part that process 0 has, or that all of them make now."""
    if self._kept is None:
      if told() == b"missing":
        plainly(what, make, *args, **kwargs)
      return _unpacked(told())
    told(b"there" if self._kept.has(what) else b"missing")
    found = self._kept(what, make, *args, **kwargs)
    told(_packed(found))
    return found


def _packed(nest: Any) -> bytes:
  """The arrays of a nest as an .npz file."""
  file = io.BytesIO()
  np.savez(file, **flat(nest))
  return file.getvalue()


def _unpacked(message: bytes) -> Any:
  with np.load(io.BytesIO(message)) as stored:
    return nested(dict(stored))


def kept(kept_here: Any) -> Any:
  """How parts are kept: by this process, or for all of several.

  Args:
    kept_here: as one process keeps them.
  """
  return Handed(kept_here) if several() else kept_here
