"""Sweeps of models that control their mixing, and what their heads do by it.

Every trained model is read again: how much it mixes by its exact Jacobian, at
which rate each head mixes on texts of several lengths, and its loss there.
"""

import dataclasses
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from sinkjax.config import ModelConfig
from sinkjax.data.prepare import prepare
from sinkjax.experiments.harness.api import Experiment, Result
from sinkjax.experiments.harness.jobs import Advance, run_jobs
from sinkjax.experiments.harness.sweep import Sweep, Table
from sinkjax.experiments.harness.sweep_config import (
  GPU_SCALE,
  PAPER_SCALE,
  TOKENS_5B,
  TextConfig,
)
from sinkjax.experiments.harness.train_runs import (
  document_starts,
  forms,
  prepend,
)
from sinkjax.experiments.harness.trained_models import eval_jobs
from sinkjax.metrics.precision import wide
from sinkjax.metrics.sinks import attention_share, sink_score
from sinkjax.metrics.spread import total_mixing
from sinkjax.models.transformer import forward
from sinkjax.train.loss import next_token_nats
from sinkjax.train.run_config import TrainConfig
from sinkjax.transforms.capture import capture
from sinkjax.transforms.jacobian import jacobian_norms
from sinkjax.weights import orbax_io

Row = Mapping[str, Any]
"""A variant of `controls_of`."""

More = Callable[[ModelConfig, Any, jax.Array], dict[str, Any]]
"""From a model, its parameters and texts [B, T] to plain numbers by name."""


@dataclasses.dataclass(frozen=True)
class ControlConfig(TextConfig):
  """What such sweeps share: the model of `configs/train/strong.py`.

  Attributes:
    lengths: tokens of the texts on which rates and losses are measured, with
      what stands in front; the model has positions for the longest.
    starts: held-out texts of each length.
    map_tokens: T of the texts of exact Jacobians.
    map_texts: how many of them.
  """

  head_dim: int = 32
  batch: int = 16
  lengths: tuple[int, ...] = (64, 256, 512, 1024)
  starts: int = 16
  map_tokens: int = 24
  map_texts: int = 3


STRONG: dict[str, Any] = {"steps": 6000, "every": 500, "eps": 0.3}
"""Fields in which runs differ that are long enough for strong sinks."""

DEMO: dict[str, Any] = {
  "seeds": (0,),
  "length": 128,
  "lengths": (64, 128, 256, 512),
  "steps": 200,
  "batch": 8,
  "every": 50,
  "texts": 32,
  "starts": 8,
  "map_tokens": 16,
  "map_texts": 2,
}
"""Fields of runs of half a minute each on two cores."""

SCALES: dict[str, dict[str, Any]] = {
  "demo": DEMO,
  "cpu": STRONG | {"seeds": (0,)},
  "gpu": GPU_SCALE | {"lengths": (256, 1024, 2048, 4096), "starts": 8},
  "paper": PAPER_SCALE
  | {"steps": TOKENS_5B, "lengths": (512, 2048, 4096, 8192), "starts": 4},
}
"""Fields of a config by --scale, to which each sweep adds its own."""


def positions_for(config: ControlConfig) -> dict[str, int]:
  """The field of `ModelConfig` by which a model can read every length."""
  return {"max_len": max(config.length, *config.lengths)}


def observers(cfg: ModelConfig) -> dict[str, Any]:
  """For `capture`, [L, B, H] each.

  `rate`, at which every head mixes: the rate of mixing where the model has one;
  else what a query gives to tokens in all, so that what goes to a learned key
  or to nothing is what it rests. Mean over the queries but the first, which has
  nothing to mix. `first`, the first token's share of what queries give.
  """
  first = ("pattern", _first_share)
  if cfg.mixing != "none":
    return {"rate": ("mix_rate", _mean_rate), "first": first}
  return {"rate": ("pattern", _row_sums), "first": first}


def _first_share(pattern: jax.Array) -> jax.Array:
  """[B, H, T, S] -> [B, H]."""
  return sink_score(attention_share(pattern))


def _mean_rate(rate: jax.Array) -> jax.Array:
  """[B, T, H] -> [B, H]."""
  return wide(rate)[:, 1:].mean(axis=1)


def _row_sums(pattern: jax.Array) -> jax.Array:
  """[B, H, T, S] -> [B, H]."""
  return wide(pattern)[:, :, 1:].sum(axis=-1).mean(axis=-1)


