"""Attacks: gradients, norms, laws of the ascent, and what is reported."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import sinkjax
from sinkjax.experiments.applications.attack import EXPERIMENT
from sinkjax.experiments.applications.attack import experiment as module
from sinkjax.experiments.applications.attack.config import NORMS, Config, Way
from sinkjax.experiments.applications.attack.experiment import (
  changed_rows,
  measure,
)
from sinkjax.experiments.applications.attack.results import contrast, result_of
from sinkjax.experiments.harness.protocol import Verdict, judge
from sinkjax.experiments.harness.stats import Mean, format_ratio
from sinkjax.experiments.shared.attack_sites import SITES, Clip, shift_shape
from sinkjax.experiments.shared.perturb import (
  Shift,
  ascend,
  effect,
  look,
  nats,
  onto,
  places,
)
from sinkjax.experiments.shared.prompt_corpus import Text
from sinkjax.transforms.capture import capture
from sinkjax.transforms.intervene import intervene

START = 8
CONFIG = Config(texts=3, tokens=16, share=0.5, steps=3, candidates=5, eps=0.1)


@pytest.fixture(scope="module")
def row(subject):
  return np.random.default_rng(0).integers(2, 40, 16)


@pytest.fixture(scope="module")
def texts(subject):
  words, rng = list(subject.tokenizer.ids), np.random.default_rng(0)
  return [
    Text(f"{i % 2}", f"{i}", " ".join(rng.choice(words[:20], size)))
    for i, size in enumerate((20, 18, 9, 17))
  ]


def shape_of(cfg, site):
  layers = 1 if site == "embed" else cfg.n_layers
  return (layers, *shift_shape(cfg, site))


def loss_of(f, params, row, site, at, shift):
  g = intervene(f, {site: Shift(shift, at)})
  return nats(g, params, row[None], START)[0]


@pytest.mark.thorough
@pytest.mark.parametrize("site", SITES)
def test_gradient_is_that_of_finite_differences(subject, row, site):
  with jax.enable_x64(True):
    cfg = subject.cfg.replace(dtype="float64")
    params = jax.tree.map(lambda x: np.asarray(x, np.float64), subject.params)
    f, rng = sinkjax.forward(cfg), np.random.default_rng(1)
    shape = shape_of(cfg, site)
    shift, way = (rng.normal(size=shape) * 0.1 for _ in range(2))

    @jax.jit
    @jax.value_and_grad
    def found(shift, params):
      return loss_of(f, params, jnp.asarray(row), site, 1, shift)

    slope = float(np.sum(found(shift, params)[1] * way))
    h = 1e-4
    more, less = (float(found(shift + x * way, params)[0]) for x in (h, -h))
    want = (more - less) / (2 * h)
  assert abs(want) > 1e-6
  assert slope == pytest.approx(want, rel=1e-6)


@pytest.mark.parametrize("site", SITES)
def test_only_later_tokens_change(subject, row, site):
  f = capture(sinkjax.forward(subject.cfg), {"x": ("resid_post", lambda x: x)})
  shift = jnp.ones(shape_of(subject.cfg, site))

  @jax.jit
  def stream(at, shift):
    g = intervene(f, {site: Shift(shift, at)})
    return g(subject.params, row[None]).trace["x"][:, 0]

  clean = np.asarray(stream(jnp.asarray(5), shift * 0))
  changed = np.asarray(stream(jnp.asarray(5), shift))
  np.testing.assert_array_equal(changed[:, :5], clean[:, :5])
  assert np.all(np.abs(changed - clean).max(axis=-1)[-1, 6:] > 0)


def test_shift_is_of_one_token_with_each_layer_s_vector():
  value = jnp.zeros((2, 4, 3, 2))
  shift = jnp.arange(12.0).reshape(2, 3, 2)
  got = np.asarray(Shift(shift, 2)(value, 1))
  np.testing.assert_array_equal(got[:, 2], np.stack([shift[1]] * 2))
  assert not got[:, [0, 1, 3]].any()


def test_clip_shortens_what_is_longer_and_nothing_else():
  value = jnp.array([[[3.0, 4.0], [30.0, 40.0], [30.0, 40.0]]])
  edit = Clip(jnp.array([[1.0, 1.0, 1.0], [5.0, 10.0, 60.0]]))
  np.testing.assert_allclose(edit(value, 1)[0, 1], [6.0, 8.0], rtol=1e-6)
  np.testing.assert_array_equal(edit(value, 1)[:, ::2], value[:, ::2])
  short = np.linalg.norm(edit(value, 0)[0], axis=1)
  np.testing.assert_allclose(short, 1.0, rtol=1e-6)
  slope = jax.grad(lambda x: jnp.sum(edit(x, 0)))(jnp.zeros((1, 3, 2)))
  assert np.all(np.isfinite(slope))


def test_onto_small_and_no_gradients():
  x = jnp.array([[3e-30, 4e-30], [0.0, 0.0], [1.0, 0.0]])
  radius = jnp.array([2.0, 3.0, 0.0])
  got = np.asarray(onto(x, radius))
  np.testing.assert_allclose(np.linalg.norm(got, axis=1), radius, rtol=1e-6)
  np.testing.assert_allclose(got[0], [1.2, 1.6], rtol=1e-6)


def convex(seed):
  """A convex function of [L, D] and the largest value on the ball by hand."""
  rng = np.random.default_rng(seed)
  root, line = rng.normal(size=(12, 12)), rng.normal(size=12)
  matrix = jnp.asarray(root @ root.T)
  return lambda x: (
    x.ravel() @ matrix @ x.ravel() + jnp.asarray(line) @ x.ravel()
  )


@pytest.mark.parametrize("seed", range(5))
def test_more_steps_never_lower_a_convex_objective(seed):
  with jax.enable_x64(True):
    radius = jnp.array([0.5, 2.0, 1.0])
    f = convex(seed)
    shifts, values = ascend(f, radius, (4,), steps=30)
    assert np.all(np.diff(values) >= -1e-9)
    assert values[-1] > values[0] + 1e-3
    for shift, value in zip(shifts, values, strict=True):
      norms = np.linalg.norm(np.asarray(shift), axis=1)
      np.testing.assert_allclose(norms, radius, rtol=1e-9)
      assert float(f(shift)) == pytest.approx(float(value))


def test_one_step_is_the_best_of_a_linear_objective():
  line = jnp.array([[1.0, 2.0], [-3.0, 0.5]])
  radius = jnp.array([2.0, 0.5])
  _, values = ascend(lambda x: jnp.sum(line * x), radius, (2,), steps=1)
  want = float(np.linalg.norm(line, axis=1) @ np.asarray(radius))
  assert float(values[0]) == pytest.approx(want, rel=1e-6)
  with pytest.raises(ValueError, match="got 0"):
    ascend(jnp.sum, radius, (2,), steps=0)


@pytest.mark.slow
@pytest.mark.parametrize(
  ("site", "size"),
  [("embed", 0.02), pytest.param("v", 0.3, marks=pytest.mark.slow)],
)
def test_the_attack_beats_random_directions(subject, row, site, size):
  """Where the shift is small against the token's vector."""
  attack = module.attacker(subject.cfg, site, CONFIG)
  shape = shape_of(subject.cfg, site)
  radius = jnp.full((2, shape[0]), size)
  at, keys = jnp.array([0, 3]), jax.random.split(jax.random.key(0), 2)
  found, shifts = attack(subject.params, jnp.asarray(row), at, radius, keys)
  norms = np.sqrt((np.asarray(shifts).reshape(2, 3, shape[0], -1) ** 2).sum(-1))
  np.testing.assert_allclose(norms, size, rtol=1e-5)
  f = sinkjax.forward(subject.cfg)
  loss = jax.jit(
    jax.vmap(
      lambda x, at: loss_of(f, subject.params, row, site, at, x),
      in_axes=(0, None),
    )
  )
  clean = float(nats(f, subject.params, row[None], START)[0])
  for i, place in enumerate((0, 3)):
    noise = jax.random.normal(jax.random.key(i), (32, *shape))
    random = loss(jax.vmap(lambda x: onto(x, radius[0]))(noise), place) - clean
    _, one, several = np.asarray(found.loss[i])
    assert several >= one > float(random.max())
    again = float(loss(shifts[i, 2][None], place)[0]) - clean
    assert several == pytest.approx(again, abs=1e-5)


