"""Mixing with and without the sink, against the transforms themselves."""

import dataclasses

import jax.numpy as jnp
import numpy as np
import pytest

import sinkjax
from sinkjax.analysis.over_squashing import FORMS, over_squashing
from sinkjax.experiments.harness.protocol import Verdict, judge
from sinkjax.experiments.paper import bound, jacobian
from sinkjax.experiments.paper.bound.experiment import VALID

pytestmark = pytest.mark.thorough

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


@pytest.mark.slow
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


@pytest.mark.slow
def test_estimates_are_of_the_longer_text(subject, text, maps):
  ids = first_ids(subject, text, 8)
  want = sinkjax.jacobian_norms(functions(subject)[1], subject.params, ids)
  got = maps.arrays["estimated"][1, 1]
  seen = np.tri(8, dtype=bool)
  assert np.median(np.abs(got[seen] / want[seen] - 1)) < 0.3
  assert np.all(got[~seen] == 0)
  assert 0.7 < maps.numbers["inside_interval"] <= 1


@pytest.mark.slow
def test_the_control_hides_the_next_token(subject, text, maps):
  ids = first_ids(subject, text, 4)
  edit = {"scores": sinkjax.knockout(1, from_layer=1)}
  g = sinkjax.intervene(sinkjax.forward(subject.cfg), edit)
  want = sinkjax.jacobian_norms(g, subject.params, ids, method="reference")
  got = maps.arrays["norms_control"][1]
  np.testing.assert_allclose(got, want, rtol=1e-4)
  assert maps.arrays["estimated_control"].shape == (2, 8, 8)
  assert maps.numbers["control_position"] == 1


@pytest.mark.slow
def test_claims_leave_out_the_sink_and_the_control(maps):
  """Of four positions two are left, whose blocks are written out here."""
  norms = maps.arrays["norms"][:, :, -1].astype(float)
  squares = norms[..., [2, 3, 3], [2, 2, 3]] ** 2
  share = squares[..., 1] / squares.sum(axis=-1)
  first, _, reach = jacobian.claims(maps)
  log = np.log(share[:, 1] / share[:, 0])
  assert first.effect.mean.value == pytest.approx(log.mean(), rel=1e-4)
  # Position 2 sees itself alone; position 3 sees one token back.
  back = squares[..., 1] / squares[..., 1:].sum(axis=-1) / 2
  change = (back[:, 1] - back[:, 0]).mean()
  assert reach.effect.mean.value == pytest.approx(change, rel=1e-3)
  assert [one.expect for one in (reach.effect, *reach.provided)] == ["more"] * 2
  # Numbers of all tokens are shown beside it.
  mixing = np.array(maps.numbers["total_mixing"])
  whole = np.log(mixing[:, 1] / mixing[:, 0]).mean()
  assert maps.numbers["log_mixing"]["value"] == pytest.approx(whole, rel=1e-5)
  others, _, everything = first.ours.partition("; with them ")
  assert others.startswith("without the rows and columns of positions 0")
  assert everything.startswith(f"{np.exp(whole):.2f} (")


def planted(maps, hidden, control, sink_block=1.0):
  """Ten texts of six tokens; what other tokens give is set by condition."""
  rng = np.random.default_rng(0)

  def norms(other):
    size = np.full((10, 6, 6), other) * np.exp(
      0.02 * rng.normal(size=(10, 6, 6))
    )
    size[:, range(6), range(6)] = 1.0
    size[:, 0, 0] = sink_block
    return np.tril(size).astype(np.float32)

  pair = np.stack([norms(0.2), norms(hidden)], axis=1)
  arrays = {
    "norms": pair[:, :, None],
    "norms_control": norms(control),
    "estimated": pair,
    "estimated_control": norms(control),
  }
  result = dataclasses.replace(maps, arrays=arrays)
  return judge(jacobian.claims(result))


