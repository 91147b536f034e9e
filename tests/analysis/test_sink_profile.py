"""The profile is the plain metrics, prompt by prompt."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from compilations import compilations
from quick import quick

import sinkjax
from sinkjax.analysis import sink_profile as module
from sinkjax.analysis.sink_profile import coarse_map, sink_profile
from sinkjax.metrics.rows import dense
from sinkjax.models.layerwise import InMemory
from sinkjax.transforms import streaming

PROMPTS = [[3, 1, 4, 1, 5, 9, 2, 6], [2, 7, 1, 8], [5, 5, 5, 5, 5, 6, 7, 8]]


@pytest.fixture(scope="module")
def profile(tiny):
  return sink_profile(*tiny, PROMPTS)


def test_matches_the_metrics_one_by_one(profile, tiny):
  params, cfg = tiny
  f = sinkjax.forward(cfg)
  sites = ("pattern", "v", "resid_post")
  h = jax.jit(sinkjax.capture(f, {s: (s, lambda x: x) for s in sites}))
  for p, prompt in enumerate(PROMPTS):
    out = h(params, jnp.array([prompt]))
    out = jax.tree.map(np.asarray, out)
    pattern, v = out.trace["pattern"][:, 0], out.trace["v"][:, 0]
    np.testing.assert_allclose(
      profile.alpha[p], pattern[..., 0].mean(-1), rtol=1e-5
    )
    norms = np.linalg.norm(np.asarray(v), axis=-1)
    np.testing.assert_allclose(
      profile.values["value_norm_first"][p], norms[:, 0], 1e-5
    )
    np.testing.assert_allclose(
      profile.values["value_norm_rest"][p], norms[:, 1:].mean(1), rtol=1e-5
    )
    hidden = np.linalg.norm(np.asarray(out.trace["resid_post"][:, 0]), axis=-1)
    np.testing.assert_allclose(
      profile.values["hidden_norm_median"][p],
      np.median(hidden, axis=1),
      rtol=1e-5,
    )
    log_p = np.asarray(jax.nn.log_softmax(out.logits[0]))
    nll = -np.mean([log_p[i, t] for i, t in enumerate(prompt[1:])])
    np.testing.assert_allclose(profile.nll[p], nll, rtol=1e-5)
    largest = np.abs(np.asarray(out.trace["resid_post"])).max(axis=(1, 2, 3))
    np.testing.assert_allclose(
      np.abs(profile.values["massive"]["value"][p]), largest, rtol=1e-5
    )


def test_rate_error_and_ranking(profile):
  rates = (profile.alpha > 0.3).mean(axis=(1, 2))
  assert profile.sink_rate(0.3) == pytest.approx(rates.mean())
  want = rates.std(ddof=1) / np.sqrt(3)
  assert profile.sink_rate_stderr(0.3) == pytest.approx(want)
  ranked = [profile.alpha.mean(0)[at] for at in profile.ranked_heads()]
  assert ranked == sorted(ranked, reverse=True)
  assert len(set(profile.ranked_heads())) == 12


def test_batching_changes_nothing(profile, tiny, monkeypatch):
  monkeypatch.setattr(module, "BATCH_TOKENS", 8)
  again = sink_profile(*tiny, PROMPTS)
  np.testing.assert_allclose(again.alpha, profile.alpha, atol=1e-6)
  np.testing.assert_allclose(again.maps, profile.maps, atol=1e-6)


@pytest.mark.thorough
@pytest.mark.parametrize("longest", quick([8, 61], 8))
def test_layer_by_layer_changes_nothing(tiny, longest, monkeypatch):
  """Blocks of rows and of the map do not fit into each other."""
  monkeypatch.setattr(module, "DRAWN", 7)
  monkeypatch.setattr(streaming, "BLOCK_BYTES", {"cpu": 1})  # 32 rows
  params, cfg = tiny
  prompts = [[(7 * i) % 64 for i in range(longest)], *PROMPTS]
  whole = sink_profile(params, cfg, prompts)
  layers = sink_profile(InMemory(cfg, params), cfg, prompts)
  for name, value in dataclasses.asdict(whole).items():
    jax.tree.map(
      lambda a, b, name=name: np.testing.assert_allclose(
        a, b, rtol=2e-5, atol=2e-6, err_msg=name
      ),
      getattr(layers, name),
      value,
    )


def in_memory(params, cfg):
  return params


def by_layer(params, cfg):
  return InMemory(cfg, params)


@pytest.mark.parametrize(
  "held", [in_memory, pytest.param(by_layer, marks=pytest.mark.thorough)]
)
def test_the_same_again_compiles_nothing(tiny, held):
  params, cfg = tiny
  cfg = cfg.replace(norm_eps=3e-5)  # a config that nothing compiled
  with compilations() as first:
    profile = sink_profile(held(params, cfg), cfg, PROMPTS)
  with compilations() as second:
    again = sink_profile(held(params, cfg), cfg, PROMPTS)
  assert first and not second
  np.testing.assert_array_equal(again.alpha, profile.alpha)


def test_progress_counts_prompts(tiny):
  done = []
  sink_profile(*tiny, PROMPTS, progress=done.append)
  assert sum(done) == 3


@pytest.mark.parametrize("length", [5, 8, 9, 64])
def test_coarse_map_keeps_rows_and_columns(length):
  scores = jax.random.normal(jax.random.key(0), (2, length, length))
  pattern = np.asarray(jax.nn.softmax(scores, axis=-1))
  small = np.asarray(jax.jit(dense(coarse_map(8)))(jnp.asarray(pattern)[None]))[
    0
  ]
  cell = -(-length // 8)
  assert small.shape[-1] == -(-length // cell) <= 8
  np.testing.assert_allclose(small.sum(-1), 1, rtol=1e-5)
  last = (length - 1) // cell * cell
  for row, rows in ((0, slice(0, cell)), (-1, slice(last, None))):
    want = pattern[:, rows, :cell].sum(axis=2).mean(axis=1)
    np.testing.assert_allclose(small[:, row, 0], want, rtol=1e-5)


def test_refusals(tiny):
  with pytest.raises(ValueError, match="no prompts"):
    sink_profile(*tiny, [])
  with pytest.raises(ValueError, match="prompt 1 has 1 tokens"):
    sink_profile(*tiny, [[1, 2], [3]])
  with pytest.raises(ValueError, match="prompt 0 has a token outside"):
    sink_profile(*tiny, [[1, 64]])