def test_effect_by_hand(subject, row):
  """KL, loss, spread and kept sinks of two runs, in numpy."""
  f = sinkjax.forward(subject.cfg)
  other = row.copy()
  other[0] = 41
  looked = jax.jit(lambda x: look(f, subject.params, x, START))
  model, compared = jax.jit(f), jax.jit(functools.partial(effect, eps=0.1))
  clean, changed = looked(row[None]), looked(other[None])
  found = compared(clean, changed, row[None, START + 1 :])
  logits = [
    np.asarray(model(subject.params, x[None]).logits[0], float)
    for x in (row, other)
  ]
  p, q = (
    x[START:-1] - np.log(np.exp(x[START:-1]).sum(-1, keepdims=True))
    for x in logits
  )
  kl = (np.exp(p) * (p - q)).sum(-1).mean()
  assert float(found.kl[0]) == pytest.approx(kl, rel=1e-3) and kl > 0
  after = row[START + 1 :, None]
  loss = np.take_along_axis(p - q, after, 1).mean()
  assert float(found.loss[0]) == pytest.approx(loss, rel=1e-3)
  had, have = (np.asarray(x.mass) > 0.1 for x in (clean, changed))
  want = (had & have).sum() / had.sum()
  assert float(found.kept[0]) == pytest.approx(want)
  same = compared(clean, clean, row[None, START + 1 :])
  assert [float(x[0]) for x in same] == [0, 0, 0, 1]


