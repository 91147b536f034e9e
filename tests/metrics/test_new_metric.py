"""The recipe "add a metric": a function and an entry, and all show it."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sinkjax.analysis.sink_profile import sink_profile
from sinkjax.metrics import registry
from sinkjax.metrics.metric import Metric
from sinkjax.metrics.rows import mean_over_rows
from sinkjax.metrics.table import METRICS
from sinkjax.models.layerwise import InMemory
from sinkjax.report import profile as report
from sinkjax.report import train as training_report
from sinkjax.train.probe import make_probe

PROMPTS = [[3, 1, 4, 1, 5, 9, 2, 6], [2, 7, 1, 8, 2, 8, 1, 8]]


def strongest_weight(block):
  """The largest weight of every row of attention."""
  return jnp.max(block.rows, axis=-1)


def largest_value(values):
  """The largest coordinate of a KV head's values."""
  return jnp.max(jnp.abs(values), axis=(1, 3))


NEW = (
  Metric(
    "strongest_weight",
    site="pattern",
    axes="L H",
    label="largest weight of a row",
    source="a test",
    form=mean_over_rows(strongest_weight),
  ),
  Metric(
    "largest_value",
    site="v",
    axes="L N",
    unit="activations",
    label="largest coordinate of a value",
    source="a test",
    form=largest_value,
    probe={"largest_value": "peak"},
    log=True,
  ),
)


@pytest.fixture(autouse=True)
def entries(monkeypatch):
  for metric in NEW:
    monkeypatch.setitem(METRICS, metric.name, metric)


def by_hand(tiny):
  """Both metrics of every prompt, from whole patterns and values."""
  import sinkjax

  params, cfg = tiny
  seen = {site: (site, lambda x: x) for site in ("pattern", "v")}
  f = jax.jit(sinkjax.capture(sinkjax.forward(cfg), seen))
  trace = f(params, jnp.asarray(PROMPTS)).trace
  pattern, v = (np.moveaxis(np.asarray(trace[s]), 1, 0) for s in seen)
  return pattern.max(axis=-1).mean(axis=-1), np.abs(v).max(axis=(2, 4))


@pytest.mark.thorough
@pytest.mark.parametrize("streamed", [False, True])
def test_the_summary_the_table_of_heads_and_the_report_show_it(tiny, streamed):
  params, cfg = tiny
  weights = InMemory(cfg, params) if streamed else params
  profile = sink_profile(weights, cfg, PROMPTS)
  for metric, want in zip(NEW, by_hand(tiny), strict=True):
    got = report.summary(profile, eps=(0.3,))[metric.name]
    np.testing.assert_allclose(got, want.mean(axis=0), rtol=1e-5)
    header, rows = report.head_rows(profile)
    column = [row[header.index(metric.name)] for row in rows]
    by_head = np.repeat(want.mean(axis=0), 4 // want.shape[2], axis=1)
    np.testing.assert_allclose(column, by_head.ravel(), rtol=1e-5)
    shown = report._metrics(profile).rows
    assert [metric.title] == [r[0] for r in shown if r[0] == metric.title]


@pytest.mark.thorough
def test_the_training_probe_records_and_draws_it(tiny):
  params, cfg = tiny
  record = make_probe(cfg)(params, jnp.asarray(PROMPTS))
  weight, value = by_hand(tiny)
  np.testing.assert_allclose(
    record["strongest_weight"], weight.mean(), rtol=1e-5
  )
  np.testing.assert_allclose(
    record["largest_value"], value.mean(axis=0).max(), rtol=1e-5
  )
  rows = [
    {k: np.asarray(v).tolist() for k, v in record.items()} | {"step": step}
    for step in (0, 10)
  ]
  few = [{k: r[k] for k in (*METRICS, "step") if k in r} for r in rows]
  without = [{k: v for k, v in r.items() if "largest" not in k} for r in few]
  drawn = training_report._metrics(few)
  assert drawn[:4] == b"\x89PNG" and drawn != training_report._metrics(without)


def test_the_docs_list_it():
  for metric in NEW:
    assert f"| `{metric.name}` | {metric.label} |" in registry.markdown()