def measure_model(
  config: ControlConfig,
  run: TrainConfig,
  model: pathlib.Path,
  more: More | None = None,
) -> dict[str, Any]:
  """One trained model, on texts read as in training.

  Args:
    config: of the sweep.
    run: that trained the model.
    model: its folder.
    more: what else is measured, on texts of the trained length.

  Returns:
    `mixing`, the share of the squared exact Jacobian from embed to the last
    layer that is between different tokens; `mixing_rest`, the same without the
    first token as source or target; and for each length `rates` and `firsts`
    [N, L, H] of `observers`, and `losses` [N] in nats.
  """
  data = prepare(
    run.corpus, vocab_size=run.text_vocab_size, held_out=run.held_out
  )
  params, cfg = orbax_io.load(model)
  # Jacobians need full precision; a scan compiles one layer for each length.
  cfg = cfg.replace(
    attention="einsum", dtype="float32", precision="highest", scan_layers=True
  )
  front = next(iter(forms(run, data).values()))  # that of training

  def texts(length: int, most: int) -> jax.Array:
    return jnp.asarray(prepend(document_starts(data, length, most), front))

  f = forward(cfg)
  norms = jacobian_norms(f, params, texts(config.map_tokens, config.map_texts))
  norms = jnp.asarray(norms)
  watched = jax.jit(capture(f, observers(cfg)))
  losses, by_head = [], {"rate": [], "first": []}
  for length in config.lengths:
    rows = texts(length, config.starts)
    out = watched(params, rows)
    weights = jnp.broadcast_to(jnp.arange(length) > len(front), rows.shape)
    loss = next_token_nats(out.logits, rows, weights)
    losses.append(float(loss.nats / loss.targets))
    for name, of in by_head.items():
      of.append(np.asarray(out.trace[name], np.float64).mean(axis=1).tolist())
  return {
    "mixing": float(total_mixing(norms).mean()),
    "mixing_rest": float(total_mixing(norms[:, 1:, 1:]).mean()),
    "rates": by_head["rate"],
    "firsts": by_head["first"],
    "losses": losses,
    **(more(cfg, params, texts(config.length, config.starts)) if more else {}),
  }


def controls_of(
  config: ControlConfig,
  folder: pathlib.Path,
  variants: Sequence[str],
  progress: Callable[[int, int], Any],
  more: More | None = None,
) -> list[dict[str, Any]]:
  """A row for every variant: its seeds, and of each number a list by seed."""
  names = ("lengths", "starts", "map_tokens", "map_texts")

  def evaluate(
    run: TrainConfig,
    trained: Mapping[str, Any],
    model: pathlib.Path,
    advance: Advance,
  ) -> dict[str, Any]:
    return {"final": measure_model(config, run, model, more)}

  jobs = eval_jobs(
    (folder.name,),
    folder / "looks",
    beside=folder.parent,
    request={name: getattr(config, name) for name in names},
    steps=1,
    evaluate=evaluate,
  )
  found = run_jobs(jobs, folder / "looks", progress=progress)
  by = {
    (one["request"]["variant"], one["request"]["run"]["seed"]): one["final"]
    for one in found
  }
  keys = found[0]["final"] if found else ()
  return [
    {
      "variant": name,
      "seeds": list(config.seeds),
      **{key: [by[name, s][key] for s in config.seeds] for key in keys},
    }
    for name in variants
  ]


def by_variant(result: Result) -> dict[str, Row]:
  """The rows of a result, in the order of its variants."""
  return {row["variant"]: row for row in result.numbers["controls"]}


def rates(row: Row) -> np.ndarray:
  """[S, N, L, H] of every seed, text length, layer and head."""
  return np.asarray(row["rates"], np.float64)


def firsts(row: Row) -> np.ndarray:
  """[S, N, L, H] of the first token's share, likewise."""
  return np.asarray(row["firsts"], np.float64)


def table_of(rows: Sequence[Row], lengths: Sequence[int]) -> Table:
  """The rows, a line for each seed; rates are means over layers and heads."""
  header = ["variant", "seed", "mixing", "mixing_rest"]
  header += [f"rate_{n}" for n in lengths] + [f"loss_{n}" for n in lengths]
  lines = []
  for row in rows:
    mean = rates(row).mean(axis=(2, 3))
    for i, seed in enumerate(row["seeds"]):
      line = [row["variant"], seed, row["mixing"][i], row["mixing_rest"][i]]
      lines.append([*line, *mean[i].tolist(), *row["losses"][i]])
  return header, lines


def controlled(sweep: Sweep, more: More | None = None) -> Experiment:
  """The experiment of a sweep whose trained models are read again.

  Its result has `controls` and `lengths` among its numbers, and in each row of
  `controls` what `more` measures.
  """
  plan = sweep.plan

  def measure(
    config: ControlConfig,
    *,
    folder: pathlib.Path,
    progress: Callable[[int, int], Any] = lambda done, total: None,
  ) -> Result:
    folder = pathlib.Path(folder)
    result = sweep.measure(config, folder=folder, progress=progress)
    variants = result.numbers["variants"]
    rows = controls_of(config, folder, variants, progress, more)
    numbers = {"controls": rows, "lengths": list(config.lengths)}
    return dataclasses.replace(
      result,
      numbers=result.numbers | numbers,
      tables=result.tables | {"controls.csv": table_of(rows, config.lengths)},
    )

  def with_controls(config: ControlConfig) -> list[str]:
    return [
      *plan(config),
      f"then every model again: exact Jacobians of {config.map_texts} texts "
      f"of {config.map_tokens} tokens, and texts of "
      f"{', '.join(map(str, config.lengths))} tokens",
    ]

  return dataclasses.replace(
    sweep.experiment(), measure=measure, plan=with_controls
  )