def test_changed_rows():
  ids = np.array([5, 6, 7])
  assert changed_rows(ids, 0, [1], Way.INSERTED).tolist() == [[1, 5, 6, 7]]
  rows = changed_rows(ids, 2, [1, 2], Way.SWAPPED).tolist()
  assert rows == [[5, 6, 1], [5, 6, 2]]


def test_radii_of_equal_norm():
  size = np.array([[100.0, 1.0, 2.0, 3.0], [8.0, 4.0, 6.0, 6.0]])
  relative, absolute = module.radii(size, (0, 1), np.array([True, False]), 0.5)
  assert relative.tolist() == [[50, 0], [0.5, 0]]
  assert absolute.tolist() == [[1.25, 0], [1.25, 0]]


def test_swapping_a_token_for_itself_is_no_change(subject, row):
  replace = module.replacer(subject.cfg, CONFIG)
  rows = changed_rows(row, 3, [int(row[3]), 40], Way.SWAPPED)
  found = replace(subject.params, jnp.asarray(row), jnp.asarray(rows))
  assert abs(float(found.kl[0])) < 1e-6 < float(found.kl[1])
  assert float(found.kept[0]) == 1


@pytest.mark.slow
def test_run(subject, texts):
  seen = []
  found = measure(
    subject, CONFIG, texts=texts, progress=lambda *at: seen.append(at)
  )
  assert seen[-1] == (30, 30) and found.numbers["texts"] == 3
  assert found.numbers["templates"] == [0, 1, 2]
  assert found.arrays["gradient"].shape == (3, 4, 2, 4, 3, 4)
  assert found.arrays["swaps"].shape == (3, 2, 4, 5, 4)
  assert all(np.isfinite(x).all() for x in found.arrays.values())
  loss = found.arrays["gradient"][..., 1]
  assert np.all(loss[..., 2] >= loss[..., 1] - 1e-5)
  assert len(found.tables["gradient.csv"][1]) == 4 * 2 * 3 * 4
  assert len(found.tables["swaps.csv"][1]) == 16
  header, rows = found.tables["gradient.csv"]
  row = dict(zip(header, rows[2 * 3 * 4 + 5], strict=True))
  names = [row[x] for x in ("site", "norm", "kind", "position")]
  assert names == ["k", "relative", "one step", "next"]
  kl = found.arrays["gradient"][:, 1, 0, 1, 1, 0]
  assert row["kl"] == pytest.approx(kl.mean())
  stored = found.as_stored(CONFIG, "tiny")
  claims = EXPERIMENT.claims(stored)
  assert len({claim.id for claim in claims}) == len(claims) == 11
  drawn = EXPERIMENT.draw(stored)
  assert all(len(x) > 5000 for x in drawn.values())
  assert len(EXPERIMENT.sections(stored, drawn)) == 3


