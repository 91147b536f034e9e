"""Tags and shares along them, in float64 by hand."""

import numpy as np
from jitted import jitted

from sinkjax.metrics import tags as module

written_by, tag, share_along, coefficient = map(
  jitted,
  (module.written_by, module.tag, module.share_along, module.coefficient),
)


def made(batch=2, heads=4, length=9, kv=2, width=3, size=6):
  """(pattern, v, kernel, queries) of a model of grouped heads."""
  rng = np.random.default_rng(0)
  p = np.tril(rng.random((batch, heads, length, length)))
  p /= p.sum(axis=-1, keepdims=True)
  v = rng.normal(size=(batch, length, kv, width))
  kernel = rng.normal(size=(heads, width, size))
  queries = np.zeros((batch, length), bool)
  queries[0, 4:], queries[1, 6:] = True, True
  return (*(x.astype(np.float32) for x in (p, v, kernel)), queries)


def test_a_tag_is_the_mean_that_a_key_s_removal_takes_away():
  """Outputs with and without the key's value differ by it, exactly."""
  p, v, kernel, queries = made()
  key = 2

  def output(v):
    each = np.repeat(v.astype(float), 2, axis=2)
    return np.einsum("bhts,bshk,hkd->btd", p, each, kernel)

  gone = v.copy()
  gone[:, key] = 0
  lost = output(v) - output(gone)
  written = written_by(v[:, key], kernel)
  found = tag(p[..., key], written, queries)
  for b in range(2):
    want = lost[b, queries[b]].mean(axis=0)
    np.testing.assert_allclose(found[b], want, rtol=1e-4, atol=1e-6)
  nothing = tag(p[..., key], written, np.zeros_like(queries))
  assert not np.asarray(nothing).any()


def test_shares_over_a_basis_sum_to_one():
  x = np.random.default_rng(1).normal(size=(2, 9, 6)) + 3
  queries = made()[-1]
  basis, _ = np.linalg.qr(np.random.default_rng(2).normal(size=(6, 6)))
  for centred in (True, False):
    shares = [
      # Of any length and sign.
      share_along(
        x.astype(np.float32),
        np.tile(np.float32(-5) * u.astype(np.float32), (2, 1)),
        queries,
        centred=centred,
      )
      for u in basis
    ]
    np.testing.assert_allclose(np.sum(shares, axis=0), 1, rtol=1e-5)
    for b in range(2):
      some = x[b, queries[b]]
      some = some - some.mean(axis=0) * centred
      want = ((some @ basis[0]) ** 2).sum() / (some**2).sum()
      np.testing.assert_allclose(shares[0][b], want, rtol=1e-4)


def test_what_all_tokens_have_in_common_is_no_variance():
  rng = np.random.default_rng(3)
  x = rng.normal(size=(1, 50, 4)).astype(np.float32) * [0, 1, 1, 1]
  x = (x + np.array([7, 0, 0, 0])).astype(np.float32)
  u, every = np.eye(4, dtype=np.float32)[:1], np.ones((1, 50), bool)
  assert share_along(x, u, every)[0] < 1e-10
  assert share_along(x, u, every, centred=False)[0] > 0.9
  np.testing.assert_allclose(coefficient(x, 2 * u)[0], 7)
  assert not np.asarray(coefficient(x, 0 * u)).any()
  # A direction of no length has no share.
  assert share_along(x, 0 * u, every, centred=False)[0] == 0
