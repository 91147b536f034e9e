"""What reads the table of metrics: observers, summaries, records, a page.

`observers` makes what `sinkjax.capture` takes; `summary` and `probe_record`
reduce what it saw to the keys that files have; `markdown` is the table for the
docs. The entries themselves stand in `sinkjax.metrics.table`.
"""

import functools
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from sinkjax.metrics import rows
from sinkjax.metrics.metric import RATES, REDUCTIONS, Metric
from sinkjax.metrics.rows import RowBlock, RowStatistic
from sinkjax.metrics.sinks import attention_share
from sinkjax.metrics.table import METRICS


def shown_in(shown: str) -> list[Metric]:
  """The metrics of which "summary" or "probe" shows something."""
  return [metric for metric in METRICS.values() if getattr(metric, shown)]


def observers(
  metrics: Iterable[Metric | str],
  *,
  share: bool = False,
  learned_sink: bool = True,
  experts: bool = False,
  mixing: bool = False,
  streamed: bool = False,
) -> dict[str, tuple[Any, Callable]]:
  """What `sinkjax.capture` takes to measure these metrics.

  Args:
    metrics: of the table, themselves or their names.
    share: whether the model's rows of attention do not sum to one, so that
      metrics of shares must be computed from `sinks.attention_share`.
    learned_sink: whether the model has one; without it, metrics of its weight
      are left out.
    experts: whether the model has some; without it, their metrics are left
      out.
    mixing: whether the model has a rate of mixing; likewise.
    streamed: leave out what cannot be streamed.

  Raises:
    ValueError: for an unknown name.

  >>> list(observers(["sink_rate", "kurtosis"]))
  ['alpha', 'kurtosis']
  """
  wanted = {}
  for metric in metrics:
    if isinstance(metric, str):
      metric = _find(metric)
    if metric.measured.learned_sink and not learned_sink:
      continue
    if metric.measured.experts and not experts:
      continue
    if metric.measured.mixing and not mixing:
      continue
    if not streamed or metric.streams:
      # Metrics that reduce the same values in different ways share one
      # observer.
      metric = metric.measured
      wanted[metric.name] = (metric.site, _reducer(metric, share))
  return wanted


def _find(name: str) -> Metric:
  if name not in METRICS:
    raise ValueError(f"unknown metric {name!r}; valid: {list(METRICS)}")
  return METRICS[name]


def _reducer(metric: Metric, share: bool) -> Callable:
  form = _of_shares(metric.form) if share and metric.share else metric.form
  return rows.dense(form) if isinstance(form, RowStatistic) else form


@functools.cache  # so that a compiled program knows the same reducer again
def _of_shares(form: RowStatistic | Callable) -> RowStatistic | Callable:
  """The same of every row's shares."""
  if not isinstance(form, RowStatistic):
    return lambda pattern, *more: form(attention_share(pattern), *more)

  def update(state: Any, block: RowBlock) -> Any:
    # The logarithms are those of the weights, not of their shares.
    shares = block._replace(rows=attention_share(block.rows), logs=None)
    return form.update(state, shares)

  return form._replace(update=update, needs=(), of_sums=None)


def summary(
  values: Mapping[str, Any], *, eps: Sequence[float]
) -> dict[str, Any]:
  """The keys of `summary.json` that show metrics.

  Args:
    values: [P, *axes] by metric, texts first; `None` is shown for a metric
      that was not measured, nothing for one of what the model does not have.
    eps: thresholds of the sink rate.
  """
  shown: dict[str, Any] = {}
  for metric in shown_in("summary"):
    value = values.get(metric.measured.name)
    if value is None and metric.optional:
      continue
    for key, how in metric.summary.items():
      if value is None:
        shown[key] = None
      elif how in RATES:
        rates = {f"{e:g}": RATES[how](value, 0, e) for e in eps}
        shown[key] = {
          e: None if rate is None else float(rate) for e, rate in rates.items()
        }
      else:
        shown[key] = REDUCTIONS[how](value, 0)
  return shown


def probe_record(
  trace: Mapping[str, Any], *, eps: Sequence[float]
) -> dict[str, Any]:
  """What the training probe records of a trace; traceable.

  Args:
    trace: what `capture` saw through `observers(shown_in("probe"))`.
    eps: thresholds of the sink rate; each has a key of its own.
  """
  record: dict[str, Any] = {}
  for metric in shown_in("probe"):
    if metric.optional and metric.measured.name not in trace:
      continue
    value, texts = trace[metric.measured.name], metric.text_axis
    for key, how in metric.probe.items():
      if how in RATES:
        for e in eps:
          record[f"{key}_{e:g}"] = RATES[how](value, texts, e)
      else:
        record[key] = REDUCTIONS[how](value, texts)
  return record


def markdown() -> str:
  """The table as markdown, for the docs."""
  header = ("Metric", "What it is", "Unit", "Site", "Axes", "Streamed")
  header += ("In summary.json", "In the probe", "Source")
  lines = [header, ("---",) * len(header)]
  for metric in METRICS.values():
    cells = (
      f"`{metric.name}`",
      metric.label,
      metric.unit or "–",
      ", ".join(f"`{site}`" for site in metric.sites),
      metric.axes or "–",
      "yes" if metric.streams else "no",
      _listed(metric.summary),
      _listed(metric.probe),
      metric.source,
    )
    lines.append(cells)
  return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def _listed(shown: Mapping[str, str]) -> str:
  keys = (f"`{key}` ({how})" for key, how in shown.items())
  return ", ".join(keys) or "–"
