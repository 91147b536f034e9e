"""Tests of the experiment `mixing`: measurements on trained models."""

import dataclasses
import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sinkjax.experiments.harness.api import Result
from sinkjax.experiments.harness.protocol import Verdict, judge
from sinkjax.experiments.harness.stats import slopes
from sinkjax.experiments.training import packing
from sinkjax.experiments.training.mixing import EXPERIMENT
from sinkjax.experiments.training.mixing.claims import QUANTITIES
from sinkjax.experiments.training.mixing.experiment import Config, measure_model
from sinkjax.metrics.spread import total_mixing
from sinkjax.models.transformer import forward, init_params
from sinkjax.report import html
from sinkjax.transforms.jacobian import jacobian_norms

CONFIG = Config(of=("packing", "optimisation"), tokens=12, texts=3, swaps=2)


@pytest.fixture(scope="module")
def folder(corpus, tmp_path_factory):
  """Two tiny models with BOS and two without, trained for a few steps."""
  sweep = packing.Config(
    ways=("causal-pinned", "separate-none"),
    seeds=(0, 1),
    corpus=corpus,
    layers=2,
    d_model=32,
    vocab_size=300,
    length=32,
    batch=4,
    steps=4,
    warmup=2,
    every=2,
    texts=16,
  )
  out = tmp_path_factory.mktemp("out")
  packing.EXPERIMENT.measure(sweep, folder=out / "packing")
  return out


@pytest.mark.slow
def test_trained_models_are_measured(folder):
  result = EXPERIMENT.measure(CONFIG, folder=folder / "mixing")
  rows = {(r["variant"], r["form"]): r for r in result.numbers["rows"]}
  assert set(rows) == {
    ("causal-pinned", "bos"),
    ("causal-pinned", "text"),
    ("separate-none", "text"),
  }
  for row in rows.values():
    assert row["seeds"] == [0, 1]
    assert row["violated"] == [0, 0]
    assert all(0 < x < 1 for x in row["mixing_rest"] + row["first_mass"])
    assert all(x > 0 for x in row["loose"] + row["spread"])
    trained = json.loads(
      (folder / "packing" / "runs" / f"{row['variant']}-1.json").read_text()
    )
    assert row["loss"][1] == trained["final"][row["form"]]["loss"]
  stored = result.as_stored(CONFIG)
  bounds = [c for c in EXPERIMENT.claims(stored) if c.id == "full_bound_holds"]
  assert [claim.verdict for claim in judge(bounds)] == [Verdict.SUPPORTED]
  # Two variants, two seeds each, and pairs of 12 tokens.
  assert bounds[0].effect.cases == 2 * 2 * 78
  drawn = EXPERIMENT.draw(stored)
  sections = EXPERIMENT.sections(stored, drawn)
  assert {section.figure for section in sections} == set(drawn.values())
  assert all(png.startswith(html.PNG_SIGNATURE) for png in drawn.values())
  header, table = result.tables["models.csv"]
  assert len(table) == 6 and {len(row) for row in table} == {len(header)}
  kept = {p: p.stat().st_mtime_ns for p in folder.glob("mixing/runs/*.json")}
  assert len(kept) == 4
  again = EXPERIMENT.measure(CONFIG, folder=folder / "mixing")
  assert again.numbers == result.numbers
  assert kept == {p: p.stat().st_mtime_ns for p in kept}
  one = json.loads(next(iter(kept)).read_text())
  assert one["request"]["run"]["packing"]["length"] == 32
  other = dataclasses.replace(CONFIG, tokens=10)
  with pytest.raises(ValueError, match="another config"):
    EXPERIMENT.measure(other, folder=folder / "mixing")


