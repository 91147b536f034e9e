"""What happens to a long text if the first tokens leave the cache?

    python -m launch.reproduce --experiment=streaming \\
        --model=smollm2-135m --out=out/applications

One text, the addresses of one speaker in order, goes through caches that keep
its first tokens and a window, the window alone, or everything, past the context
that the model was trained on; and, at a sample of its tokens, through a forward
pass on the window. Loss by position, time, memory. The claims are those of
StreamingLLM (Xiao et al. 2023, arXiv 2309.17453).

Takes 37 minutes for SmolLM2-135M on two CPU cores. Expected there:
four_suffice, past_context, stable, newlines and faster are supported,
window_alone is contradicted, one_not_enough has no effect beyond the margin,
as_recomputed is inconclusive.

Sharp edges:
  Blocks of one text are the units: a verdict is about this text, and
  neighbouring blocks may depend on each other.
"""

from sinkjax.experiments.applications.streaming.claims import claims
from sinkjax.experiments.applications.streaming.config import Config
from sinkjax.experiments.applications.streaming.experiment import measure
from sinkjax.experiments.applications.streaming.figures import (
  TITLE,
  draw,
  sections,
)
from sinkjax.experiments.harness.api import Experiment

EXPERIMENT = Experiment(
  TITLE,
  Config,
  measure,
  claims,
  draw,
  sections,
  # Caches that keep tokens by score do not know which slot holds which token,
  # and all keep queries and keys as they are before their rotation.
  unedited=frozenset({"q", "k", "scores", "pattern"}),
)
