"""Quantised models: costs against numpy, verdicts on costs made by hand."""

import jax.numpy as jnp
import numpy as np
import pytest

import sinkjax
from sinkjax.experiments.applications.kv_quantisation import EXPERIMENT
from sinkjax.experiments.applications.kv_quantisation.config import (
  Config,
  Kept,
  Layout,
)
from sinkjax.experiments.applications.kv_quantisation.experiment import (
  measure,
  split,
)
from sinkjax.experiments.applications.kv_quantisation.results import (
  linear_array,
  share_recovered,
)
from sinkjax.experiments.applications.kv_quantisation.settings import kv_edits
from sinkjax.experiments.harness.api import Result
from sinkjax.experiments.harness.protocol import Verdict, judge
from sinkjax.experiments.shared.prompt_corpus import Text
from sinkjax.inference.quantize_linear import (
  INPUTS,
  RANGES,
  limits_of,
  quantize_inputs,
  quantize_weights,
  range_observers,
)

pytestmark = pytest.mark.slow

SMALL = Config(
  tokens=18,
  calibrating=3,
  bits=(4, 3),
  group=8,
  widths=((8, 8), (4, 4)),
  layer_texts=4,
  batch=4,
)


@pytest.fixture(scope="module")
def texts():
  rng = np.random.default_rng(0)
  words = "the old man saw a red bird and went to his garden by night"
  words = words.split()  # noqa: SIM905
  return [Text("a", f"{i}", " ".join(rng.choice(words, 30))) for i in range(9)]


@pytest.fixture(scope="module")
def ran(reader, texts):
  seen = []
  done = measure(
    reader, SMALL, texts=texts, progress=lambda *at: seen.append(at)
  )
  assert seen[-1][0] == seen[-1][1] == len(seen)
  return done.as_stored(SMALL, "tiny")


def logs_of(f, params, ids):
  logits = np.asarray(f(params, jnp.asarray(ids)).logits, np.float64)
  top = logits.max(axis=-1, keepdims=True)
  return logits - top - np.log(np.exp(logits - top).sum(-1, keepdims=True))


def nll(logs, ids):
  """Of the predictions after position 1, the control token's."""
  logs, targets = logs[:, 2:-1], ids[:, 3:, None]
  return -np.take_along_axis(logs, targets, -1)[..., 0].mean(1)


def test_costs_are_those_of_the_edited_model(ran, reader, texts):
  _, held = split(reader, SMALL, texts)
  f = sinkjax.forward(reader.cfg)
  plain = logs_of(f, reader.params, held)
  np.testing.assert_allclose(ran.arrays["whole"], nll(plain, held), atol=1e-5)
  edit = sinkjax.inference.quantize.Quantize(3, keep=0, per="token")
  g = sinkjax.intervene(f, {"k": edit, "v": edit})
  ours = logs_of(g, reader.params, held)
  got = ran.arrays["kv_loss"][0, 1, 1]  # token, 3 bits, sink
  np.testing.assert_allclose(got, nll(ours, held) - nll(plain, held), atol=1e-4)
  kl = (np.exp(plain) * (plain - ours)).sum(-1)[:, 2:].mean(-1)
  np.testing.assert_allclose(ran.arrays["kv_kl"][0, 1, 1], kl, atol=1e-4)
  assert kl.min() > 1e-4
  assert ran.arrays["kv_kl"].min() > 0


def test_static_ranges_are_of_other_texts(ran, reader, texts):
  apart, held = split(reader, SMALL, texts)
  assert len(apart) == 3 and len(held) == 6
  assert not {tuple(x) for x in apart} & {tuple(x) for x in held}
  f = sinkjax.forward(reader.cfg)
  seen = sinkjax.capture(f, range_observers(1))(reader.params, apart)
  edits = quantize_inputs(
    reader.cfg, 4, ranges="tensor, static", keep=1, limits=limits_of(seen.trace)
  )
  params = quantize_weights(reader.params, 4)
  ours = logs_of(sinkjax.intervene(f, edits), params, held)
  plain = logs_of(f, reader.params, held)
  got = ran.arrays["linear, tensor, static, W4A4, control"]
  np.testing.assert_allclose(got, nll(ours, held) - nll(plain, held), atol=2e-3)


def test_single_layers_and_sites(ran, reader, texts):
  _, held = split(reader, SMALL, texts)
  layout, bits = ran.numbers["telling"]
  gains = ran.arrays["kv_loss"][:, :, 0] - ran.arrays["kv_loss"][:, :, 1]
  best = np.unravel_index(gains.mean(-1).argmax(), gains.shape[:2])
  assert (layout, bits) == (list(Layout)[best[0]], SMALL.bits[best[1]])
  edits = kv_edits(reader, SMALL, layout, bits, 0, np.array([2, 2]))
  f, some = sinkjax.forward(reader.cfg), held[: SMALL.layer_texts]
  ours = logs_of(sinkjax.intervene(f, edits), reader.params, some)
  want = nll(ours, some) - nll(logs_of(f, reader.params, some), some)
  got = ran.arrays["layer_loss"]
  assert got.shape == (reader.cfg.n_layers, 2, 4)
  np.testing.assert_allclose(got[2, 1], want, atol=1e-4)
  sites = [row["site"] for row in ran.records("sites.csv")]
  assert sites[::2] == list(INPUTS)


