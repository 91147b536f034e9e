"""Path sums against enumeration, and bounds against true Jacobians."""

import functools
import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jitted import jitted_module

from sinkjax.metrics import bounds as module

bounds = jitted_module(module)
bounds.path_counts = module.path_counts  # counts in NumPy


@pytest.fixture(autouse=True)
def wide():
  with jax.enable_x64(True):
    yield


def causal_softmax(scores):
  seen = jnp.tril(jnp.ones(scores.shape, bool))
  return jax.nn.softmax(jnp.where(seen, scores, -jnp.inf), axis=-1)


def layer(x, w):
  """y = x + sum_h U_h sum_s a_ts x_s, and then y + W2 tanh(W1 y)."""
  scores = jnp.einsum("td,hde,se->hts", x, w["b"], x)
  a = w["a"] if "a" in w else causal_softmax(scores)
  y = x + jnp.einsum("hde,hts,se->td", w["u"], a, x)
  h = jnp.tanh(y @ w["w1"].T)
  return y + h @ w["w2"].T, (a, x, h)


def norm2(m):
  return jnp.linalg.svd(m, compute_uv=False)[..., 0]


def gains(w, a, x, h):
  """What the bounds need to know of one layer, from its derivatives."""
  away = x[None, None] - (a @ x[None])[:, :, None]
  moved = jnp.einsum("hde,htse->htsd", w["u"], away)
  k = jnp.einsum("hde,td->hte", w["b"], x)
  q = jnp.einsum("hde,se->hsd", w["b"], x)
  mlp = jnp.einsum("df,tf,fe->tde", w["w2"], 1 - h * h, w["w1"])
  return {
    "pattern": a,
    "copy_gain": jnp.broadcast_to(norm2(w["u"])[:, None], a.shape[:2]),
    "mlp_gain": norm2(mlp + jnp.eye(x.shape[1])[None]),
    "key_gain": a * jnp.sqrt((moved**2).sum(-1) * (k**2).sum(-1)[..., None]),
    "query_gain": norm2(jnp.einsum("hts,htsd,hse->tde", a, moved, q)),
  }


@jax.jit
@jax.vmap
def measure(x, net):
  """The true norms of a network's blocks, and its gains."""
  seen = jax.lax.scan(layer, x, net)[1]
  jac = jax.jacfwd(lambda x: jax.lax.scan(layer, x, net)[0])(x)
  true = norm2(jac.transpose(0, 2, 1, 3))
  return {"true": true, **jax.vmap(gains)(net, *seen)}


def networks(freeze, dims=(3, 2, 5, 4), copy=1.0, score=1.0, mlp=1.0):
  """64 random networks, each weight at a scale of its own."""
  rng = np.random.default_rng(0)
  layers, heads, length, width = dims

  def weight(scale, *shape):
    size = scale * np.exp(0.7 * rng.normal(size=(64, *(1 for _ in shape), 1)))
    return jnp.array(size * rng.normal(size=(64, layers, *shape))) / width**0.5

  net = {
    "u": weight(copy, heads, width, width),
    "b": weight(score, heads, width, width) / width**0.5,
    "w1": weight(1.0, 2 * width, width),
    "w2": weight(mlp, width, 2 * width),
  }
  if freeze:
    net["a"] = causal_softmax(weight(2.0, heads, length, length) * width**0.5)
  return measure(jnp.array(rng.normal(size=(64, length, width))), net)


@functools.partial(jax.jit, static_argnums=(0, 2))
def bound(kind, m, absorb=True):
  """The log bound of every network in m."""

  def one(m):
    a, copy, mlp = m["pattern"], m["copy_gain"], m["mlp_gain"]
    more = {k: m[k] for k in ("key_gain", "query_gain")}
    c = bounds.paper_constant(copy, mlp, absorb_residual=absorb)
    steps = {
      "paper": lambda: bounds.paper_steps(a, constant=c),
      "frozen": lambda: bounds.frozen_steps(a, copy, mlp_gain=mlp),
      "full": lambda: bounds.full_steps(a, copy, mlp_gain=mlp, **more),
    }[kind]()
    return bounds.log_path_sum(steps)

  return jax.vmap(one)(m)


def held(log_bound, norms):
  return not bounds.violations(log_bound, norms, tolerance=1e-9).any()


@pytest.mark.parametrize("copy", [0.05, 0.3, 2.0])
def test_frozen_attention_stays_within_its_bounds(copy):
  m = networks(True, copy=copy)
  frozen, paper = bound("frozen", m), bound("paper", m)
  assert held(frozen, m["true"]) and held(paper, m["true"])
  assert held(paper, jnp.exp(frozen))
  assert np.all(np.isfinite(np.asarray(frozen)) == np.tri(5))
  assert np.all((np.asarray(m["true"]) > 0) == np.tri(5))
  assert np.nanmedian(bounds.looseness(frozen, m["true"])) < 1.5  # not vacuous


