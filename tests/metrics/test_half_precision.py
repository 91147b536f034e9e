"""Metrics of half precision: those of the same values, widened."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sinkjax.analysis.sink_profile import coarse_map
from sinkjax.metrics import collapse, rows, spread
from sinkjax.metrics.rows import RowStatistic
from sinkjax.metrics.table import METRICS


def arrays(site):
  """A value of a site, in bfloat16."""
  key = jax.random.key(0)
  if site == "pattern":
    scores = 3 * jax.random.normal(key, (2, 4, 24, 24))
    seen = jnp.tri(24, dtype=bool)[None, None]
    return jax.nn.softmax(jnp.where(seen, scores, -1e30)).astype(jnp.bfloat16)
  heads = site in ("k", "v", "expert_out")  # or experts
  shape = (2, 24, 2, 16) if heads else (2, 24, 64)
  # A large entry, as the first token of a real model has it.
  return jax.random.normal(key, shape).at[:, 0].mul(99).astype(jnp.bfloat16)


def check(form, *values):
  got = form(*values)
  want = form(*(x.astype(jnp.float32) for x in values))

  def one(a, b):
    assert a.dtype == b.dtype
    # Sums of some hundred terms in another order; rounding to bfloat16 on the
    # way would show as 2e-3.
    np.testing.assert_allclose(a, b, rtol=2e-6, atol=1e-7)

  jax.tree.map(one, got, want)


MEASURED = [metric for metric in METRICS.values() if metric.form]


@pytest.mark.parametrize("metric", MEASURED, ids=lambda metric: metric.name)
def test_every_metric_of_the_table(metric):
  form = metric.form
  if isinstance(form, RowStatistic):
    form = rows.dense(form)
  check(jax.jit(form), *map(arrays, metric.sites))


STATISTICS = {
  "received_mass": rows.received_mass(),
  "mass_by_distance": rows.mass_by_distance(),
  "mass_within": rows.mass_within((1, 4)),
  "first_token_mass": rows.first_token_mass(),
  "coarse_map": coarse_map(5),
}


@pytest.mark.parametrize("name", STATISTICS)
def test_other_statistics_of_rows(name):
  check(jax.jit(rows.dense(STATISTICS[name])), arrays("pattern"))


def test_spread_and_collapse():
  x = arrays("final")
  check(spread.spread, x, jnp.roll(x, 1, axis=1))
  check(collapse.spectral_entropy, x)
