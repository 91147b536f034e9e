"""A small model: 1.0M parameters, context 256, 6M tokens.

    python -m launch.train --config=configs/train/small.py --workdir=DIR

Measured on 2 cores (AMD EPYC): 9 minutes alone, 12,500 tokens a second; at the
end a held-out loss of 2.99 nats, 0.191 of attention on the first token where
uniform attention gives 0.074, and a sink rate of 8.2 % at eps 0.3 and of 90 %
at eps 0.1; the value of BOS is 0.36 of the others' norm.
"""

import dataclasses

from ml_collections import ConfigDict

from sinkjax.config import ModelConfig
from sinkjax.data.packing import Packing
from sinkjax.train.optimizer import OptimizerConfig
from sinkjax.train.run_config import TrainConfig


def get_config() -> ConfigDict:
  """Fields of `TrainConfig`."""
  model = ModelConfig(
    vocab_size=1024,
    d_model=128,
    n_layers=4,
    n_heads=4,
    n_kv_heads=4,
    head_dim=32,
    d_ff=384,
    max_len=256,
    tie_embeddings=True,
    init_std=0.02,
    attention="fused",
    scan_layers=False,
  )
  run = TrainConfig(
    model=model,
    packing=Packing(length=256, bos="pinned"),
    optimizer=OptimizerConfig(peak=3e-3, warmup=100),
    steps=1500,
    batch=16,
    eval_every=250,
    probe_every=50,
    save_every=250,
  )
  return ConfigDict(dataclasses.asdict(run))
