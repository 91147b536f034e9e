"""Tests of sinkjax.models.fused: kernels against the einsum path."""

import functools
import json
import os
import pathlib
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import sinkjax
from sinkjax.models.fused import fused_attention
from sinkjax.models.normalizers import softmax
from sinkjax.transforms.branches import separate


def _inputs(length=12, heads=4, groups=2, width=8, seed=0, dtype=jnp.float32):
  keys = jax.random.split(jax.random.key(seed), 4)
  q = 3 * jax.random.normal(keys[0], (2, length, heads, width), dtype)
  k = jax.random.normal(keys[1], (2, length, groups, width), dtype)
  v = jax.random.normal(keys[2], (2, length, groups, width), dtype)
  return q, k, v, 2 * jax.random.normal(keys[3], (heads,), dtype)


def _plain(q, k, v, *, scale, window=None, mask=None, sinks=None):
  """Written out, row by row of the formula."""
  group = q.shape[2] // k.shape[2]
  k, v = (jnp.repeat(x, group, axis=2) for x in (k, v))
  scores = scale * jnp.einsum("bthk,bshk->bhts", q, k)
  t = jnp.arange(q.shape[1])
  seen = t[None, :] <= t[:, None]
  if window is not None:
    seen &= t[:, None] - t[None, :] < window
  seen = seen[None, None] if mask is None else seen[None, None] & mask
  sinks = None if sinks is None else sinks[None, :, None, None]
  return jnp.einsum("bhts,bshk->bthk", softmax(scores, seen, sinks), v)


@pytest.mark.parametrize("window", [None, 3])
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("sunk", [False, True])
def test_output_and_gradients_against_float64(window, masked, sunk):
  """Of the library's attention, to which a sink is added here."""
  with jax.enable_x64(True):
    q, k, v, sinks = _inputs(dtype=jnp.float64)
    segments = jnp.array([[0] + [1] * 5 + [2] * 6, [0] + [1] * 9 + [2] * 2])
    mask = separate(segments).visible(12)
    case = {"scale": 0.4, "window": window, "mask": mask if masked else None}
    inputs = (q, k, v, sinks) if sunk else (q, k, v)

    def loss(fn):
      def of(*inputs):
        q, k, v, *rest = inputs
        z = fn(q, k, v, **case, sinks=rest[0] if rest else None)
        return jnp.sum(jnp.sin(z + jnp.arange(8.0)[None, None, None])), z

      numbers = tuple(range(len(inputs)))
      grad = jax.value_and_grad(of, argnums=numbers, has_aux=True)
      return jax.jit(grad)(*inputs)

    (_, z), grads = loss(
      functools.partial(fused_attention, implementation="xla")
    )
    (_, want), wants = loss(_plain)
    # The library accumulates in float32.
    np.testing.assert_allclose(z, want, atol=1e-6)
    for grad, expected in zip(grads, wants, strict=True):
      assert np.abs(expected).max() > 0.05
      np.testing.assert_allclose(grad, expected, atol=1e-5)


@pytest.mark.thorough
@pytest.mark.parametrize("window", [None, 40])
def test_splash_interpreted(window):
  q, k, v, sinks = _inputs(length=128, heads=2, groups=1, width=128)
  case = {"scale": 0.1, "window": window, "sinks": sinks}
  with jax.default_matmul_precision("highest"):
    z = fused_attention(q, k, v, implementation="splash", **case)
    np.testing.assert_allclose(z, _plain(q, k, v, **case), atol=2e-5)
  with pytest.raises(ValueError, match="whole blocks of 128"):
    fused_attention(
      q[:, :100], k[:, :100], v[:, :100], scale=1.0, implementation="splash"
    )


SCRIPT = pathlib.Path(__file__).with_name("kernels_on_devices.py")

