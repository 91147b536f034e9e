"""However the work is cut into blocks, the exact Jacobian is the same."""

import itertools
import pathlib
import re
import sys
from types import SimpleNamespace

import jax
import numpy as np
import pytest

from sinkjax.models.layerwise import InMemory
from sinkjax.transforms import (
  jacobian,
  jacobian_engine,
  layer_jacobian,
  layer_steps,
)
from sinkjax.transforms.jacobian import jacobian_norms, token_jacobian
from sinkjax.transforms.jacobian_engine import SelfCheckError
from sinkjax.transforms.jacobian_plan import (
  default_budget,
  make_plan,
  source_columns,
)

sys.path.insert(0, str(pathlib.Path(__file__).parent))
from dense_jacobian import (
  BASE,
  every_pair,
  model,
  norms_of,
  quickly_compiled,
  text,
)

LENGTH = 5
NORMS = ("fro", "spectral", "max")


@pytest.fixture(scope="module", autouse=True)
def quick():
  with quickly_compiled():
    yield


@pytest.fixture(scope="module")
def base():
  f, params = model(BASE)
  blocks = token_jacobian(f, params, text(LENGTH), every_pair(LENGTH))
  blocks = blocks.reshape(LENGTH, LENGTH, 8, 8)
  want = {norm: norms_of(blocks, norm) for norm in NORMS}
  layers = InMemory(BASE, params)  # once, not at every call
  return SimpleNamespace(
    f=f, params=params, layers=layers, tokens=text(LENGTH), want=want
  )


def check(base, norm="fro", cols=None, **kw):
  """The plan by which the right norms came out."""
  reports = []
  got = jacobian_norms(
    base.f,
    base.layers,
    base.tokens,
    norm=norm,
    cols=cols,
    report=reports.append,
    **kw,
  )
  want = base.want[norm] if cols is None else base.want[norm][:, cols]
  np.testing.assert_allclose(got, want, rtol=1e-4)
  return reports[0]["plan"]


PLANS = {
  "windows": {"window": 2, "sources": 2, "directions": 4, "kept": 3},
  "padded": {"window": 3, "sources": 2, "directions": 8, "kept": 1},
  "directly": {"window": 2, "sources": 2, "directions": 4, "folded": False},
  "directly, padded": {
    "window": 5,
    "sources": 3,
    "directions": 2,
    "folded": False,
  },
}


def planned(monkeypatch, name):
  changes = {"folded": True, "kept": 0} | PLANS[name]

  def plan(*args, **kw):
    return make_plan(*args, **kw)._replace(**changes)

  monkeypatch.setattr(jacobian, "make_plan", plan)


@pytest.mark.thorough
@pytest.mark.parametrize("name", PLANS)
def test_every_way_to_cut_the_work(base, monkeypatch, name):
  """Windows, several sources, a last block that is padded, few directions."""
  planned(monkeypatch, name)
  for norm in NORMS if name in ("windows", "directly, padded") else ("fro",):
    plan = check(base, norm)
    assert plan.window == PLANS[name]["window"]
  check(base, "max", cols=[4, 1])


def test_blocks_of_any_shape_are_put_in_place(base, monkeypatch):
  args = base.f, base.params, base.tokens, every_pair(LENGTH)
  want = token_jacobian(*args)
  planned(monkeypatch, "windows")
  np.testing.assert_allclose(token_jacobian(*args), want, rtol=1e-4, atol=1e-5)


def test_any_budget_gives_the_same(base):
  """From ample to the least that works, which goes one column at a time."""
  budget, plans = 1 << 17, []
  message = r"a budget of \S+ GB is too small: one direction at 5 tokens needs"
  while True:
    try:
      plans.append(check(base, budget_bytes=budget))
    except ValueError as error:
      refused = str(error)
      break
    assert plans[-1].bytes <= budget
    budget //= 4
  assert re.match(message, refused) and "\n" not in refused
  assert len(plans) > 2
  assert plans[0].folded and plans[0].directions == 8
  assert not plans[-1].folded
  needs = float(re.search(r"needs (\S+) GB", refused).group(1)) * 1e9
  least = check(base, "spectral", budget_bytes=int(needs * 1.01))
  assert least.directions == least.sources == 1 and not least.folded


