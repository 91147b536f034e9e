"""`graded` and `ablate_neurons`: closed forms in float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import sinkjax
from sinkjax.models.normalizers import softmax, softmax1

KEY, G = 2, 3.0


@pytest.fixture(scope="module")
def rows():
  """(scores [1, H, T, T], mask) in float64."""
  with jax.enable_x64(True):
    scores = 3 * np.random.default_rng(0).normal(size=(1, 2, 6, 6))
    yield jnp.asarray(scores), jnp.tril(jnp.ones((1, 1, 6, 6), bool))


def weights(scores, mask, g, normalize, **kw):
  return normalize(sinkjax.graded(KEY, g, **kw)(scores, 1), mask)


def learned(scores, mask):
  """With a sink that has no key."""
  return softmax(scores, mask, jnp.array([0.5, -1.0])[None, :, None, None])


@pytest.mark.parametrize("normalize", [softmax, softmax1, learned])
@pytest.mark.parametrize("g", [0.0, 0.2, 1.0, 7.0])
def test_weights_are_the_closed_form(rows, normalize, g):
  scores, mask = rows
  plain = np.asarray(normalize(scores, mask))
  got = np.asarray(weights(scores, mask, g, normalize))
  below = (g - 1) * plain[..., KEY : KEY + 1] + 1
  want = plain / below
  want[..., KEY] *= g
  want[..., : KEY + 1, :] = plain[..., : KEY + 1, :]  # none of them looks back
  np.testing.assert_allclose(got, want, rtol=1e-12, atol=1e-15)


def test_nothing_of_it_is_a_knockout_and_one_the_identity(rows):
  scores, _ = rows
  np.testing.assert_array_equal(
    sinkjax.graded(KEY, 0.0)(scores, 1), sinkjax.knockout(KEY)(scores, 1)
  )
  np.testing.assert_array_equal(sinkjax.graded(KEY, 1.0)(scores, 1), scores)
  some = sinkjax.graded([0, KEY], 0.0, heads=[1])(scores, 1)
  want = sinkjax.knockout([0, KEY], heads=[1])(scores, 1)
  np.testing.assert_array_equal(some, want)


def test_its_slope_is_the_closed_form(rows):
  """d a' / d g = a (1 - a) / ((g - 1) a + 1)^2, and no NaN at 0."""
  scores, mask = rows
  a = np.asarray(softmax(scores, mask))[..., KEY + 1 :, KEY]

  def of(g):
    return weights(scores, mask, g, softmax)[..., KEY + 1 :, KEY]

  got = jax.jit(jax.jacfwd(of))(jnp.asarray(G))
  np.testing.assert_allclose(got, a * (1 - a) / ((G - 1) * a + 1) ** 2)
  assert np.all(np.asarray(jax.jit(jax.jacfwd(of))(jnp.asarray(0.0))) == 0)


def test_each_head_may_have_its_own(rows):
  scores, _ = rows
  by = np.array([[1.0, 2.0], [0.0, 5.0]])
  for layer in range(2):
    got = sinkjax.graded(KEY, by)(scores, layer)
    for head in range(2):
      want = sinkjax.graded(KEY, by[layer, head])(scores, layer)
      np.testing.assert_allclose(got[:, head], want[:, head], rtol=1e-15)


def test_in_some_layers_and_heads(rows):
  """Layers, heads, and a mask [L, H], which knockout takes, too."""
  scores, _ = rows
  mask = np.array([[True, True], [False, True], [False, False]])
  for edit in (
    sinkjax.graded(0, G, layers=[1], heads=[1]),
    sinkjax.graded(0, G, heads=mask),
    sinkjax.knockout(0, heads=mask),
  ):
    got = [np.asarray(edit(scores, layer)) for layer in (1, 2)]
    changed = np.any(got[0] != np.asarray(scores), axis=(0, 2, 3))
    assert changed.tolist() == [False, True]
    np.testing.assert_array_equal(got[1], scores)


@pytest.mark.parametrize("edit", [sinkjax.graded(3, 2.5), sinkjax.knockout(3)])
def test_tokens_of_a_cache_are_those_of_the_text(rows, edit):
  """Columns and rows in any order, each with the token that it is."""
  scores, _ = rows
  t, s = jnp.array([4, 2]), jnp.array([5, 0, 3, 1])
  got = edit.at(scores[:, :, t][..., s], 0, t[None], s[None])
  np.testing.assert_array_equal(got, edit(scores, 0)[:, :, t][..., s])


