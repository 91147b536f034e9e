"""Noise and defences: laws of both, and what is reported."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from robustness_config import CONFIG

import sinkjax
from sinkjax.experiments.applications.robustness import EXPERIMENT, defences
from sinkjax.experiments.applications.robustness import experiment as module
from sinkjax.experiments.applications.robustness.config import SITES, Defence
from sinkjax.experiments.applications.robustness.defences import (
  attacked,
  clip_at,
  donors,
  pins_of,
)
from sinkjax.experiments.applications.robustness.experiment import (
  conditions_of,
  measure,
  removal,
)
from sinkjax.experiments.harness.protocol import Verdict, judge
from sinkjax.experiments.shared.attack_sites import shift_shape, token_norms
from sinkjax.experiments.shared.perturb import (
  NOISE,
  SWAP,
  noise,
  perturbed_rows,
)
from sinkjax.experiments.shared.prompt_corpus import Text
from sinkjax.transforms.attention_edits import knockout
from sinkjax.transforms.capture import capture
from sinkjax.transforms.intervene import intervene

pytestmark = pytest.mark.thorough


@pytest.fixture(scope="module")
def row(subject):
  return np.random.default_rng(0).integers(2, 40, 16)


def stream_of(subject):
  f = sinkjax.forward(subject.cfg)
  return capture(f, {"x": ("resid_post", lambda x: x)})


def test_noise_has_the_norm_that_was_asked_for():
  rng = np.random.default_rng(0)
  embed = rng.normal(size=(6, 5)) * np.arange(1, 7)[:, None]
  got = noise(embed, (1, 4), 0.3, rng)
  want = 0.3 * np.linalg.norm(embed[[1, 4]], axis=1)
  np.testing.assert_allclose(np.linalg.norm(got[[1, 4]], axis=1), want)
  assert not got[[0, 2, 3, 5]].any()


def test_rows_change_what_they_say():
  ids, embed = np.arange(6), np.ones((6, 3))
  rows = perturbed_rows(
    ids,
    embed,
    {"a": [1], "b": [2, 3]},
    {"c": 4},
    share=1.0,
    draws=2,
    candidates=[9, 8],
    rng=np.random.default_rng(0),
  )
  assert (
    rows.names == [(NOISE, "a")] * 2 + [(NOISE, "b")] * 2 + [(SWAP, "c")] * 2
  )
  moved = [set(np.flatnonzero(x.any(axis=1))) for x in rows.shift]
  assert moved == [set(), {1}, {1}, {2, 3}, {2, 3}, set(), set()]
  assert (rows.ids[:5] == ids).all() and not (
    rows.shift[1] == rows.shift[2]
  ).all()
  assert rows.ids[5:].tolist() == [[0, 1, 2, 3, 9, 5], [0, 1, 2, 3, 8, 5]]


@pytest.mark.slow
def test_conditions_are_the_edits_that_they_name(subject, row):
  f, params = stream_of(subject), subject.params
  layers = subject.cfg.n_layers

  def stream(edits):
    return np.asarray(intervene(f, edits)(params, row[None]).trace["x"])

  conditions = zip(*conditions_of(layers, 1), strict=True)
  kept, hidden, control, empty = (
    stream(removal(layers, *one)) for one in conditions
  )
  np.testing.assert_array_equal(kept, stream({}))
  for found, key in ((hidden, 0), (control, 1)):
    np.testing.assert_array_equal(
      found, stream({"scores": knockout(key, from_layer=1)})
    )

  def zero(value, layer):
    return jnp.where(layer >= 1, value.at[:, 0].set(0.0), value)

  np.testing.assert_allclose(empty, stream({"v": zero}), atol=1e-6)
  assert np.abs(empty - kept)[0].max() == 0 < np.abs(empty - kept)[1].max()


@pytest.mark.slow
def test_perturbations_by_hand(subject, row):
  """A change under a condition, against the same condition without it."""
  f = sinkjax.forward(subject.cfg)
  shift = np.zeros((3, 16, subject.cfg.d_model), np.float32)
  shift[1, 5] = 0.3
  ids = np.stack([row, row, row])
  ids[2, 6] = 41
  conditions = conditions_of(subject.cfg.n_layers, 1)
  found, loss = module.perturber(subject.cfg, CONFIG)(
    subject.params, ids, shift, conditions
  )
  assert found.shape == (4, 2, 4) and loss.shape == (4,)
  g = intervene(f, {"scores": knockout(0, from_layer=1)})

  def logs(ids, edits):
    out = intervene(g, edits)(subject.params, ids[None]).logits[0, 8:-1]
    return np.asarray(jax.nn.log_softmax(out), np.float64)

  p = logs(row, {})
  for r, q in enumerate(
    (logs(row, {"embed": sinkjax.add(shift[1:2])}), logs(ids[2], {}))
  ):
    want = (np.exp(p) * (p - q)).sum(-1).mean()
    assert float(found[1, r, 0]) == pytest.approx(want, rel=1e-2, abs=1e-7)
  want = -np.take_along_axis(p, row[9:, None], 1).mean()
  assert float(loss[1]) == pytest.approx(want, rel=1e-5)


def test_the_first_token_s_pins_are_those_of_any_text(subject, row):
  f = capture(
    sinkjax.forward(subject.cfg), {x: (x, lambda x: x[:, :1]) for x in "kv"}
  )
  pins = pins_of(subject.cfg)(subject.params, row[0])
  for ids in (row, np.append(row[:1], row[5:])):
    trace = f(subject.params, ids[None]).trace
    for name in "kv":
      np.testing.assert_allclose(pins[name].activations, trace[name], atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("site", SITES)
def test_pinning_undoes_an_attack_on_the_first_token_and_no_other(
  subject, row, site
):
  cfg, f = subject.cfg, stream_of(subject)
  layers = 1 if site == "embed" else cfg.n_layers
  shift = 2 * jnp.ones((layers, *shift_shape(cfg, site)))
  pins = pins_of(cfg)(subject.params, row[0])

  def stream(guard, at, size):
    g = attacked(f, site, size * shift, at, guard)
    return np.asarray(g(subject.params, row[None]).trace["x"])

  clean = stream({}, 0, 0.0)
  assert np.abs(stream({}, 0, 1.0) - clean)[:, :, 1:].max() > 1e-2
  np.testing.assert_allclose(
    stream(pins, 0, 1.0)[:, :, 1:], clean[:, :, 1:], atol=1e-4
  )
  assert np.abs(stream(pins, 3, 1.0) - clean)[:, :, 4:].max() > 1e-2


def test_limits_are_of_the_other_texts():
  norms = [np.array([[9 * x, x, x, x]]) for x in (1.0, 2.0, 3.0)]
  found = clip_at(norms, 0, 1.0)
  np.testing.assert_allclose(found.limit, [[27, 3, 3, 3]])
  found = clip_at(norms, 2, 0.5)
  np.testing.assert_allclose(found.limit, [[13.5, 1.5, 1.5, 1.5]])


def test_a_clip_at_a_norm_that_is_never_reached_is_no_change(subject, row):
  f, params = sinkjax.forward(subject.cfg), subject.params
  size = token_norms(f, params, row[None], ("embed", "resid_post"))
  plain = f(params, row[None]).logits
  for site, norms in size.items():
    norms = np.asarray(norms)
    clip = clip_at([norms, 10 * norms], 0, 1.0)
    out = intervene(f, {site: clip})(params, row[None]).logits
    np.testing.assert_array_equal(out, plain)


def test_no_guard_is_no_change(subject, row):
  f, params = sinkjax.forward(subject.cfg), subject.params
  guard = defences.no_guard(subject.cfg, len(row))
  np.testing.assert_array_equal(
    intervene(f, guard)(params, row[None]).logits, f(params, row[None]).logits
  )


def test_donors_are_other_tokens():
  assert donors(np.array([[5, 1], [5, 2], [6, 3]])) == [6, 6, 5]
  assert donors(np.array([[1, 4], [1, 5]]), 1) == [5, 4]
  with pytest.raises(ValueError, match="every text begins with token 5"):
    donors(np.array([[5, 1], [5, 2]]))


def test_the_front(subject):
  assert defences.front_token(subject, None) == subject.tokenizer.bos_id
  assert defences.front_token(subject, 7) == 7
  with pytest.raises(ValueError, match="below 64, got 64"):
    defences.front_token(subject, 64)


@pytest.fixture(scope="module")
def found(subject):
  words, rng = list(subject.tokenizer.ids), np.random.default_rng(0)
  texts = [
    Text("a", f"{i}", " ".join(rng.choice(words[:20], 18))) for i in range(3)
  ]
  seen = []
  result = measure(
    subject, CONFIG, texts=texts, progress=lambda *at: seen.append(at)
  )
  assert seen[-1] == (6, 6)
  return result.as_stored(CONFIG, "tiny")


@pytest.mark.slow
def test_run(found):
  attacks = found.arrays["defences"]
  assert attacks.shape == (3, 3, 8, 3, 4)
  assert found.arrays["noise middle"].shape == (3, 4, 2, 4)
  assert all(np.isfinite(x).all() for x in found.arrays.values())
  kl = {
    name: attacks[:, :, i, :, 0] for i, name in enumerate(Defence)
  }  # [P, S, 3]
  none = kl[Defence.NONE]
  assert np.abs(none[..., 0]).max() < 1e-6 < none[..., 1].min()
  for name in (Defence.OWN, Defence.OTHER):  # nothing gets through
    np.testing.assert_allclose(kl[name][..., 1], kl[name][..., 0], atol=1e-6)
    assert np.abs(kl[name][..., 2]).max() < 1e-6
  assert np.abs(kl[Defence.OWN][..., 0]).max() < 1e-6
  assert kl[Defence.OTHER][..., 0].min() > 1e-6
  assert kl[Defence.FRONT][..., 2].min() > 1e-6
  claims = {claim.id: claim for claim in judge(EXPERIMENT.claims(found))}
  assert len(claims) == 15
  assert claims["pinned_own"].verdict == Verdict.SUPPORTED
  assert claims["pinned_own"].effect.cases == 9
  assert found.numbers["templates"] == [0, 1, 2]
  assert len(found.tables["defences.csv"][1]) == 3 * 8 * 3
  assert len(found.tables["disturbed.csv"][1]) == 7 * 4


@pytest.mark.slow
@pytest.mark.slow
def test_the_report_draws(found):
  drawn = EXPERIMENT.draw(found)
  assert all(len(x) > 5000 for x in drawn.values())
  sections = EXPERIMENT.sections(found, drawn)
  assert {section.figure for section in sections} == set(drawn.values())


@pytest.mark.slow
def test_hidden_from_the_first_layer_on_the_sink_cannot_be_heard(subject):
  words = list(subject.tokenizer.ids)
  row = np.array(subject.tokenizer.encode(" ".join(words[:16])))[:16]
  config = dataclasses.replace(CONFIG, from_layer=0)
  embeds = capture(sinkjax.forward(subject.cfg), {"x": ("embed", lambda x: x)})
  embed = np.asarray(embeds(subject.params, row[None]).trace["x"][0])
  rows = module.rows_of_text(subject, config, row, embed, 0)
  out, _ = module.perturber(subject.cfg, config)(
    subject.params,
    rows.ids,
    rows.shift.astype(np.float32),
    conditions_of(subject.cfg.n_layers, 0),
  )
  sink = [i for i, x in enumerate(rows.names) if x == (NOISE, "sink")]
  kl = np.asarray(out)[:, sink, 0]
  assert np.abs(kl[1]).max() < 1e-6 < kl[0].min()
