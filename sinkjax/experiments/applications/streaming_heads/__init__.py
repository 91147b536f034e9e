"""Which heads need all of a text, and are the others the sink heads?

    python -m launch.reproduce --experiment=streaming_heads \\
        --model=smollm2-135m --out=out/applications

One gate a KV head between full attention and a sink with a window is learned by
gradient on the answers to needles in a haystack (DuoAttention, arXiv
2410.10819: 25 % of heads stay full in Llama 2 7B, 50 % in Llama 3 8B). On other
haystacks: the answers with heads closed in the order of the gates, of their
attention on the sink, of their reach, and at random; and whether low gates go
with sinks, small values at the sink and little reach. The gates are those of
one training, so that intervals are over haystacks alone. Last, the gates in
use: a cache that keeps everything in heads with a gate above 0.5
(`kv_policy.by_head`), against caches of no less memory that keep in all heads
the first tokens and a window, a window alone, or heavy hitters (H2O).

Takes tens of minutes for SmolLM2-135M on two CPU cores, of which the caches are
a few, most of them for heavy hitters. Expected: all claims are supported; of
half the heads closed, little is lost.
"""

from sinkjax.experiments.applications.streaming_heads.claims import claims
from sinkjax.experiments.applications.streaming_heads.experiment import (
  Config,
  measure,
)
from sinkjax.experiments.applications.streaming_heads.figures import (
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
  unedited=frozenset({"q", "k", "scores", "pattern"}),
)