def test_a_constant_of_attention_alone_is_violated():
  m = networks(True, copy=0.05)
  naive = bound("paper", m, False)
  assert (bounds.violations(naive, m["true"]) > 0).mean() > 0.5
  assert np.nanmin(bounds.looseness(naive, m["true"])) < -0.2


@pytest.mark.parametrize("score", [0.3, 2.0, 8.0])
def test_the_full_jacobian_stays_within_the_full_bound(score):
  m = networks(False, score=score)
  full = bound("full", m)
  assert held(full, m["true"])
  assert np.all(full >= bound("frozen", m) - 1e-9)
  low = bound("full", jax.tree.map(lambda x: x.astype(jnp.float32), m))
  assert low.dtype == jnp.float32
  assert not bounds.violations(low, m["true"]).any()


def test_the_full_jacobian_exceeds_the_frozen_bound():
  """So what the softmax adds is needed: sharp scores, small MLPs."""
  m = networks(False, score=8.0, mlp=0.1)
  assert bounds.violations(bound("frozen", m), m["true"]).sum() > 10
  assert held(bound("full", m), m["true"])


@pytest.mark.parametrize(("kind", "depth"), [("frozen", 3), ("full", 1)])
def test_bounds_are_reached_in_one_dimension(kind, depth):
  """Numbers for vectors: where every term is positive, nothing is lost."""
  m = networks(kind == "frozen", dims=(depth, 1, 4, 1))
  log_bound = bound(kind, m)
  assert held(log_bound, m["true"])
  reached = np.abs(bounds.looseness(log_bound, m["true"])) < 1e-9
  own = np.eye(4, dtype=bool) & (np.arange(4) > 0)
  for entries in (own, np.tri(4, k=-1, dtype=bool)):
    assert 0.05 < reached[:, entries].mean() < 0.9


def test_builders_by_loops():
  rng = np.random.default_rng(0)
  shapes = (2, 3, 4), (2, 4), (2, 3, 4, 4), (2, 4), (2,)
  gain, mlp, key, query, c = (jnp.exp(rng.normal(size=s)) for s in shapes)
  a = jnp.tril(rng.normal(size=(2, 3, 4, 4)))  # signed
  got = [
    bounds.paper_steps(a, constant=c),
    bounds.frozen_steps(a, gain, mlp_gain=mlp),
    bounds.full_steps(a, gain, mlp_gain=mlp, key_gain=key, query_gain=query),
  ]
  for l, t, s in itertools.product(range(2), range(4), range(4)):
    own, size = float(t == s), np.abs(a[l, :, t, s])
    more = (
      own * (1 + query[l, t]) + gain[l, :, s] @ size + key[l, :, t, s].sum()
    )
    want = [
      c[l] * (size.sum() + own / 3),
      mlp[l, t] * (own + gain[l, :, s] @ size),
      mlp[l, t] * more,
    ]
    steps = [np.exp(g[l, t, s]) for g in got]
    np.testing.assert_allclose(steps, want, rtol=1e-12)


def test_paper_constant():
  copy = jnp.array([[[1.0, 5.0], [2.0, 0.0]], [[0.1, 0.2], [0.3, 0.1]]])
  mlp = jnp.array([[1.0, 2.0], [3.0, 1.5]])
  assert bounds.paper_constant(copy, mlp) == 10  # layer 0: 2 * 5
  assert bounds.paper_constant(copy[1:], mlp[1:]) == 6  # 3 * H
  naive = bounds.paper_constant(copy[1:], mlp[1:], absorb_residual=False)
  np.testing.assert_allclose(naive, 0.9)


@pytest.mark.parametrize("depth", [1, 2, 5, 80])  # beyond 64 bits
def test_path_counts_are_binomials(depth):
  counts = bounds.path_counts(12, depth)
  for t, s in itertools.product(range(12), range(12)):
    want = math.comb(t - s + depth - 1, depth - 1) if t >= s else 0
    assert counts[t, s] == want
  got = bounds.log_path_sum(jnp.log(jnp.tril(jnp.ones((depth, 12, 12)))))
  np.testing.assert_allclose(jnp.exp(got), counts.astype(float), rtol=1e-11)


def random_steps(layers, length):
  logs = np.random.default_rng(1).normal(size=(layers, length, length))
  return jnp.where(np.tri(length, dtype=bool)[None], 3 * logs, -jnp.inf)


