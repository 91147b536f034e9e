"""Sweeps of text models: variants of one small model, each with every seed.

An experiment says which variants there are and what it claims of them. How a
variant becomes a run, and what its runs come to, is here; what is measured on
a trained model is in `training_runs`.
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from sinkjax.config import ModelConfig
from sinkjax.data.packing import Packing
from sinkjax.experiments.harness.api import Claim, Result
from sinkjax.experiments.harness.jobs import run_jobs
from sinkjax.experiments.harness.train_runs import text_jobs
from sinkjax.models.transformer import param_shapes
from sinkjax.train.optimizer import OptimizerConfig
from sinkjax.train.run_config import TrainConfig


@dataclasses.dataclass(frozen=True)
class TextConfig:
  """What the variants of a sweep share, where they do not say otherwise.

  Attributes:
    seeds: of parameters and order; every variant has all of them.
    corpus: see `data.corpus.gather`.
    layers: L.
    d_model: D.
    head_dim: K; there are D / K heads.
    vocab_size: of the tokenizer that is trained on the corpus.
    length: T of a window.
    bos: where BOS stands, see `data.packing.Packing`.
    batch: windows a step.
    steps: of a run.
    peak: the learning rate.
    warmup: steps.
    weight_decay: of AdamW.
    every: steps between two looks at the sinks.
    texts: held-out documents that are looked at.
    eps: threshold of the sink rate, one of the probe's; at 0.3, the papers',
      nothing shows yet after a million tokens.
    dtype: of the computation.
    accumulate: parts of a batch.
  """

  seeds: tuple[int, ...] = (0, 1, 2)
  corpus: tuple[str, ...] = ("sotu", "wiki-vital")
  layers: int = 4
  d_model: int = 128
  head_dim: int = 128
  vocab_size: int = 1024
  length: int = 256
  bos: str = "pinned"
  batch: int = 8
  steps: int = 700
  peak: float = 3e-3
  warmup: int = 100
  weight_decay: float = 0.1
  every: int = 100
  texts: int = 64
  eps: float = 0.1
  dtype: str = "float32"
  accumulate: int = 1


GPU: dict[str, Any] = {
  "layers": 6,
  "d_model": 384,
  "head_dim": 64,
  "vocab_size": 4096,
  "length": 1024,
  "batch": 16,
  "steps": 2000,
  "every": 200,
  "peak": 1e-3,
  "eps": 0.3,
  "dtype": "bfloat16",
}
"""Fields of `TextConfig` for one card."""

PAPER: dict[str, Any] = {
  "layers": 12,
  "d_model": 768,
  "head_dim": 64,
  "vocab_size": 32_000,
  "length": 2048,
  "batch": 512,
  "peak": 4e-4,
  "warmup": 2000,
  "every": 500,
  "eps": 0.3,
  "dtype": "bfloat16",
  "accumulate": 8,
}
"""The paper's 120M parameters, 2^20 tokens a step; the steps are each
experiment's own."""

CARD_RATE, CARD_SHARE = 989e12, 0.4
"""Dense bfloat16 flop a second of an H100, and the share a run may reach; for
what the dry run tells."""

TOKENS_5B, TOKENS_30B = 4768, 28_610
"""Steps of the paper's runs of 5B and of 30B tokens."""


