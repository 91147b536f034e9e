"""Llama 3.1 by size, table 1 of the paper (section 4.2).

    python -m launch.reproduce --config=configs/reproduce/llama31.py:8b \\
      --experiment=model_size --offload --out=DIR

`:8b`, `:70b` or `:405b` is the model that every other experiment runs on, and
is loaded whole, in float32: 32.1, 282 or 1,623 GB. `model_size` adds the
smaller ones, with `--offload` a layer at a time: at most 1.8 GB of weights for
8B, 6.9 for 70B and 25.6 for 405B; `--dry_run` prints it. To measure 405B so,
give a small model as the first and it as another: `--model=smollm2-135m
--models=hf:meta-llama/Llama-3.1-405B --offload`.

Needs `pip install 'sinkjax[hub]'` and access to the models. We do not have
these weights: the test suite runs this file on small random Llamas, and its
time on the real ones is not known.

The paper reports heads above 0.8: 45.97 % (8B), 73.49 (70B), 78.29 (405B).
"""

from ml_collections import ConfigDict

EPS = 0.8
SIZES = ("8b", "70b", "405b")


def get_config(size: str = "8b") -> ConfigDict:
  """What differs from the defaults.

  Args:
    size: of `SIZES`.
  """
  if size not in SIZES:
    raise ValueError(f"size must be one of {list(SIZES)}, got {size!r}")
  smaller = SIZES[: SIZES.index(size)]
  return ConfigDict(
    {
      "model": f"hf:meta-llama/Llama-3.1-{size.upper()}",
      "prefix": "auto",
      "perturbation": {"shown": ("greatest", "best")},
      "smoothing": {"eps": EPS},
      "noop_heads": {"eps": EPS},
      "prompts": {"eps": (EPS, 0.5, 0.3)},
      "massive": {"eps": EPS},
      "model_size": {
        "eps": (EPS, 0.3),
        "models": tuple(
          f"hf:meta-llama/Llama-3.1-{s.upper()}" for s in smaller
        ),
        "offload": True,
      },
    }
  )
