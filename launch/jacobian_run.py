"""The work of `launch.jacobian`: its cost, its maps, and what a stop leaves."""

import contextlib
import dataclasses
import pathlib
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

import sinkjax
from launch import (
  app,
  devices,
  edit_flag,
  host_rates,
  part_flag,
  process_flags,
  prompts,
  resume,
)
from sinkjax import artifacts, outputs
from sinkjax.analysis.over_squashing import over_squashing
from sinkjax.analysis.sensitivity import (
  AS_IT_IS,
  Columns,
  Sensitivity,
  SensitivityMap,
  sensitivity_map,
)
from sinkjax.analysis.sensitivity_config import SensitivityConfig, work
from sinkjax.analysis.sink_profile import sink_profile
from sinkjax.config import ModelConfig
from sinkjax.transforms.jacobian_engine import SelfCheckError
from sinkjax.transforms.jacobian_plan import default_budget
from sinkjax.weights import identity
from sinkjax.weights.offload import open_layers, peak_estimate

SMALL_BUDGET = 30_000_000
"""Bytes beside the weights with --offload, at least: with less, a model of
135M parameters is cut into so many pieces that the overhead dominates."""

COMPILATION = 10
"""Seconds that compilation takes a map on two CPU cores, if not cached."""


@dataclasses.dataclass(frozen=True)
class Job:
  """A checked request: everything but the weights.

  Attributes:
    model: its name or path.
    cfg: its config.
    tokenizer: its tokenizer.
    parameters: how many it has.
    encoded: the text, and what is put before it.
    config: what is computed.
    edits: of --edit.
    bounds: whether over-squashing bounds are computed.
    offload: whether one layer's weights are read at a time.
    part: the share of the columns that is computed, or all.
    columns: those of a map that are asked for, or all.
  """

  model: str
  cfg: ModelConfig
  tokenizer: Any
  parameters: int
  encoded: prompts.Encoded
  config: SensitivityConfig
  edits: tuple[Any, ...]
  bounds: bool
  offload: bool
  part: part_flag.Part | None = None
  columns: list[int] | None = None

  @property
  def ids(self) -> list[int]:
    """The text's."""
    return self.encoded.ids[0]

  @property
  def edit(self) -> str:
    """The edits in words, or "none"."""
    return edit_flag.text(self.edits)

  def whole(self) -> list[list[int]]:
    """The columns of each map that are computed."""
    maps = (2 if self.edits else 1) * (1 + self.bounds)
    wanted = self.wanted()
    every = np.arange(len(self.ids))
    columns = every if wanted is None else every[wanted]
    return [columns.tolist()] * maps

  def wanted(self) -> np.ndarray | None:
    """[T] bool, the columns that are computed; `None` for all."""
    if self.part is None and self.columns is None:
      return None
    wanted = np.ones(len(self.ids), bool)
    if self.columns is not None:
      wanted[:] = False
      wanted[self.columns] = True
    if self.part is not None:
      # Of those that are asked for every n-th.
      chosen = np.flatnonzero(wanted)
      wanted[chosen[~self.part.wanted(len(chosen))]] = False
    return wanted

  def elsewhere(self, devices: int, budget: float) -> tuple[float, float]:
    """(operations, bytes beside the weights) of each of some devices.

    Args:
      devices: over which the columns are spread.
      budget: bytes that may be used of each, unless --budget_gb says so.
    """
    config = self.config
    if config.budget_bytes is None:
      config = dataclasses.replace(config, budget_bytes=int(budget))
    works = [
      work(self.cfg, config, len(self.ids), part, devices)
      for part in self.whole()
    ]
    return sum(one.flops for one in works), max(one.bytes for one in works)

  def cost(self, columns: list[list[int]] | None = None) -> tuple[float, float]:
    """(seconds, bytes beside the weights) of some columns of each map."""
    if columns is None:
      columns = self.whole()
    works = [
      work(self.cfg, self.config, len(self.ids), part)
      for part in columns
      if part
    ]
    if not works:
      return 0.0, 0.0
    host = host_rates.measure()
    start = host_rates.START + COMPILATION * len(works)
    seconds = sum(one.seconds(host.product) for one in works)
    seconds = host.seconds(start, seconds)
    return seconds, max(one.bytes for one in works)

  def weight_bytes(self) -> tuple[int, str]:
    """(memory of the weights on a device, what to say of the devices)."""
    if self.offload:
      return peak_estimate(self.cfg), "one device, one layer at a time"
    return devices.planned(self.cfg)

  @contextlib.contextmanager
  def weights(self) -> Iterator[Any]:
    """The parameters, in memory or read layer by layer."""
    if not self.offload:
      yield devices.load(self.model, local=True).params
      return
    # Prefetching would hold a second layer in memory, which --offload is there
    # to save.
    with open_layers(self.model, prefetch=False) as layers:
      yield layers

  def partial(
    self,
    out: pathlib.Path,
    weights: str,
    *,
    overwrite: bool,
    parts: Sequence[pathlib.Path] = (),
  ) -> resume.Partial:
    """The maps in progress; those of an interrupted run of this command.

    Args:
      out: the folder of --out, or of the part.
      weights: the SHA-256 of the model's bytes.
      overwrite: as for `resume.Partial`.
      parts: likewise.
    """
    config, size = self.config, len(self.ids)
    layers = len(config.crossed(self.cfg)) if config.per_layer else None
    names = ["plain"] + (["edited"] if self.edits else [])
    empty = {name: Columns.none(size, layers) for name in names}
    if self.bounds:
      empty |= {f"{name}_frozen": Columns.none(size) for name in names}
    for columns in empty.values():
      columns.wanted = self.wanted()
    mark = {
      "weights": weights,
      "ids": self.ids,
      "from": config.source,
      "to": config.target,
      "norm": config.norm,
      "method": config.method,
      "layers": config.per_layer,
      "edit": self.edit if self.edits else None,
      "bounds": self.bounds,
      "version": sinkjax.__version__,
      **devices.request(),
    }
    return resume.Partial(out, mark, empty, overwrite=overwrite, parts=parts)


