"""Where sinks go: against runs one by one, and on patterns made by hand."""

import dataclasses

import jax.numpy as jnp
import numpy as np
import pytest

import sinkjax
from sinkjax.experiments.harness.effects import Expect
from sinkjax.experiments.harness.protocol import Verdict, judge
from sinkjax.experiments.paper.smoothing import EXPERIMENT
from sinkjax.experiments.paper.smoothing.experiment import Config, measure
from sinkjax.experiments.shared.sink_removal import (
  KEYS,
  late_layer,
  resolve_from_layer,
  sweep,
  texts_of,
)

pytestmark = pytest.mark.thorough


@pytest.fixture(scope="module")
def config(text):
  return Config(
    texts=text, tokens=14, eps=0.15, late=1, jacobian_tokens=4, jacobian_texts=2
  )


@pytest.fixture(scope="module")
def result(subject, config):
  steps = []
  found = measure(subject, config, progress=lambda *step: steps.append(step))
  assert steps == [(i, 11) for i in range(1, 12)]
  return found.as_stored(config, "tiny")


def by_hand(subject, config, ids, edits):
  """Rates [K], evenness and loss of one text, all from the dense pattern."""
  watch = {"a": ("pattern", lambda x: x)}
  f = sinkjax.intervene(sinkjax.forward(subject.cfg), edits)
  out = sinkjax.capture(f, watch)(subject.params, ids[None])
  pattern = np.asarray(out.trace["a"], np.float64)[:, 0]
  length = len(ids)
  alpha = np.stack([pattern[..., k:, k].mean(-1) for k in range(KEYS)], -1)
  logs = np.log(np.where(pattern > 0, pattern, 1))
  entropy = -(pattern * logs).sum(-1)[..., 1:] / np.log(
    np.arange(2, length + 1)
  )
  logits = np.asarray(out.logits, np.float64)[0]
  start = KEYS - (config.tokens - length)
  nll = [
    np.log(np.exp(logits[t - 1]).sum()) - logits[t - 1, ids[t]]
    for t in range(start, length)
  ]
  return (alpha > config.eps).mean((0, 1)), entropy.mean(), np.mean(nll)


@pytest.mark.slow
@pytest.mark.parametrize("layer", [0, 2, None])
def test_numbers_are_those_of_single_runs(subject, config, result, layer):
  edits = (
    {} if layer is None else {"scores": sinkjax.knockout(0, from_layer=layer)}
  )
  at = -1 if layer is None else layer
  for text, ids in enumerate(texts_of(subject, config.texts, config.tokens)):
    rates, evenness, loss = by_hand(subject, config, ids, edits)
    np.testing.assert_allclose(result.arrays["rates"][at, text], rates)
    got = result.arrays["evenness"][at, text], result.arrays["loss"][at, text]
    np.testing.assert_allclose(got, (evenness, loss), rtol=1e-4)


@pytest.mark.slow
def test_removed_is_the_shorter_text(subject, config, result):
  """Its loss is of the same tokens."""
  losses = []
  for text, ids in enumerate(texts_of(subject, config.texts, config.tokens)):
    rates, _, loss = by_hand(subject, config, ids[1:], {})
    np.testing.assert_allclose(result.arrays["rates_removed"][text], rates)
    losses.append(loss - result.arrays["loss"][-1, text])
  got = result.numbers["loss_removed"]["value"]
  assert got == pytest.approx(np.mean(losses), rel=1e-3)


@pytest.mark.slow
def test_mixing_is_of_the_exact_jacobian(subject, config, result):
  f = sinkjax.forward(subject.cfg)
  hidden = [
    sinkjax.intervene(f, {"scores": sinkjax.knockout(key, from_layer=1)})
    for key in (0, 1)
  ]
  ids = jnp.asarray(texts_of(subject, config.texts, config.tokens)[1][:4])
  for i, fn in enumerate((f, *hidden)):
    norms = sinkjax.jacobian_norms(fn, subject.params, ids, method="reference")
    np.testing.assert_allclose(result.arrays["norms"][1, i], norms, rtol=1e-3)
    if i == 2:
      break  # the control has no number of its own
    squares = norms**2
    want = 1 - np.trace(squares) / squares.sum()
    got = result.numbers["total_mixing"][1][i]
    assert got == pytest.approx(want, rel=1e-3)


