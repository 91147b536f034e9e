"""Where roles stand, verdicts on values made by hand, and a run."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import sinkjax
from sinkjax.experiments.harness.api import Result
from sinkjax.experiments.harness.protocol import Verdict, judge
from sinkjax.experiments.paper.catch_tag_release import EXPERIMENT, passes
from sinkjax.experiments.paper.catch_tag_release.experiment import (
  SHARES,
  Config,
  Removed,
  folds_of,
  measure,
)
from sinkjax.experiments.paper.catch_tag_release.roles import (
  FEWEST,
  START,
  Role,
  place,
)
from sinkjax.experiments.shared.prompt_corpus import Text

LAYERS = 3


def test_places_of_compared_tokens():
  sinks = np.zeros((4, 40), bool)
  sinks[:, 0] = True
  sinks[0, [20, 24]] = True
  sinks[1, [1, 2, 3, 4, 5, 7]] = True
  sinks[2, 40 - FEWEST] = True  # too few queries behind it
  keys, queries = place(sinks, 0)
  assert keys[0].tolist() == [0] * 4
  # The only early token of the second text that is no sink.
  assert keys[1, 1] == 6 and (keys[1] > 0).all() and (keys[1] < START).all()
  assert keys[2].tolist() == [20, 1, 0, 0]
  # Beside a run of sinks at the start stands the first token behind it.
  assert keys[3].tolist() == [19, 6, 0, 0]
  assert queries[:2].sum(axis=-1).tolist() == [[40 - START] * 4] * 2
  assert queries[2].sum(axis=-1).tolist() == [19, 33, 0, 0]
  assert np.array_equal(queries[2], queries[3])
  assert queries[2, 1, 7] and not queries[2, 1, 6]
  placed = place(sinks, 0, skipped=3)
  assert placed.queries[0, 0].sum() == 40 - START - 3
  assert placed.having(Role.FOUND).tolist() == [0, 1]


def test_texts_of_one_template_are_in_one_fold():
  folds = folds_of([0, 1, 0, 3, 1])
  assert folds.tolist() == [0, 1, 0, 0, 1]
  with pytest.raises(ValueError, match="all begin alike"):
    folds_of([0, 0])


def verdicts(found=9, **means):
  """Of nine texts, by the mean of each array."""
  rng, arrays = np.random.default_rng(0), {}

  def values(name, usual, shape=(9,)):
    arrays[name] = means.get(name, usual) + 0.001 * rng.normal(size=shape)

  for role in Role:
    for what in SHARES:
      values(f"{what}, {role}", 0.05)
  for removed in Removed:
    values(f"change, {removed}", 0.0)
    values(f"kl, {removed}", 0.1)
  for role in (Role.FIRST, Role.OTHER):
    for where in ("attention", "stream"):
      values(f"rank, {where}, {role}", 0.0, (LAYERS, 9))
      values(f"auroc, {where}, {role}", 0.5, (LAYERS, 9))
  numbers = {
    "texts": 9,
    "templates": list(range(9)),
    "width": 32,
    "found": np.arange(found),
  }
  made = Result(numbers, {}, arrays).as_stored(Config())
  judged = judge(EXPERIMENT.claims(made))
  assert len({claim.id for claim in judged}) == 9
  return {claim.id: claim.verdict for claim in judged}


def test_verdicts():
  yes, no = Verdict.SUPPORTED, Verdict.CONTRADICTED
  same, without = Verdict.NO_EFFECT, Verdict.NOT_TESTABLE
  plain = verdicts()
  assert set(plain.values()) == {same}
  tagged = verdicts(
    **{
      "attention, position 0": 0.3,
      "stream, position 0": 0.3,
      "attention, found sink": 0.3,
      f"change, {Removed.FIRST}": 0.3,
      f"kl, {Removed.FIRST}": 0.3,
      f"change, {Removed.DIFFERENCES}": 0.3,
      f"change, {Removed.FOUND}": 0.3,
      "rank, stream, position 0": 0.6,
      "auroc, stream, position 0": 0.9,
    }
  )
  assert set(tagged.values()) == {yes}
  few = verdicts(
    found=1,
    **{
      "attention, another early token": 0.3,
      f"change, {Removed.RANDOM}": 0.3,
      "rank, stream, position 0": 0.6,
      "rank, stream, another early token": 0.7,
      "auroc, stream, position 0": 0.2,
    },
  )
  assert few == {
    "sink_tags_attention": no,
    "sink_tags_stream": same,
    "found_sinks_tag_attention": without,
    "tag_is_used": no,
    "tag_changes_predictions": same,
    "tag_differences_are_used": same,
    "found_tag_is_used": without,
    # Any other tag would tell as much: the condition fails.
    "coefficient_follows_attention": Verdict.INCONCLUSIVE,
    "coefficient_tells_who_attended": no,
  }


@pytest.fixture(scope="module")
def ran(reader):
  """(subject, ids, result) of ten texts; the model attends anyhow."""
  # Ids of its own, whatever other tests have read.
  reader = reader._replace(tokenizer=type(reader.tokenizer)())
  rng = np.random.default_rng(0)
  words = "the old man saw a red bird and went to his garden by night"
  words = words.split()  # noqa: SIM905
  texts = [Text("a", f"{i}", " ".join(rng.choice(words, 40))) for i in range(9)]
  seen, config = [], Config(tokens=28)
  done = measure(
    reader, config, texts=texts, progress=lambda *at: seen.append(at)
  )
  assert seen[-1][0] == seen[-1][1]
  ids = np.array([reader.encode([one.text])[0][:28] for one in texts])
  return reader, ids, done.as_stored(config, "tiny")


@pytest.fixture(scope="module")
def by_hand(ran):
  """(mass [L, B, H, T], tags [L, B, D], attention outputs, stream)."""
  reader, ids, _ = ran
  cfg, params = reader.cfg, reader.params
  sites = ("pattern", "v", "attn_out", "resid_post")
  watch = {site: (site, lambda x: x) for site in sites}
  f = sinkjax.capture(sinkjax.forward(cfg), watch)
  trace = jax.jit(lambda *a: f(*a).trace)(params, ids)
  p, v, out, post = (np.asarray(trace[site], float) for site in sites)
  kernel = np.asarray(params["blocks"]["attn"]["o"]["kernel"], float)
  v = np.repeat(v, cfg.n_heads // cfg.n_kv_heads, axis=3)
  written = np.einsum("lbhk,lhkd->lbhd", v[:, :, 0], kernel)
  mass = p[..., START:, 0]
  tags = np.einsum("lbh,lbhd->lbd", mass.mean(axis=-1), written)
  return mass, tags, out, post


@pytest.mark.thorough
def test_shares_and_coefficients_by_hand(ran, by_hand):
  (_, _, found), (mass, tags, out, post) = ran, by_hand

  def share(x):
    x = x[:, :, START:]
    x = x - x.mean(axis=2, keepdims=True)
    along = np.einsum("lbtd,lbd->lbt", x, tags) ** 2
    size = (tags**2).sum(-1) * (x**2).sum((-2, -1))
    return (along.sum(-1) / size).mean(axis=0)

  arrays = found.arrays
  for what, x in (("attention", out), ("stream", post)):
    np.testing.assert_allclose(
      arrays[f"{what}, position 0"], share(x), rtol=1e-3
    )
  np.testing.assert_allclose(
    arrays["caught, position 0"], mass.mean(axis=(0, 2, 3)), rtol=1e-4
  )
  # The tag of the other half's texts, by which a text of its own is ranked.
  from scipy import stats

  other = folds_of(found.numbers["templates"]) != 0
  u = tags[1, other].mean(axis=0)
  want = stats.spearmanr(post[1, 0, START:] @ u, mass[1, 0].mean(axis=0))
  got = arrays["rank, stream, position 0"][1, 0]
  np.testing.assert_allclose(got, want.statistic, atol=5e-3)


@pytest.mark.thorough
def test_losses_and_page(ran, by_hand):
  reader, ids, found = ran
  unit = by_hand[1] / np.linalg.norm(by_hand[1], axis=-1, keepdims=True)
  unit = jnp.asarray(unit, jnp.float32)

  def projected(value, layer):
    u = unit[layer][:, None]
    rest = value - jnp.sum(value * u, axis=-1, keepdims=True) * u
    return jnp.where(jnp.arange(28)[None, :, None] < START, value, rest)

  f = sinkjax.forward(reader.cfg)
  plain, edited = (
    np.asarray(jax.jit(g)(reader.params, ids).logits, float)[:, START:-1]
    for g in (f, sinkjax.intervene(f, {"attn_out": projected}))
  )
  plain, edited = (
    x - np.log(np.exp(x).sum(-1, keepdims=True)) for x in (plain, edited)
  )
  gap = plain - edited
  want = np.take_along_axis(gap, ids[:, START + 1 :, None], -1)[..., 0]
  change = found.arrays[f"change, {Removed.FIRST}"]
  assert np.abs(change).max() > 1e-2
  np.testing.assert_allclose(change, want.mean(-1), atol=2e-4)
  kl = (np.exp(plain) * gap).sum(-1).mean(-1)
  np.testing.assert_allclose(
    found.arrays[f"kl, {Removed.FIRST}"], kl, rtol=1e-3, atol=1e-5
  )
  drawn = EXPERIMENT.draw(found)
  assert set(drawn) == {"shares.png", "losses.png"}
  assert len(EXPERIMENT.sections(found, drawn)) == 2
  assert len(EXPERIMENT.claims(found)) == 9


@pytest.mark.thorough
def test_what_nothing_is_taken_out_of_stays(reader):
  cfg, ids = reader.cfg, np.arange(20).reshape(2, 10)
  none = np.zeros((cfg.n_layers, 2), np.float32)
  rng, shape = np.random.default_rng(0), (cfg.n_layers, 2, cfg.d_model)
  read = rng.normal(size=shape).astype(np.float32)
  every, run = np.ones(ids.shape, bool), passes.without(cfg)
  for given in ((0 * read, read, every), (read, read, ~every)):
    change, kl = run(reader.params, ids, *given, none)
    np.testing.assert_allclose(change, 0, atol=1e-5)
    np.testing.assert_allclose(kl, 0, atol=1e-5)
  change, kl = run(reader.params, ids, read, read, every, none)
  assert (np.asarray(kl) > 0).all() and np.abs(change).max() > 1e-3


def test_refusals(reader):
  gated = reader._replace(cfg=reader.cfg.replace(gate="head"))
  with pytest.raises(ValueError, match="a model with gate='head' changes"):
    measure(gated, Config())
  with pytest.raises(ValueError, match="tokens must be at least 10, got 9"):
    measure(reader, Config(tokens=9))
  with pytest.raises(ValueError, match="0 texts have 64 tokens"):
    measure(reader, Config(), texts=[Text("a", "a", "the old man")])


@pytest.mark.slow
def test_a_layer_that_does_not_see_the_first_token_tells_nothing(reader):
  """Its window ends before the queries: attention on position 0 is zero."""
  cfg = reader.cfg.replace(window=4, local_layers=(False, True, False))
  reader = reader._replace(tokenizer=type(reader.tokenizer)(), cfg=cfg)
  rng = np.random.default_rng(0)
  words = ["the", "old", "man", "saw", "a", "bird"]
  texts = [Text("a", f"{i}", " ".join(rng.choice(words, 30))) for i in range(4)]
  arrays = measure(reader, Config(tokens=20), texts=texts).arrays
  for where in ("attention", "stream"):
    assert not arrays[f"rank, {where}, position 0"][1].any()
    assert (arrays[f"auroc, {where}, position 0"][1] == 0.5).all()
    assert arrays[f"rank, {where}, position 0"][0].any()
  assert all(np.isfinite(x).all() for x in arrays.values())
