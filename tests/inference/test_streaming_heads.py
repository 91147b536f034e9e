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
  read_gates,
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


TABLE = ["sink,gate,kv_head,layer"]
TABLE += [f"0.1,{(layer + head) / 4},{head},{layer}"
          for layer in (1, 0, 2) for head in (0, 1)]  # fmt: skip


def written(path, **lines):
  """A table of gates with some of its lines, by number, exchanged."""
  table = dict(enumerate(TABLE, 1))
  table |= {int(name.removeprefix("l")): text for name, text in lines.items()}
  path.write_text("".join(f"{x}\n" for x in table.values() if x is not None))
  return path


def test_gates_are_read_by_column(tmp_path):
  cfg = sinkjax.TINY.replace(n_layers=3)
  gates = read_gates(written(tmp_path / "gates.csv"), cfg)
  assert gates.tolist() == [[0, 0.25], [0.25, 0.5], [0.5, 0.75]]


@pytest.mark.parametrize(
  ("lines", "said"),
  [
    ({"l1": "sink,gates,kv_head,layer"}, "no column 'gate': a table of"),
    ({"l3": "0.1,x,1,1"}, "line 3: layer 1, kv_head 1: gate must .* got 'x'"),
    ({"l3": "0.1,,1,1"}, "line 3: .* from 0 to 1, got None"),
    ({"l3": "0.1,nan,1,1"}, "line 3: .* from 0 to 1, got nan"),
    ({"l3": "0.1,1.5,1,1"}, "line 3: .* from 0 to 1, got 1.5"),
    ({"l3": "0.1"}, "line 3: layer None, kv_head None is none of the model"),
    ({"l3": "0.1,1,2,1"}, "kv_head 2 is none .* 3 layers of 2 KV heads, from"),
    ({"l3": "0.1,1,1,3"}, "layer 3, kv_head 1 is none of the model"),
    ({"l3": "0.1,1,0,1"}, "line 3: layer 1, kv_head 0 stands there twice"),
    ({"l7": None}, "no gate for layer 2, kv_head 1: the model has 3 layers"),
  ],
)
def test_a_bad_table_is_told_by_its_line(tmp_path, lines, said):
  cfg = sinkjax.TINY.replace(n_layers=3)
  with pytest.raises(ValueError, match=said):
    read_gates(written(tmp_path / "gates.csv", **lines), cfg)


@pytest.mark.parametrize("content", [None, b"", b"\xff\xfe", b'"a\x00'])
def test_what_is_no_table_is_told(tmp_path, content):
  path = tmp_path / "gates.csv"
  if content is not None:
    path.write_bytes(content)
  with pytest.raises(
    ValueError, match=r"gates.csv (cannot be read|has no col)"
  ):
    read_gates(path, sinkjax.TINY)
