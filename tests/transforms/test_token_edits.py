"""Tokens scaled and shifted: against NumPy, in a model, and refused."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import sinkjax
from sinkjax.transforms.token_edits import at_tokens

X = np.random.default_rng(0).normal(size=(2, 4, 3)).astype(np.float32)


@jax.jit
def every(x):
  """Indices in the chosen layer and another, masks, masks of nothing, zero."""
  of = {"by": 2.0, "to": jnp.arange(3.0)}
  places = {"layers": [1], "positions": [0, 2], "dims": [1, 2]}
  masks = {
    "layers": np.array([False, True]),
    "positions": np.array([True, False, True, False]),
    "dims": np.array([False, True, True]),
  }
  return (
    at_tokens(**of, **places)(x, 1),
    at_tokens(**of, **places)(x, 0),
    at_tokens(**of, **masks)(x, 1),
    at_tokens(**of, dims=np.zeros(3, bool))(x, 1),
    at_tokens(by=0.0, to=3.0, dims=[0])(x * jnp.inf, 0),
    at_tokens(by=jnp.array([5.0, 7]).reshape(2, 1, 1, 1))(x, 1),
  )


def test_what_is_chosen_changes_and_nothing_else():
  indices, other_layer, masks, nothing, zero, by_layer = map(
    np.asarray, every(X)
  )
  want = X.copy()
  for t in (0, 2):
    for d in (1, 2):
      want[:, t, d] = 2 * X[:, t, d] + d
  np.testing.assert_allclose(indices, want, rtol=1e-6)
  np.testing.assert_array_equal(masks, indices)
  np.testing.assert_array_equal(other_layer, X)
  np.testing.assert_array_equal(nothing, X)
  np.testing.assert_allclose(by_layer, 7 * X, rtol=1e-6)
  # A factor of 0 leaves no infinity.
  assert (zero[..., 0] == 3).all() and np.isinf(zero[..., 1:]).all()


@pytest.mark.thorough
def test_in_a_model(tiny, tokens):
  """Scaling what layer 1 writes is adding so much more of it."""
  params, cfg = tiny
  f = sinkjax.forward(cfg)
  seen = {"out": ("mlp_out", lambda x: x)}
  edit = at_tokens(by=3.0, layers=[-2], positions=[-1])

  @jax.jit
  def run(params):
    plain = sinkjax.capture(f, seen)(params, tokens).trace["out"]
    shift = jnp.zeros_like(plain).at[1, :, -1].set(2 * plain[1, :, -1])
    added = sinkjax.intervene(
      f, {"resid_post": lambda x, layer: x + shift[layer]}
    )
    edited = sinkjax.intervene(f, {"mlp_out": edit})
    return edited(params, tokens).logits, added(params, tokens).logits

  got, want = run(params)
  np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", ["layers", "positions", "dims"])
def test_what_is_out_of_range_is_refused(tiny, tokens, name):
  params, cfg = tiny
  edit = at_tokens(by=0.0, **{name: [99]})
  f = sinkjax.intervene(sinkjax.forward(cfg), {"resid_post": edit})
  with pytest.raises(ValueError, match="99 is out of range"):
    f(params, tokens)
