"""What the runs of a sweep share, and how a variant becomes a run."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np

from sinkjax.config import ModelConfig
from sinkjax.data.packing import Packing
from sinkjax.models.transformer import param_shapes
from sinkjax.train.optimizer import OptimizerConfig
from sinkjax.train.run_config import TrainConfig


@dataclasses.dataclass(frozen=True)
class TextConfig:
  """What the variants of a sweep share, unless a variant sets it itself.

  Attributes:
    seeds: of parameters and data order; every variant is trained with each.
    corpus: see `data.corpus.gather`.
    layers: L.
    d_model: D.
    head_dim: K; there are D / K heads.
    vocab_size: of the tokenizer that is trained on the corpus.
    length: T of a training window.
    bos: where BOS stands, see `data.packing.Packing`.
    batch: windows in a step.
    steps: of a run.
    peak: the highest learning rate.
    warmup: steps of rising learning rate.
    weight_decay: of AdamW.
    every: steps between two measurements of the sinks.
    texts: held-out documents that are measured.
    eps: threshold of the sink rate, one of the probe's. At 0.3, the papers'
      threshold, no head has a sink yet after a million tokens.
    dtype: of the computation.
    accumulate: parts of a batch whose gradients are added up.
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


GPU_SCALE: dict[str, Any] = {
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

PAPER_SCALE: dict[str, Any] = {
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
"""The paper's 120M parameters and 2^20 tokens a step; each experiment sets the
number of steps."""

TOKENS_5B, TOKENS_30B = 4768, 28_610
"""Steps of the paper's runs of 5B and of 30B tokens."""

CARD_RATE, CARD_SHARE = 989e12, 0.4
"""Dense bfloat16 flop a second of an H100, and the share of it that a training
run can be expected to reach. Only the dry run uses them."""

FLOP_PER_PARAMETER = 6.0
"""Flop for each parameter and token: two forward, four backward."""

BYTES_PER_PARAMETER = 16
"""Parameter, gradient and AdamW's two moments, in float32."""

SHORTEST = 64
"""Tokens of the texts on which every model's sinks are measured; every model
has to take that many positions."""


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
    config: what it shares with the other variants.
    model: fields of `ModelConfig` that the variant sets itself.
    packing: likewise, of `Packing`.
    optimizer: likewise, of `OptimizerConfig`.
    **run: likewise, of `TrainConfig`.

  Raises:
    ValueError: for a field that does not exist or a value that is not allowed.

  >>> run = text_run(TextConfig(), model={"normalizer": "relu"})
  >>> run.model.attention, run.model.n_heads, run.packing.bos
  ('einsum', 1, 'pinned')
  """
  window = {"length": config.length, "bos": config.bos, **(packing or {})}
  shape = _model_fields(config, dict(model or {}), window["length"])
  rate = {
    "peak": config.peak,
    "warmup": config.warmup,
    "weight_decay": config.weight_decay,
  }
  base = TrainConfig(
    ModelConfig(**shape),
    Packing(**window),
    OptimizerConfig(**{**rate, **(optimizer or {})}),
    corpus=config.corpus,
    steps=config.steps,
    batch=config.batch,
    accumulate=config.accumulate,
    # A held-out evaluation and a checkpoint cost more than a probe.
    eval_every=2 * config.every,
    probe_every=config.every,
    save_every=2 * config.every,
    probe_texts=config.texts,
    probe_tokens=min(SHORTEST, shape["max_len"]),
  )
  return dataclasses.replace(base, **run)


def _model_fields(
  config: TextConfig, own: dict[str, Any], length: int
) -> dict[str, Any]:
  """Fields of `ModelConfig`: `own` before what follows from the config."""
  width = own.get("d_model", config.d_model)
  size = own.get("head_dim", config.head_dim)
  heads = max(width // size, 1)
  # Fused kernels know softmax alone, and no learned key.
  plain = own.get("normalizer", "softmax") == "softmax"
  fused = plain and own.get("attn_bias", "none") == "none"
  return {
    "vocab_size": config.vocab_size,
    "d_model": width,
    "n_layers": config.layers,
    "n_heads": heads,
    "n_kv_heads": heads,
    "head_dim": size,
    "d_ff": 3 * width,
    "tie_embeddings": True,
    "max_len": max(length, SHORTEST),
    "init_std": 0.02,
    "attention": "fused" if fused else "einsum",
    "scan_layers": False,
    "dtype": config.dtype,
    "precision": "highest" if config.dtype == "float32" else "default",
    **own,
  }


def chosen(
  variants: Mapping[str, TrainConfig], names: Sequence[str], what: str
) -> dict[str, TrainConfig]:
  """The variants that are asked for, in the order in which they are known.

  Args:
    variants: all there are.
    names: those that are asked for.
    what: the experiment's name, for the error.

  Raises:
    ValueError: for a name that is no variant.
  """
  unknown = sorted(set(names) - set(variants))
  if unknown:
    raise ValueError(f"{what} has no {unknown[0]!r}; it has {list(variants)}")
  return {name: run for name, run in variants.items() if name in names}


def plan(
  variants: Mapping[str, TrainConfig], seeds: Sequence[int]
) -> list[str]:
  """Lines that say what will be trained and what it needs."""
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
    flop = FLOP_PER_PARAMETER * size * tokens
    total += flop * len(names) * len(seeds)
    which = "each" if len(groups) == 1 else ", ".join(names)
    lines.append(
      f"{which}: {size:,} parameters, {steps:,} steps, {tokens:,} tokens, "
      f"{flop:.2g} flop without the attention"
    )
  hours = total / (CARD_SHARE * CARD_RATE) / 3600
  memory = BYTES_PER_PARAMETER * max(size for size, _, _ in groups) / 1e9
  lines.append(
    f"{total:.2g} flop in all: {hours:.2g} hours of an H100 at "
    f"{100 * CARD_SHARE:.0f} % of its bfloat16 rate; {memory:.2g} GB for "
    "parameters, gradient and moments"
  )
  return lines
