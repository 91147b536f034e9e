"""Tests of sinkjax.train.step: what one update does to the parameters."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from quick import quick

from sinkjax.metrics.sinks import sink_score
from sinkjax.models.transformer import forward
from sinkjax.train.loss import Noise, SinkTarget, loss_of
from sinkjax.train.step import (
  MEMORY,
  Trend,
  _follow,
  init_state,
  make_evaluate,
  make_step,
)
from sinkjax.transforms.capture import capture
from sinkjax.transforms.edits import add
from sinkjax.transforms.intervene import intervene

ADAM = optax.adam(1e-2)


@pytest.fixture(scope="module")
def step(tiny):
  """One compiled step for all tests of plain steps with `ADAM`."""
  return make_step(tiny[1], ADAM, separated=False)


def test_a_step_is_optax_on_the_mean_loss(tiny, batch):
  params, cfg = tiny
  optimizer = optax.adamw(1e-2, weight_decay=0.1)
  loss = loss_of(forward(cfg), separated=False)

  def mean(params):
    found = loss(params, batch)
    return found.nats / found.targets

  @jax.jit
  def updated(params):
    value, grads = jax.value_and_grad(mean)(params)
    updates, _ = optimizer.update(grads, optimizer.init(params), params)
    new = optax.apply_updates(params, updates)
    return value, grads, optax.tree.norm(grads), new

  value, grads, norm, wanted = updated(params)
  copy = jax.tree.map(jnp.copy, params)
  state = init_state(cfg, optimizer, jax.random.key(0), params=copy)
  state, metrics = make_step(cfg, optimizer, separated=False)(state, batch)
  np.testing.assert_allclose(metrics.loss, value, rtol=1e-6)
  np.testing.assert_allclose(metrics.grad_norm, norm, rtol=1e-5)
  assert int(state.step) == 1 and bool(metrics.applied)
  # Adam's first update is the gradient's sign: compare where it is no noise.
  for new, want, grad in zip(
    *map(jax.tree.leaves, (state.params, wanted, grads)), strict=True
  ):
    new, want, grad = map(np.asarray, (new, want, grad))
    sure = np.abs(grad) > 1e-6
    np.testing.assert_allclose(new[sure], want[sure], atol=2e-5)


@pytest.mark.thorough
def test_parts_of_a_batch_give_the_gradient_of_the_whole(tiny, batch):
  """Parts with different numbers of targets, so a mean of means fails."""
  with jax.enable_x64(True):
    params, cfg = tiny
    cfg = cfg.replace(dtype="float64")
    params = jax.tree.map(lambda x: jnp.asarray(x, jnp.float64), params)
    batch = dict(batch, weights=batch["weights"].at[:6, 4:].set(False))
    batch = {k: v[:24] for k, v in batch.items()}
    found = []
    for parts in (1, 4):
      optimizer = optax.sgd(1.0)
      state = init_state(
        cfg, optimizer, jax.random.key(0), params=jax.tree.map(jnp.copy, params)
      )
      step = make_step(cfg, optimizer, separated=False, accumulate=parts)
      found.append(step(state, batch))
    (whole, a), (pieces, b) = found
    np.testing.assert_allclose(a.loss, b.loss, rtol=1e-12)
    for x, y in zip(
      *map(jax.tree.leaves, (whole.params, pieces.params)), strict=True
    ):
      np.testing.assert_allclose(x, y, rtol=1e-9, atol=1e-12)
  with pytest.raises(ValueError, match="24 windows .* 5 equal parts"):
    make_step(cfg, optimizer, separated=False, accumulate=5)(pieces, batch)


@pytest.mark.thorough
def test_a_bad_gradient_is_not_applied(tiny, step, batch):
  params, cfg = tiny
  bad = jax.tree.map(jnp.copy, params)
  bad["embed"] = bad["embed"].at[5].set(jnp.nan)
  assert (batch["tokens"] == 5).any()
  before = jax.tree.map(np.asarray, bad)
  state = init_state(cfg, ADAM, jax.random.key(0), params=bad)
  state, metrics = step(state, batch)
  assert not bool(metrics.applied) and int(state.skipped) == 1
  assert int(state.step) == 1 and int(state.opt_state[0].count) == 0
  for x, y in zip(*map(jax.tree.leaves, (before, state.params)), strict=True):
    np.testing.assert_array_equal(x, y)


@pytest.mark.slow
@pytest.mark.thorough
def test_weights_stay_float32_under_bfloat16(tiny, step, batch):
  params, cfg = tiny
  half = cfg.replace(dtype="bfloat16")
  losses = []
  for one, run in ((cfg, step), (half, make_step(half, ADAM, separated=False))):
    copy = jax.tree.map(jnp.copy, params)
    state = init_state(one, ADAM, jax.random.key(0), params=copy)
    state, metrics = run(state, batch)
    losses.append(float(metrics.loss))
    assert {x.dtype for x in jax.tree.leaves(state.params)} == {
      jnp.dtype("float32")
    }
  assert losses[0] != losses[1] and abs(losses[0] - losses[1]) < 0.05


@pytest.mark.thorough
def test_it_learns(tiny, step, batch):
  state = init_state(tiny[1], ADAM, jax.random.key(0))
  first = None
  for _ in range(60):
    state, metrics = step(state, batch)
    first = float(metrics.loss) if first is None else first
  assert first > 4.0 and float(metrics.loss) < 0.5 * first
  assert step._cache_size() == 1


@pytest.mark.thorough
def test_a_spike_is_left_out(tiny, step, batch):
  params, cfg = tiny
  still = optax.sgd(1e-6)  # the losses stay what they are
  evaluate = make_evaluate(cfg, separated=False)
  each = [
    {k: jnp.repeat(v[i : i + 1], len(v), axis=0) for k, v in batch.items()}
    for i in range(8)
  ]
  each.sort(key=lambda row: float(evaluate(params, row).nats))

  def steps(run, optimizer):
    copy = jax.tree.map(jnp.copy, params)
    state = init_state(cfg, optimizer, jax.random.key(0), params=copy)
    applied = []
    for i in range(MEMORY + 3):
      row = each[-1] if i == MEMORY + 1 else each[0]
      state, metrics = run(state, row)
      applied.append(bool(metrics.applied))
    return state, applied

  guarded = make_step(cfg, still, separated=False, spike=8.0)
  state, applied = steps(guarded, still)
  assert applied == [True] * (MEMORY + 1) + [False, True]
  assert int(state.skipped) == 1
  assert all(steps(step, ADAM)[1])


def test_the_trend_is_the_mean_and_variance():
  losses = np.random.default_rng(0).normal(5, 2, MEMORY).astype(np.float32)
  trend = Trend(jnp.zeros((), jnp.int32), jnp.zeros(()), jnp.zeros(()))
  for loss in losses:
    trend, _ = _follow(trend, jnp.asarray(loss), True, None)
  np.testing.assert_allclose(trend.mean, losses.mean(), rtol=1e-5)
  np.testing.assert_allclose(trend.variance, losses.var(), rtol=1e-4)


@pytest.mark.thorough
def test_gradient_details(tiny, batch):
  """Norms by group make up the whole; the noise scale is that of the parts."""
  params, cfg = tiny
  batch = {k: v[:24] for k, v in batch.items()}
  batch["weights"] = jnp.ones_like(batch["weights"])  # parts of one size
  optimizer, parts = optax.sgd(0.0), 6
  state = init_state(
    cfg, optimizer, jax.random.key(0), params=jax.tree.map(jnp.copy, params)
  )
  step = make_step(
    cfg, optimizer, separated=False, accumulate=parts, details=True
  )
  _, metrics = step(state, batch)
  told = {k: float(v) for k, v in metrics.details.items()}
  squares = [v**2 for k, v in told.items() if k.startswith("norm_")]
  assert len(squares) == 5
  np.testing.assert_allclose(sum(squares), metrics.grad_norm**2, rtol=1e-5)

  loss = loss_of(forward(cfg), separated=False)

  @jax.jit
  @jax.grad
  def slopes(params, part):
    found = loss(params, part)
    return found.nats / found.targets

  def gradient(rows):
    part = {k: v[rows] for k, v in batch.items()}
    leaves = jax.tree.leaves(slopes(params, part))
    return np.concatenate([np.asarray(x, np.float64).ravel() for x in leaves])

  each = np.stack([gradient(slice(i, None, parts)) for i in range(parts)])
  targets = float(metrics.targets)
  # Unbiased variance of a part's gradient, in units of one target.
  noise = each.var(axis=0, ddof=1).sum() * targets / parts
  signal = (each.mean(axis=0) ** 2).sum() - noise / targets
  np.testing.assert_allclose(told["noise"], noise, rtol=1e-3)
  np.testing.assert_allclose(told["signal"], signal, rtol=1e-2)


@pytest.mark.slow
@pytest.mark.parametrize("others", [None, 0.1])
def test_a_sink_target_is_a_squared_distance_by_head(tiny, batch, others):
  """The gradient of nats and penalty by hand; what is told is the nats."""
  params, cfg = tiny
  target, want = SinkTarget(0.8, 3.0), np.full((1, cfg.n_heads), 0.8)
  if others is not None:
    target, want[:, 1:] = SinkTarget(0.8, 3.0, 1, others), others
  batch = dict(batch, segments=batch["segments"] * 0)
  seen = capture(forward(cfg), {"p": ("pattern", lambda p: p)})
  nats = make_evaluate(cfg, separated=True)

  def by_hand(params):
    pattern = seen(params, batch["tokens"], positions=batch["positions"])
    alpha = sink_score(pattern.trace["p"]).mean(axis=1)  # [L, H] over rows
    found = nats(params, batch)
    return found.nats / found.targets + 3.0 * jnp.mean((alpha - want) ** 2)

  grads = jax.jit(jax.grad(by_hand))(params)
  optimizer = optax.sgd(1.0)
  for parts in (1, 5):
    copy = jax.tree.map(jnp.copy, params)
    state = init_state(cfg, optimizer, jax.random.key(0), params=copy)
    step = make_step(
      cfg, optimizer, separated=True, sink=target, accumulate=parts
    )
    state, metrics = step(state, batch)
    found = nats(params, batch)
    np.testing.assert_allclose(
      metrics.loss, found.nats / found.targets, rtol=1e-6
    )
    if parts == 1:
      moved = jax.tree.map(lambda a, b: a - b, params, state.params)
      for one, want in zip(*map(jax.tree.leaves, (moved, grads)), strict=True):
        np.testing.assert_allclose(one, want, atol=1e-5)


@pytest.mark.slow
@pytest.mark.thorough
@pytest.mark.parametrize(
  ("mass", "least", "most"),
  [pytest.param(0.0, 0.0, 0.2, marks=pytest.mark.slow), (0.9, 0.6, 1.0)],
)
def test_sinks_go_where_they_are_drawn(tiny, batch, mass, least, most):
  params, cfg = tiny
  probe = capture(forward(cfg), {"a": ("pattern", sink_score)})
  copy = jax.tree.map(jnp.copy, params)
  state = init_state(cfg, ADAM, jax.random.key(0), params=copy)
  sink = SinkTarget(mass, 100.0)
  drawn = make_step(cfg, ADAM, separated=False, sink=sink)
  for _ in range(40):
    state, _ = drawn(state, batch)
  reached = float(probe(state.params, batch["tokens"]).trace["a"].mean())
  assert least <= reached < most


@pytest.mark.slow
@pytest.mark.thorough
@pytest.mark.parametrize("parts", quick([1, 5], 5))
def test_a_noisy_step_is_that_of_shifted_embeddings(tiny, batch, parts):
  """Loss and gradient with the same noise added by hand, as a constant."""
  params, cfg = tiny
  noise, optimizer = Noise(0.3, seed=4), optax.sgd(1.0)
  copy = jax.tree.map(jnp.copy, params)
  state = init_state(cfg, optimizer, jax.random.key(0), params=copy)
  step = make_step(
    cfg, optimizer, separated=False, noise=noise, accumulate=parts
  )
  state, metrics = step(state, batch)
  seen = capture(forward(cfg), {"x": ("embed", lambda x: x)})
  out = seen(params, batch["tokens"], positions=batch["positions"])
  embeds, key = out.trace["x"], noise.key(jnp.asarray(0))
  way = jnp.zeros(embeds.shape)
  keys = [key] if parts == 1 else jax.random.split(key, parts)
  for i, key in enumerate(keys):
    rows = slice(i, None, parts)
    own = jax.random.normal(key, embeds[rows].shape)
    way = way.at[rows].set(own / jnp.linalg.norm(own, axis=-1, keepdims=True))
  shift = 0.3 * way * jnp.linalg.norm(embeds, axis=-1, keepdims=True)
  loss = loss_of(
    intervene(forward(cfg), {"embed": add(shift)}), separated=False
  )

  def mean(params):
    found = loss(params, batch)
    return found.nats / found.targets

  value, grads = jax.value_and_grad(mean)(params)
  np.testing.assert_allclose(metrics.loss, value, rtol=1e-5)
  moved = jax.tree.map(lambda a, b: a - b, params, state.params)
  for one, want in zip(*map(jax.tree.leaves, (moved, grads)), strict=True):
    np.testing.assert_allclose(one, want, atol=1e-4)
  again, _ = step(state, batch)  # the next step has noise of its own
  assert int(again.step) == 2
  assert (noise.key(jnp.asarray(1)) != noise.key(jnp.asarray(0))).all()
