"""Streamed statistics are the dense ones, a block of rows at a time."""

import weakref

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.extend import core

import sinkjax
from sinkjax.analysis.sink_profile import token_nll
from sinkjax.metrics import rows, sinks
from sinkjax.metrics.rows import dense
from sinkjax.models.attention import causal_mask
from sinkjax.models.layerwise import InMemory
from sinkjax.transforms import streaming
from sinkjax.transforms.streaming import stream_statistics

VARIANTS = {
  "llama": {},
  "gpt2": {
    "norm": "layer",
    "qkv_bias": True,
    "out_bias": True,
    "gated_mlp": False,
    "mlp_bias": True,
    "positions": "learned",
    "tie_embeddings": True,
  },
  "gemma2": {
    "norm_offset": 1.0,
    "post_norms": True,
    "attn_softcap": 5.0,
    "logit_softcap": 3.0,
    "window": 3,
    "embed_scale": 5.0,
    "local_layers": (True, False, True),
  },
  "gemma3": {
    "qk_norm": True,
    "window": 3,
    "local_layers": (True, True, False),
    "rope_local_base": 100.0,
  },
  "neox": {"parallel_residual": True, "rope_dim": 2, "norm": "layer"},
  "nope": {"positions": "none", "activation": "relu"},
}

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


@pytest.fixture(params=VARIANTS, scope="module")
def variant(request):
  cfg = sinkjax.TINY.replace(**VARIANTS[request.param])
  params = sinkjax.init_params(cfg, jax.random.key(0))
  return jax.tree.map(lambda x: x * 1.5, params), cfg


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
  return sinkjax.capture(f, observers)(params, tokens)


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


def test_every_statistic_and_the_likelihood(variant, tokens):
  """In every family, as defined, dense and streamed; two blocks do not fit."""
  params, cfg = variant
  f = sinkjax.forward(cfg)
  plain = observed(f, params, tokens, "pattern", "v")
  want = reference(plain.trace["pattern"], plain.trace["v"])
  watched = sinkjax.capture(f, observers(STATISTICS))
  same(watched(params, tokens).trace, want)
  got = stream_statistics(f, STATISTICS, block=5)(params, tokens)
  same(got.trace, want)
  np.testing.assert_allclose(
    got.nll, token_nll(plain.logits, tokens), rtol=1e-5
  )


@pytest.mark.parametrize(
  "block", [pytest.param(1, marks=pytest.mark.slow), 3, 8, 12, 100, None]
)
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
      dense(statistic)(pattern), metric(pattern), rtol=1e-6
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
  watched = sinkjax.capture(sinkjax.forward(cfg), observers(SOME))
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
  monkeypatch.setattr(streaming, "CHUNK", 5)
  monkeypatch.setattr(layerwise, "UNEMBED_COLUMNS", 24)
  got = stream_statistics(f, {})(params, tokens).nll
  np.testing.assert_allclose(got, want, rtol=1e-5)


EDITS = {
  "knockout": {"scores": sinkjax.knockout(0, from_layer=1)},
  "knockout in some heads": {
    "scores": sinkjax.knockout(4, heads=[True, False, True, False])
  },
  "scores": {
    "scores": sinkjax.chain(
      sinkjax.scale(np.array([1.0, 2, 0, 3])[:, None, None][None]),
      sinkjax.add(0.5, layers=[1]),
      sinkjax.knockout(3),
    )
  },
  "uniform": {"scores": sinkjax.replace(0.0, layers=1)},
  "pattern": {"pattern": sinkjax.chain(sinkjax.scale(0.5), sinkjax.add(0.01))},
  "heads": {"z": sinkjax.ablate_heads(np.eye(3, 4, dtype=bool))},
  "whole": {
    "embed": sinkjax.scale(1.5),
    "resid_pre": sinkjax.add(0.1, layers=2),
    "attn_in": sinkjax.patch(jnp.ones((3, 2, 12, 32)), positions=[3]),
    "q": sinkjax.scale(2.0),
    "k": lambda k, layer: k[:, ::-1],
    "v": sinkjax.scale(jnp.linspace(0, 2, 12)[None, :, None, None]),
    "attn_out": sinkjax.scale(0.5),
    "resid_mid": lambda x, layer: x - x.mean(axis=1, keepdims=True),
    "mlp_in": sinkjax.add(jnp.linspace(0, 1, 12)[None, :, None]),
    "mlp_act": lambda x, layer: x - x.mean(axis=1, keepdims=True),
    "mlp_out": sinkjax.scale(jnp.linspace(0, 2, 12)[None, :, None]),
    "resid_post": sinkjax.patch(jnp.ones((3, 2, 12, 32)), positions=[0, 7]),
    "final": sinkjax.scale(2.0),
  },
}


