"""Streamed statistics are the dense ones, a block of rows at a time."""

import weakref

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import variants
from quick import quick
from streamed import (
  SOME,
  STATISTICS,
  observed,
  observers,
  reference,
  same,
  sizes,
)

import sinkjax
from sinkjax.analysis.sink_profile import token_nll
from sinkjax.metrics import rows, sinks
from sinkjax.metrics.rows import dense
from sinkjax.models.context import causal_mask
from sinkjax.models.layerwise import InMemory
from sinkjax.transforms import chunks, streaming
from sinkjax.transforms.streaming import stream_statistics


# The kept ones have experts, latent attention, windows and learned positions.
@pytest.fixture(
  params=quick(variants.VARIANTS, "gpt2", "gemma2", "nope", "deepseek"),
  scope="module",
)
def variant(request):
  return variants.build(request.param)


@pytest.mark.slow
def test_every_statistic_and_the_likelihood(variant, tokens):
  """In every family, as defined, dense and streamed; two blocks do not fit."""
  params, cfg = variant
  f = sinkjax.forward(cfg)
  plain = observed(f, params, tokens, "pattern", "v")
  want = reference(plain.trace["pattern"], plain.trace["v"])
  watched = sinkjax.capture(f, observers(STATISTICS))
  same(jax.jit(watched)(params, tokens).trace, want)
  got = stream_statistics(f, STATISTICS, block=5)(params, tokens)
  same(got.trace, want)
  np.testing.assert_allclose(
    got.nll, token_nll(plain.logits, tokens), rtol=1e-5
  )


@pytest.mark.thorough
@pytest.mark.parametrize("block", quick([1, 3, 8, 12, 100, None], 8, None))
def test_any_block(tiny, tokens, block):
  params, cfg = tiny
  f = sinkjax.forward(cfg)
  plain = observed(f, params, tokens, "pattern", "v")
  want = reference(plain.trace["pattern"], plain.trace["v"])
  run = stream_statistics(f, STATISTICS, block=block)
  got = run(params, tokens)
  same(got.trace, want)
  np.testing.assert_allclose(
    got.nll, token_nll(plain.logits, tokens), rtol=1e-5
  )
  both = run(params, tokens[1:])
  same(both.trace, jax.tree.map(lambda x: x[:, 1:], got.trace))


def test_the_metrics_are_those_of_sinks(tiny, tokens):
  params, cfg = tiny
  pattern = observed(sinkjax.forward(cfg), params, tokens, "pattern").trace[
    "pattern"
  ][1]
  for statistic, metric in (
    (rows.sink_score(key=2), lambda p: sinks.sink_score(p, key=2)),
    (rows.first_token_mass(), sinks.first_token_mass),
    (rows.attention_entropy(), sinks.attention_entropy),
  ):
    np.testing.assert_allclose(
      jax.jit(dense(statistic))(pattern), jax.jit(metric)(pattern), rtol=1e-6
    )


def test_no_statistics_and_one_token(tiny, tokens):
  params, cfg = tiny
  f = sinkjax.forward(cfg)
  out = stream_statistics(f, {})(params, tokens)
  assert out.trace == {}
  out = stream_statistics(f, SOME)(params, tokens[:, :1])
  assert np.all(np.isnan(out.nll))
  assert np.all(np.asarray(out.trace["sink"]) == 1)
  assert np.all(np.asarray(out.trace["entropy"]) == 0)
  assert stream_statistics(f, {}, nll=False)(params, tokens).nll is None


def test_weights_layer_by_layer_and_positions(tiny, tokens):
  params, cfg = tiny
  run = stream_statistics(sinkjax.forward(cfg), SOME, block=5)
  positions = jnp.broadcast_to(3 * jnp.arange(12), (2, 12))
  got = run(InMemory(cfg, params), tokens, positions=positions)
  watched = jax.jit(sinkjax.capture(sinkjax.forward(cfg), observers(SOME)))
  want = watched(params, tokens, positions=positions)
  same(got.trace, want.trace)
  np.testing.assert_allclose(got.nll, token_nll(want.logits, tokens), rtol=1e-5)


def test_a_layer_is_let_go_before_the_next_is_asked_for(tiny, tokens):
  params, cfg = tiny

  class Watched(InMemory):
    held = []

    def layer(self, index):
      assert all(leaf() is None for leaf in self.held)
      layer = super().layer(index)
      self.held += [weakref.ref(leaf) for leaf in jax.tree.leaves(layer)]
      return layer

  run = stream_statistics(sinkjax.forward(cfg), SOME, block=5)
  run(Watched(cfg, params), tokens)
  assert Watched.held