def small_budget(
  config: SensitivityConfig, parameters: int
) -> SensitivityConfig:
  """The config for weights read layer by layer, if it names no budget."""
  if config.budget_bytes is not None:
    return config
  # A twentieth of the weights: a larger share would undo what reading one
  # layer at a time saves.
  budget = min(default_budget(), max(4 * parameters // 20, SMALL_BUDGET))
  return dataclasses.replace(config, budget_bytes=budget)


def compute(
  job: Job, partial: resume.Partial
) -> tuple[Sensitivity, dict[str, str]]:
  """The maps, column by column; those that `partial` has are kept.

  Args:
    job: what is computed.
    partial: the columns so far, saved also where this is interrupted.

  Returns:
    (the maps, what the record says of the edit).
  """
  functions = {"plain": sinkjax.forward(job.cfg)}
  maps, about = {}, {}
  try:
    with partial.keeping(), job.weights() as params:
      _announce(job, partial)
      if job.edits:
        cfg, about = edit_flag.of_model(job.edits, params, job.cfg, [job.ids])
        functions["edited"] = sinkjax.forward(cfg)
      for name, fn in functions.items():
        maps[name] = _map(job, partial, name, fn, params)
  except SelfCheckError:
    # Where the model itself overflows, this names the layer.
    with job.weights() as params:
      sink_profile(params, job.cfg, [job.ids])
    raise
  result = Sensitivity(
    job.ids, job.config, edit=job.edit, columns=job.columns, **maps
  )
  return result, about


def compute_part(job: Job, out: pathlib.Path, *, overwrite: bool) -> None:
  """The columns of the job's part, into its own folder of `out`.

  Raises:
    ValueError: as `outputs.alone` and `resume.Partial`.
  """
  number, count = job.part
  folder = job.part.folder(out)
  weights = identity.of(job.model, without=out)
  with outputs.alone(folder, keeps=resume.is_partial):
    partial = job.partial(folder, weights["sha256"], overwrite=overwrite)
    compute(job, partial)
  what = f"Part {number} of {count} has its {partial.total()} columns."
  if process_flags.asked():
    print(f"{what} Process 0 writes the report when all have theirs.")
  else:
    print(
      f"{what} When all parts have theirs, the same command without --part "
      "writes the report."
    )


def _announce(job: Job, partial: resume.Partial) -> None:
  left = [columns.missing() for columns in partial.maps.values()]
  seconds, memory = job.cost(left)
  partial.announce()
  took = app.duration(seconds)
  print(f"about {took}, {memory / 1e9:.1f} GB beside the weights")


def _map(
  job: Job, partial: resume.Partial, name: str, fn: Any, params: Any
) -> SensitivityMap:
  """The map of the plain or the edited model, with its bounds if asked for."""
  label = job.edit if name == "edited" else AS_IT_IS

  def keep() -> None:
    partial.save(now=False)

  with artifacts.bar(label) as progress:
    result = sensitivity_map(
      fn,
      params,
      job.ids,
      job.config,
      columns=partial.maps[name],
      finished=keep,
      progress=progress,
    )
  if job.columns is not None:
    # What was not asked for is not 0, whatever is made of the map later.
    missing = np.ones(len(job.ids), bool)
    missing[job.columns] = False
    result.norms[:, missing] = np.nan
    if result.layers is not None:
      result.layers[:, :, missing] = np.nan
  if not job.bounds:
    return result
  with artifacts.bar(f"bounds, {label}") as progress:
    bounds = over_squashing(
      fn,
      params,
      job.ids,
      norms=result.norms,
      frozen=partial.maps[f"{name}_frozen"],
      finished=keep,
      budget_bytes=job.config.budget_bytes,
      progress=progress,
    )
  return dataclasses.replace(result, bounds=bounds)
