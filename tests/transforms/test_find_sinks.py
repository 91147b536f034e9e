"""Tests of sinkjax.transforms.find_sinks: sinks that are put where they are."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import sinkjax
from sinkjax.transforms.find_sinks import find_sinks

CFG = sinkjax.TINY.replace(n_layers=6)
LENGTH = 24


@pytest.fixture(scope="module")
def params():
  return sinkjax.init_params(CFG, jax.random.key(0))


@pytest.fixture(scope="module")
def tokens():
  return np.asarray(jax.random.randint(jax.random.key(1), (LENGTH,), 0, 64))


def planted(states, cfg=CFG):
  """A model with these states: {(layer, position): vector}.

  Each is written after its layer, in place of what the layer computed.
  """

  def edit(value, layer):
    for (at, position), vector in states.items():
      new = value.at[:, position].set(jnp.asarray(vector, value.dtype))
      value = jnp.where(layer == at, new, value)
    return value

  return sinkjax.intervene(sinkjax.forward(cfg), {"resid_post": edit})


def axis(i, size):
  return size * np.eye(CFG.d_model)[i]


def test_each_kind_in_its_place(params, tokens):
  """A first token of three layers, a copy of its life, and a part of it."""
  states = {(layer, 0): axis(3, 900.0) for layer in (1, 2, 3)}
  states |= {(4, 0): axis(5, 1.0)}
  # As long as the first token; the sign does not matter, nor does the norm.
  states |= {(layer, 7): axis(3, -1.0) for layer in (1, 2, 3)}
  states |= {(4, 7): axis(5, 1.0)}
  states |= {(2, 11): axis(3, 2.0), (3, 11): axis(6, 1.0)}
  # Large in another direction, for one layer.
  states |= {(4, 15): axis(8, 700.0), (5, 15): axis(8, 1.0)}
  found = find_sinks(planted(states), params, tokens, eps=0.99)
  assert found.life.tolist() == [[1, 3]]
  at = {sink.position: sink for sink in found.sinks}
  assert {0, 7, 11, 15} == set(at) == set(np.flatnonzero(found.mask[0]))
  life = {p: (s.kind, s.first_layer, s.last_layer) for p, s in at.items()}
  assert life == {
    0: ("lasting", 1, 3),
    7: ("lasting", 1, 3),
    11: ("passing", 2, 2),
    15: ("passing", 4, 4),
  }
  assert at[7].cosine == pytest.approx(1) and at[7].token == tokens[7]
  assert at[0].norm > 100 > 1.5 > at[7].norm


def test_attention_alone(params, tokens):
  """Half of the heads put all of their weight on one token."""
  f = sinkjax.intervene(sinkjax.forward(CFG), {"pattern": _moved_to_nine})
  found = find_sinks(f, params, tokens)
  (sink,) = found.sinks
  assert (sink.position, sink.kind, sink.heads) == (9, "attention", 12)
  assert (sink.first_layer, sink.last_layer) == (0, 5)
  assert sink.received == pytest.approx(1)
  assert not find_sinks(f, params, tokens, heads=0.51).sinks
  assert not find_sinks(f, params, tokens, queries=LENGTH - 8).sinks


class _MovedToNine:
  """Queries from 9 on give all to 9, in heads 0 and 1."""

  def rows(self, pattern, layer, start):
    del layer
    seen = start + jnp.arange(pattern.shape[-2]) >= 9
    only = (jnp.arange(pattern.shape[-1]) == 9).astype(pattern.dtype)
    moved = jnp.where(
      seen[None, None, :, None], only[None, None, None], pattern
    )
    return pattern.at[:, :2].set(moved[:, :2])

  def __call__(self, pattern, layer):
    return self.rows(pattern, layer, 0)


_moved_to_nine = _MovedToNine()


def test_a_text_in_which_all_tokens_are_sinks(params, tokens):
  """Their median is a sink's norm, and must not be taken for the usual one."""
  states = {(1, p): axis(3, 900.0) for p in range(LENGTH)}
  states |= {(2, p): axis(p, 1.0) for p in range(LENGTH)}
  found = find_sinks(planted(states), params, tokens)
  assert found.mask.all()
  assert all(sink.norm > 100 for sink in found.sinks)


def test_signs_are_those_of_the_definition(params, tokens):
  """The numbers of a sink, from whole states and patterns by NumPy."""
  states = {(layer, 0): axis(3, 900.0) for layer in (1, 2, 3)}
  f = planted({**states, (2, 6): axis(3, 5.0)})
  kept = {"h": ("resid_post", lambda x: x), "v": ("v", lambda x: x)}
  kept["p"] = ("pattern", lambda x: x)
  trace = sinkjax.capture(f, kept)(params, tokens[None]).trace
  h, v, p = (np.asarray(trace[name], np.float64)[:, 0] for name in "hvp")
  (sink,) = (s for s in find_sinks(f, params, tokens).sinks if s.position == 6)
  norms = np.linalg.norm(h, axis=-1)
  usual = [
    np.median(np.delete(n, [0, 6] if i == 2 else 0))
    for i, n in enumerate(norms)
  ]
  for i in (1, 3):  # in these layers the first token alone has its direction
    usual[i] = np.median(norms[i, 1:])
  for i in (0, 4, 5):  # and outside of its life none is left out
    usual[i] = np.median(norms[i])
  np.testing.assert_allclose(sink.norm, (norms[:, 6] / usual).max(), rtol=1e-5)
  received = np.stack([p[..., t:, t].mean(-1) for t in range(LENGTH)], -1)
  np.testing.assert_allclose(sink.received, received[..., 6].max(), rtol=1e-5)
  values = np.linalg.norm(v, axis=-1).mean(-1)
  np.testing.assert_allclose(
    sink.value, values[2, 6] / np.median(values[2]), rtol=1e-5
  )


@pytest.mark.thorough
def test_several_texts_are_each_as_alone(params, tokens):
  f = planted({(1, 0): axis(3, 900.0), (2, 0): axis(4, 1.0)})
  other = np.roll(tokens, 5)
  both = find_sinks(f, params, np.stack([tokens, other]))
  for i, text in enumerate((tokens, other)):
    alone = find_sinks(f, params, text)
    np.testing.assert_array_equal(both.mask[i], alone.mask[0])
    np.testing.assert_array_equal(both.life[i], alone.life[0])


@pytest.mark.parametrize(
  ("given", "message"),
  [
    ({"eps": 0.0}, r"eps must be in \(0, 1\), got 0.0"),
    ({"cosine": 1.0}, r"cosine must be in \(0, 1\)"),
    ({"heads": float("nan")}, r"heads must be in"),
    ({"ratio": 1.0}, r"ratio must be in \(1, inf\)"),
    ({"queries": 0}, "queries must be at least 1"),
  ],
)
def test_refusals(given, message, params, tokens):
  with pytest.raises(ValueError, match=message):
    find_sinks(sinkjax.forward(CFG), params, tokens, **given)
