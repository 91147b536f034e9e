"""Gemma 7B as in sections 3 and 5 of the paper.

    python -m launch.reproduce --config=configs/reproduce/gemma_7b.py --out=DIR

Needs `pip install 'sinkjax[hub]'`, access to the model, and 34 GB of memory
for float32 weights: one GPU or TPU of 80 GB, or a large CPU machine. We do not
have these weights: the test suite runs this file on a small random Gemma, and
its time on the real one is not known. `--model=FOLDER` takes a local copy.

The paper reports: BOS is trained in, so `perturbation` also runs without BOS;
"greatest" and "best" are swapped in a text on Shakespeare (ours is another
text); HellaSwag 80.61 % with BOS, 27.35 without; RULER at 4096 tokens 82.57 and
0.00; repeated digits merge in bfloat16 at about 50. A head has a sink above
0.8.
"""

from ml_collections import ConfigDict

EPS = 0.8


def get_config() -> ConfigDict:
  """What differs from the defaults."""
  return ConfigDict(
    {
      "model": "hf:google/gemma-7b",
      "prefix": "auto",
      "perturbation": {"shown": ("greatest", "best")},
      "smoothing": {"eps": EPS},
      "noop_heads": {"eps": EPS},
      "prompts": {"eps": (EPS, 0.5, 0.3)},
      "massive": {"eps": EPS},
      "model_size": {"eps": (EPS,), "models": ()},
    }
  )
