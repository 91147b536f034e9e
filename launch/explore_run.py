"""The work of `launch.explore`: its time, its Jacobians, what a stop leaves."""

import dataclasses
import pathlib
from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
import numpy as np

import sinkjax
from launch import app, edit_flag, host_rates, prompts, resume
from launch.jacobian_run import COMPILATION
from sinkjax import artifacts
from sinkjax.analysis import exploration
from sinkjax.analysis.sensitivity import AS_IT_IS, Columns
from sinkjax.analysis.sensitivity_config import work
from sinkjax.config import ModelConfig
from sinkjax.transforms.edit_grammar import combined
from sinkjax.transforms.path_steps import CARRIERS

PASSES = 2
"""Seconds that compiling a condition takes where a host's slowness is 1: a page
of two took 13 s of two cores, of which START is 8 and the passes are 1."""


@dataclasses.dataclass(frozen=True)
class Job:
  """A checked request: everything but the weights.

  Attributes:
    cfg: the model's config.
    tokenizer: its tokenizer.
    parameters: how many it has.
    encoded: the text, and what is put before it.
    edits: of --edit.
  """

  cfg: ModelConfig
  tokenizer: Any
  parameters: int
  encoded: prompts.Encoded
  edits: tuple[Any, ...]

  @property
  def ids(self) -> list[int]:
    """The text's."""
    return self.encoded.ids[0]

  @property
  def names(self) -> list[str]:
    """Of what is compared."""
    return [AS_IT_IS, *([edit_flag.text(self.edits)] if self.edits else [])]

  def functions(
    self, params: Any
  ) -> tuple[dict[str, Callable], dict[str, str]]:
    """(what is compared, by name; what the record says of the edit)."""
    edits, about = edit_flag.resolved(self.edits, params, self.cfg, [self.ids])
    by_site = combined(edits, self.cfg)
    plain = sinkjax.forward(self.cfg)
    return exploration.conditions(plain, by_site, self.names[-1]), about

  def seconds(self, columns: list[list[int]]) -> float:
    """About how long it takes.

    Args:
      columns: of each Jacobian, those still to be computed.
    """
    host = host_rates.measure()
    config, size = exploration.JACOBIAN, len(self.ids)
    lengths = [size] * len(self.names)
    passes = host_rates.forward_seconds(
      self.cfg, self.parameters, lengths, host
    )
    works = [work(self.cfg, config, size, part) for part in columns if part]
    start = host_rates.START + PASSES * len(self.names)
    return host.seconds(
      start + COMPILATION * len(works),
      passes + sum(one.seconds(host.product) for one in works),
    )


def partial(
  out: pathlib.Path, job: Job, weights: str, *, overwrite: bool
) -> resume.Partial:
  """The Jacobians in progress; those of an interrupted run of this command.

  Args:
    out: the folder of --out.
    job: what is computed.
    weights: the SHA-256 of the model's bytes.
    overwrite: as for `resume.Partial`.
  """
  size, layers, count = len(job.ids), job.cfg.n_layers, len(job.names)
  maps = {f"map_{i}": Columns.none(size, layers) for i in range(count)}
  mark = {
    "weights": weights,
    "ids": job.ids,
    "conditions": job.names,
    "version": sinkjax.__version__,
  }
  return resume.Partial(out, mark, maps, overwrite=overwrite)


def jacobians(
  job: Job, functions: dict[str, Callable], params: Any, partial: resume.Partial
) -> dict[str, np.ndarray]:
  """The maps of every function, column by column; those there are kept."""
  left = [columns.missing() for columns in partial.maps.values()]
  partial.announce()
  print(f"about {app.duration(job.seconds(left))}")
  found = {}
  with partial.keeping():
    for (name, fn), columns in zip(
      functions.items(), partial.maps.values(), strict=True
    ):
      with artifacts.bar(f"Jacobian, {name}") as progress:
        found[name] = exploration.jacobian(
          fn,
          params,
          job.ids,
          columns=columns,
          finished=lambda: partial.save(now=False),
          progress=progress,
        )
  return found


def carriers(
  job: Job, functions: dict[str, Callable], params: Any
) -> dict[str, Any]:
  """Who carries the map of every pair in each layer, for `explore.render`.

  Shares are of the map from the embedding to the last layer's output. Kept in
  memory alone: a stop loses them, and the Jacobians stay.
  """
  found = []
  for name, fn in functions.items():
    with artifacts.bar(f"carriers, {name}") as progress:
      got = sinkjax.carriers(
        fn, params, jnp.asarray(job.ids), progress=progress
      )
    found.append({name: got.shares[name] for name in CARRIERS})
  return {"rows": list(range(len(job.ids))), "conditions": found}