@pytest.mark.slow
def test_verdicts_on_mixing(maps):
  def verdicts(*args):
    return {claim.verdict for claim in planted(maps, *args)[:2]}

  assert verdicts(0.4, 0.2) == {Verdict.SUPPORTED}
  # What hiding any token does is not the sink's doing.
  assert verdicts(0.4, 0.4) == {Verdict.INCONCLUSIVE}
  assert verdicts(0.1, 0.2) == {Verdict.CONTRADICTED}
  assert verdicts(0.2, 0.2) == {Verdict.NO_EFFECT}
  a, b = (planted(maps, 0.4, 0.2, block) for block in (1.0, 1000.0))
  # The block of the sink on itself decides nothing.
  assert [x.effect for x in a] == [x.effect for x in b]
  (claim, *_) = judge(jacobian.claims(maps))
  assert claim.verdict == Verdict.INCONCLUSIVE and "2 texts" in claim.why


@pytest.mark.slow
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
  holds, lowers = judge(bound.claims(bounds))
  assert holds.verdict == Verdict.SUPPORTED
  assert (holds.effect.broken, holds.effect.cases) == (0, 60 * len(VALID))
  # Of four positions the pairs (2, 2), (3, 2) and (3, 3) are left.
  pairs = bounds.arrays["log10_bound_paper"][..., [2, 3, 3], [2, 2, 3]]
  change = (pairs[:, 1] - pairs[:, 0]).mean()
  assert lowers.effect.mean.value == pytest.approx(change, rel=1e-4)
  beyond, full = lowers.provided
  other = bounds.arrays["log10_bound_paper_control"][..., [2, 3, 3], [2, 2, 3]]
  change = (pairs[:, 1] - other).mean()
  assert beyond.mean.value == pytest.approx(change, rel=1e-4)
  pairs = bounds.arrays["log10_bound_full"][..., [2, 3, 3], [2, 2, 3]]
  change = (pairs[:, 1] - pairs[:, 0]).mean()
  assert full.mean.value == pytest.approx(change, rel=1e-4)
  assert bounds.numbers["pairs"] == 3 * 2 * 10
  header, rows = bounds.tables["bounds.csv"]
  assert len(rows) == 40 and all(len(row) == len(header) for row in rows)


@pytest.mark.slow
def test_the_control_of_a_bound_hides_the_next_token(subject, text, bounds):
  ids = np.asarray(first_ids(subject, text, 4))
  edit = {"scores": sinkjax.knockout(1, from_layer=1)}
  g = sinkjax.intervene(sinkjax.forward(subject.cfg), edit)
  want = over_squashing(g, subject.params, ids).log_bounds["paper"]
  seen = np.tri(4, dtype=bool)
  got = bounds.arrays["log10_bound_paper_control"][1]
  np.testing.assert_allclose(got[seen], want[seen] / np.log(10), rtol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize(
  ("hidden", "control", "verdict"),
  [
    (5.0, 0.0, Verdict.SUPPORTED),
    (5.0, 5.0, Verdict.INCONCLUSIVE),
    (-5.0, 0.0, Verdict.CONTRADICTED),
    (0.0, 0.0, Verdict.NO_EFFECT),
  ],
)
def test_verdicts_on_bounds(bounds, hidden, control, verdict):
  rng = np.random.default_rng(0)
  arrays = {}
  for name in ("paper", "full"):
    logs = 0.1 * rng.normal(size=(3, 10, 4, 4))
    logs += np.array([0.0, hidden, control])[:, None, None, None]
    # What hiding a token does to its own pairs does not count.
    logs[1, :, :, 0] -= 50
    arrays[f"log10_bound_{name}"] = np.stack([logs[0], logs[1]], axis=1)
    arrays[f"log10_bound_{name}_control"] = logs[2]
  planted = dataclasses.replace(bounds, arrays=arrays)
  assert judge(bound.claims(planted))[1].verdict == verdict


@pytest.mark.slow
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
