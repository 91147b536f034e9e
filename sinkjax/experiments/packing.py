"""Whether the sink belongs to BOS: the packing table (section 5, table 2).

Five ways of filling windows, nine ways of asking the models. Pinned at the
start of every window, BOS becomes what the model leans on; without it the sink
is at whatever comes first.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from sinkjax.config import ModelConfig
from sinkjax.data.packing import Packing
from sinkjax.experiments.jobs import Job, run_jobs
from sinkjax.experiments.result import Claim, Result, direction
from sinkjax.experiments.training_runs import text_jobs
from sinkjax.experiments.uncertainty import mean_over
from sinkjax.models.transformer import param_shapes
from sinkjax.train.optimizer import OptimizerConfig
from sinkjax.train.run_config import TrainConfig

NAME, TITLE = "packing", "Does the sink belong to BOS?"

WAYS = {
  "causal-document": ("causal", "document"),
  "causal-pinned": ("causal", "pinned"),
  "separate-none": ("document", "none"),
  "separate-document": ("document", "document"),
  "separate-pinned": ("document", "pinned"),
}
"""(mask, BOS) of `Packing` for each way of training."""

PAPER = {
  ("causal-document", "bos"): (65.10, 2.69),
  ("causal-document", "text"): (65.15, 2.70),
  ("causal-pinned", "bos"): (90.84, 2.69),
  ("causal-pinned", "text"): (0.05, 7.56),
  ("separate-none", "text"): (28.23, 2.67),
  ("separate-document", "bos"): (83.33, 2.67),
  ("separate-document", "text"): (50.24, 2.68),
  ("separate-pinned", "bos"): (90.56, 2.67),
  ("separate-pinned", "text"): (0.00, 7.78),
}
"""Sink rate in percent and validation loss of table 2: 120M parameters, 30B
tokens."""


@dataclasses.dataclass(frozen=True)
class Config:
  """What is trained: every way with every seed.

  Attributes:
    ways: names of `WAYS`.
    seeds: of parameters and order.
    corpus: see `data.corpus.gather`.
    layers: L.
    d_model: D; heads are 32 wide, or 64 from 512 on.
    vocab_size: of the tokenizer that is trained on the corpus.
    length: T of a window.
    batch: windows a step.
    steps: of a run.
    peak: the learning rate.
    warmup: steps.
    every: steps between two looks at the sinks.
    texts: held-out documents that are looked at.
    eps: threshold of the sink rate, one of the probe's.
    dtype: of the computation.
    accumulate: parts of a batch.
  """

  ways: tuple[str, ...] = tuple(WAYS)
  seeds: tuple[int, ...] = (0, 1, 2)
  corpus: tuple[str, ...] = ("sotu", "wiki-vital")
  layers: int = 4
  d_model: int = 128
  vocab_size: int = 1024
  length: int = 256
  batch: int = 8
  steps: int = 700
  peak: float = 3e-3
  warmup: int = 100
  every: int = 100
  texts: int = 64
  eps: float = 0.3
  dtype: str = "float32"
  accumulate: int = 1


SCALES: dict[str, dict[str, Any]] = {
  "demo": {"ways": ("causal-document", "causal-pinned"), "seeds": (0,)},
  "cpu": {},
  "gpu": {"layers": 6, "d_model": 384, "vocab_size": 8192, "length": 1024,
          "batch": 32, "steps": 2000, "every": 200, "peak": 1e-3,
          "dtype": "bfloat16"},
  "paper": {"layers": 12, "d_model": 768, "vocab_size": 32_000,
            "length": 2048, "batch": 512, "steps": 28_610, "peak": 4e-4,
            "warmup": 2000, "every": 500, "dtype": "bfloat16",
            "accumulate": 8},
}  # fmt: skip
"""Fields of `Config` by --scale; `paper` is 30B tokens a run."""


def variants(config: Config) -> dict[str, TrainConfig]:
  """The run of each way.

  Raises:
    ValueError: for a way that there is not.
  """
  unknown = sorted(set(config.ways) - set(WAYS))
  if unknown:
    raise ValueError(f"packing has no way {unknown[0]!r}; it has {list(WAYS)}")
  width = 64 if config.d_model >= 512 else 32
  heads = config.d_model // width
  model = ModelConfig(
    vocab_size=config.vocab_size, d_model=config.d_model,
    n_layers=config.layers, n_heads=heads, n_kv_heads=heads, head_dim=width,
    d_ff=3 * config.d_model, max_len=config.length, tie_embeddings=True,
    init_std=0.02, attention="fused", scan_layers=False, dtype=config.dtype,
    precision="highest" if config.dtype == "float32" else "default",
  )  # fmt: skip
  return {
    way: TrainConfig(
      model, Packing(config.length, mask=mask, bos=bos),
      OptimizerConfig(peak=config.peak, warmup=config.warmup),
      corpus=config.corpus, steps=config.steps, batch=config.batch,
      accumulate=config.accumulate, eval_every=2 * config.every,
      probe_every=config.every, save_every=2 * config.every,
      probe_texts=config.texts, probe_tokens=min(64, config.length),
    )
    for way, (mask, bos) in WAYS.items()
    if way in config.ways
  }  # fmt: skip


def jobs(config: Config) -> list[Job]:
  """Every run of the sweep."""
  return text_jobs(variants(config), config.seeds)


def plan(config: Config) -> list[str]:
  """What will be trained, in words."""
  runs = variants(config)
  shapes = param_shapes(next(iter(runs.values())).model)
  size = sum(int(np.prod(x.shape)) for x in jax.tree.leaves(shapes))
  tokens = config.steps * config.batch * config.length
  return [
    f"{len(runs) * len(config.seeds)} runs ({', '.join(runs)}; seeds "
    f"{', '.join(map(str, config.seeds))})",
    f"each {size:,} parameters, {config.steps:,} steps, {tokens:,} tokens, "
    f"{6.0 * size * tokens:.2g} flop without the attention",
  ]


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
    ValueError: as `jobs.run_jobs` and `variants`.

  Cost: a run of the cpu scale takes 3 minutes on two cores.
  """
  return _result(config, run_jobs(jobs(config), folder, progress=progress))


