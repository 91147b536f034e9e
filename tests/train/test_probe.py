"""Tests of sinkjax.train.probe."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sinkjax.models.transformer import forward, init_params
from sinkjax.train.probe import make_probe, uniform_mass
from sinkjax.transforms.capture import capture


def test_uniform_attention(tiny, tokens):
  """Zero queries: every row is uniform, whatever the rest does."""
  params, cfg = tiny
  params = jax.tree.map(jnp.copy, params)
  kernel = params["blocks"]["attn"]["q"]["kernel"]
  params["blocks"]["attn"]["q"]["kernel"] = 0 * kernel
  found = make_probe(cfg, eps=(0.2, 0.9))(params, tokens)
  mass = uniform_mass(tokens.shape[1])
  np.testing.assert_allclose(found["alpha"], mass, rtol=1e-6)
  np.testing.assert_allclose(found["first_mass"], mass, rtol=1e-6)
  np.testing.assert_allclose(found["entropy_share"], 1.0, rtol=1e-6)
  assert (found["sink_rate_0.2"], found["sink_rate_0.9"]) == (1.0, 0.0)


def test_values_and_activations(tiny, tokens):
  params, cfg = tiny
  found = make_probe(cfg)(params, tokens)
  assert found["alpha"].shape == (cfg.n_layers, cfg.n_heads)
  assert 1.0 < float(found["massive_ratio"]) < 1000.0
  assert 1.0 < float(found["effective_rank"]) <= tokens.shape[1]
  assert 0.2 < float(found["value_ratio"]) < 5.0


def test_one_compilation(tiny, tokens):
  _, cfg = tiny
  probe = make_probe(cfg)
  for seed in range(3):
    probe(init_params(cfg, jax.random.key(seed)), tokens)
  assert probe._cache_size() == 1


@pytest.mark.thorough
def test_a_statistic_of_one_s_own(tiny, tokens, tmp_path, monkeypatch):
  (tmp_path / "plugged.py").write_text(
    "import jax.numpy as jnp\n"
    "from sinkjax.transforms.statistics import combine, mean_and_error\n"
    "def norms(cfg):\n"
    "  size = lambda x: jnp.sqrt(jnp.sum(x * x, axis=(1, 2)))\n"
    "  shape = (cfg.n_layers,)\n"
    "  return ({'size': ('resid_post', size)},\n"
    "          combine({'size': mean_and_error(shape)}))\n"
    "def taken(cfg):\n"
    "  return {'alpha': ('pattern', jnp.sum)}, None\n"
  )
  monkeypatch.syspath_prepend(tmp_path)
  params, cfg = tiny
  found = make_probe(cfg, statistics=("plugged:norms",))(params, tokens)
  seen = capture(forward(cfg), {"x": ("resid_post", lambda x: x)})
  x = np.asarray(seen(params, tokens).trace["x"], np.float64)
  sizes = np.sqrt((x**2).sum(axis=(2, 3)))
  np.testing.assert_allclose(
    found["norms.size.mean"], sizes.mean(axis=1), rtol=1e-5
  )
  assert found["norms.size.stderr"].shape == (cfg.n_layers,)
  for name, words in {
    "plugged:nothing": "cannot be imported",
    "nowhere": "cannot be imported",
    "plugged:taken": "an observer 'alpha' already",
  }.items():
    with pytest.raises(ValueError, match=words):
      make_probe(cfg, statistics=(name,))


@pytest.mark.thorough
@pytest.mark.parametrize("normalizer", ["relu", "softmax1", "softmax"])
def test_rows_that_do_not_sum_to_one(tiny, tokens, normalizer):
  """Sums as they are; scores of what sums to anything are shares."""
  params, cfg = tiny
  cfg = cfg.replace(normalizer=normalizer)
  found = make_probe(cfg)(params, tokens)
  seen = capture(forward(cfg), {"p": ("pattern", lambda p: p)})
  p = np.asarray(seen(params, tokens).trace["p"], np.float64)
  sums = p.sum(axis=-1)
  np.testing.assert_allclose(found["row_sum"], sums.mean(), rtol=1e-5)
  score = p[..., 0]
  if normalizer == "relu":
    score = np.where(sums > 0, score / np.where(sums > 0, sums, 1), 0)
  np.testing.assert_allclose(
    found["first_mass"], score.mean(), rtol=1e-5, atol=1e-7
  )
  assert (normalizer == "softmax") == np.isclose(sums, 1, atol=1e-5).all()