@pytest.mark.slow
def test_evaluations_outlive_their_models(folder, tmp_path):
  """What was measured of a model stays when its folder is gone."""
  (tmp_path / "mixing").mkdir()
  shutil.copytree(folder / "mixing" / "runs", tmp_path / "mixing" / "runs")
  gone = EXPERIMENT.measure(CONFIG, folder=tmp_path / "mixing")
  there = EXPERIMENT.measure(CONFIG, folder=folder / "mixing")
  assert gone.numbers == there.numbers
  with pytest.raises(ValueError, match="run these experiments first"):
    EXPERIMENT.measure(
      dataclasses.replace(CONFIG, of=("optimisation",)),
      folder=tmp_path / "mixing",
    )


def test_no_models_is_said(tmp_path):
  with pytest.raises(ValueError, match="run these experiments first"):
    EXPERIMENT.measure(CONFIG, folder=tmp_path / "mixing")


@pytest.fixture(scope="module")
def model():
  run = packing.variants(
    packing.Config(ways=("causal-pinned",), layers=2, d_model=32, vocab_size=60)
  )["causal-pinned"]
  cfg = run.model.replace(attention="einsum")
  return cfg, init_params(cfg, jax.random.key(0))


ROWS = np.arange(36).reshape(3, 12) * 7 % 60


@pytest.mark.slow
def test_the_numbers_are_of_the_reference_jacobian(model):
  cfg, params = model
  found, norms = measure_model(CONFIG, cfg, params, ROWS, front=1)
  true = np.stack(
    [
      jacobian_norms(forward(cfg), params, jnp.asarray(row), method="reference")
      for row in ROWS
    ]
  )
  np.testing.assert_allclose(norms, true.mean(axis=0), rtol=1e-4)
  rest = float(total_mixing(jnp.asarray(true[:, 1:, 1:])).mean())
  np.testing.assert_allclose(found["mixing_rest"], rest, rtol=1e-4)
  assert found["mixing"] != found["mixing_rest"]


@pytest.mark.slow
def test_tokens_that_do_not_mix(model):
  """Without the attention's output every measure of mixing is zero."""
  cfg, params = model
  params = jax.tree_util.tree_map_with_path(
    lambda path, x: 0 * x if "'o'" in jax.tree_util.keystr(path) else x, params
  )
  found, norms = measure_model(CONFIG, cfg, params, ROWS, front=1)
  assert found["mixing"] == found["mixing_rest"] == found["spread"] == 0
  assert found["reach"] == found["reached"] == 0
  assert (np.diag(norms) > 0).all() and np.count_nonzero(norms) == 12


@pytest.mark.slow
def test_where_the_bounds_do_not_reach(model):
  cfg, _ = model
  for change in ({"normalizer": "relu"}, {"gate": "head"}):
    other = cfg.replace(**change)
    params = init_params(other, jax.random.key(0))
    found, _ = measure_model(
      dataclasses.replace(CONFIG, swaps=1), other, params, ROWS[:2], front=1
    )
    assert found["bound_paper"] is found["violated"] is None
    assert found["mixing_rest"] > 0


def test_a_slope_by_seed():
  """0.5 and 2 by seed, whatever the order; rows without the number left out."""
  rows = [
    {"seeds": [0, 1], "first_mass": [0.1, 0.2], "y": [1.05, 3.4]},
    {"seeds": [1, 0], "first_mass": [0.4, 0.3], "y": [3.8, 1.15]},
    {"seeds": [0, 1], "first_mass": [0.9, 0.9], "y": [None, None]},
  ]
  np.testing.assert_allclose(slopes(rows, "y"), [0.5, 2.0])
  assert not slopes(rows[:1], "y").size


def _row(variant, sink, share, loss, experiment="attention_variants"):
  names = [quantity.key for quantity in QUANTITIES]
  jitter = 0.001 * np.array([-1, 0, 1, 0.5, -0.2, -0.3])
  return {
    "experiment": experiment,
    "variant": variant,
    "form": "bos",
    "seeds": list(range(6)),
    "first_mass": [sink] * 6,
    "loss": [loss] * 6,
    "violated": [None] * 6,
    **{name: list(share + jitter * sink) for name in names},
  }


