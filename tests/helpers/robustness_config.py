"""What the tests of noise and defences run at."""

from sinkjax.experiments.applications.robustness.config import Config

CONFIG = Config(
  count=3,
  tokens=16,
  noise=0.5,
  draws=2,
  candidates=2,
  share=0.5,
  steps=2,
  eps=0.1,
  from_layer=1,
)
