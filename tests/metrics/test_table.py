"""The table of metrics holds together, and everything that reads it agrees."""

import ast
import pathlib
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import sinkjax
from sinkjax import taps
from sinkjax.analysis.sink_profile import sink_profile
from sinkjax.metrics import registry
from sinkjax.metrics.metric import RATES, Metric
from sinkjax.metrics.rows import RowStatistic
from sinkjax.metrics.table import METRICS
from sinkjax.report import profile as report
from sinkjax.train.probe import make_probe
from sinkjax.transforms.streaming import stream_statistics

PROMPTS = [[3, 1, 4, 1, 5, 9, 2, 6], [2, 7, 1, 8]]
EPS = (0.3, 0.8)


def keys(shown, *, optional=True):
  """{key: reduction} of all metrics, or of those that every model has."""
  return {
    key: how
    for metric in registry.shown_in(shown)
    if optional or not metric.optional
    for key, how in getattr(metric, shown).items()
  }


def test_no_key_is_used_twice():
  for shown in ("summary", "probe"):
    metrics = registry.shown_in(shown)
    assert len(keys(shown)) == sum(len(getattr(m, shown)) for m in metrics)


@pytest.mark.parametrize("name", METRICS)
def test_every_entry_says_what_it_is(name):
  metric = METRICS[name]
  assert metric.label and metric.source
  sites = sinkjax.EXPERT_SITES if metric.experts else sinkjax.SITES
  if metric.mixing:
    sites = sinkjax.MIXING_SITES
  assert set(metric.sites) <= set(sites)
  stacked = all(sites[site].stacked for site in metric.sites)
  assert stacked == metric.measured.axes.startswith("L")


@pytest.mark.parametrize("share", [False, True])
def test_values_have_the_axes_of_the_table(tokens, share):
  cfg = sinkjax.TINY.replace(
    n_experts=5, experts_per_token=2, shared_d_ff=8, mixing="rate"
  )
  observers = registry.observers(
    METRICS, share=share, experts=True, mixing=True
  )
  h = sinkjax.capture(sinkjax.forward(cfg), observers)
  trace = jax.eval_shape(h, sinkjax.param_shapes(cfg), tokens).trace
  assert set(trace) == {m.measured.name for m in METRICS.values()}
  sizes = {"L": cfg.n_layers, "H": cfg.n_heads, "N": cfg.n_kv_heads, "E": 6}
  for name, value in trace.items():
    metric = METRICS[name]
    want = [sizes[axis] for axis in metric.axes.split()]
    want.insert(metric.text_axis, len(tokens))
    for leaf in jax.tree.leaves(value):
      assert leaf.shape == tuple(want), name


@pytest.mark.thorough
@pytest.mark.parametrize("share", [False, True])
def test_streamed_and_dense_are_one_definition(tiny, tokens, share):
  """At blocks that do not fit the text, and of shares too."""
  params, cfg = tiny
  seen = registry.observers(METRICS, share=share)
  h = sinkjax.capture(sinkjax.forward(cfg), seen)
  dense = jax.jit(h)(params, tokens).trace
  streamed = stream_statistics(h, {}, block=5)(params, tokens).trace
  assert set(dense) == set(streamed) == set(seen)
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-5, atol=2e-6),
    streamed,
    dense,
  )


def test_shares_are_of_the_row_sum():
  """What a doubled pattern gives is what the pattern gave."""
  pattern = jax.nn.softmax(jax.random.normal(jax.random.key(0), (2, 3, 8, 8)))
  for metric in METRICS.values():
    if metric.share:
      reducer, plain = (
        jax.jit(registry.observers([metric], share=share)[metric.name][1])
        for share in (True, False)
      )
      np.testing.assert_allclose(
        reducer(2 * pattern), plain(pattern), rtol=1e-5, err_msg=metric.name
      )
      assert not np.allclose(plain(2 * pattern), plain(pattern))


