"""The log of a run in progress: the bar, metrics.jsonl and TensorBoard."""

import contextlib
import json
import pathlib
from typing import TYPE_CHECKING, Any

from sinkjax import artifacts, outputs

if TYPE_CHECKING:
  from sinkjax.train.run_config import TrainConfig


class NoLog(contextlib.AbstractContextManager):
  """The log of a process that writes none."""

  def write(self, record: dict[str, Any], records: list[Any]) -> None:
    """Does nothing."""

  def __exit__(self, *_):
    return None


class Log(contextlib.AbstractContextManager):
  """The log of one run.

  Args:
    config: the run.
    workdir: its folder.
  """

  def __init__(self, config: "TrainConfig", workdir: pathlib.Path):
    import jax
    from tqdm import tqdm

    from launch.train_plan import step_flops
    from sinkjax.transforms.jacobian_plan import matmul_rate

    self._path = workdir / "metrics.jsonl"
    self._folder, self._board = workdir / "tensorboard", None
    self._bar = tqdm(total=config.steps, unit="step", desc="training")
    # By length, because attention makes a token of a longer window dearer.
    self._flops = {
      stage.length: step_flops(config, stage)
      / config.batch
      / config.packing.length
      for stage in config.all_stages()
    }
    self._peak = matmul_rate(config.model.dtype) * jax.device_count()
    self._shown: dict[str, str] = {}

  def write(self, record: dict[str, Any], records: list[Any]) -> None:
    """Adds a record to the bar, the file and TensorBoard."""
    kind, step = record["kind"], record["step"]
    if self._board is None:
      self._begin(step if kind == "resume" else None)
    if kind == "resume":
      # Steps after the checkpoint are done again, and so are their records.
      lines = "".join(json.dumps(one) + "\n" for one in records)
      artifacts.write_text(self._path, lines)
      self._bar.initial = self._bar.n = step
      self._bar.write(f"resuming from step {step}")
      return
    if kind in ("saved", "stopped"):
      return
    if kind == "train":
      speed = record["tokens_per_second"] * self._flops[record["length"]]
      record["share_of_peak"] = speed / self._peak
      self._bar.update(step - self._bar.n)
    # Line by line, so that --report can draw a run that still goes on.
    with open(self._path, "a", encoding="utf-8") as stream:
      stream.write(json.dumps(record) + "\n")
    for name, value in record.items():
      if isinstance(value, float):
        self._board.add_scalar(f"{kind}/{name}", value, step)
    self._show(kind, record)

  def _begin(self, step: int | None) -> None:
    """Opens the files, for a run that goes on from a step or is new."""
    from tensorboardX import SummaryWriter

    if step is None:  # of a run that was killed before its first checkpoint
      self._path.unlink(missing_ok=True)
      outputs.remove(self._folder)
    after = None if step is None else step + 1
    self._board = SummaryWriter(str(self._folder), purge_step=after)

  def _show(self, kind: str, record: dict[str, Any]) -> None:
    wanted = {
      "train": {
        "loss": ("loss", ".3f"),
        "tokens_per_second": ("tok/s", ".3g"),
        "share_of_peak": ("peak", ".0%"),
        "waited": ("input", ".0%"),
      },
      "eval": {"loss": ("held out", ".3f")},
      "probe": {
        "sink_rate_0.3": ("sinks", ".1%"),
        "first_mass": ("first", ".3f"),
      },
    }[kind]
    for name, (label, form) in wanted.items():
      if record.get(name) is not None:
        self._shown[label] = format(record[name], form)
    self._bar.set_postfix(self._shown)

  def __exit__(self, *_):
    self._bar.close()
    if self._board is not None:
      self._board.close()
