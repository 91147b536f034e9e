"""Edits that read other sites of their layer."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import sinkjax
from sinkjax.metrics import rows
from sinkjax.transforms.streaming import stream_statistics

CFG = sinkjax.TINY
TOKENS = jnp.arange(6)[None]


class AddMeans:
  """Adds the mean of every query and key to all its scores."""

  reads = ("q", "k")

  def __call__(self, scores, layer, *read):
    if not read:
      raise ValueError("no queries and keys")
    q, k = (jnp.swapaxes(x.mean(axis=-1), 1, 2) for x in read)
    k = jnp.repeat(k, CFG.group_size, axis=1)
    return scores + q[:, :, :, None] + k[:, :, None]


@pytest.fixture(scope="module")
def params():
  return sinkjax.init_params(CFG, jax.random.key(0))


def seen(edits, params, cfg=CFG):
  """Queries, keys and scores of the first layer."""
  watch = {site: (site, lambda x: x) for site in ("q", "k", "scores")}
  f = sinkjax.intervene(sinkjax.forward(cfg), edits)
  trace = sinkjax.capture(f, watch)(params, TOKENS).trace
  return [np.asarray(trace[site][0]) for site in watch]


def test_it_is_given_what_its_layer_has(params):
  q, k, scores = seen({"scores": AddMeans()}, params)
  _, _, plain = seen({}, params)
  k = np.repeat(k, CFG.group_size, axis=2)
  more = q.mean(-1).swapaxes(1, 2)[..., None]
  more = more + k.mean(-1).swapaxes(1, 2)[:, :, None]
  np.testing.assert_allclose(scores, plain + more, atol=1e-5)


def test_it_sees_values_after_their_own_edits(params):
  edits = {"q": sinkjax.scale(3.0), "scores": AddMeans()}
  q, k, scores = seen(edits, params)
  _, _, plain = seen({"q": sinkjax.scale(3.0)}, params)
  k = np.repeat(k, CFG.group_size, axis=2)
  more = q.mean(-1).swapaxes(1, 2)[..., None]
  more = more + k.mean(-1).swapaxes(1, 2)[:, :, None]
  np.testing.assert_allclose(scores, plain + more, atol=1e-5)


def test_in_a_chain_and_behind_a_models_own_edit(params):
  """In the order in which they are named: doubled before or after."""
  _, _, plain = seen({}, params)
  _, _, added = seen({"scores": AddMeans()}, params)
  double = sinkjax.scale(2.0)
  chains = {"first": (double, AddMeans()), "last": (AddMeans(), double)}
  want = {"first": added + plain, "last": 2 * added}
  for name, edits in chains.items():
    _, _, found = seen({"scores": sinkjax.chain(*edits)}, params)
    np.testing.assert_allclose(found, want[name], atol=1e-5)
  own = sinkjax.edited(CFG, "graded key=0 by=2")
  _, _, mine = seen({}, params, own)
  _, _, both = seen({"scores": AddMeans()}, params, own)
  np.testing.assert_allclose(both - mine, added - plain, atol=1e-5)


def test_a_site_that_comes_later_is_refused(params):
  class Early(AddMeans):
    reads = ("pattern",)

  with pytest.raises(ValueError, match="reads 'pattern', which does not come"):
    seen({"scores": Early()}, params)


def test_passes_that_take_a_layer_apart_refuse_it(params):
  g = sinkjax.intervene(sinkjax.forward(CFG), {"scores": AddMeans()})
  with pytest.raises(ValueError, match="'scores' reads q, k of its layer"):
    sinkjax.jacobian_norms(g, params, TOKENS[0])
  with pytest.raises(ValueError, match="rows"):
    stream_statistics(g, {"m": rows.received_mass()})(params, TOKENS)


@pytest.mark.thorough
def test_derivatives_go_through_what_is_read(params):
  """Against finite differences of a logit."""
  cfg = CFG.replace(dtype="float64")
  with jax.enable_x64(True):
    wide = jax.tree.map(lambda x: jnp.asarray(x, jnp.float64), params)
    f = sinkjax.intervene(sinkjax.forward(cfg), {"scores": AddMeans()})

    def logit(params):
      return f(params, TOKENS).logits[0, -1, 3]

    way = jax.tree.map(
      lambda x: jnp.sin(jnp.arange(x.size)).reshape(x.shape), wide
    )

    def along(by):
      return logit(jax.tree.map(lambda a, b: a + by * b, wide, way))

    _, slope = jax.jvp(logit, (wide,), (way,))
    step = 1e-6
    steep = (along(step) - along(-step)) / (2 * step)
    np.testing.assert_allclose(steep, slope, rtol=1e-6)
