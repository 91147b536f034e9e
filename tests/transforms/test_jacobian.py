"""The public functions: choices, texts, weights, callbacks and errors."""

import json
import os
import pathlib
import re
import subprocess
import sys
from types import SimpleNamespace

import jax.numpy as jnp
import jaxtyping
import numpy as np
import pytest

import sinkjax
from sinkjax.models.layerwise import InMemory
from sinkjax.transforms.jacobian import (
  jacobian_norms,
  singular_values,
  token_jacobian,
)
from sinkjax.weights.huggingface import save
from sinkjax.weights.offload import open_layers

sys.path.insert(0, str(pathlib.Path(__file__).parent))
from dense_jacobian import (
  BASE,
  Dense,
  every_pair,
  model,
  norms_of,
  quickly_compiled,
  text,
)

ROOT = pathlib.Path(__file__).parents[2]
LENGTH = 5
UPPER, CAUSAL = np.triu_indices(LENGTH, 1), np.tril_indices(LENGTH)
NORMS = ("fro", "spectral", "max")


def same(got, want, rtol=1e-5):
  np.testing.assert_allclose(got, want, rtol=rtol)


@pytest.fixture(scope="module", autouse=True)
def quick():
  with quickly_compiled():
    yield


@pytest.fixture
def untyped():
  """Without the annotations' own errors, which only tests have."""
  jaxtyping.config.update("jaxtyping_disable", True)
  yield
  jaxtyping.config.update("jaxtyping_disable", False)


@pytest.fixture(scope="module")
def base():
  f, params = model(BASE)
  return SimpleNamespace(f=f, params=params, tokens=text(LENGTH))


@pytest.fixture(scope="module")
def norms(base):
  layers = InMemory(BASE, base.params)  # once, not at every call

  def of(tokens=base.tokens, fn=base.f, **kw):
    params = base.params if kw.get("method") else layers
    return jacobian_norms(fn, params, tokens, **kw)

  return of


@pytest.fixture(scope="module")
def whole(norms):
  return norms()


@pytest.mark.thorough
@pytest.mark.parametrize("norm", NORMS)
def test_float32_is_as_the_reference_and_as_forward_mode(base, norms, norm):
  got = norms(norm=norm)
  assert got.dtype == np.float64 and got.shape == (LENGTH, LENGTH)
  assert np.all(got[UPPER] == 0) and np.all(got[CAUSAL] > 0.1)
  same(got, norms(norm=norm, method="reference"), 1e-4)
  at = jnp.arange(LENGTH)
  dense = Dense(
    base.f, base.params, base.tokens, positions=at, sources=["embed"]
  )
  same(got, norms_of(dense().astype(np.float64), norm), 1e-4)


@pytest.mark.thorough
def test_norms_are_ordered(base, norms):
  fro, spectral, largest = (norms(norm=norm)[CAUSAL] for norm in NORMS)
  assert np.all(largest <= spectral) and np.all(spectral <= fro)
  assert np.all(fro <= spectral * np.sqrt(BASE.d_model))


@pytest.fixture(scope="module")
def blocks(base):
  pairs = every_pair(LENGTH)
  found = token_jacobian(base.f, base.params, base.tokens, pairs)
  assert found.shape == (25, 8, 8) and found.dtype == np.float32
  return found.reshape(LENGTH, LENGTH, 8, 8)


def test_blocks_have_the_norms(blocks, whole):
  same(norms_of(blocks, "fro"), whole)
  values = singular_values(blocks)
  same(np.sqrt((values**2).sum(axis=-1)), whole, 1e-4)