def test_late_is_where_the_fewest_sinks_are_left():
  """A sink that moves to key 1 is still there; one that goes is not."""
  scores = np.zeros((5, 4, 2, 3, KEYS))  # hidden from 0..3 or never
  scores[..., 0] = np.array([0, 0, 0, 0.9, 1])[:, None, None, None]
  scores[:2, ..., 1] = 1  # moved
  scores[2, :1, ..., 1] = 1  # a quarter moved
  assert late_layer(scores, 0.3) == 2
  assert late_layer(scores, 0.95) == 3


def test_a_layer_is_found_where_none_is_given(subject, text):
  config = Layer(text, None)
  rows = texts_of(subject, text, 16)
  want = late_layer(sweep(subject, rows)[0], 0.3)
  assert resolve_from_layer(subject, config).from_layer == want
  assert resolve_from_layer(subject, Layer(text, 2)).from_layer == 2
  with pytest.raises(ValueError, match="from_layer must be in"):
    resolve_from_layer(subject, Layer(text, 3))


@dataclasses.dataclass(frozen=True)
class Layer:
  texts: str
  from_layer: int | None


def test_claims_are_of_the_texts(result):
  claims = {claim.id: claim for claim in judge(EXPERIMENT.claims(result))}
  assert len(claims) == 6
  for claim in claims.values():  # of two texts
    assert claim.verdict == Verdict.INCONCLUSIVE and "2 texts" in claim.why
    assert claim.effect.expect == Expect.MORE
  arrays = result.arrays
  loss, evenness = (
    (arrays[name][1] - arrays[name][-1]).mean() for name in ("loss", "evenness")
  )
  one = claims["loss_without_sink"]
  assert one.effect.mean.value == pytest.approx(loss, rel=1e-4)
  assert f"{result.numbers['loss_late']['value']:+.2f}" in one.ours
  one = claims["entropy_without_sink"]
  assert one.effect.mean.value == pytest.approx(evenness, rel=1e-3)
  half = arrays["rates"][-1, :, 0] / 2
  for name, rate in (
    ("sink_of_first_position", arrays["rates_removed"][:, 0]),
    ("sink_moves_when_hidden", arrays["rates"][0, :, 1]),
  ):
    got = claims[name].effect.mean.value
    assert got == pytest.approx((rate - half).mean(), rel=1e-4)
  # Of four positions two are left, whose blocks are written out here.
  squares = arrays["norms"][..., [2, 3, 3], [2, 2, 3]].astype(float) ** 2
  plain, hidden, control = np.log(squares[..., 1] / squares.sum(axis=-1)).T
  mixing = claims["mixing_without_sink"]
  (beyond,) = mixing.provided
  assert mixing.effect.mean.value == pytest.approx(
    (hidden - plain).mean(), rel=1e-3
  )
  assert beyond.mean.value == pytest.approx((hidden - control).mean(), rel=1e-3)
  assert "the first word" in claims["entropy_without_first_token"].ours


def test_a_file_without_blocks_has_its_mixing(result):
  arrays = {k: v for k, v in result.arrays.items() if k != "norms"}
  old = dataclasses.replace(result, arrays=arrays)
  claim = EXPERIMENT.claims(old)[-1]
  stored = result.numbers["log_mixing_late"]
  assert claim.effect.mean.value == stored["value"] and not claim.provided
  assert claim.ours in EXPERIMENT.claims(result)[-1].ours


def test_the_page(result):
  drawn = EXPERIMENT.draw(result)
  assert set(drawn) == {"where.png", "cost.png", "evenness.png"}
  sections = EXPERIMENT.sections(result, drawn)
  assert "2 texts of 14 tokens" in sections[0].body


def test_refusals(subject, text):
  with pytest.raises(ValueError, match="0 texts have 40 tokens"):
    measure(subject, Config(texts=text, tokens=40))
  with pytest.raises(ValueError, match="late must be in"):
    measure(subject, Config(texts=text, tokens=14, late=3))