def claims_of(rows):
  """{id: claim with its verdict} of made-up rows."""
  stored = Result({"rows": rows, "tokens": 12}, {}, {}).as_stored(CONFIG)
  made = judge(EXPERIMENT.claims(stored))
  found = {claim.id: claim for claim in made}
  assert len(found) == len(made)
  return found


@pytest.mark.parametrize(
  ("experiment", "loss", "verdict"),
  [
    ("attention_variants", 3.1, Verdict.CONTRADICTED),
    ("attention_variants", 4.5, Verdict.INCONCLUSIVE),
    ("sink_regulariser", 3.1, Verdict.CONTRADICTED),
    ("sink_regulariser", 4.5, Verdict.INCONCLUSIVE),
  ],
)
def test_a_worse_model_decides_nothing(experiment, loss, verdict):
  """One without any mixing and without a sink tilts the slope of the others."""
  rows = [_row(f"v{i}", 0.2 + i / 50, 0.4 - i / 100, 3.0) for i in range(5)]
  rows = [{**row, "experiment": experiment} for row in rows]
  id = f"weaker_sinks_more_mixing_{experiment}"
  assert claims_of(rows)[id].verdict == Verdict.SUPPORTED
  rows.append(_row("dead", 0.01, 0.0, loss, experiment))
  claim = claims_of(rows)[id]
  assert claim.verdict == verdict
  sound = claim.ours.partition("; -0.5")[2]
  assert sound.endswith("without dead, worse models") == (loss == 4.5)


def test_too_few_sound_models_decide_nothing():
  rows = [_row("one", 0.2, 0.4, 3.0), _row("dead", 0.01, 0.0, 4.0)]
  claims = claims_of(rows).values()
  assert {c.verdict for c in claims} == {Verdict.NOT_TESTABLE}
  assert all("too few without dead" in c.ours for c in claims)


def test_each_quantity_has_the_sign_of_the_theory():
  """All fall with the sink here, and only the rank must not."""
  rows = [_row(f"v{i}", 0.2 + i / 20, 0.4 - i / 10, 3.0) for i in range(4)]
  found = {
    c.id.rpartition("_attention")[0]: c for c in claims_of(rows).values()
  }
  assert {
    name: c.verdict == Verdict.SUPPORTED for name, c in found.items()
  } == {
    "weaker_sinks_more_mixing": True,
    "weaker_sinks_larger_bound": False,  # 0.3 is below a factor of two
    "weaker_sinks_more_spread": True,
    "weaker_sinks_nearer_collapse": False,
  }
  assert found["weaker_sinks_larger_bound"].verdict == Verdict.NO_EFFECT
  assert found["weaker_sinks_nearer_collapse"].verdict == Verdict.CONTRADICTED
  # From 0.35 to 0.2 of attention the quantity rises by 0.3.
  effect = found["weaker_sinks_more_mixing"].effect
  assert effect.mean.value == pytest.approx(0.3, abs=0.01)


def test_a_bound_that_bounds_nothing_is_left_out():
  rows = [_row(f"v{i}", 0.2 + i / 20, 0.4 - i / 10, 3.0) for i in range(3)]
  plain = claims_of(rows)
  rows.append(_row("kv_bias", 0.3, 50.0, 3.0))
  bound, mixing = (
    f"weaker_sinks_{x}_attention_variants"
    for x in ("larger_bound", "more_mixing")
  )
  assert claims_of(rows)[bound].ours == plain[bound].ours
  assert claims_of(rows)[mixing].ours != plain[mixing].ours


@pytest.mark.parametrize("broken", [0, 1])
def test_one_pair_refutes_the_bound(broken):
  row = _row("one", 0.2, 0.4, 3.0)
  row |= {"violated": [0, 0, 0, broken, 0, 0], "loose": [1.0] * 6}
  claim = claims_of([row])["full_bound_holds"]
  wanted = Verdict.CONTRADICTED if broken else Verdict.SUPPORTED
  assert claim.verdict == wanted and claim.effect.cases == 6 * 78