def test_pairs_in_any_order_from_either_end(base, blocks):
  pairs = [(4, 1), (2, 2), (1, 3), (-1, -4), (3, 1), (-3, 2)]
  found = token_jacobian(base.f, base.params, base.tokens, pairs)
  assert np.all(found[2] == 0)
  for (t, s), block in zip(pairs, found, strict=True):
    np.testing.assert_allclose(block, blocks[t, s], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("method", ["exact", "reference"])
def test_rows_and_columns_are_slices(norms, whole, method):
  rows, cols = [4, 0, -2], [3, 1]
  got = norms(rows=rows, cols=cols, method=method)
  same(got, whole[np.ix_([4, 0, 3], cols)])
  assert got[1, 0] == 0
  if method == "exact":
    same(norms(rows=[2]), whole[[2]])


def test_the_order_of_columns_is_kept(norms, whole):
  same(norms(cols=[4, 0, 2, 1, 3]), whole[:, [4, 0, 2, 1, 3]])


def test_texts_are_stacked(norms, whole):
  tokens = jnp.stack([text(LENGTH), text(LENGTH, seed=2)])
  got = norms(tokens=tokens)
  assert np.array_equal(got[0], whole)
  assert np.array_equal(got[1], norms(tokens=tokens[1]))
  assert np.abs(got[1] - got[0]).max() > 1e-2
  few = norms(tokens=tokens, rows=[4], cols=[1, 3], norm="max")
  assert few.shape == (2, 1, 2)


def test_positions(base, norms, whole):
  """Rotations see distances only, so a shift of all is none."""
  at = jnp.array([0, 2, 3, 9, 12])
  same(norms(positions=jnp.arange(LENGTH)), whole)
  same(norms(positions=jnp.arange(LENGTH) + 11), whole, 1e-4)
  dense = Dense(
    base.f, base.params, base.tokens, positions=at, sources=["embed"]
  )
  got = norms(positions=at)
  same(got, norms_of(dense(), "fro"), 1e-4)
  same(norms(positions=at[None], method="reference"), got, 1e-4)
  assert np.abs(got - whole).max() > 1e-2
  block = token_jacobian(
    base.f, base.params, base.tokens, [(4, 1)], positions=at
  )
  same(norms_of(block, "fro"), got[4, [1]])


@pytest.mark.parametrize("norm", NORMS)
def test_every_layer_in_one_pass(norms, norm):
  got = norms(per_layer=True, norm=norm)
  assert got.shape == (3, LENGTH, LENGTH)
  for layer in range(3):
    alone = norms(target=("resid_post", layer), norm=norm)
    same(got[layer], alone)
    assert np.all(got[layer][UPPER] == 0)


def test_layers_between_source_and_target(norms):
  ends = {"source": ("resid_post", 0), "target": ("resid_post", 2)}
  got = norms(per_layer=True, rows=[4, 2], cols=[0, 2], **ends)
  assert got.shape == (2, 2, 2)
  ends["target"] = ("resid_post", 1)
  same(got[0], norms(**ends)[np.ix_([4, 2], [0, 2])])


def test_sites_by_name_mean_the_ends(norms, whole):
  same(norms(source=("embed", 0), target=("resid_post", -1)), whole)
  first = norms(source="resid_post", target="final")
  same(norms(source=("resid_post", -3), target=("final", 0)), first)


def test_observers_change_nothing(base, norms, whole):
  watched = sinkjax.capture(base.f, {"a": ("pattern", sinkjax.sink_score)})
  assert np.array_equal(norms(fn=watched), whole)


@pytest.mark.parametrize("method", ["exact", "reference"])
def test_callbacks(norms, whole, method):
  steps, reports, columns = [], [], {}

  def finished(some, values):
    assert not set(some) & set(columns)
    columns.update(zip(some, values.T, strict=True))

  norms(
    cols=[3, 1],
    rows=[4, 2],
    method=method,
    finished=finished,
    progress=lambda *step: steps.append(step),
    report=reports.append,
  )
  assert set(columns) == {1, 3}
  for column, values in columns.items():
    same(values, whole[[4, 2], column])
  total = steps[-1][1]
  assert steps == [(i, total) for i in range(1, total + 1)]
  if method == "exact":
    assert [list(report) for report in reports] == [["plan"], ["check"]]
    assert 0 <= reports[1]["check"] < 1e-5


def test_weights_read_layer_by_layer(tmp_path, base, norms, whole):
  save(tmp_path, base.params, BASE)
  opened = open_layers(tmp_path)
  fn = sinkjax.forward(opened.cfg)
  assert np.array_equal(jacobian_norms(fn, opened, base.tokens), whole)
  ends = {"source": "resid_post", "target": "final"}
  got = jacobian_norms(fn, opened, base.tokens, cols=[2], **ends)
  assert np.array_equal(got, norms(cols=[2], **ends))
  opened.close()


SPREAD = """
import json, sys
import jax, numpy as np
sys.path.insert(0, "tests/transforms")
from dense_jacobian import BASE, model, text
from sinkjax.transforms.jacobian import jacobian_norms

devices = jax.devices()
assert len(devices) == 4
f, params = model(BASE)
plans = []
for options in json.load(sys.stdin):
  devices = jax.devices()[: options.pop("devices")]
  got = jacobian_norms(
    f, params, text(5), devices=devices, report=plans.append, **options
  )
  print(json.dumps(got.tolist()))
"""


@pytest.mark.slow
def test_devices_change_nothing(norms):
  """Four of them, with columns that are no multiple of four."""
  cases = [{"devices": 4, "cols": [4, 0, 2, 1, 3]}]
  env = os.environ | {
    "JAX_PLATFORMS": "cpu",
    "XLA_FLAGS": "--xla_force_host_platform_device_count=4",
    "JAX_DISABLE_MOST_OPTIMIZATIONS": "1",
  }
  run = subprocess.run(
    [sys.executable, "-c", SPREAD],
    input=json.dumps(cases),
    text=True,
    capture_output=True,
    cwd=ROOT,
    env=env,
    check=False,
  )
  assert run.returncode == 0, run.stderr[-2000:]
  for case, line in zip(cases, run.stdout.splitlines(), strict=True):
    del case["devices"]
    same(np.array(json.loads(line)), norms(**case), 1e-5)


BAD = {
  "a site": ({"source": "q"}, "'q' is no residual site; valid: ['embed'"),
  "another site": ({"target": "logits"}, "'logits' is no residual site"),
  "a layer": ({"target": ("resid_post", 3)}, "outside a model of 3 layers"),
  "a negative layer": ({"source": ("resid_mid", -4)}, "layer -4 of 'resid_mi"),
  "an order": (
    {"source": ("resid_mid", 1), "target": ("resid_post", 0)},
    "('resid_post', 0) comes before the source ('resid_mid', 1)",
  ),
  "a norm": ({"norm": "l2"}, "['fro', 'spectral', 'max'], got 'l2'"),
  "a method": ({"method": "fast"}, "['exact', 'reference'], got 'fast'"),
  "a column": ({"cols": [5]}, "token 5 is outside a text of 5 tokens"),
  "a row": ({"rows": [-6]}, "token -6 is outside a text of 5 tokens"),
  "a column twice": ({"cols": [1, -4]}, "a token is named twice: [1, -4]"),
  "no columns": ({"cols": []}, "no tokens were chosen"),
  "a budget": ({"budget_bytes": 100}, "a budget of 1e-07 GB is too small"),
  "layers to final": ({"per_layer": True, "target": "final"}, "per_layer need"),
  "layers slowly": ({"per_layer": True, "method": "reference"}, "per_layer n"),
  "bfloat16": (
    {"fn": sinkjax.forward(BASE.replace(dtype="bfloat16"))},
    'bfloat16: use cfg.replace(dtype="float32")',
  ),
}


@pytest.mark.parametrize("name", BAD)
def test_mistakes_are_named_in_one_line(norms, name):
  options, message = BAD[name]
  with pytest.raises(ValueError, match=re.escape(message)) as found:
    norms(**options)
  assert "\n" not in str(found.value)


@pytest.mark.parametrize("fn", [lambda params, tokens: tokens, jnp.sum])
def test_a_function_of_somebody_else(norms, fn):
  with pytest.raises(TypeError, match=r"sinkjax\.forward, intervene or captu"):
    norms(fn=fn)


@pytest.mark.parametrize(
  ("tokens", "message"),
  [
    (jnp.zeros(5), "integers of shape [T] or [B, T], got float32 (5,)"),
    (jnp.zeros((), int), "got int32 ()"),
    (jnp.zeros((1, 1, 5), int), "got int32 (1, 1, 5)"),
  ],
)
def test_bad_tokens(base, untyped, tokens, message):
  args = base.f, base.params, tokens
  for run in (lambda: jacobian_norms(*args), lambda: token_jacobian(*args, [])):
    with pytest.raises(ValueError, match=re.escape(message)):
      run()


@pytest.mark.parametrize(
  ("tokens", "pairs", "message"),
  [
    (jnp.zeros((2, 5), int), [(1, 0)], "tokens must be one text [T], got (2"),
    (text(LENGTH), [], "no pairs were chosen"),
    (text(LENGTH), [(1, 0, 0)], "a pair is (target, source), got (1, 0, 0)"),
    (text(LENGTH), [(5, 0)], "token 5 is outside a text of 5 tokens"),
  ],
)
def test_bad_pairs(base, untyped, tokens, pairs, message):
  with pytest.raises(ValueError, match=re.escape(message)):
    token_jacobian(base.f, base.params, tokens, pairs)


@pytest.mark.slow
def test_smollm2_is_as_the_reference(smollm2):
  """Three layers in the middle of a real model, one column early, one late."""
  cfg = smollm2.cfg.replace(dtype="float32")
  ids = smollm2.tokenizer.encode("The harbour was quiet before dawn.")[:6]
  ends = {"source": ("resid_post", 12), "target": ("resid_post", 15)}
  args = sinkjax.forward(cfg), smollm2.params, jnp.array(ids)
  got = jacobian_norms(*args, cols=[0, 4], **ends)
  want = jacobian_norms(*args, cols=[0, 4], method="reference", **ends)
  same(got, want, 1e-4)
  assert np.all(got[:, 0] > 0) and np.all(got[:4, 1] == 0)
