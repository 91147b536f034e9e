"""Noise and defences: laws of both, and what is reported."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import sinkjax
from sinkjax.experiments.applications.attack.experiment import sizes
from sinkjax.experiments.applications.robustness import claims as told
from sinkjax.experiments.applications.robustness import defences
from sinkjax.experiments.applications.robustness import experiment as robustness
from sinkjax.experiments.applications.robustness.defences import (
  DEFENCES,
  FRONT,
  NONE,
  OTHER,
  SAME,
  attacked,
  clip_at,
  donors,
  pins_of,
)
from sinkjax.experiments.applications.robustness.experiment import (
  Config,
  run,
  taken_away,
)
from sinkjax.experiments.harness.stats import Mean
from sinkjax.experiments.shared.perturb import (
  NOISE,
  SWAP,
  noise,
  places,
  rows_with,
)
from sinkjax.experiments.shared.prompt_corpus import Text
from sinkjax.transforms.capture import capture
from sinkjax.transforms.edits import knockout
from sinkjax.transforms.intervene import intervene

CONFIG = Config(
  count=3,
  tokens=16,
  noise=0.5,
  draws=2,
  candidates=2,
  share=0.5,
  steps=2,
  eps=0.1,
  from_layer=1,
)


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
  rows = rows_with(
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


def test_conditions_are_the_edits_that_they_name(subject, row):
  f, params = stream_of(subject), subject.params
  layers = subject.cfg.n_layers

  def stream(edits):
    return np.asarray(intervene(f, edits)(params, row[None]).trace["x"])

  ways = zip(*robustness.ways_of(layers, 1), strict=True)
  kept, hidden, control, empty = (
    stream(taken_away(layers, *way)) for way in ways
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


def test_disturbances_by_hand(subject, row):
  """A change, under a condition, beside the same condition without it."""
  f = sinkjax.forward(subject.cfg)
  shift = np.zeros((3, 16, subject.cfg.d_model), np.float32)
  shift[1, 5] = 0.3
  ids = np.stack([row, row, row])
  ids[2, 6] = 41
  ways = robustness.ways_of(subject.cfg.n_layers, 1)
  found, loss = robustness.disturber(subject.cfg, CONFIG)(
    subject.params, ids, shift, ways
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


@pytest.mark.parametrize("site", defences.SITES)
def test_pinning_undoes_an_attack_on_the_first_token_and_no_other(
  subject, row, site
):
  cfg, f = subject.cfg, stream_of(subject)
  width = (cfg.n_kv_heads, cfg.head_dim) if site in "kv" else (cfg.d_model,)
  shift = 2 * jnp.ones((1 if site == "embed" else cfg.n_layers, *width))
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
  size = sizes(f, params, row[None], ("embed", "resid_post"))
  plain = f(params, row[None]).logits
  for site, norms in size.items():
    norms = np.asarray(norms)
    clip = clip_at([norms, 10 * norms], 0, 1.0)
    out = intervene(f, {site: clip})(params, row[None]).logits
    np.testing.assert_array_equal(out, plain)


def test_no_guard_is_no_change(subject, row):
  f, params = sinkjax.forward(subject.cfg), subject.params
  guard = defences.unguarded(subject.cfg, len(row))
  np.testing.assert_array_equal(
    intervene(f, guard)(params, row[None]).logits, f(params, row[None]).logits
  )


def test_donors_are_other_tokens():
  assert donors(np.array([[5, 1], [5, 2], [6, 3]])) == [6, 6, 5]
  assert donors(np.array([[1, 4], [1, 5]]), 1) == [5, 4]
  with pytest.raises(ValueError, match="every text begins with token 5"):
    donors(np.array([[5, 1], [5, 2]]))


def test_the_front(subject):
  assert defences.front_of(subject, None) == subject.tokenizer.bos_id
  assert defences.front_of(subject, 7) == 7
  with pytest.raises(ValueError, match="below 64, got 64"):
    defences.front_of(subject, 64)


@pytest.fixture(scope="module")
def found(subject):
  words, rng = list(subject.tokenizer.ids), np.random.default_rng(0)
  texts = [
    Text("a", f"{i}", " ".join(rng.choice(words[:20], 18))) for i in range(3)
  ]
  seen = []
  result = run(
    subject, CONFIG, texts=texts, progress=lambda *at: seen.append(at)
  )
  assert seen[-1] == (6, 6)
  return result


def test_run(found):
  fought = found.arrays["defences"]
  assert fought.shape == (3, 3, 8, 3, 4)
  assert found.arrays["noise middle"].shape == (3, 4, 2, 4)
  assert all(np.isfinite(x).all() for x in found.arrays.values())
  d = {name: i for i, name in enumerate(DEFENCES)}
  kl = fought[..., 0]
  assert np.abs(kl[:, :, d[NONE], 0]).max() < 1e-6 < kl[:, :, d[NONE], 1].min()
  for name in (SAME, OTHER):  # nothing gets through
    np.testing.assert_allclose(
      kl[:, :, d[name], 1], kl[:, :, d[name], 0], atol=1e-6
    )
    assert np.abs(kl[:, :, d[name], 2]).max() < 1e-6
  assert np.abs(kl[:, :, d[SAME], 0]).max() < 1e-6
  assert kl[:, :, d[OTHER], 0].min() > 1e-6
  assert kl[:, :, d[FRONT], 2].min() > 1e-6
  verdicts = {c.claim: c.verdict for c in found.claims}
  assert len(verdicts) == 15
  pinned = [x for claim, x in verdicts.items() if "undo any attack" in claim]
  assert pinned == ["agrees"]
  assert len(found.tables["defences.csv"][1]) == 3 * 8 * 3
  assert len(found.tables["disturbed.csv"][1]) == 7 * 4


def test_the_report_draws(found):
  from sinkjax.experiments.applications.robustness import figures as report

  drawn = report.draw(found)
  assert all(len(x) > 5000 for x in drawn.values())
  sections = report.sections(found, drawn)
  assert {section.figure for section in sections} == set(drawn.values())


def test_hidden_from_the_first_layer_on_the_sink_cannot_be_heard(subject):
  words = list(subject.tokenizer.ids)
  row = np.array(subject.tokenizer.encode(" ".join(words[:16])))[:16]
  config = dataclasses.replace(CONFIG, from_layer=0)
  embeds = capture(sinkjax.forward(subject.cfg), {"x": ("embed", lambda x: x)})
  embed = np.asarray(embeds(subject.params, row[None]).trace["x"][0])
  rows = robustness._rows(subject, config, row, embed, places(16), 0)
  out, _ = robustness.disturber(subject.cfg, config)(
    subject.params,
    rows.ids,
    rows.shift.astype(np.float32),
    robustness.ways_of(subject.cfg.n_layers, 0),
  )
  sink = [i for i, x in enumerate(rows.names) if x == (NOISE, "sink")]
  kl = np.asarray(out)[:, sink, 0]
  assert np.abs(kl[1]).max() < 1e-6 < kl[0].min()


def test_verdicts_follow_the_numbers():
  """Four times the KL when hidden, in every text, or a fourth of it."""
  rng, names = np.random.default_rng(0), []
  for place in ("sink", "next", "middle", "last", robustness.ALL):
    names.append((NOISE, place))
  names += [(SWAP, "middle"), (SWAP, "last")]
  for factor, verdict in ((4.0, "agrees"), (0.25, "disagrees")):
    noisy = np.exp(0.01 * rng.normal(size=(6, 4, len(names), 4)))
    noisy[:, 1] *= factor
    levels = told.levels(noisy, names)
    base, fought = np.ones((6, 4)), np.ones((6, 3, 8, 3, 4))
    said = told.claims(CONFIG, 6, levels, base, fought)
    assert [c.verdict for c in said[:5]] == [verdict] * 5
    assert said[6].verdict == verdict
    noisy[:, told.CONDITIONS.index(told.EMPTY)] *= factor
    said = told.claims(CONFIG, 6, told.levels(noisy, names), base, fought)
    assert [c.verdict for c in said[5:7]] == [verdict, "undecided"]
    ratio = told.ratios(levels)["noise on one token"]["kl"]["sink hidden"]
    assert np.exp(ratio["value"]) == pytest.approx(factor, rel=0.05)


def test_more_than_with_the_sink_alone_decides_nothing():
  three, less, more = (
    Mean(np.log(x), np.log(x) - 0.1, np.log(x) + 0.1, 6, 0.03)
    for x in (3, 0.8, 1.5)
  )
  assert told._both(three, more) == "agrees"
  assert told._both(three, less) == "undecided"
  assert told._both(less, more) == "disagrees"


def test_gain_and_cost_by_hand():
  fought = np.zeros((4, 3, 8, 3, 4))
  d = DEFENCES.index(FRONT)
  fought[:, :, 0, 1, told.LOSS] = 1.0
  fought[:, :, d, 0, told.LOSS] = 0.2
  fought[:, :, d, 1, told.LOSS] = 0.5
  found = told.balance(fought)[FRONT]
  assert found["cost"]["value"] == pytest.approx(0.2)
  assert found["gain"]["value"] == pytest.approx(0.5)
  assert found["gain, k"]["value"] == pytest.approx(0.5)