@pytest.mark.parametrize("devices", [1, 2, 8])
def test_plans_keep_to_the_budget(devices):
  """Of memory on each device, for a model of the size of SmolLM2."""
  cfg = BASE.replace(
    d_model=576, n_layers=30, n_heads=9, n_kv_heads=3, head_dim=64, d_ff=1536
  )
  for length, budget, few in itertools.product(
    (2, 29), (10**8, 10**10), (False, True)
  ):
    columns = [length - 1] if few else range(length)
    plan = make_plan(
      cfg,
      length,
      columns=columns,
      many=576,
      layers=30,
      budget=budget,
      devices=devices,
    )
    assert 0 < plan.bytes <= budget
    assert 576 % plan.directions == 0
    assert plan.sources % devices == 0
    assert 1 <= plan.window <= length
    assert plan.seconds(1e12) == pytest.approx(2 * plan.seconds(2e12))


def test_a_larger_budget_is_never_slower():
  cfg = BASE.replace(d_model=576, d_ff=1536)
  plans = [
    make_plan(cfg, 16, columns=range(16), many=576, layers=9, budget=budget)
    for budget in np.geomspace(2e7, 1e11, 9).astype(int).tolist()
  ]
  flops = [plan.flops for plan in plans]
  assert flops == sorted(flops, reverse=True)
  assert plans[-1].folded and plans[-1].bytes > plans[0].bytes
  assert flops[-1] < flops[0] / 2


@pytest.mark.slow
@pytest.mark.parametrize(
  ("budget", "cols", "folded"), [(150_000, [5], False), (2 * 10**6, None, True)]
)
def test_no_program_holds_the_dense_jacobian(monkeypatch, budget, cols, folded):
  """What XLA says of every program that the engine runs."""
  cfg = BASE.replace(
    d_model=16, n_heads=1, n_kv_heads=1, head_dim=4, max_len=64, n_layers=2
  )
  length, sizes = 64, {}
  f, params = model(cfg)

  def measured(name, fn):
    def run(*args, **kw):
      found = fn.lower(*args, **kw).compile().memory_analysis()
      size = found.temp_size_in_bytes + found.output_size_in_bytes
      sizes[name] = max(size, sizes.get(name, 0))
      return fn(*args, **kw)

    return run

  for module in (jacobian, jacobian_engine, layer_jacobian, layer_steps):
    for name, fn in list(vars(module).items()):
      if callable(fn) and hasattr(fn, "lower"):
        monkeypatch.setattr(module, name, measured(name, fn))
  plans = []
  jacobian_norms(
    f, params, text(length), cols=cols, budget_bytes=budget, report=plans.append
  )
  assert len(sizes) > 2
  assert plans[0]["plan"].folded == folded
  assert plans[0]["plan"].bytes <= budget < 4 * (length * cfg.d_model) ** 2
  assert max(sizes.values()) <= budget


def test_checked_columns_are_handed_over_on_the_way(base, monkeypatch):
  """Each once; after an interruption the others are enough."""
  monkeypatch.setattr(jacobian_engine, "CHECK_EVERY", 0.0)
  planned(monkeypatch, "windows")
  got = np.full((LENGTH, LENGTH), np.nan)

  def finished(columns, values):
    assert np.all(np.isnan(got[:, columns]))
    got[:, columns] = values
    if np.isfinite(got).all(axis=0).sum() == 4:
      raise KeyboardInterrupt

  with pytest.raises(KeyboardInterrupt):
    check(base, finished=finished)
  rest = np.flatnonzero(np.isnan(got).any(axis=0)).tolist()
  assert rest == [4]
  check(base, cols=rest, finished=finished)
  np.testing.assert_allclose(got, base.want["fro"], rtol=1e-4)


def test_overflow_is_no_result(base):
  params = jax.tree.map(lambda x: x, base.params)
  params["blocks"]["mlp"]["down"]["kernel"] *= 1e38
  with pytest.raises(SelfCheckError, match="overflows"):
    jacobian_norms(base.f, params, base.tokens)


def test_a_wrong_derivative_is_noticed(base, monkeypatch):
  """A layer that is off by one part in a hundred in its direct form."""
  planned(monkeypatch, "padded")
  push = jacobian_engine.push_folded

  def wrong(*args, **kw):
    return 1.01 * push(*args, **kw)

  monkeypatch.setattr(jacobian_engine, "push_folded", wrong)
  with pytest.raises(SelfCheckError, match=r"derivative by 3\.0e-02"):
    jacobian_norms(base.f, base.params, base.tokens)


def test_columns_are_positions_in_the_text():
  assert source_columns(3, None) == [0, 1, 2]
  assert source_columns(3, [-1, 0]) == [2, 0]
  assert source_columns(3, (2, -2)) == [2, 1]


def test_the_default_budget_is_some_of_the_memory():
  assert 1 << 20 < default_budget() < 1 << 50
