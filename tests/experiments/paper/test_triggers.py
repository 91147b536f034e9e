"""The search for triggers finds what was planted, and only that."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import sinkjax
from sinkjax.experiments.paper.noop_heads import triggers
from sinkjax.experiments.paper.noop_heads.triggers import (
  Observed,
  auroc,
  find,
  fit,
  observe,
  parts,
  predict,
)

TEXTS, LENGTH, HEADS = 60, 40, 4
CONDITIONS = {"resting": (0.5, 0.98), "output": 0.5, "least": 0.8}


@pytest.fixture(scope="module")
def planted():
  """Four heads: by this token, by the one before, by position, at random."""
  rng = np.random.default_rng(0)
  ids = rng.integers(10, size=(TEXTS, LENGTH))
  before = np.concatenate([np.full((TEXTS, 1), -1), ids[:, :-1]], axis=1)
  place = np.broadcast_to(np.arange(LENGTH), ids.shape)
  acts = [
    np.isin(ids, (3, 7)),
    before == 5,
    place % 8 == 4,
    rng.random(ids.shape) < 0.2,
  ]
  mass = np.where(np.stack(acts, axis=1), 0.1, 0.9)[None]
  mass = mass + 0.05 * rng.standard_normal(mass.shape)
  quiet = np.where(mass > 0.5, 1.0, 5.0)
  flat = np.zeros_like(mass, int)
  return Observed(
    ids,
    mass,
    flat,
    quiet,
    np.ones((1, TEXTS, 2, LENGTH)),
    np.ones((1, TEXTS, HEADS)),
  )


def test_planted_triggers_are_found(planted):
  found = {head.head: head for head in find(planted, **CONDITIONS)}
  assert {n: head.trigger for n, head in found.items()} == {
    0: "this token",
    1: "previous token",
    2: "position",
  }
  assert {value for value, _, _ in found[0].words[:2]} == {3, 7}
  assert found[1].words[0][0] == 5
  assert all(value % 8 == 4 for value, _, _ in found[2].words[:4])
  for head in found.values():
    assert head.auroc > 0.99 and head.explained > 0.9
    assert len(head.by_text) == TEXTS - parts(TEXTS)[2].start


def test_what_does_not_rest_or_is_not_quieter_is_no_noop(planted):
  loud = planted._replace(output=np.ones_like(planted.output))
  assert find(loud, **CONDITIONS) == []
  always = planted._replace(mass=np.full_like(planted.mass, 0.9))
  assert find(always, **CONDITIONS) == []
  strict = {**CONDITIONS, "resting": (0.85, 0.98)}
  assert {head.head for head in find(planted, **strict)} == {1, 2}


def test_texts_kept_back_decide_nothing(planted):
  """What they say may change; what is chosen may not."""
  kept = parts(TEXTS)[2]
  changed = planted.mass.copy()
  changed[:, kept] = 1 - changed[:, kept]
  before = find(planted, **CONDITIONS)
  after = find(planted._replace(mass=changed), **CONDITIONS)
  assert [h[:5] for h in after] == [h[:5] for h in before]
  assert all(head.auroc < 0.01 for head in after)


def test_rare_values_say_little():
  feature = np.array([1, 1, 1, 1, 2])
  table, overall = fit(feature, np.array([1.0, 1.0, 1.0, 1.0, 0.0]))
  assert overall == pytest.approx(0.8)
  k = triggers.SHRINK
  assert table[1] == (pytest.approx((4 + k * 0.8) / (4 + k)), 4)
  assert table[2] == (pytest.approx(k * 0.8 / (1 + k)), 1)
  got = predict(table, overall, np.array([[2, 9]]))
  assert got.tolist() == [[table[2][0], overall]]


def test_auroc_is_the_share_of_pairs():
  rng = np.random.default_rng(1)
  low, acts = rng.integers(5, size=30) / 5, rng.random(30) < 0.4
  pairs = [(a < b) + (a == b) / 2 for a in low[acts] for b in low[~acts]]
  assert auroc(low, acts) == pytest.approx(np.mean(pairs))
  assert np.isnan(auroc(low, np.ones(30, bool)))


@pytest.mark.thorough
def test_what_is_seen_is_the_model_s_own(subject):
  rng = np.random.default_rng(2)
  ids = rng.integers(64, size=(11, 9))  # more than one batch
  seen = observe(subject, ids)
  watch = {name: (name, lambda x: x) for name in ("pattern", "z", "v")}
  out = sinkjax.capture(sinkjax.forward(subject.cfg), watch)(
    subject.params, jnp.asarray(ids)
  ).trace
  pattern = np.asarray(out["pattern"])
  np.testing.assert_allclose(seen.mass, pattern[..., 0], atol=1e-5)
  rest = np.where(np.arange(9) > 0, pattern, -1)
  assert (seen.target == rest.argmax(axis=-1)).mean() > 0.99  # float ties
  norms = jnp.linalg.norm(out["v"], axis=-1)
  np.testing.assert_allclose(seen.value, np.swapaxes(norms, 2, 3), rtol=1e-4)
  kernel = subject.params["blocks"]["attn"]["o"]["kernel"]
  written = jnp.einsum("lbthk,lhkd->lbhtd", out["z"], kernel)
  np.testing.assert_allclose(
    seen.output, jnp.linalg.norm(written, axis=-1), rtol=1e-4
  )
  top = jnp.linalg.norm(written, ord=2, axis=(-2, -1))
  rank = jnp.sum(written**2, axis=(-2, -1)) / top**2
  np.testing.assert_allclose(seen.stable_rank, rank, rtol=1e-3)
  assert jax.tree.leaves(seen)[0].shape == (11, 9)
