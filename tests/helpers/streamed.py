"""Row statistics by their definitions, for the tests of streaming."""

import jax
import numpy as np
from jax.extend import core

import sinkjax
from sinkjax.metrics import rows
from sinkjax.metrics.rows import dense

STATISTICS = {
  "sink": rows.sink_score(),
  "sink5": rows.sink_score(key=5),
  "first": rows.first_token_mass(),
  "entropy": rows.attention_entropy(),
  "share": rows.attention_entropy(normalize=True),
  "received": rows.received_mass(),
  "distance": rows.mass_by_distance(),
  "within": rows.mass_within((1, 4)),
  "written": rows.value_weighted_mass(),
  "written2": rows.value_weighted_mass(key=2),
}
SOME = {name: STATISTICS[name] for name in ("sink", "entropy", "received")}


def reference(p, v):
  """Every statistic of patterns [L, B, H, T, S] by its definition."""
  p = np.asarray(p, np.float64)
  norms = np.linalg.norm(np.asarray(v, np.float64), axis=-1)  # [L, B, S, N]
  norms = np.repeat(np.moveaxis(norms, 2, 3), p.shape[2] // v.shape[3], axis=2)
  length = p.shape[-1]
  t, s = np.mgrid[:length, :length]
  logs = np.log(np.where(p > 0, p, 1))
  entropy = -(p * logs).sum(axis=-1)[..., 1:]
  written = p * norms[..., None, :]
  written /= written.sum(axis=-1, keepdims=True)
  return {
    "sink": p[..., 0].mean(axis=-1),
    "sink5": p[..., 5:, 5].mean(axis=-1),
    "first": p[..., 0],
    "entropy": entropy.mean(axis=-1),
    "share": (entropy / np.log(np.arange(2, length + 1))).mean(axis=-1),
    "received": np.stack(
      [p[..., k:, k].mean(axis=-1) for k in range(length)], axis=-1
    ),
    "distance": np.stack(
      [p[..., t - s == d].mean(axis=-1) for d in range(length)], axis=-1
    ),
    "within": np.stack(
      [(p * (t - s < w)).sum(axis=-1).mean(axis=-1) for w in (1, 4)], axis=-1
    ),
    "written": written[..., 0].mean(axis=-1),
    "written2": written[..., 2:, 2].mean(axis=-1),
  }


def observed(f, params, tokens, *sites):
  observers = {site: (site, lambda x: x) for site in sites}
  return jax.jit(sinkjax.capture(f, observers))(params, tokens)


def observers(statistics):
  """The statistics as observers of a dense pass."""
  reads = {"written": ("pattern", "v"), "written2": ("pattern", "v")}
  return {
    name: (reads.get(name, "pattern"), dense(statistic))
    for name, statistic in statistics.items()
  }


def same(got, want):
  assert set(got) == set(want)
  for name, value in want.items():
    np.testing.assert_allclose(
      got[name], value, rtol=2e-5, atol=2e-6, err_msg=name
    )


def sizes(jaxpr):
  """Elements of every intermediate, also inside loops."""
  for equation in jaxpr.eqns:
    yield from (v.aval.size for v in equation.outvars)
    for inner in core.jaxprs_in_params(equation.params):
      yield from sizes(inner)