KERNEL_SHAPES = {
  "full data:8": [[1, 12, 8, 16], [1, 12, 8, 16]],
  "full fsdp:8": [[1, 12, 8, 16], [1, 12, 8, 16]],
  "full tensor:8": [[8, 12, 1, 16], [8, 12, 1, 16]],
  "full data:4,fsdp:2": [[1, 12, 8, 16], [1, 12, 8, 16]],
  "full data:2,tensor:4": [[4, 12, 2, 16], [4, 12, 2, 16]],
  "full fsdp:4,tensor:2": [[2, 12, 4, 16], [2, 12, 4, 16]],
  "full data:2,fsdp:2,tensor:2": [[2, 12, 4, 16], [2, 12, 4, 16]],
  # The others but one are on data:2,fsdp:2,tensor:2.
  "masks=0 sunk=True": [[2, 12, 4, 16], [2, 12, 4, 16]],
  "masks=8 sunk=False": [[2, 12, 4, 16], [2, 12, 4, 16]],
  "masks=1 sunk=False": [[2, 12, 4, 16], [2, 12, 4, 16]],
  "rows=1 heads=4,4": [[1, 12, 2, 16], [1, 12, 2, 16]],
  "rows=2 heads=4,2": [[1, 12, 2, 16], [1, 12, 1, 16]],
  "rows=4 heads=4,1": [[1, 12, 2, 16], [1, 12, 1, 16]],
  "rows=4 heads=9,3": [[1, 12, 9, 16], [1, 12, 3, 16]],
  "other names": [[2, 12, 8, 16], [2, 12, 8, 16]],
  "cudnn sunk=True": [[2, 12, 4, 16], [2, 12, 2, 16]],
  "cudnn sunk=False": [[2, 12, 4, 16], [2, 12, 2, 16]],
  "inside data": [[2, 12, 4, 16], [2, 12, 4, 16]],
  "inside data,fsdp,tensor": [[4, 12, 8, 16], [4, 12, 8, 16]],
}
"""Of q and k, as one device's kernel gets them."""


@pytest.mark.thorough
@pytest.mark.parametrize(
  ("parts", "shapes", "unshaped"),
  [
    # The compilers' tests have the same wrapper, in the gate.
    pytest.param(
      ["cudnn", "wrapper", "inside", "online", "reducers"],
      KERNEL_SHAPES,
      14,
      marks=pytest.mark.slow,
    ),
    # The interpreted TPU kernel, on seven meshes and in a step of training.
    pytest.param(
      ["splash_everywhere", "training"], {}, 8, marks=pytest.mark.slow
    ),
  ],
  ids=["wrapped", "splash"],
)
def test_kernels_on_every_mesh(parts, shapes, unshaped):
  """Output and gradients are one device's, and each does its part alone."""
  ran = subprocess.run(
    [sys.executable, SCRIPT, *parts],
    text=True,
    capture_output=True,
    check=False,
    env={
      **os.environ,
      "PYTHONPATH": str(SCRIPT.parents[2]),
      "XLA_FLAGS": os.environ["XLA_FLAGS"]
      + " --xla_force_host_platform_device_count=8",
    },
  )
  assert ran.returncode == 0, ran.stderr[-2000:]
  cases = json.loads(ran.stdout.splitlines()[-1])
  found = {k: v[1] for k, v in cases.items() if v[1:] and v[1]}
  assert found == shapes
  assert len(cases) == unshaped + len(found)
  for case, (error, *_) in cases.items():
    assert error < 2e-6, case  # float32, sums in another order


@pytest.mark.thorough
def test_a_sink_that_matters_in_bfloat16():
  """Logits near 20: with a sink of zero nothing would be seen."""
  q, k, v, _ = _inputs(seed=3)
  scores = jnp.einsum("bthk,bshk->bhts", q, jnp.repeat(k, 2, axis=2))
  scale = 20 / float(jnp.abs(scores).max())
  sinks = jnp.array([19.0, 20.0, 21.0, 18.0])
  with jax.enable_x64(True):
    wide = [jnp.asarray(np.asarray(x, np.float64)) for x in (q, k, v, sinks)]
    want = np.asarray(_plain(*wide[:3], scale=scale, sinks=wide[3]))
    without = np.asarray(_plain(*wide[:3], scale=scale))
  assert np.abs(want - without).max() > 0.5
  narrow = [x.astype(jnp.bfloat16) for x in (q, k, v)]
  z = fused_attention(*narrow, scale=scale, sinks=sinks, implementation="xla")
  assert np.abs(np.asarray(z, np.float64) - want).max() < 0.15


@pytest.mark.thorough
@pytest.mark.parametrize("remat", ["full", "dots"])
def test_remat_changes_memory_and_nothing_else(tiny, tokens, remat):
  params, cfg = tiny

  def gradient(cfg):
    def of(params):
      return jnp.sum(jnp.square(sinkjax.forward(cfg)(params, tokens).logits))

    return jax.jit(jax.grad(of))

  kept = gradient(cfg).lower(params).compile()
  less = gradient(cfg.replace(remat=remat)).lower(params).compile()

  def same(a, b):
    # An entry is a sum of terms up to the array's largest, each rounded at
    # 6e-8 of it, and the compiler adds them in another order; a backward pass
    # of three layers chains some dozens of such sums.
    largest = float(jnp.abs(a).max())
    np.testing.assert_allclose(a, b, rtol=0, atol=5e-6 * largest)

  jax.tree.map(same, kept(params), less(params))
  sizes = [made.memory_analysis().temp_size_in_bytes for made in (less, kept)]
  assert sizes[0] < sizes[1]