def test_the_sink_is_compared_with_the_next_token():
  """KL twice as large on the sink in every text: 2 times."""
  kl = np.array([[2.0, 1.0, 4.0, 8.0], [0.2, 0.1, 0.4, 0.8]])
  found = contrast(kl)
  np.testing.assert_allclose(found["next"], np.log(2))
  np.testing.assert_allclose(found["last"], np.log(0.25))


def made(factor, texts=12, **about):
  """A stored result whose KL divergence is larger at the sink by a factor.

  Only where claims look: in attacks of several steps, and in the swap that
  raises the loss most for the worst; elsewhere it is smaller by as much.
  """
  rng = np.random.default_rng(0)
  gradient = np.exp(0.1 * rng.normal(size=(texts, 4, 2, 4, 3, 4)))
  gradient[:, :, :, 0, :2, 0] /= factor
  gradient[:, :, :, 0, 2, 0] *= factor
  swaps = np.exp(0.1 * rng.normal(size=(texts, 2, 4, 5, 4)))
  swaps[:, :, 0, :, 0] *= np.array([1 / factor, 1, 1, 1, factor**6])
  swaps[..., 4, 1] += 10
  about = {"texts": texts, "origins": [""] * texts} | about
  about |= {"positions": places(16), "candidates": list(range(5))}
  norms = np.ones((texts, 4, 4))
  result = result_of(CONFIG, about, gradient, swaps, norms)
  return result.as_stored(CONFIG)


@pytest.mark.slow
def test_verdicts_go_by_the_next_token():
  """Ten times the KL at the sink: attacks do more there, and so do swaps."""
  result = made(10.0)
  found = judge(EXPERIMENT.claims(result))
  yes, no = Verdict.SUPPORTED, Verdict.CONTRADICTED
  assert [x.verdict for x in found] == [no] * 2 + [yes] * 9
  mean = np.exp([x.effect.mean.value for x in found])
  np.testing.assert_allclose(mean, [10, 10**6, 10**6, *[10] * 8], rtol=0.2)
  for claim, of in zip(found, CONTRASTS, strict=True):
    stored = result.numbers["sink_over_others"][of]["next"]
    assert claim.effect.mean.value == pytest.approx(stored["value"], rel=1e-6)
    assert format_ratio(Mean.read(stored)) in claim.ours
  turned = judge(EXPERIMENT.claims(made(0.1)))
  assert [x.verdict for x in turned] == [yes] * 2 + [no] * 9
  same = judge(EXPERIMENT.claims(made(1.0, texts=60)))
  assert {x.verdict for x in same} == {Verdict.NO_EFFECT}


CONTRASTS = ["swapped, mean", "swapped, worst", "put in, worst"]
CONTRASTS += [f"{site}, {norm}" for site in SITES for norm in NORMS]


def test_pages_of_one_template_are_one_unit():
  origins = ["pydoc: ast", "Python: ast", "pydoc: enum"] + [""] * 9
  (first, *_) = EXPERIMENT.claims(made(2.0, origins=origins))
  assert first.effect.n == 11
  templates = [0, 0, 0, *range(3, 12)]
  (first, *_) = EXPERIMENT.claims(made(2.0, templates=templates))
  assert first.effect.n == 10


def test_short_texts_are_refused(subject, texts):
  with pytest.raises(ValueError, match="0 texts have 40 tokens"):
    measure(subject, Config(tokens=40), texts=texts)
  with pytest.raises(ValueError, match="at least 12, got 8"):
    measure(subject, Config(tokens=8), texts=texts)