def text_run(
  config: TextConfig,
  *,
  model: Mapping[str, Any] | None = None,
  packing: Mapping[str, Any] | None = None,
  optimizer: Mapping[str, Any] | None = None,
  **run: Any,
) -> TrainConfig:
  """The run of one variant.

  Args:
    config: what it shares with the others.
    model: fields of `ModelConfig` that it has otherwise.
    packing: of `Packing`, likewise.
    optimizer: of `OptimizerConfig`, likewise.
    **run: of `TrainConfig`, likewise.

  Raises:
    ValueError: for a field or value that cannot be.

  >>> run = text_run(TextConfig(), model={"normalizer": "relu"})
  >>> run.model.attention, run.model.n_heads, run.packing.bos
  ('einsum', 1, 'pinned')
  """
  own = dict(model or {})
  width, size = own.get("d_model", config.d_model), config.head_dim
  size = own.get("head_dim", size)
  heads, length = max(width // size, 1), (packing or {}).get("length")
  # Fused kernels have no other normaliser, and no key of their own.
  plain = own.get("normalizer", "softmax") == "softmax"
  fused = plain and own.get("attn_bias", "none") == "none"
  fields = {
    "vocab_size": config.vocab_size,
    "d_model": width,
    "n_layers": config.layers,
    "n_heads": heads,
    "n_kv_heads": heads,
    "head_dim": size,
    "d_ff": 3 * width,
    "tie_embeddings": True,
    "max_len": max(length or config.length, 64),
    "init_std": 0.02,
    "attention": "fused" if fused else "einsum",
    "scan_layers": False,
    "dtype": config.dtype,
    "precision": "highest" if config.dtype == "float32" else "default",
  }
  base = TrainConfig(
    ModelConfig(**{**fields, **own}),
    Packing(**{"length": config.length, "bos": config.bos, **(packing or {})}),
    OptimizerConfig(
      **{
        "peak": config.peak,
        "warmup": config.warmup,
        "weight_decay": config.weight_decay,
        **(optimizer or {}),
      }
    ),
    corpus=config.corpus,
    steps=config.steps,
    batch=config.batch,
    accumulate=config.accumulate,
    eval_every=2 * config.every,
    probe_every=config.every,
    save_every=2 * config.every,
    probe_texts=config.texts,
    probe_tokens=min(64, fields["max_len"]),
  )
  return dataclasses.replace(base, **run)


def chosen(
  variants: Mapping[str, TrainConfig], names: Sequence[str], what: str
) -> dict[str, TrainConfig]:
  """Those that are asked for, in the order in which they are known.

  Raises:
    ValueError: for one that there is not.
  """
  unknown = sorted(set(names) - set(variants))
  if unknown:
    raise ValueError(f"{what} has no {unknown[0]!r}; it has {list(variants)}")
  return {name: run for name, run in variants.items() if name in names}


def plan(variants: Mapping[str, TrainConfig], seeds: Sequence[int]):
  """What will be trained and what it needs, in words."""
  groups: dict[tuple[int, int, int], list[str]] = {}
  for name, run in variants.items():
    shapes = param_shapes(run.model)
    size = sum(int(np.prod(x.shape)) for x in jax.tree.leaves(shapes))
    tokens = run.steps * run.batch * run.packing.length
    groups.setdefault((size, run.steps, tokens), []).append(name)
  lines = [
    f"{len(variants) * len(seeds)} runs ({', '.join(variants)}; seeds "
    f"{', '.join(map(str, seeds))})"
  ]
  total = 0.0
  for (size, steps, tokens), names in groups.items():
    flop = 6.0 * size * tokens
    total += flop * len(names) * len(seeds)
    which = "each" if len(groups) == 1 else ", ".join(names)
    lines.append(
      f"{which}: {size:,} parameters, {steps:,} steps, {tokens:,} tokens, "
      f"{flop:.2g} flop without the attention"
    )
  hours = total / (CARD_SHARE * CARD_RATE) / 3600
  most = max(size for size, _, _ in groups)
  lines.append(
    f"{total:.2g} flop in all: {hours:.2g} hours of an H100 at "
    f"{100 * CARD_SHARE:.0f} % of its bfloat16 rate; {16e-9 * most:.2g} GB for "
    "parameters, gradient and moments"
  )
  return lines


class Sweep(NamedTuple):
  """What the runs of a sweep came to.

  Attributes:
    seeds: of every variant.
    eps: threshold of `rate`.
    last: {(variant, form): {scalar: [S]}} of the trained models, see
      `training_runs.measure`; a form is "bos" or "text".
    probes: {variant: {scalar: [S, K]}} through training, "step" [K] among
      them; as it is trained.
    losses: {variant: {"step": [K], "loss": [S, K]}} on held-out windows.
    alpha: {variant: [S, L, H]} sink scores at the end.
    seconds: {variant: [S]} that the steps took.
  """

  seeds: tuple[int, ...]
  eps: float
  last: dict[tuple[str, str], dict[str, np.ndarray]]
  probes: dict[str, dict[str, np.ndarray]]
  losses: dict[str, dict[str, np.ndarray]]
  alpha: dict[str, np.ndarray]
  seconds: dict[str, np.ndarray]

  @property
  def rate(self) -> str:
    """The name of the sink rate at `eps`."""
    return f"sink_rate_{self.eps:g}"

  def trained(self, variant: str) -> dict[str, np.ndarray]:
    """`last` in the form that it was trained in."""
    found = self.last.get((variant, "bos"))
    return self.last[variant, "text"] if found is None else found


def run_sweep(
  config: TextConfig,
  variants: Mapping[str, TrainConfig],
  *,
  folder: Any,
  progress: Callable[[int, int], Any] = lambda done, total: None,
) -> Sweep:
  """Trains what is left of the sweep.

  Raises:
    ValueError: as `jobs.run_jobs`.
  """
  jobs = text_jobs(variants, config.seeds)
  return collect(
    config, list(variants), run_jobs(jobs, folder, progress=progress)
  )


def collect(config: TextConfig, names: Sequence[str], found) -> Sweep:
  """Outcomes of runs, by variant; each has one for every seed."""
  by = {
    name: [one for one in found if one["request"]["variant"] == name]
    for name in names
  }
  last = {
    (name, form): {
      key: np.array([one["final"][form][key] for one in runs], float)
      for key in runs[0]["final"][form]
    }
    for name, runs in by.items()
    for form in runs[0]["final"]
  }
  return Sweep(
    tuple(config.seeds),
    config.eps,
    last,
    {name: _through(runs, "probe") for name, runs in by.items()},
    {name: _through(runs, "eval") for name, runs in by.items()},
    {
      name: np.array([one["alpha"] for one in runs])
      for name, runs in by.items()
    },
    {
      name: np.array([one["training_seconds"] for one in runs], float)
      for name, runs in by.items()
    },
  )


def _through(runs, kind: str) -> dict[str, np.ndarray]:
  """{scalar: [S, K]} of a kind of record, and "step" [K]."""
  histories = [
    [row for row in one["history"] if row["kind"] == kind] for one in runs
  ]
  first = histories[0]
  if not first:
    return {"step": np.zeros(0, int)}
  names = [key for key in first[0] if key not in ("kind", "step")]
  return {
    "step": np.array([row["step"] for row in first]),
    **{
      name: np.array([[row[name] for row in rows] for rows in histories], float)
      for name in names
    },
  }


def sweep_result(
  name: str,
  title: str,
  sweep: Sweep,
  claims: Sequence[Claim],
  *,
  paper: Mapping[tuple[str, str], Sequence[float]] | None = None,
  tables: Mapping[str, tuple[list[str], list[list[Any]]]] | None = None,
  **numbers: Any,
) -> Result:
  """The `Result` of a sweep, as `report.text_sweep` draws it.

  Args:
    name: of the experiment.
    title: of its part of the report.
    sweep: what came of it.
    claims: likewise.
    paper: {(variant, form): (sink rate in percent, loss in nats)}; either may
      be None.
    tables: {file name: (header, rows)}, more of them.
    **numbers: more of them.
  """
  scalars = next(iter(sweep.last.values()))
  rows = [
    {
      "variant": variant,
      "form": form,
      "paper": list((paper or {}).get((variant, form), (None, None))),
      "rate": values[sweep.rate],
      **values,
    }
    for (variant, form), values in sweep.last.items()
  ]
  header = ["variant", "form", "seed", *scalars]
  table = [
    [
      row["variant"],
      row["form"],
      seed,
      *(float(row[key][i]) for key in scalars),
    ]
    for row in rows
    for i, seed in enumerate(sweep.seeds)
  ]
  arrays: dict[str, np.ndarray] = {}
  for variant, probes in sweep.probes.items():
    arrays[f"steps_{variant}"] = probes["step"]
    arrays[f"first_mass_{variant}"] = probes["first_mass"]
    arrays[f"sink_rate_{variant}"] = probes[sweep.rate]
    losses = sweep.losses[variant]
    if losses["step"].size:
      arrays[f"loss_steps_{variant}"] = losses["step"]
      arrays[f"loss_{variant}"] = losses["loss"]
    arrays[f"alpha_{variant}"] = sweep.alpha[variant]
  return Result(
    name=name,
    title=title,
    claims=claims,
    numbers={
      "variants": list(sweep.probes),
      "seeds": list(sweep.seeds),
      "eps": sweep.eps,
      "rows": rows,
      "uniform_mass": float(scalars["uniform_mass"][0]),
      "seconds": sweep.seconds,
      **numbers,
    },
    tables={
      "rows.csv": (header, table),
      "curves.csv": _curves(sweep),
      **(tables or {}),
    },
    arrays=arrays,
  )


def _curves(sweep: Sweep) -> tuple[list[str], list[list[Any]]]:
  """Every look at the sinks, and every loss, as rows of a table."""
  names = ["first_mass", sweep.rate, "value_ratio"]
  rows = []
  for variant, probes in sweep.probes.items():
    losses = sweep.losses[variant]
    at = {int(step): k for k, step in enumerate(losses["step"])}
    for i, seed in enumerate(sweep.seeds):
      for k, step in enumerate(probes["step"]):
        known = at.get(int(step))
        loss = None if known is None else float(losses["loss"][i, known])
        row = [float(probes[name][i, k]) for name in names]
        rows.append([variant, seed, int(step), *row, loss])
  return ["variant", "seed", "step", *names, "held_out_loss"], rows
