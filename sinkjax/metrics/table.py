"""The table of metrics: one entry each, read by all that shows metrics.

The sink profile with its summary, CSV file and report, the training probe and
the documentation take names, sites, units, labels and definitions from here,
through `sinkjax.metrics.registry`. A new metric is a function in this package
and an entry in this table.
"""

from sinkjax.metrics import rows
from sinkjax.metrics.collapse import effective_rank, spectral_entropy
from sinkjax.metrics.metric import Metric
from sinkjax.metrics.norms import (
  first_and_rest,
  kurtosis,
  massive_activation,
  median,
  token_norms,
  value_norm_ratio,
)

GU = "Gu et al. 2025, arXiv 2410.10781"
BARBERO = "Barbero et al. 2025, arXiv 2504.02732, section 3.2"
SUN = "Sun et al. 2024, arXiv 2402.17762"

ALPHA = Metric(
  "alpha",
  site="pattern",
  axes="L H",
  unit="share",
  label="attention on the first token",
  source=GU,
  form=rows.sink_score(),
  share=True,
  summary={"first_token_mass": "mean", "alpha_first": "each"},
  probe={"first_mass": "mean", "alpha": "each"},
)

_ENTRIES = (
  ALPHA,
  Metric(
    "sink_rate",
    unit="share of heads",
    label="sink rate",
    source=GU,
    of=ALPHA,
    summary={
      "sink_rate": "rate",
      "sink_rate_mean_first": "rate of means",
      "sink_rate_stderr": "error of the rate",
    },
    probe={"sink_rate": "rate"},
  ),
  Metric(
    "entropy",
    site="pattern",
    axes="L H",
    unit="nats",
    label="attention entropy",
    source="Shannon's entropy of a row of attention",
    form=rows.attention_entropy(),
    share=True,
    probe={},
  ),
  Metric(
    "entropy_share",
    site="pattern",
    axes="L H",
    unit="share of its maximum",
    label="attention entropy",
    source="ours",
    form=rows.attention_entropy(normalize=True),
    share=True,
  ),
  Metric(
    "row_sum",
    site="pattern",
    axes="L H",
    label="sum of a row of attention",
    source="ours",
    form=rows.row_sum(),
    summary={},
  ),
  Metric(
    "value_weighted_mass",
    site=("pattern", "v"),
    axes="L H",
    unit="share",
    label="the first token's share of what a row writes",
    source="weights: Kobayashi et al. 2020, arXiv 2004.10102; their mean: ours",
    form=rows.value_weighted_mass(),
    summary={},
    probe={},
  ),
  Metric(
    "value_norm_first",
    site="v",
    axes="L N",
    label="value norm of the first token",
    source=BARBERO,
    form=lambda v: first_and_rest(token_norms(v))[0],
    probe={},
  ),
  Metric(
    "value_norm_rest",
    site="v",
    axes="L N",
    label="mean value norm of the other tokens",
    source=BARBERO,
    form=lambda v: first_and_rest(token_norms(v))[1],
    probe={},
  ),
  Metric(
    "value_ratio",
    site="v",
    axes="L N",
    label="value norm of the first token over the others'",
    source=BARBERO,
    form=value_norm_ratio,
    summary={},
    probe={"value_ratio": "median"},
  ),
  Metric(
    "key_norm_first",
    site="k",
    axes="L N",
    label="key norm of the first token",
    source=GU,
    form=lambda k: first_and_rest(token_norms(k))[0],
    probe={},
    by_head=False,
  ),
  Metric(
    "key_norm_rest",
    site="k",
    axes="L N",
    label="mean key norm of the other tokens",
    source=GU,
    form=lambda k: first_and_rest(token_norms(k))[1],
    probe={},
    by_head=False,
  ),
  Metric(
    "hidden_norm_first",
    site="resid_post",
    axes="L",
    label="residual norm of the first token",
    source=GU,
    form=lambda x: token_norms(x)[:, 0],
    probe={},
    log=True,
  ),
  Metric(
    "hidden_norm_median",
    site="resid_post",
    axes="L",
    label="median residual norm",
    source=GU,
    form=lambda x: median(token_norms(x)),
    probe={},
    log=True,
  ),
  Metric(
    "massive",
    site="resid_post",
    axes="L",
    label="largest activation",
    source=SUN,
    form=lambda x: massive_activation(x)._asdict(),
    summary={"massive": "largest", "massive_by_layer": "largest by layer"},
    probe={},
  ),
  Metric(
    "massive_ratio",
    site="resid_post",
    axes="L",
    label="largest activation over the median one",
    source=SUN,
    form=lambda x: massive_activation(x).ratio,
    summary={},
    probe={"massive_ratio": "peak"},
    log=True,
  ),
  Metric(
    "kurtosis",
    site="resid_post",
    axes="L",
    label="kurtosis of the residual stream",
    source="Bondarenko et al. 2023, arXiv 2306.12929",
    form=kurtosis,
    summary={},
    probe={"kurtosis": "peak"},
    log=True,
  ),
  Metric(
    "spectral_entropy",
    site="resid_post",
    axes="L",
    unit="nats",
    label="entropy of the squared singular values",
    source="Queipo-de-Llano et al. 2025, arXiv 2510.06477",
    form=spectral_entropy,
    summary={},
    probe={},
  ),
  Metric(
    "effective_rank",
    site="final",
    unit="directions",
    label="effective rank of the final states",
    source="Roy and Vetterli 2007, definition 1",
    form=effective_rank,
    summary={},
  ),
)

METRICS: dict[str, Metric] = {entry.name: entry for entry in _ENTRIES}
"""Every metric by its name, in the order in which it is shown."""
