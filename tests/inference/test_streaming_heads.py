"""Learned gates: the objective, Adam by hand, and a head that is not needed."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from variants import scaled

import sinkjax
from sinkjax.inference.streaming_heads import (
  Answers,
  hidden_states,
  learn_gates,
  objective,
)
from sinkjax.transforms.streaming_edits import MixStreaming


@pytest.fixture(scope="module")
def made():
  """(params, cfg, text): rows of 24 tokens, whose last two are asked."""
  cfg = sinkjax.TINY.replace(n_layers=2)
  params = scaled(sinkjax.init_params(cfg, jax.random.key(0)), 1.5)
  tokens = jax.random.randint(jax.random.key(1), (1, 24), 0, 64)
  branch = np.zeros((1, 24), int)
  branch[0, 22:] = 1, 2
  positions = np.arange(24)[None]
  positions = np.where(branch > 0, 22, positions)
  asked = np.array([[22, 23]])
  parts = tokens, positions, branch, asked
  return params, cfg, Answers(*map(jnp.asarray, parts))


def test_objective_by_hand():
  rng = np.random.default_rng(0)
  x, y = rng.normal(size=(2, 1, 3, 5))
  gate = rng.random((2, 2))
  want = ((x - y) ** 2).sum() / (y**2).sum() + 0.1 * gate.mean()
  given = (jnp.asarray(a, jnp.float32) for a in (x, y, gate))
  np.testing.assert_allclose(jax.jit(objective)(*given, 0.1), want, rtol=1e-5)


@pytest.mark.thorough
def test_states_are_those_of_each_question_alone(made):
  params, cfg, text = made
  ones = jnp.ones((cfg.n_layers, cfg.n_kv_heads))
  got = np.asarray(hidden_states(cfg)(params, text, ones, 1, 4))[0]
  assert got.shape == (2, cfg.d_model)
  watch = {"x": ("final", lambda x: x[0, 22])}
  f = sinkjax.capture(sinkjax.forward(cfg), watch)
  run = jax.jit(lambda *a: f(*a).trace["x"])
  for q in range(2):
    row = jnp.concatenate([text.tokens[0, :22], text.tokens[0, 22 + q][None]])
    np.testing.assert_allclose(run(params, row[None]), got[q], atol=1e-4)


@pytest.mark.thorough
def test_a_step_is_adam_s_and_costs_close_what_is_not_needed(made):
  params, cfg, text = made
  calls = []
  given = {"sinks": 1, "window": 4, "progress": lambda: calls.append(1)}
  one = learn_gates(cfg, params, [text], rate=0.125, **given)
  # From its start a step of Adam is the rate, by the sign of the slope: at open
  # gates the states do not differ, and the cost alone has a slope.
  np.testing.assert_allclose(one.gate, 0.875, rtol=1e-5)
  np.testing.assert_allclose(one.objective, [0.05], rtol=1e-4)
  assert len(calls) == 1
  cheap = learn_gates(cfg, params, [text] * 12, rate=0.125, cost=0.0, **given)
  np.testing.assert_allclose(cheap.gate, 1, atol=1e-4)
  dear = learn_gates(cfg, params, [text] * 12, rate=0.125, cost=1e3, **given)
  np.testing.assert_allclose(dear.gate, 0, atol=1e-4)
  # A head that writes nothing is closed; the other of its layer stays.
  kernel = params["blocks"]["attn"]["o"]["kernel"]
  group = cfg.n_heads // cfg.n_kv_heads
  mute = {
    **params["blocks"]["attn"],
    "o": {"kernel": kernel.at[:, :group].set(0)},
  }
  silent = {**params, "blocks": {**params["blocks"], "attn": mute}}
  found = learn_gates(cfg, silent, [text] * 20, rate=0.125, cost=1e-4, **given)
  assert (found.gate[:, 0] < 0.05).all() and (found.gate[:, 1] > 0.3).all()


def test_models_without_a_softmax_are_refused(made):
  params, cfg, text = made
  other = cfg.replace(sink_logit=True)
  gate = np.ones((cfg.n_layers, cfg.n_kv_heads))
  with pytest.raises(ValueError, match="softmax over tokens"):
    MixStreaming(gate, 1, 4).placed(other, 24, "pattern")