def test_path_sum_by_enumeration():
  """Layer 0 is the first step that leaves s."""
  steps = random_steps(3, 4)
  want, m = np.zeros((4, 4)), np.exp(steps)
  for t, k2, k1, s in itertools.product(range(4), repeat=4):
    want[t, s] += m[2, t, k2] * m[1, k2, k1] * m[0, k1, s]
  got = bounds.log_path_sum(steps)
  np.testing.assert_allclose(jnp.exp(got), want, rtol=1e-12)
  shifts = jnp.array([1.0, -300.0, 1000.0])[:, None, None]
  scaled = bounds.log_path_sum(steps + shifts)
  np.testing.assert_allclose(scaled, got + 701, rtol=1e-12)
  np.testing.assert_allclose(bounds.log_path_sum(steps[:1]), steps[0])
  assert np.all(bounds.log_path_sum(steps.at[1].set(-jnp.inf)) == -jnp.inf)


@pytest.mark.parametrize("log", [50.0, -50.0])
def test_no_path_is_lost_in_float32(log):
  steps = jnp.log(jnp.tril(jnp.ones((100, 8, 8), jnp.float32))) + log
  got = bounds.log_path_sum(steps)
  assert got.dtype == jnp.float32
  paths = jnp.log(jnp.array(bounds.path_counts(8, 100).astype(float)))
  np.testing.assert_allclose(got, 100 * log + paths, rtol=1e-6)
  rare = steps.at[:, 7, :7].add(-900)  # beside paths of weight 1
  want = 100 * log - 900 + paths[7, 6]
  np.testing.assert_allclose(bounds.log_path_sum(rare)[7, 6], want, rtol=1e-6)


def test_gradient_is_the_share_of_each_step():
  """d log sum / d log step: for each layer, shares that add up to 1."""
  share = jax.grad(lambda s: bounds.log_path_sum(s)[4, 0])(random_steps(4, 5))
  np.testing.assert_allclose(share.sum((1, 2)), 1, rtol=1e-9)
  assert np.all(share >= -1e-12)


def uniform(n):
  return jnp.tril(jnp.ones((n, n))) / jnp.arange(1.0, n + 1)[:, None]


def paper_sum(a, layers, heads, constant):
  pattern = jnp.broadcast_to(a, (layers, heads, *a.shape))
  steps = bounds.paper_steps(pattern, constant=constant)
  return np.exp(bounds.log_path_sum(steps))


def test_a_sink_leaves_no_paths_but_to_itself():
  """(A + I)^L = I + (2^L - 1) A; uniform attention has other paths."""
  sink = jnp.zeros((6, 6)).at[:, 0].set(1)
  got = paper_sum(sink, 5, 1, 1.0)
  np.testing.assert_allclose(got, np.eye(6) + 31 * sink, rtol=1e-12)
  assert paper_sum(uniform(6), 5, 1, 1.0)[5, 1] > 1 and got[5, 1] == 0


def test_two_layers_of_uniform_attention():
  """C^2 (H A + I / H)^2, and A^2 is a difference of harmonic numbers."""
  square = np.zeros((7, 7))
  for t, s in itertools.product(range(7), range(7)):
    square[t, s] = sum(1 / (k + 1) for k in range(s, t + 1)) / (t + 1)
  want = 4 * (9 * square + 2 * uniform(7) + np.eye(7) / 9)
  got = paper_sum(uniform(7), 2, 3, 2.0)
  np.testing.assert_allclose(got, want, rtol=1e-12)


def test_looseness_and_violations():
  logs = jnp.log(jnp.array([[1.0, 0.0, 0.0], [10.0, 1.0, 2.0]]))
  true = jnp.array([[100.0, 0.0, 1.0], [0.1, 0.0, 2.0001]])
  want = [[-2, np.nan, np.nan], [2, np.nan, math.log10(2 / 2.0001)]]
  np.testing.assert_allclose(bounds.looseness(logs, true), want, rtol=1e-9)
  assert bounds.violations(logs, true) == 2
  assert bounds.violations(logs, true, tolerance=1e-6) == 3
  assert bounds.violations(logs, true, tolerance=200.0) == 1  # bound 0, true 1
  for nan in (logs, true.at[0, 1].set(jnp.nan)), (logs * jnp.nan, true):
    assert bounds.violations(*nan) > 2


def test_refusals():
  refused = functools.partial(pytest.raises, ValueError)
  for length, depth in ((0, 1), (1, 0)):
    with refused(match=f"at least 1, got {length} and {depth}"):
      bounds.path_counts(length, depth)
  for shape in ((2, 3, 4), (0, 3, 3)):
    with refused(match=rf"\[L, T, T\].* got \({shape[0]}, "):
      bounds.log_path_sum(jnp.zeros(shape))
  with refused(match=r"\(3,\), got \(2,\)"):
    bounds.paper_steps(jnp.ones((3, 1, 4, 4)), constant=jnp.ones(2))
  with refused(match=r"must be \[L, H, T, T\]"):
    bounds.paper_steps(jnp.ones((3, 1, 4, 5)), constant=1.0)
