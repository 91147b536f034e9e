"""`strong.py` with experts: a small model to find super experts in.

    python -m launch.train --config=configs/train/strong_moe.py --workdir=DIR
    python -m launch.reproduce --experiment=experts --model=DIR --out=OUT

The model, data, optimiser and probes are those of `strong.py`, but for its
MLPs: each layer has eight experts of half the width, of which a token uses two,
so that a token has as wide a hidden layer as there. Their weights are divided
by their sum, as in Mixtral. No loss balances their use. All experts are
computed for every token, so that the MLPs take four times the work.

Twenty steps of it ran, to see that it trains and that `experts` measures what
is left. Not run to its end yet: whether it has a sink, and which experts carry
it, is not known. --config.steps=2000 --config.probe_steps='()' is a third of
the steps.
"""

import pathlib
import runpy

from ml_collections import ConfigDict

STRONG = pathlib.Path(__file__).with_name("strong.py")


def get_config() -> ConfigDict:
  """Fields of `TrainConfig`: those of `strong.py` with experts."""
  config = runpy.run_path(str(STRONG))["get_config"]()
  config.model.update(
    d_ff=config.model.d_ff // 2,
    n_experts=8,
    experts_per_token=2,
    norm_topk=True,
  )
  return config