def test_tokens_and_vocabulary_in_pieces(tiny, tokens, monkeypatch):
  """The MLP and the logits, where the last piece is smaller."""
  from sinkjax.models import layerwise

  params, cfg = tiny
  cfg = cfg.replace(norm_eps=2e-5)  # a config that nothing compiled
  f = sinkjax.forward(cfg)
  want = token_nll(f(params, tokens).logits, tokens)
  monkeypatch.setattr(chunks, "CHUNK", 5)
  monkeypatch.setattr(layerwise, "UNEMBED_COLUMNS", 24)
  got = stream_statistics(f, {})(params, tokens).nll
  np.testing.assert_allclose(got, want, rtol=1e-5)


def test_mask_of_rows_is_the_mask():
  cfg = sinkjax.TINY.replace(window=3, local_layers=(True, False, True))
  for layer, window in ((0, 3), (1, None)):
    whole = causal_mask(10, None, window)
    part = streaming.rows_mask(cfg, 4, 3, 8, layer)
    np.testing.assert_array_equal(part, whole[:, :, 4:7, :8])


@pytest.mark.parametrize("length", [1, 2, 7, 12, 64, 100])
@pytest.mark.parametrize("block", [1, 3, 7, 64])
def test_pieces_cover_every_row_once(length, block):
  covered = []
  for first, count, size, keys in streaming._pieces(length, block, 6):
    covered += range(first, first + count * size)
    assert keys == first + count * size
  assert covered == list(range(length))


@pytest.mark.parametrize("name", ["llama", "gemma2"])
def test_no_array_of_all_pairs(name):
  """No intermediate as large as [T, T] where the heads alone are four."""
  cfg = sinkjax.TINY.replace(**variants.VARIANTS[name])
  params = sinkjax.init_params(cfg, jax.random.key(0))
  tokens = jnp.zeros((1, 64), int)
  edit = {"scores": sinkjax.knockout(1)}
  g = sinkjax.intervene(sinkjax.forward(cfg), edit)

  def largest(block):
    run = stream_statistics(g, STATISTICS, block=block, nll=False)
    return max(sizes(jax.make_jaxpr(run)(params, tokens).jaxpr))

  assert largest(64) >= 4 * 64 * 64
  assert largest(4) < 64 * 64


def test_one_trace_for_all_layers_runs_and_edits(tiny, tokens):
  params, cfg = tiny
  traces = []

  def init(*shape):
    traces.append(shape)
    return rows.sink_score().init(*shape)

  counted = rows.sink_score()._replace(init=init)
  for key in (0, 1, 2):
    edit = {"scores": sinkjax.knockout(key)}
    g = sinkjax.intervene(sinkjax.forward(cfg), edit)
    run = stream_statistics(g, {"sink": counted}, block=5)
    run(params, tokens)
    run(params, tokens + 1)
  assert traces == [(2, 4, 12)]


@pytest.mark.thorough
def test_bfloat16(tiny, tokens):
  params, cfg = tiny
  f = sinkjax.forward(cfg.replace(dtype="bfloat16"))
  want = sinkjax.capture(f, observers(SOME))(params, tokens).trace
  got = stream_statistics(f, SOME, block=5)(params, tokens)
  for name, value in want.items():
    np.testing.assert_allclose(got.trace[name], value, atol=0.02)
  assert np.all(np.isfinite(got.nll))


def test_refusals(tiny, tokens):
  params, cfg = tiny
  f = sinkjax.forward(cfg)
  h = sinkjax.capture(f, {"sink": ("pattern", sinkjax.sink_score)})
  with pytest.raises(ValueError, match="'sink' .* would see whole rows"):
    stream_statistics(h, {})
  h = sinkjax.capture(f, {"sink": ("pattern", dense(SOME["sink"]))})
  with pytest.raises(ValueError, match="duplicate statistic 'sink'"):
    stream_statistics(h, SOME)
  with pytest.raises(ValueError, match="block must be a positive integer"):
    stream_statistics(f, SOME, block=0)
  with pytest.raises(ValueError, match=r"key must be in \[0, 12\), got 12"):
    far = {"far": rows.sink_score(key=12)}
    stream_statistics(f, far)(params, tokens)
  with pytest.raises(ValueError, match="observe the sites"):
    dense(STATISTICS["written"])(jnp.ones((1, 1, 1, 1)))
  with pytest.raises(ValueError, match="token id 64"):
    stream_statistics(f, {})(params, tokens + 64 - tokens)
