"""Mixing with and without the sink, against the transforms themselves."""

import jax.numpy as jnp
import numpy as np
import pytest

import sinkjax
from sinkjax.analysis.over_squashing import FORMS, over_squashing
from sinkjax.experiments.paper import bound, jacobian

EDIT = {"scores": sinkjax.knockout(0, from_layer=1)}


@pytest.fixture(scope="module")
def maps(subject, text):
  config = jacobian.Config(
    texts=text, count=2, tokens=4, long_tokens=8, samples=16, from_layer=1
  )
  return jacobian.measure(subject, config).as_stored(config, "tiny")


@pytest.fixture(scope="module")
def bounds(subject, text):
  config = bound.Config(texts=text, count=2, tokens=4, from_layer=1)
  return bound.measure(subject, config).as_stored(config, "tiny")


def functions(subject):
  f = sinkjax.forward(subject.cfg)
  return f, sinkjax.intervene(f, EDIT)


def first_ids(subject, text, count):
  whole = text.split("\n\n")[1].replace("{north|south}", "north")
  return jnp.asarray(subject.tokenizer.encode(whole)[:count])


def test_maps_are_the_transform_s(subject, text, maps):
  ids = first_ids(subject, text, 4)
  for i, fn in enumerate(functions(subject)):
    want = sinkjax.jacobian_norms(fn, subject.params, ids, method="reference")
    got = maps.arrays["norms"][1, i]
    np.testing.assert_allclose(got[-1], want, rtol=1e-4)
    share = 1 - np.trace(want**2) / (want**2).sum()
    assert maps.numbers["total_mixing"][1][i] == pytest.approx(share, rel=1e-3)
    ratio = want[-1, ::-1] / want[-1, -1]
    np.testing.assert_allclose(maps.arrays["distance"][1, i], ratio, rtol=1e-4)


def test_estimates_are_of_the_longer_text(subject, text, maps):
  ids = first_ids(subject, text, 8)
  want = sinkjax.jacobian_norms(functions(subject)[1], subject.params, ids)
  got = maps.arrays["estimated"][1, 1]
  seen = np.tri(8, dtype=bool)
  assert np.median(np.abs(got[seen] / want[seen] - 1)) < 0.3
  assert np.all(got[~seen] == 0)
  assert 0.7 < maps.numbers["inside_interval"] <= 1


def test_verdicts_follow_the_intervals(maps):
  mixing = np.array(maps.numbers["total_mixing"])
  log = np.log(mixing[:, 1] / mixing[:, 0])
  mean = maps.numbers["log_mixing"]
  assert mean["value"] == pytest.approx(log.mean(), rel=1e-5)
  first, *_ = jacobian.claims(maps)
  assert first.verdict == "undecided" or mean["low"] > 0


def test_bounds_are_those_of_each_text(subject, text, bounds):
  ids = np.asarray(first_ids(subject, text, 4))
  seen = np.tri(4, dtype=bool)
  for i, fn in enumerate(functions(subject)):
    want = over_squashing(fn, subject.params, ids)
    for name in FORMS:
      got = bounds.arrays[f"log10_bound_{name}"][1, i][seen]
      logs = want.log_bounds[name][seen] / np.log(10)
      np.testing.assert_allclose(got, logs, rtol=1e-4)
    norms = bounds.arrays["log10_norms"][1, i]
    np.testing.assert_allclose(10 ** norms[seen], want.norms[seen], rtol=1e-4)
  rise = np.mean(
    [
      (logs[1][seen] - logs[0][seen]).mean()
      for logs in bounds.arrays["log10_bound_paper"]
    ]
  )
  got = bounds.numbers["rise_without_sink"]["paper"]["value"]
  assert got == pytest.approx(rise, rel=1e-4)
  assert bound.claims(bounds)[0].verdict == "agrees"
  assert bounds.numbers["pairs"] == 2 * 2 * 10
  header, rows = bounds.tables["bounds.csv"]
  assert len(rows) == 40 and all(len(row) == len(header) for row in rows)


def test_the_pages(maps, bounds):
  for module, result, names in (
    (jacobian, maps, {"map.png", "layers.png", "distance.png"}),
    (bound, bounds, {"bounds.png"}),
  ):
    drawn = module.draw(result)
    assert set(drawn) == names
    sections = module.sections(result, drawn)
    assert "2 texts of 4 tokens" in sections[0].body


def test_refusals(subject, text):
  for module in (jacobian, bound):
    with pytest.raises(ValueError, match="count must be at least 2"):
      module.measure(subject, module.Config(texts=text, count=1))
