"""The saved steps of a training run, as Orbax folders with a manifest of ours.

Orbax restores a flipped bit or another dtype without a word, and lists an empty
folder as a step; the SHA-256 of every array tells.
"""

import os
import pathlib
import warnings
from typing import Any

import jax
import orbax.checkpoint as ocp

from sinkjax.weights.orbax_io import abstract, check_tree, digest
from sinkjax.weights.validate import WeightsError, first_line


class RunCheckpoints:
  """The saved steps of a run: written in the background, checked when read.

  Each step holds the state's arrays (Orbax) and `about`, a JSON value, with
  the SHA-256 of every array, so that a flipped bit, a cut file or an empty
  folder is found; then the step before it is used, with a warning.

  Args:
    folder: made if need be.
    keep: how many of the last steps stay; the one of least loss does too.

  Raises:
    WeightsError: for files that Orbax cannot list, naming the folder.
  """

  def __init__(self, folder: str | os.PathLike, *, keep: int = 2):
    if keep < 1:
      raise ValueError(f"keep must be at least 1, got {keep}")
    self._folder = pathlib.Path(folder).absolute()
    policies = ocp.checkpoint_managers
    options = ocp.CheckpointManagerOptions(
      preservation_policy=policies.AnyPreservationPolicy(
        [
          policies.LatestN(keep),
          policies.BestN(
            get_metric_fn=lambda metrics: metrics["loss"],
            # Orbax takes the greatest value for the best; the best loss is
            # the least.
            reverse=True,
            n=1,
            # Otherwise each step that was saved without a loss would stay for
            # good.
            keep_checkpoints_without_metrics=False,
          ),
        ]
      ),
      step_prefix=None,
      cleanup_tmp_directories=True,
    )
    try:
      self._manager = ocp.CheckpointManager(self._folder, options=options)
    except Exception as error:  # of damaged files Orbax raises any kind
      raise WeightsError(
        f"{self._folder}: its saved steps cannot be listed: {first_line(error)}"
      ) from None

  def save(
    self, step: int, state: Any, about: Any, *, loss: float | None = None
  ) -> None:
    """Starts to write a step; the arrays are copied before it returns.

    Args:
      step: its number; one that is there already is left as it is.
      state: a pytree of arrays.
      about: whatever JSON holds.
      loss: decides which step is best, where it is known.

    Raises:
      OSError: if an earlier step could not be written; the ones before it
        are whole.
    """
    self.wait()
    # A write fails in the background; the wait above tells before another
    # starts.
    if step in self._manager.all_steps():
      return
    digests = {name: digest(x) for name, x in _named(state).items()}
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
    check_tree(self._folder, where)
    target = jax.tree.map(abstract, like)
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
      entry = entry if isinstance(entry, dict) else {}
      stored = entry.get("dtype"), entry.get("shape")
      if stored != (str(want.dtype), list(want.shape)):
        had = f"{stored[0]!s:.40} {stored[1]!s:.80}" if entry else "missing"
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
      if digest(array) != arrays[name]:
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
