"""The paper's own size: 120M parameters, 5B tokens, context 128 to 2048.

    python -m launch.train --config=configs/train/barbero_120m.py:2048 \
      --workdir=DIR --distributed --mesh=data:8 --config.corpus="('/data/web',)"

Not run. The number after the colon is the context; a step has as many tokens at
every context. The paper (Barbero et al. 2025, section 5) gives the size, the
tokens and the contexts, but neither layers, widths nor optimizer: these follow
common practice for models of this size (12 layers of width 768, 12 heads, AdamW
4e-4 by cosine, 2^19 tokens a step). On texts of 64 tokens the paper reports
almost no sink at context 128, and a stronger one with every doubling.
`--dry_run --accelerator=8xh100` prints what it needs.
"""

import dataclasses

from ml_collections import ConfigDict

from sinkjax.config import ModelConfig
from sinkjax.data.packing import Packing
from sinkjax.train.optimizer import OptimizerConfig
from sinkjax.train.run_config import TrainConfig

TOKENS = 5_000_000_000
STEP = 1 << 19


def get_config(context: str = "2048") -> ConfigDict:
  """Fields of `TrainConfig`."""
  length = int(context)
  model = ModelConfig(
    vocab_size=32000,
    d_model=768,
    n_layers=12,
    n_heads=12,
    n_kv_heads=12,
    head_dim=64,
    d_ff=2048,
    max_len=length,
    tie_embeddings=True,
    init_std=0.02,
    dtype="bfloat16",
    precision="default",
    attention="fused",
    remat="dots",
  )
  run = TrainConfig(
    model=model,
    packing=Packing(length=length),
    optimizer=OptimizerConfig(peak=4e-4, warmup=500),
    corpus=("sotu", "wiki-vital"),
    steps=TOKENS // STEP,
    batch=STEP // length,
    accumulate=2,
    eval_every=500,
    eval_windows=256,
    probe_every=100,
    probe_texts=100,
    save_every=500,
  )
  return ConfigDict(dataclasses.asdict(run))
