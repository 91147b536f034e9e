"""Tests of sinkjax.models.flash_statistics: accelerators' own kernels.

Here JAX interprets them; tests/compilers has what the devices' compilers say.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from quick import quick

from sinkjax.models import flash_arrays, flash_statistics, online_sums

BATCH, HEADS, GROUPS, WIDTH, VALUES, SCALE = 2, 4, 2, 6, 5, 0.4
WANTED = ("columns", "diagonals", "entropy", "written")


@pytest.fixture(params=["gpu", "tpu"], autouse=True)
def where(request, monkeypatch):
  """Kernels of a kind of device, by blocks of 8."""
  kind = request.param
  monkeypatch.setattr(flash_statistics, "device", lambda: kind)
  monkeypatch.setattr(flash_statistics, "SHORTEST", 1)
  monkeypatch.setattr(flash_arrays, "BLOCKS", {kind: (8,)})
  return kind


def inputs(length):
  """(q, k, v, norms, sinks of heads, sinks of rows), float64."""
  rng = np.random.default_rng(length)
  return (
    3 * rng.normal(size=(BATCH, length, HEADS, WIDTH)),
    rng.normal(size=(BATCH, length, GROUPS, WIDTH)),
    rng.normal(size=(BATCH, length, GROUPS, VALUES)),
    rng.uniform(size=(BATCH, length, GROUPS)),
    2 * rng.normal(size=(1, HEADS, 1)),
    2 * rng.normal(size=(BATCH, HEADS, length)),
  )


def by_definition(q, k, v, norms, sinks, window, valid, cap):
  """z, lse and every sum of the pattern, which is written out in float64."""
  k, v, norms = (np.repeat(x, HEADS // GROUPS, 2) for x in (k, v, norms))
  s = SCALE * np.einsum("bthk,bshk->bhts", q, k)
  s = s if cap is None else cap * np.tanh(s / cap)
  length = q.shape[1]
  back = np.arange(length)[:, None] - np.arange(length)
  seen = (back >= 0) & (back < (window or length))
  if valid is not None:
    seen = (seen & valid[:, None, None]) | (back == 0)
  weight = np.where(seen, np.exp(s), 0)
  total = weight.sum(-1)
  total = total if sinks is None else total + np.exp(sinks)
  p = weight / total[..., None]
  return {
    "z": np.einsum("bhts,bshw->bthw", p, v),
    "lse": np.moveaxis(np.log(total), 1, 2),
    "entropy": -(p * np.log(np.where(p > 0, p, 1))).sum(-1),
    "written": np.einsum("bhts,bsh->bht", p, norms),
    "columns": p.sum(2),
    "diagonals": np.stack(
      [np.trace(p, -d, axis1=2, axis2=3) for d in range(length)], -1
    ),
  }


@functools.partial(jax.jit, static_argnames=("where", "window", "cap"))
def by_kernels(q, k, v, norms, sinks, valid, reach, *, where, window, cap):
  """The same by both walks; `reach` is a window that is traced."""
  assert flash_statistics.device() == where  # which a trace depends on
  window = window if reach is None else reach
  rest = {"wanted": WANTED, "scale": SCALE}
  rest["scores"] = None if cap is None else lambda s: cap * jnp.tanh(s / cap)
  z, lse, sums = online_sums.attention_with_sums(
    q, k, v, norms, sinks, window, None, valid, **rest
  )
  assert set(sums) == {"entropy", "written"}
  sums = {name: jnp.swapaxes(x, 1, 2) for name, x in sums.items()}
  rest["wanted"] = ("columns", "diagonals")
  more = online_sums.online_sums(q, k, lse, None, window, None, valid, **rest)
  return {"z": z, "lse": lse, **sums, **more}


CASES = {
  "whole blocks": {"length": 16},
  "a length of no whole blocks": {"length": 21},
  "a window": {"length": 21, "window": 5},
  "a window longer than a block": {"length": 30, "window": 11},
  "a window that is traced": {"length": 21, "reach": 5},
  "itself alone": {"length": 16, "window": 1},
  "padding": {"length": 21, "valid": True},
  "padding and a window": {"length": 21, "valid": True, "window": 9},
  "a sink of each head": {"length": 16, "sinks": 4},
  "everything": {
    "length": 21, "valid": True, "window": 9, "sinks": 5, "cap": 3.0,
  },
}  # fmt: skip


@pytest.mark.parametrize("name", quick(CASES, "everything", others="thorough"))
def test_against_float64(name, where):
  case = {"window": None, "reach": None, "cap": None, **CASES[name]}
  given = inputs(case["length"])
  sinks = given[case["sinks"]] if "sinks" in case else None
  valid = None
  if "valid" in case:
    valid = np.arange(case["length"]) < np.array([[case["length"]], [9]])
  window = case["window"] or case["reach"]
  want = by_definition(*given[:4], sinks, window, valid, case["cap"])
  got = by_kernels(
    *(jnp.asarray(x, jnp.float32) for x in given[:4]),
    None if sinks is None else jnp.asarray(sinks, jnp.float32),
    valid,
    case["reach"],
    where=where,
    window=case["window"],
    cap=case["cap"],
  )
  assert set(got) == set(want)
  for key, value in want.items():
    # Rounded products of queries near 10 in float32, and up to 30 weights.
    np.testing.assert_allclose(got[key], value, rtol=0, atol=1e-5, err_msg=key)