def test_tables_and_page(ran):
  header, rows = ran.tables["keys_and_values.csv"]
  assert len(rows) == 4 * 2 * 3 and all(len(row) == len(header) for row in rows)
  by = {tuple(row[:3]): row for row in rows}
  none, sink = by["token", 3, "nothing"], by["token", 3, "sink"]
  assert none[-4:] == [None] * 4
  assert sink[-4] == pytest.approx(none[3] - sink[3])
  assert len(ran.tables["weights_and_activations.csv"][1]) == 3 * 2 * 3 + 2
  assert ran.numbers["templates"] == list(range(6))
  claims = EXPERIMENT.claims(ran)
  assert len({claim.id for claim in claims}) == len(claims) == 6
  drawn = EXPERIMENT.draw(ran)
  assert len(EXPERIMENT.sections(ran, drawn)) == len(drawn) == 4


def made(change=None, templates=None):
  """Costs: 1 nat with nothing or the control kept, 0.2 with the sink."""
  rng, means = np.random.default_rng(0), dict.fromkeys(Kept, 1.0)
  means[Kept.SINK] = 0.2

  def loss(key, kept):
    mean = (change or {}).get((*key, kept), means[kept])
    return mean + 0.01 * rng.normal(size=20)

  arrays = {
    linear_array(ranges, n, n, kept): loss(("linear", ranges, n), kept)
    for ranges in RANGES
    for n in (4, 8)
    for kept in Kept
  }
  arrays["kv_loss"] = np.array(
    [[[loss(("kv", x), kept) for kept in Kept]] for x in Layout]
  )
  numbers = {"bits": [3], "layouts": list(Layout), "kept": list(Kept)}
  if templates is not None:
    numbers["templates"] = templates
  result = Result(numbers, {}, arrays).as_stored(Config())
  return judge(EXPERIMENT.claims(result))


def verdicts(change=None):
  return [claim.verdict for claim in made(change)]


def test_verdicts():
  assert verdicts() == [Verdict.SUPPORTED] * 6
  yes, no = Verdict.SUPPORTED, Verdict.CONTRADICTED
  token, rotated = ("kv", "token"), ("kv", "before rotation")
  static = ("linear", "tensor, static", 8)
  # The control helps as much, or more: it is not this token.
  for control in (0.2, 0.1):
    found = verdicts({(*rotated, "control"): control})
    assert found == [Verdict.INCONCLUSIVE] + [yes] * 5
  assert verdicts({(*rotated, "sink"): 1.2})[0] == no
  assert verdicts({(*rotated, "sink"): 0.99})[0] == Verdict.NO_EFFECT
  # Two fifths are not most of it.
  assert verdicts({(*token, "sink"): 0.6})[1:3] == [yes, no]
  few = verdicts({(*static, "nothing"): 0.05, (*static, "sink"): 0.2})
  assert few[3:5] == [no] * 2
  better = {("linear", "token", 8, "nothing"): 0.1}
  assert verdicts(better)[5] == no


def test_texts_of_one_template_are_one_unit():
  found = made(templates=[*range(8), *[8] * 12])
  assert {claim.effect.n for claim in found} == {9}
  assert {one.n for claim in found for one in claim.provided} == {9}
  assert {claim.effect.n for claim in made()} == {20}


def test_a_share_of_nothing_is_none():
  assert share_recovered(np.array([-0.1, 0.1, 0.05]), np.zeros(3)) is None
  assert share_recovered(np.array([1.0, 1.1]), np.zeros(2)) == pytest.approx(1)


@pytest.mark.parametrize(
  ("change", "said"),
  [
    ({"control": 0}, r"control must be in \[1, 16\), got 0"),
    ({"layer_texts": 1}, "layer_texts must be 2 at least, got 1"),
    ({"claim_bits": 2}, r"one of bits=\(4, 3\), got 2"),
    ({"widths": ((8, 8),)}, r"\(8, 8\) and \(4, 4\), got \(\(8, 8\),\)"),
    ({"tokens": 200}, "0 texts have 200 tokens"),
    ({"calibrating": 8}, "9 texts have 18 tokens; 8 that calibrate"),
  ],
)
def test_refusals(reader, texts, change, said):
  import dataclasses

  with pytest.raises(ValueError, match=said):
    measure(reader, dataclasses.replace(SMALL, **change), texts=texts)