def test_summary_and_csv_show_what_the_table_says(tiny):
  profile = sink_profile(*tiny, PROMPTS)
  data = report.summary(profile, eps=EPS)
  shown = keys("summary", optional=False)
  assert set(shown) == set(data) - {"token_ids", "prompts", "tokens", "nll"}
  for key, how in shown.items():
    if how in RATES:
      assert set(data[key]) == {"0.3", "0.8"}
  for metric in registry.shown_in("summary"):
    if metric.optional:
      assert metric.name not in profile.values
      continue
    if metric.summary == {metric.name: "each"}:
      want = profile.values[metric.name].mean(axis=0)
      np.testing.assert_array_equal(data[metric.name], want)
  header, rows = report.head_rows(profile)
  norms = ["value_norm_first", "value_norm_rest"]
  columns = ["alpha", "entropy", "entropy_share", *norms]
  assert header == ["layer", "head", *columns, "first_token_id"]
  assert len(rows) == 12


def test_probe_records_what_the_table_says(tiny, tokens):
  params, cfg = tiny
  record = make_probe(cfg, eps=EPS)(params, tokens)
  want = set()
  for key, how in keys("probe", optional=False).items():
    want |= {f"{key}_{e:g}" for e in EPS} if how in RATES else {key}
  assert set(record) == want


def test_summary_and_probe_measure_the_same(tiny):
  params, cfg = tiny
  prompts = [PROMPTS[0], PROMPTS[0][::-1]]
  values = sink_profile(params, cfg, prompts).values
  record = make_probe(cfg, eps=EPS)(params, jnp.asarray(prompts))
  for metric in registry.shown_in("probe"):
    for key, how in metric.probe.items():
      value = values.get(metric.measured.name)
      if value is not None and how in ("each", "mean"):
        want = value.mean(axis=0 if how == "each" else None)
        np.testing.assert_allclose(record[key], want, rtol=1e-5)


def test_the_pages_of_the_docs_have_every_entry():
  page = registry.markdown()
  for metric in METRICS.values():
    (row,) = (
      x for x in page.splitlines() if x.startswith(f"| `{metric.name}`")
    )
    for word in (metric.label, metric.source, *metric.summary, *metric.probe):
      assert word in row
  sites = taps.markdown().splitlines()
  known = [*taps.ALL_SITES]
  assert len(sites) == len(known) + 2
  assert all(line.count("|") == 5 for line in sites)
  assert all(f"`{site}`" in taps.markdown() for site in known)


def test_a_metric_that_was_not_measured_is_shown_as_missing(tiny):
  values = sink_profile(*tiny, PROMPTS).values
  del values["entropy"]
  assert registry.summary(values, eps=EPS)["entropy"] is None


def test_what_needs_the_whole_pattern_is_not_streamed(monkeypatch):
  whole = Metric(
    "whole",
    site="pattern",
    axes="L H",
    label="a test",
    source="ours",
    form=lambda pattern: pattern.sum(axis=(-2, -1)),
  )
  monkeypatch.setitem(METRICS, "whole", whole)
  assert not whole.streams
  assert "whole" in registry.observers(METRICS)
  assert "whole" not in registry.observers(METRICS, streamed=True)
  for metric in METRICS.values():
    by_rows = isinstance(metric.measured.form, RowStatistic)
    assert metric.streams or not by_rows


@pytest.mark.parametrize(
  ("given", "message"),
  [
    ({"site": "pattern"}, "either a form or of"),
    ({"of": METRICS["alpha"], "form": jnp.sum}, "either a form or of"),
    ({"form": jnp.sum}, "a site with its form"),
    ({"of": METRICS["alpha"], "summary": {"x": "sum"}}, "got 'sum'"),
  ],
)
def test_refusals(given, message):
  with pytest.raises(ValueError, match=message):
    Metric("x", label="a test", source="ours", **given)
  with pytest.raises(ValueError, match="unknown metric 'x'"):
    registry.observers(["x"])


def test_metrics_import_nothing_else_of_ours():
  folder = pathlib.Path(registry.__file__).parent
  for path in folder.glob("*.py"):
    for node in ast.walk(ast.parse(path.read_text())):
      if isinstance(node, ast.ImportFrom) and node.module:
        outside = re.match(r"(sinkjax|launch)(?!\.metrics)", node.module)
        assert outside is None, (path.name, node.module)