def test_what_graded_refuses():
  for by in (-1.0, float("nan"), float("inf")):
    with pytest.raises(ValueError, match="at least 0"):
      sinkjax.graded(0, by)
  cfg = sinkjax.TINY.replace(normalizer="sigmoid")
  with pytest.raises(ValueError, match=r"only under softmax.*'sigmoid'"):
    sinkjax.graded(0, 2.0).placed(cfg, 8, "scores")
  for edit in (
    sinkjax.graded(8, 2.0),
    sinkjax.graded(0, 2.0, layers=3),
    sinkjax.graded(0, np.ones((3, 5))),
    sinkjax.graded(0, 2.0, heads=[4]),
    sinkjax.graded(0, 2.0, heads=np.ones((3, 5), bool)),
  ):
    with pytest.raises(ValueError, match=r"out of range|\[L, H\]"):
      edit.placed(sinkjax.TINY, 8, "scores")


def test_neurons_are_fixed_and_let_nothing_through():
  with jax.enable_x64(True):
    hidden = jnp.asarray(np.random.default_rng(1).normal(size=(2, 3, 48)))
    pairs, to = np.array([(1, 7), (1, 0), (2, 7)]), jnp.array([4.0, 5.0, 6.0])

    @jax.jit
    def fixed(to, hidden, layer):
      return sinkjax.ablate_neurons(pairs, to=to)(hidden, layer)

    got, other = (np.asarray(fixed(to, hidden, layer)) for layer in (1, 0))
    _, pull = jax.vjp(lambda to, x: fixed(to, x, 1), to, hidden)
    by_to, slopes = map(np.asarray, pull(jnp.ones_like(hidden)))
  want, kept = np.array(hidden), np.ones(48)
  want[..., 7], want[..., 0], kept[[0, 7]] = 4, 5, 0
  np.testing.assert_array_equal(got, want)
  np.testing.assert_array_equal(other, hidden)
  np.testing.assert_array_equal(slopes, np.broadcast_to(kept, hidden.shape))
  assert by_to.tolist() == [6, 6, 0]  # once for each of six tokens


@pytest.mark.parametrize(
  ("neurons", "to", "said"),
  [
    ([(3, 0)], 0.0, "layer 3 is out of range"),
    ([(0, 48)], 0.0, "neuron 48 is out of range"),
    ([(0, 1), (0, -47)], 0.0, "named twice"),
    ([(0, 1)], [1.0, 2.0], r"\[N, 2\]"),
  ],
)
def test_neurons_that_a_model_has_not(neurons, to, said):
  edit = sinkjax.ablate_neurons(neurons, to=to)
  with pytest.raises(ValueError, match=said):
    edit.placed(sinkjax.TINY, 8, "mlp_act")


def test_neurons_of_layers_without_experts():
  cfg = sinkjax.TINY.replace(
    n_experts=4, experts_per_token=2, d_ff=12, dense_layers=1, dense_d_ff=24
  )
  assert cfg.mlp_width == 48
  sinkjax.ablate_neurons([(0, 23), (1, 47)]).placed(cfg, 8, "mlp_act")
  with pytest.raises(ValueError, match="neuron 24 .*without experts, of 24"):
    sinkjax.ablate_neurons([(0, 24)]).placed(cfg, 8, "mlp_act")


@pytest.mark.thorough
def test_neurons_of_an_expert_stand_side_by_side():
  """Without its own an expert writes nothing, and the others as before."""
  cfg = sinkjax.TINY.replace(
    n_layers=1, n_experts=3, experts_per_token=2, d_ff=8, shared_d_ff=6
  )
  params = sinkjax.init_params(cfg, jax.random.key(0))
  f, tokens = sinkjax.forward(cfg), jnp.arange(6)[None]
  watch = {"out": ("expert_out", lambda x: jnp.abs(x).max((0, 1, 3)))}

  @jax.jit
  def written(neurons):
    edit = sinkjax.ablate_neurons(neurons)
    g = sinkjax.intervene(f, {"mlp_act": edit})
    return sinkjax.capture(g, watch)(params, tokens).trace["out"][0]

  parts = np.split(np.arange(30), [8, 16, 24])
  whole = np.asarray(written(np.full((8, 2), 99)))  # no neuron of the model
  assert np.all(whole > 0)
  for expert, part in enumerate(parts):
    neurons = np.full((8, 2), 99)
    neurons[: len(part)] = np.stack([np.zeros_like(part), part], axis=1)
    want = np.where(np.arange(4) == expert, 0, whole)
    np.testing.assert_array_equal(written(neurons), want)
