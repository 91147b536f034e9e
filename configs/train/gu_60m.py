"""The base model of Gu et al. (2024, arXiv 2410.10781): 60M without embeddings.

    python -m launch.train --config=configs/train/gu_60m.py --workdir=DIR \
      --distributed --mesh=data:8 --config.corpus="('/data/pile',)"

Not run. 10 layers of width 768, 8 heads, context 2048, 5B tokens in 5,000
steps of 2^20 tokens, learning rate 4e-4 by cosine, no BOS, documents
concatenated under a causal mask, as the paper's appendix lists it; the
vocabulary is of the same size, trained on the corpus that you give. They report
a sink rate of 18.18 % at eps 0.3 and a validation loss of 3.73 on the Pile's
web pages; whether their learning rate decays to zero or stays is not clear from
paper and code, here it falls to a tenth. `--dry_run --accelerator=8xh100`
prints what it needs.
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
    vocab_size=50432,
    d_model=768,
    n_layers=10,
    n_heads=8,
    n_kv_heads=8,
    head_dim=96,
    d_ff=1536,
    max_len=2048,
    init_std=0.02,
    dtype="bfloat16",
    precision="default",
    attention="fused",
    remat="dots",
  )
  run = TrainConfig(
    model=model,
    packing=Packing(length=2048),
    optimizer=OptimizerConfig(peak=4e-4, warmup=100),
    corpus=("sotu", "wiki-vital"),
    steps=5000,
    batch=512,
    accumulate=4,
    eval_every=500,
    eval_windows=512,
    probe_every=100,
    probe_texts=100,
    save_every=500,
  )
  return ConfigDict(dataclasses.asdict(run))