@pytest.mark.parametrize("name", EDITS)
def test_edits_act_as_in_a_dense_pass(tiny, tokens, name):
  params, cfg = tiny
  g = sinkjax.intervene(sinkjax.forward(cfg), EDITS[name])
  statistics = STATISTICS
  if name == "pattern":  # what a row puts on its future is nobody's distance
    statistics = {k: STATISTICS[k] for k in ("sink", "entropy", "received")}
  want = sinkjax.capture(g, observers(statistics))(params, tokens)
  got = stream_statistics(g, statistics, block=5)(params, tokens)
  same(got.trace, want.trace)
  np.testing.assert_allclose(got.nll, token_nll(want.logits, tokens), rtol=1e-5)


def test_observers_outside_the_rows_and_dense_ones(tiny, tokens):
  params, cfg = tiny
  whole = (
    "embed",
    "resid_pre",
    "attn_in",
    "z",
    "mlp_in",
    "mlp_act",
    "resid_post",
    "final",
  )
  seen = {
    **observers(STATISTICS),
    "pair": (("v", "resid_post"), lambda v, x: x.sum() + v.sum()),
    **{site: (site, lambda x: x) for site in whole},
  }
  h = sinkjax.capture(sinkjax.forward(cfg), seen)
  got = stream_statistics(h, {"again": SOME["sink"]}, block=5)(params, tokens)
  again = got.trace.pop("again")
  np.testing.assert_array_equal(again, got.trace["sink"])
  want = h(params, tokens).trace
  for name in ("pair", *whole):
    np.testing.assert_allclose(
      got.trace.pop(name), want.pop(name), rtol=1e-4, atol=1e-5
    )
  same(got.trace, want)


@pytest.mark.parametrize("site", ["mlp_in", "mlp_act"])
def test_a_tap_in_the_mlp_sees_every_token(tiny, tokens, monkeypatch, site):
  """Though the MLP takes a long text in chunks."""
  params, cfg = tiny
  monkeypatch.setattr(streaming, "CHUNK", 5)

  def turned(x, layer):
    return x[:, ::-1] - x.mean(axis=1, keepdims=True)

  g = sinkjax.intervene(sinkjax.forward(cfg), {site: turned})
  h = sinkjax.capture(g, {"seen": (site, lambda x: x)})
  got = stream_statistics(h, {}, block=3)(params, tokens)
  want = h(params, tokens)
  np.testing.assert_allclose(
    got.trace["seen"], want.trace["seen"], rtol=1e-4, atol=1e-5
  )
  np.testing.assert_allclose(got.nll, token_nll(want.logits, tokens), rtol=1e-5)


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


def sizes(jaxpr):
  """Elements of every intermediate, also inside loops."""
  for equation in jaxpr.eqns:
    yield from (v.aval.size for v in equation.outvars)
    for inner in core.jaxprs_in_params(equation.params):
      yield from sizes(inner)


@pytest.mark.parametrize("name", ["llama", "gemma2"])
def test_no_array_of_all_pairs(name):
  """No intermediate as large as [T, T] where the heads alone are four."""
  cfg = sinkjax.TINY.replace(**VARIANTS[name])
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


def test_bfloat16(tiny, tokens):
  params, cfg = tiny
  f = sinkjax.forward(cfg.replace(dtype="bfloat16"))
  want = sinkjax.capture(f, observers(SOME))(params, tokens).trace
  got = stream_statistics(f, SOME, block=5)(params, tokens)
  for name, value in want.items():
    np.testing.assert_allclose(got.trace[name], value, atol=0.02)
  assert np.all(np.isfinite(got.nll))


def no_rows(scores, layer):
  return scores


@pytest.mark.parametrize(
  ("edits", "message"),
  [
    ({"scores": no_rows}, "the edit no_rows cannot act on a block"),
    ({"pattern": sinkjax.patch(jnp.ones(3))}, "the edit Patch cannot"),
    ({"scores": sinkjax.chain(no_rows)}, "the edit no_rows cannot"),
    ({"scores": sinkjax.add(jnp.zeros((12, 12)))}, "Add of a block of rows"),
  ],
)
def test_edits_that_need_every_row(tiny, tokens, edits, message):
  params, cfg = tiny
  g = sinkjax.intervene(sinkjax.forward(cfg), edits)
  with pytest.raises(ValueError, match=message):
    stream_statistics(g, {})(params, tokens)


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
