"""Twelve scores of arrays made by hand, in float64 and by plain loops."""

import jax
import numpy as np
import pytest

from sinkjax.inference import inactive_heads
from sinkjax.inference.inactive_heads import SCORES

NOOP = (1, 2)
"""The layer and head that attends to a first token of value zero."""

L, B, H, T, K, D = 2, 3, 4, 11, 3, 5


@pytest.fixture(scope="module")
def arrays():
  rng = np.random.default_rng(0)
  scores = rng.normal(size=(L, B, H, T, T))
  layer, head = NOOP
  scores[layer, :, head, :, 0] = 60
  p = np.exp(scores) * np.tri(T)
  p /= p.sum(-1, keepdims=True)
  v = rng.normal(size=(L, B, T, H, K))
  v[layer, :, 0, head] = 0
  z = np.einsum("lbhts,lbshk->lbthk", p, v)
  made = {"pattern": p, "v": v, "z": z, "scores": scores}
  made["resid_mid"] = rng.normal(size=(L, B, T, D))
  return {name: x.astype(np.float32) for name, x in made.items()}


@pytest.fixture(scope="module")
def looked(arrays):
  watch = inactive_heads.observers()

  @jax.jit
  def trace(arrays):
    def one(layer):
      sites = {
        name: (sites,) if isinstance(sites, str) else sites
        for name, (sites, _) in watch.items()
      }
      return {
        name: watch[name][1](*(layer[site] for site in of))
        for name, of in sites.items()
      }

    return jax.lax.map(one, arrays)

  out = np.random.default_rng(1).normal(size=(L, H, K, D))
  params = {"blocks": {"attn": {"o": {"kernel": out}}}}
  gram = inactive_heads.output_gram(params)
  found = jax.tree.map(np.asarray, trace(arrays))
  return inactive_heads.look_of(found, gram), found, gram, out


def by_hand(arrays, out):
  """{score: [L, H]} by a loop over layers and heads, rows from 1 on."""
  a = {name: x.astype(float) for name, x in arrays.items()}
  found = {name: np.zeros((L, H)) for name in SCORES}
  for l, h in np.ndindex(L, H):  # noqa: E741
    p, z = a["pattern"][l, :, h, 1:], a["z"][l, :, 1:, h]
    size = np.linalg.norm(a["v"][l], axis=-1)  # [B, T, H]
    unit, own = size[:, 1:].mean(), size[..., h]
    put = {"first_weight": p[..., 0].mean()}
    # The largest of each text: at a key that 8 queries see.
    put["any_sink"] = np.mean(
      [
        max(p[b, max(s - 1, 0) :, s].mean() for s in range(T - 7))
        for b in range(B)
      ]
    )
    rows = np.where(p > 0, p, 1)
    entropy = -(p * np.log(rows)).sum(-1) / np.log(np.arange(2, T + 1))
    put["entropy"] = entropy.mean()
    put["first_value"] = (own[:, 0] / own[:, 1:].mean(1)).mean()
    put["value_mass"] = (p * own[:, None]).sum(-1).mean() / unit
    put["beside_sink"] = (p * own[:, None])[..., 1:].sum(-1).mean() / unit
    put["output_norm"] = np.sqrt((z**2).sum(-1).mean())
    wrote = np.sqrt(((z @ out[l, h]) ** 2).sum(-1).mean())
    resid = np.sqrt((a["resid_mid"][l, :, 1:] ** 2).sum(-1).mean())
    put |= {"written_norm": wrote, "written_share": wrote / resid}
    for name, value in put.items():
      found[name][l, h] = value
  for name in ("first_weight", "entropy", "output_norm"):
    mean = found[name].mean(axis=1, keepdims=True)
    found[f"{name}_by_layer"] = found[name] / mean
  return found


def test_twelve_scores_are_what_they_say(arrays, looked):
  want = by_hand(arrays, looked[-1])
  assert len(SCORES) == 12 and set(want) == set(SCORES)
  for name, one in SCORES.items():
    found = one.of(looked[0])
    np.testing.assert_allclose(found, want[name], rtol=2e-5, err_msg=name,
                               atol=1e-6)  # fmt: skip
    assert one.formula and one.family in ("weights", "values", "output")


@pytest.mark.parametrize("name", SCORES)
def test_a_known_noop_is_the_most_inactive(looked, name):
  order = inactive_heads.activity(name, looked[0])
  assert np.unravel_index(order.argmin(), order.shape) == NOOP


def test_one_text_alone_is_a_slice(looked):
  _, trace, gram, _ = looked
  parts = [
    inactive_heads.look_of(
      jax.tree.map(lambda x, i=i: x[:, i : i + 1], trace), gram
    )
    for i in range(B)
  ]
  mean = np.mean([part.entropy for part in parts], axis=0)
  np.testing.assert_allclose(mean, looked[0].entropy, rtol=1e-6)


def test_mistakes_are_refused(looked):
  with pytest.raises(ValueError, match="score must be one of"):
    inactive_heads.activity("norm", looked[0])
  with pytest.raises(ValueError, match="the output weights"):
    inactive_heads.look_of(looked[1], looked[2][:1])
