"""Tests of sinkjax.models.online: attention that never writes its pattern."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from quick import quick

import sinkjax
from sinkjax.models import attention_form, online, online_blocks
from sinkjax.models.normalizers import softmax

BATCH, LENGTH, HEADS, GROUPS, WIDTH, VALUES = 2, 13, 4, 2, 6, 5
SCALE = 0.4


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch):
  """Blocks of 5, 5 and 3 rows, which no length here divides, and 2 spans."""
  monkeypatch.setattr(online_blocks, "BLOCK", 5)
  monkeypatch.setattr(online, "SPANS", 2)


def inputs(dtype=jnp.float64):
  keys = jax.random.split(jax.random.key(0), 4)
  shape = BATCH, LENGTH
  return (
    3 * jax.random.normal(keys[0], (*shape, HEADS, WIDTH), dtype),
    jax.random.normal(keys[1], (*shape, GROUPS, WIDTH), dtype),
    jax.random.normal(keys[2], (*shape, GROUPS, VALUES), dtype),
    2 * jax.random.normal(keys[3], (1, HEADS, 1), dtype),
  )


def plain(q, k, v, sinks, window, mask, valid, **form):
  """The formula of `online_attention` with the pattern written out."""
  group = q.shape[2] // k.shape[2]
  k, v = (jnp.repeat(x, group, axis=2) for x in (k, v))
  s = form["scale"] * jnp.einsum("bthk,bshk->bhts", q, k)
  if form.get("scores"):
    s = form["scores"](s)
  t = jnp.arange(q.shape[1])
  seen = (t[None, :] <= t[:, None])[None, None]
  if window is not None:
    seen &= (t[:, None] - t[None, :] < window)[None, None]
  if valid is not None:
    seen = (seen & valid[:, None, None]) | jnp.eye(len(t), dtype=bool)[
      None, None
    ]
  if mask is not None:
    seen &= mask
  if form.get("weights"):
    p = jnp.where(seen, form["weights"](s), 0)
    return jnp.einsum("bhts,bshw->bthw", p, v), jnp.zeros(q.shape[:3])
  sinks = None if sinks is None else sinks[..., None]
  p = softmax(s, seen, sinks)
  largest = jnp.where(seen, s, -jnp.inf)
  if sinks is not None:
    many = jnp.broadcast_to(sinks, (*s.shape[:3], 1))
    largest = jnp.concatenate([largest, many], axis=-1)
  lse = jax.nn.logsumexp(largest, axis=-1)
  return jnp.einsum("bhts,bshw->bthw", p, v), jnp.swapaxes(lse, 1, 2)


def _documents():
  ids = np.array([[0] * 4 + [1] * 9, [0] * 10 + [1] * 3])
  return jnp.asarray(ids[:, None, :, None] == ids[:, None, None])


def _two_lengths():
  return jnp.arange(LENGTH)[None] < jnp.array([LENGTH, 9])[:, None]


def _capped(s):
  return 2 * jnp.tanh(s / 2)


CASES = {
  "plain": {},
  "window": {"window": 4},
  "a window longer than a block": {"window": 7},
  "a window that is traced": {"window": "traced"},
  "mask": {"mask": _documents},
  "padding": {"valid": _two_lengths},
  "padding and window": {"valid": _two_lengths, "window": 3},
  "sink": {"sinks": "each head"},
  "sink of each row": {"sinks": "each row", "window": 6},
  "soft cap": {"scores": _capped, "sinks": "each head"},
  "sigmoid": {"weights": jax.nn.sigmoid, "window": 4},
}


def case_of(name):
  """(function of queries, keys, values and sinks, the formula, inputs)."""
  case = dict(CASES[name])
  form = {key: case.pop(key) for key in ("scores", "weights") if key in case}
  q, k, v, sinks = inputs()
  kind = case.pop("sinks", None)
  if kind == "each row":
    more = jax.random.normal(jax.random.key(5), (BATCH, HEADS, LENGTH))
    sinks = sinks + more
  window = case.get("window")
  window = jnp.asarray(4) if window == "traced" else window
  mask, valid = (case[n]() if n in case else None for n in ("mask", "valid"))

  def of(fn):
    def called(q, k, v, *sinks):
      rest = (window, mask, valid)
      z, lse = fn(q, k, v, *(sinks or (None,)), *rest, scale=SCALE, **form)
      return z, lse

    return called

  given = (q, k, v, sinks) if kind else (q, k, v)
  return of(online.online_attention), of(plain), given


def close(got, want, tolerance=1e-11):
  """In float64, where a wrong term would be seen at its own size."""
  for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
    np.testing.assert_allclose(a, b, rtol=0, atol=tolerance)


@pytest.mark.parametrize("kept", [True, False], ids=["kept", "again"])
@pytest.mark.parametrize(
  "name",
  quick(
    # The mask and these three have between them every term of the formula.
    quick(CASES, "mask", "padding and window", "sink of each row", "soft cap"),
    "mask",
    others="thorough",
  ),
)
def test_every_derivative_is_that_of_the_formula(name, kept, monkeypatch):
  """z, lse, jvp, linearize, grad, vmap, and the derivative of a gradient."""
  if not kept:
    monkeypatch.setattr(online, "KEPT_BYTES", 0)
  with jax.enable_x64(True):
    fn, formula, given = case_of(name)
    moved = tuple(jnp.cos(7 * x) for x in given)

    def loss(f, *given):
      z, lse = f(*given)
      weights = jnp.sin(jnp.arange(z.size).reshape(z.shape))
      return jnp.sum(jnp.sin(z) * weights) + jnp.sum(jnp.cos(lse))

    @functools.partial(jax.jit, static_argnums=0)
    def all_of(f, given, moved):
      out, pushed = jax.jvp(f, given, moved)
      of = functools.partial(loss, f)
      gradient = jax.grad(of, argnums=tuple(range(len(given))))
      bent = jax.jvp(gradient, given, moved)
      twice = jax.tree.map(lambda x: jnp.stack([x, 0.5 * x]), given)
      return {
        "value": out,
        "jvp": pushed,
        "linearize": jax.linearize(f, *given)[1](*moved),
        "gradient and its derivative": bent,
        "vmap": jax.vmap(f)(*twice),
      }

    got = all_of(fn, given, moved)
    want = all_of(formula, given, moved)
    assert all(
      np.abs(x).max() > 0.01 for x in want["gradient and its derivative"][0]
    )
    for what, value in want.items():
      close(got[what], value, 1e-10 if "gradient" in what else 1e-11)


def test_a_row_that_sees_no_key_is_not_a_number():
  q, k, v, _ = inputs(jnp.float32)
  mask = jnp.ones((1, 1, LENGTH, LENGTH), bool).at[:, :, 6].set(False)
  z, _ = online.online_attention(q, k, v, mask=mask, scale=SCALE)
  lost = np.isnan(z).all((0, 2, 3))
  assert lost.tolist() == [t == 6 for t in range(LENGTH)]
  assert not np.isnan(np.delete(z, 6, axis=1)).any()


def test_scores_far_beyond_the_range_of_exponentials():
  """Scores near 1e3: without the running maximum all would overflow."""
  q, k, v, _ = inputs(jnp.float32)
  z, lse = online.online_attention(100 * q, k, v, scale=SCALE)
  with jax.enable_x64(True):
    wide = [jnp.asarray(np.asarray(x, np.float64)) for x in (100 * q, k, v)]
    want = plain(*wide, *[None] * 4, scale=SCALE)
  assert np.abs(want[1]).max() > 500  # exp(89) is beyond float32
  # Six products near 1e3 are each rounded by 6e-5, as a share of their weight,
  # and values differ by up to 6.
  np.testing.assert_allclose(z, want[0], atol=5e-3)
  np.testing.assert_allclose(lse, want[1], rtol=1e-6)


def test_half_precision_accumulates_in_float32():
  """Against float64 on the same rounded inputs; bfloat16 has 8 bits."""
  narrow = [x.astype(jnp.bfloat16) for x in inputs(jnp.float32)[:3]]
  z, lse = online.online_attention(*narrow, scale=SCALE)
  assert z.dtype == jnp.bfloat16
  assert lse.dtype == jnp.float32
  with jax.enable_x64(True):
    wide = [jnp.asarray(np.asarray(x, np.float64)) for x in narrow]
    want, level = plain(*wide, *[None] * 4, scale=SCALE)
  np.testing.assert_allclose(lse, level, rtol=1e-4)
  # Weights and outputs are rounded to 8 bits: 2^-8 of values up to 3.
  np.testing.assert_allclose(np.asarray(z, np.float64), want, atol=0.02)


def test_memory_does_not_grow_with_the_square(monkeypatch):
  """Of a pass and of its gradient, as the compiler plans it."""
  monkeypatch.setattr(online_blocks, "BLOCK", 64)
  monkeypatch.setattr(online, "SPANS", 8)
  monkeypatch.setattr(online, "KEPT_BYTES", 0)
  length = 2048
  shape = jax.ShapeDtypeStruct((1, length, 2, 8), jnp.float32)

  def z(q, k, v):
    return online.online_attention(q, k, v, scale=SCALE)[0]

  def gradient(q, k, v):
    return jax.grad(lambda *x: jnp.sum(z(*x) ** 2), argnums=(0, 1, 2))(q, k, v)

  for fn in (z, gradient):
    plan = jax.jit(fn).lower(shape, shape, shape).compile().memory_analysis()
    # The pattern of one head has 16.8 MB.
    assert plan.temp_size_in_bytes < 4 * length**2


VARIANTS = {
  "plain": {},
  "sink logit": {"sink_logit": True},
  "local layers": {"window": 4, "local_layers": (True, False, True)},
  "every layer local": {"window": 5, "local_layers": (True,) * 3},
  "soft cap": {"attn_softcap": 2.0},
  "softmax1": {"normalizer": "softmax1"},
  "sigmoid": {"normalizer": "sigmoid"},
  "elu1": {"normalizer": "elu1"},
  "relu": {"normalizer": "relu"},
  "normalized sigmoid": {"normalizer": "normalized_sigmoid"},
  "softpick, which has no such form": {"normalizer": "softpick"},
  "key bias": {"attn_bias": "k"},
  "key and value bias": {"attn_bias": "kv"},
  "value bias": {"attn_bias": "v"},
  "gate": {"gate": "head"},
  "mixing": {"mixing": "gate", "attn_bias": "k"},
  "halting": {"depth": "halting"},
  "routed": {"depth": "routed", "sink_logit": True},
  "roles, which have no such form": {"control_heads": 2},
  "latent": {"rope_dim": 4, "kv_rank": 9, "q_rank": 7, "v_dim": 5},
  "ALiBi, which has no such form": {"positions": "alibi"},
  "fused": {"attention": "fused", "sink_logit": True},
}


@pytest.mark.slow
@pytest.mark.parametrize("padded", [False, True], ids=["whole", "padded"])
@pytest.mark.parametrize("name", quick(VARIANTS, "sink logit", "key bias"))
def test_the_model_is_the_same_function(name, padded, monkeypatch):
  """Logits, gradient and a derivative of it, against the pattern written."""
  monkeypatch.setattr(attention_form, "LONG", 1)
  with jax.enable_x64(True):
    cfg = sinkjax.TINY.replace(**VARIANTS[name], dtype="float64")
    reference = cfg.replace(attention="einsum")
    params = sinkjax.init_params(cfg, jax.random.key(2))
    key = jax.random.key(3)
    params = jax.tree.map(
      lambda x: 1.5 * x + 0.1 * jax.random.normal(key, x.shape), params
    )
    tokens = jax.random.randint(jax.random.key(1), (2, LENGTH), 0, 64)
    valid = _two_lengths() if padded else None

    @functools.partial(jax.jit, static_argnums=0)
    def all_of(cfg, params):
      def loss(params):
        logits = sinkjax.forward(cfg)(params, tokens, valid=valid).logits
        return jnp.sum(jax.nn.log_softmax(logits)[..., 3]), logits

      gradient = jax.grad(loss, has_aux=True)
      return jax.jvp(gradient, (params,), (params,), has_aux=False)

    got, want = all_of(cfg, params), all_of(reference, params)
  for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
    # Sums of hundreds of terms, each rounded at 1e-16 of the largest.
    size = max(1.0, np.abs(b).max())
    np.testing.assert_allclose(a, b, rtol=0, atol=1e-10 * size)


def test_a_tap_gets_its_pattern(tiny, tokens, monkeypatch):
  """Where a tap looks at scores or pattern they are written."""
  monkeypatch.setattr(attention_form, "LONG", 1)
  params, cfg = tiny
  observe = {"alpha": ("pattern", sinkjax.sink_score)}
  f = sinkjax.forward
  want = sinkjax.capture(f(cfg.replace(attention="einsum")), observe)
  got = sinkjax.capture(f(cfg), observe)
  np.testing.assert_array_equal(
    got(params, tokens).trace["alpha"], want(params, tokens).trace["alpha"]
  )


@pytest.mark.parametrize(
  ("changes", "length", "written"),
  [
    ({}, attention_form.LONG, False),
    ({}, attention_form.LONG - 1, True),
    ({"attention": "einsum"}, attention_form.LONG, True),
    ({"attention": "fused"}, 3, False),
    ({"normalizer": "clipped_softmax"}, attention_form.LONG, True),
  ],
)
def test_where_the_pattern_is_written(changes, length, written):
  cfg = sinkjax.TINY.replace(**changes)
  assert attention_form.needs_no_pattern(cfg, length) is not written