def _result(config: Config, found) -> Result:
  by_way = {
    way: [one for one in found if one["request"]["variant"] == way]
    for way in variants(config)
  }
  rate = f"sink_rate_{config.eps:g}"
  last: dict[tuple[str, str], dict[str, np.ndarray]] = {}
  for (way, form), _ in PAPER.items():
    if way in by_way:
      rows = [one["final"][form] for one in by_way[way]]
      last[way, form] = {
        k: np.array([row[k] for row in rows], float) for k in rows[0]
      }
  header = ["way", "form", "seed", *next(iter(last.values()))]
  table = [
    [way, form, seed, *(float(v[i]) for v in values.values())]
    for (way, form), values in last.items()
    for i, seed in enumerate(config.seeds)
  ]
  probes = [
    {"way": way, "seed": seed, **row}
    for way, runs in by_way.items()
    for seed, one in zip(config.seeds, runs, strict=True)
    for row in one["history"]
    if row["kind"] == "probe"
  ]
  steps = sorted({row["step"] for row in probes})
  curves = {
    name: np.array([row[name] for row in probes], float).reshape(
      len(by_way), len(config.seeds), len(steps)
    )
    for name in ("first_mass", rate)
  }
  names = ["way", "seed", "step", "first_mass", rate, "value_ratio"]
  return Result(
    name=NAME, title=TITLE, claims=_claims(config, last, rate),
    numbers={
      "ways": list(by_way), "seeds": list(config.seeds), "eps": config.eps,
      "rows": [
        {"way": way, "form": form, "paper": PAPER[way, form],
         "rate": values[rate], "mass": values["first_mass"],
         "loss": values["loss"]}
        for (way, form), values in last.items()
      ],
      "uniform_mass": float(next(iter(last.values()))["uniform_mass"][0]),
    },
    tables={
      "rows.csv": (header, table),
      "curves.csv": (names, [[row[k] for k in names] for row in probes]),
    },
    arrays={
      "steps": np.array(steps), "first_mass": curves["first_mass"],
      "sink_rate": curves[rate],
      **{f"alpha_{way}": np.array([one["alpha"] for one in runs])
         for way, runs in by_way.items()},
    },
  )  # fmt: skip


def _claims(config: Config, last, rate: str) -> list[Claim]:
  """Of the table's rows, pairs over seeds."""
  if len(config.seeds) < 2:
    return []
  claims = []

  def claim(text, paper, values, ours, against=0.0):
    off = mean_over(np.asarray(values) - against, config.seeds)
    claims.append(
      Claim(
        text, "section 5, table 2", paper, ours,
        direction(off.low, off.high),
        f"95 % interval over {len(config.seeds)} seeds",
      )
    )  # fmt: skip

  def mean(values, form=".3f"):
    return mean_over(values, config.seeds).text(form)

  for way in ("causal-pinned", "separate-pinned"):
    if (way, "bos") not in last:
      continue
    bos, text = last[way, "bos"], last[way, "text"]
    uniform = bos["uniform_mass"][0]
    percent = PAPER[way, "bos"][0], PAPER[way, "text"][0]
    claim(
      f"Trained with BOS pinned ({way.split('-')[0]} mask), taking it away "
      "takes the sink away.",
      f"{percent[0]:.1f} to {percent[1]:.2f} % of heads",
      bos["first_mass"] - text["first_mass"],
      f"attention on the first token {mean(bos['first_mass'])} to "
      f"{mean(text['first_mass'])}, even {uniform:.3f}; heads above eps "
      f"{config.eps:g} {mean(100 * bos[rate], '.1f')} to "
      f"{mean(100 * text[rate], '.1f')} %",
    )
    claim(
      f"And the loss goes up ({way.split('-')[0]} mask).",
      f"{PAPER[way, 'bos'][1]} to {PAPER[way, 'text'][1]} nats",
      text["loss"] - bos["loss"],
      f"{mean(text['loss'] - bos['loss'])} nats up from {mean(bos['loss'])}",
    )
  for way, other in (("causal", "document"), ("separate", "document")):
    pinned, loose = (
      last.get((f"{way}-pinned", "bos")),
      last.get((f"{way}-{other}", "bos")),
    )
    if pinned is None or loose is None:
      continue
    claim(
      f"A pinned BOS draws more attention than one at each document ({way} "
      "mask).",
      f"{PAPER[f'{way}-pinned', 'bos'][0]} and "
      f"{PAPER[f'{way}-{other}', 'bos'][0]} % of heads",
      pinned["first_mass"] - loose["first_mass"],
      f"{mean(pinned['first_mass'])} and {mean(loose['first_mass'])}",
    )
  if ("separate-none", "text") in last:
    none = last["separate-none", "text"]
    claim(
      "Without any BOS there is a sink at the first token, too.",
      "28.2 % of heads", none["first_mass"],
      f"attention on it {mean(none['first_mass'])}, even "
      f"{none['uniform_mass'][0]:.3f}; heads "
      f"{mean(100 * none[rate], '.1f')} %",
      against=none["uniform_mass"][0],
    )  # fmt: skip
  return claims
