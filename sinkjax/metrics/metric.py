"""What a metric is: an entry of the table, and how its values are reduced."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np

from sinkjax.metrics.experts import strongest_expert
from sinkjax.metrics.norms import largest_of_all
from sinkjax.metrics.rows import RowStatistic
from sinkjax.metrics.sinks import sink_rate, sink_rate_stderr

REDUCTIONS: dict[str, Callable[[Any, int], Any]] = {
  "each": lambda x, texts: x.mean(axis=texts),
  "mean": lambda x, texts: x.mean(),
  "median": lambda x, texts: jnp.median(x),
  "peak": lambda x, texts: x.mean(axis=texts).max(),
  "largest": lambda x, texts: largest_of_all(x)[0],
  "largest by layer": lambda x, texts: largest_of_all(x)[1],
  "strongest expert": lambda x, texts: strongest_expert(x.mean(axis=texts)),
}
"""`f(values, texts)` by name, where `texts` is the axis of the texts.

each: the mean over texts. mean, median: over texts, layers and heads. peak:
the mean over texts, then the greatest over layers. largest, largest by layer:
of massive activations, see `norms.largest_of_all`. strongest expert: of the
mean over texts, see `experts.strongest_expert`; not while a model is trained.
"""


def _rate(x: Any, texts: int, eps: float) -> Any:
  return sink_rate(jnp.moveaxis(x, texts, 0), eps=eps)


def _rate_of_means(x: Any, texts: int, eps: float) -> Any:
  return sink_rate(jnp.moveaxis(x, texts, 0), eps=eps, order="mean_first")


def _error_of_rate(x: Any, texts: int, eps: float) -> float | None:
  return sink_rate_stderr(np.moveaxis(x, texts, 0), eps=eps)


RATES: dict[str, Callable[[Any, int, float], Any]] = {
  "rate": _rate,
  "rate of means": _rate_of_means,
  "error of the rate": _error_of_rate,
}
"""`f(values, texts, eps)` by name: one number for each threshold `eps`."""


@dataclasses.dataclass(frozen=True)
class Metric:
  """One metric: where it is observed, in which unit, and how it is computed.

  Attributes:
    name: under which its values are kept.
    site: where the model is observed: a site of `sinkjax.SITES`, or several.
    axes: of one text's value: L layers, H heads, N KV heads, E experts; "" for
      a scalar.
    unit: "" for a pure number.
    label: what it is, for titles and tables.
    source: the paper, or "ours".
    form: `f(value) -> [B, ...]` of the site's value in one layer, or a
      `RowStatistic` of the pattern, which can be streamed as well.
    of: the metric whose values this one reduces in another way; then there is
      neither site nor form.
    share: whether it is computed from `sinks.attention_share` in models whose
      rows of attention do not sum to one.
    learned_sink: whether it is measured only in models with a sink that is no
      token, see `ModelConfig.learned_sink`, and not shown for others.
    experts: whether it is measured only in models with experts, likewise.
    mixing: whether it is measured only in models with a rate of mixing.
    summary: the keys of `summary.json` that show it, each with its reduction.
      By default its name with "each"; {} shows nothing.
    probe: the keys of the training probe's record. By default its name with
      "mean".
    by_head: whether it is a column of `heads.csv`, if its axes allow that.
    log: whether figures show it on a logarithmic axis.

  Raises:
    ValueError: for an entry with neither or both of `form` and `of`, or an
      unknown reduction.
  """

  name: str
  _: dataclasses.KW_ONLY
  label: str
  source: str
  site: str | tuple[str, ...] = ""
  axes: str = ""
  unit: str = ""
  form: RowStatistic | Callable[..., Any] | None = None
  of: "Metric | None" = None
  share: bool = False
  learned_sink: bool = False
  experts: bool = False
  mixing: bool = False
  summary: Mapping[str, str] | None = None
  probe: Mapping[str, str] | None = None
  by_head: bool = True
  log: bool = False

  def __post_init__(self):
    if (self.of is None) == (self.form is None):
      raise ValueError(f"metric {self.name!r} needs either a form or of")
    if (self.form is None) == bool(self.site):
      raise ValueError(f"metric {self.name!r} needs a site with its form")
    defaults = {"summary": {self.name: "each"}, "probe": {self.name: "mean"}}
    for place, keys in defaults.items():
      if getattr(self, place) is None:
        # The dataclass is frozen, and this is where its defaults are filled in.
        object.__setattr__(self, place, keys)
      for how in getattr(self, place).values():
        if how not in REDUCTIONS and how not in RATES:
          raise ValueError(
            f"metric {self.name!r}: a reduction must be one of "
            f"{[*REDUCTIONS, *RATES]}, got {how!r}"
          )

  @property
  def measured(self) -> "Metric":
    """The metric that holds the values: itself, or what it is `of`."""
    return self.of or self

  @property
  def sites(self) -> tuple[str, ...]:
    """Where its values come from."""
    site = self.measured.site
    return (site,) if isinstance(site, str) else tuple(site)

  @property
  def optional(self) -> bool:
    """Whether some models do not have what it measures."""
    of = self.measured
    return of.learned_sink or of.experts or of.mixing

  @property
  def text_axis(self) -> int:
    """Where the axis of the texts stands in a trace."""
    # The scan over layers stacks its axis before that of the texts.
    return int(self.measured.axes.startswith("L"))

  @property
  def streams(self) -> bool:
    """Whether one block of rows after the other is enough to compute it."""
    if self.measured.experts:
      # A pass that is streamed runs some tokens at a time through the experts;
      # to observe them would hold every expert's output of all tokens.
      return False
    by_rows = isinstance(self.measured.form, RowStatistic)
    # Other sites exist whole in a streamed pass; only these come in blocks.
    return by_rows or {"scores", "pattern"}.isdisjoint(self.sites)

  @property
  def title(self) -> str:
    """Label and unit, for a figure."""
    return f"{self.label}, {self.unit}" if self.unit else self.label
