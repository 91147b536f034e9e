"""Do sinks grow with the model? A family of our own (section 4.2, table 1).

Models of several widths and depths, trained alike on the same tokens, so that
nothing but the size differs. Models that others trained stand beside them;
those differ in everything, and no claim is made of them.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from sinkjax.experiments import model_size, text_sweep
from sinkjax.experiments.result import Claim, Result
from sinkjax.experiments.seed_verdicts import compare, mean
from sinkjax.experiments.text_sweep import (
  GPU,
  TOKENS_5B,
  Sweep,
  TextConfig,
  text_run,
)
from sinkjax.models.transformer import param_shapes
from sinkjax.train.run_config import TrainConfig

NAME, TITLE = "model_family", "Do sinks grow with the model?"
PERCENT = "45.97, 73.49 and 78.29 % of heads at eps 0.8 (8B, 70B, 405B)"

PAPER = {8e9: 45.97, 70e9: 73.49, 405e9: 78.29}
"""Parameters of Llama 3.1: % of heads above eps 0.8, table 1."""


@dataclasses.dataclass(frozen=True)
class Config(TextConfig):
  """What is trained: every size with every seed.

  Attributes:
    sizes: (layers, width) of each.
    outside: models by name, or paths, that are looked at beside them, as the
      experiment `model_size` does.
  """

  sizes: tuple[tuple[int, int], ...] = (
    (2, 64), (2, 128), (4, 128), (8, 128), (4, 256),
  )  # fmt: skip
  outside: tuple[str, ...] = ("smollm2-135m", "glassllm-en", "glassllm-pt")


SCALES: dict[str, dict[str, Any]] = {
  "demo": {"sizes": ((2, 64), (2, 128)), "seeds": (0,), "outside": ()},
  "cpu": {},
  "gpu": GPU
  | {
    "length": 256, "batch": 64, "steps": 1000, "vocab_size": 4096,
    "head_dim": 32, "sizes": ((2, 128), (4, 128), (8, 128), (4, 256), (4, 512)),
  },
  "paper": text_sweep.PAPER
  | {
    "steps": TOKENS_5B, "sizes": ((6, 384), (12, 384), (12, 768), (24, 1024)),
  },
}  # fmt: skip
"""Fields of `Config` by --scale; the paper itself takes Llama 3.1 as it is, for
which see configs/reproduce/llama31.py."""


def name_of(layers: int, width: int) -> str:
  """The variant's name."""
  return f"{layers}x{width}"


def variants(config: Config) -> dict[str, TrainConfig]:
  """The run of each size."""
  return {
    name_of(layers, width): text_run(
      config, model={"n_layers": layers, "d_model": width}
    )
    for layers, width in config.sizes
  }


def parameters(run: TrainConfig) -> int:
  """How many there are outside the embedding."""
  shapes = {k: v for k, v in param_shapes(run.model).items() if k != "embed"}
  return sum(int(np.prod(x.shape)) for x in jax.tree.leaves(shapes))


def plan(config: Config) -> list[str]:
  """What will be trained, in words."""
  lines = text_sweep.plan(variants(config), config.seeds)
  return lines + [f"beside them: {', '.join(config.outside) or 'no others'}"]


def run(
  config: Config,
  *,
  folder: Any,
  progress: Callable[[int, int], Any] = lambda done, total: None,
) -> Result:
  """Trains what is left of the sweep, and says what came of it.

  Args:
    config: the sweep.
    folder: where runs are kept.
    progress: called with (steps done, steps in all).

  Raises:
    ValueError: as `jobs.run_jobs`; for an outside model that is not there.

  Cost: the runs of the cpu scale take 1 to 6 minutes on two cores.
  """
  runs = variants(config)
  sweep = text_sweep.run_sweep(config, runs, folder=folder, progress=progress)
  others = [
    model_size.measure(name, model_size.Config()) for name in config.outside
  ]
  return text_sweep.sweep_result(
    NAME, TITLE, sweep, claims(config, sweep),
    sizes=[
      {"variant": name, "layers": run.model.n_layers,
       "width": run.model.d_model, "parameters": parameters(run)}
      for name, run in runs.items()
    ],
    outside=[
      {"model": row["model"], "parameters": row["parameters"],
       "layers": row["layers"], "mass": float(np.mean(row["alpha"])),
       "rate": row["rates"][0.3].value}
      for row in others
    ],
    outside_tokens=model_size.Config().tokens,
  )  # fmt: skip


def claims(config: Config, sweep: Sweep) -> list[Claim]:
  """Slopes of a seed's models over log2 of size, of depth and of width."""
  if len(sweep.seeds) < 2:
    return []
  runs = variants(config)

  def slopes(sizes, size_of):
    """[S] slope of attention on the first token by doubling."""
    x = np.log2([size_of(*size) for size in sizes])
    y = np.stack(
      [sweep.trained(name_of(*size))["first_mass"] for size in sizes], axis=1
    )
    off = x - x.mean()
    return y, y @ off / (off @ off)

  found = []

  def claim(text, paper, sizes, size_of):
    if len({size_of(*size) for size in sizes}) < 2:
      return
    sizes = sorted(sizes, key=lambda size: size_of(*size))
    y, slope = slopes(sizes, size_of)
    of = ", ".join(
      f"{name_of(*size)} {row.mean():.3f}"
      for size, row in zip(sizes, y.T, strict=True)
    )
    found.append(
      compare(
        text, "section 4.2, table 1", paper, slope,
        f"{mean(slope, '.4f')} of attention on the first token by doubling: "
        f"{of}",
      )
    )  # fmt: skip

  claim(
    "Larger models attend more to the first token.", PERCENT, config.sizes,
    lambda layers, width: parameters(runs[name_of(layers, width)]),
  )  # fmt: skip
  for i, (what, paper) in enumerate(
    (("Deeper", PERCENT), ("Wider", "not apart from depth"))
  ):
    groups: dict[int, list[tuple[int, int]]] = {}
    for size in config.sizes:
      groups.setdefault(size[1 - i], []).append(size)
    same = max(groups.values(), key=len)
    if len(same) > 1:
      other = f"width {same[0][1]}" if i == 0 else f"{same[0][0]} layers"
      claim(
        f"{what} models of one {'width' if i == 0 else 'depth'} do ({other}).",
        paper, same, lambda layers, width, i=i: (layers, width)[i],
      )  # fmt: skip
  return found
