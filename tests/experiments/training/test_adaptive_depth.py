"""Tests of the experiment adaptive_depth: made-up sweeps, and one tiny one."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from made_controls import SEEDS, all_drawn, row_of, stored, verdicts
from variants import scaled

import sinkjax
from sinkjax.experiments.harness.protocol import Verdict
from sinkjax.experiments.training import adaptive_depth
from sinkjax.experiments.training.adaptive_depth import experiment
from sinkjax.experiments.training.adaptive_depth.figures import groups

CONFIG = dataclasses.replace(adaptive_depth.Config(), seeds=SEEDS)
LENGTH = 12


def taken(layers, of_first):
  """[L, T]: all of so many layers and none of the others."""
  found = np.zeros((CONFIG.layers, LENGTH))
  found[:layers], found[:, 0] = 1, 0
  found[:of_first, 0] = 1
  return found


@pytest.fixture(scope="module")
def made(tmp_path_factory):
  """Halting: better than a shallow model of equal work, its first token and
  tokens that rest stop. Routed: worse than both, by more work."""

  def truth(name, form):
    loss = {"full": 3.0, "shallow": 3.1, "halting": 3.0, "routed": 3.2}
    return {"loss": loss[name]}

  one = np.ones((len(CONFIG.lengths), CONFIG.layers, 4))

  def row(name, layers, of_first, first, stops, goes, few, many):
    more = {
      "taken": taken(layers, of_first),
      "first_share": first,
      "stops": stops,
      "goes": goes,
      "nats_few": few,
      "nats_many": many,
    }
    return row_of(name, one, 0.4 * one, **more)

  plain = [row("full", 4, 4, 0.4, 0, 0, 0, 0), row("shallow", 3, 3, *[0] * 5)]
  for one_row in plain:
    for key in ("stops", "goes", "nats_few", "nats_many"):
      one_row[key] = [None] * len(SEEDS)
  rows = [
    *plain,
    row("halting", 3, 1, 0.2, 0.5, 0.3, 2.5, 3.5),
    row("routed", 4, 4, 0.2, 0.3, 0.3, 3.0, 3.0),
  ]
  folder = tmp_path_factory.mktemp("depth")
  return stored(adaptive_depth, CONFIG, rows, truth, folder)


def test_claims(made):
  yes, no = Verdict.SUPPORTED, Verdict.CONTRADICTED
  same, open_ = Verdict.NO_EFFECT, Verdict.INCONCLUSIVE
  assert verdicts(adaptive_depth, made) == {
    "no_worse_equal_parameters_halting": yes,
    "weaker_sink_halting": yes,
    "better_equal_compute_halting": yes,
    "first_stops_early_halting": yes,
    "resting_stop_halting": yes,
    "stop_where_easy_halting": yes,
    "no_worse_equal_parameters_routed": no,
    # What has learnt less has a weaker sink for that reason alone.
    "weaker_sink_routed": open_,
    "better_equal_compute_routed": no,
    "first_stops_early_routed": same,
    "resting_stop_routed": same,
    "stop_where_easy_routed": same,
  }


@pytest.mark.thorough
def test_figures(made):
  sections = all_drawn(adaptive_depth, made)
  table = next(s for s in sections if s.title.startswith("Which tok")).table
  by_name = {line[0]: line[2:] for line in table.rows}
  np.testing.assert_allclose(by_name["halting"][:2], [1, 3], atol=0.03)
  assert by_name["full"][3:] == [""] * 4


@pytest.mark.parametrize("length", [2, 3, 9, 256, 2048])
def test_groups_of_positions(length):
  found = groups(length)
  assert found[0] == (0, 1) and found[-1][1] == length
  assert [a for a, _ in found[1:]] == [b for _, b in found[:-1]]
  assert all(a < b for a, b in found)


def test_what_each_variant_is():
  runs = adaptive_depth.variants(adaptive_depth.Config())
  full = runs["full"].model.to_dict()
  changed = {
    name: {k for k, v in run.model.to_dict().items() if full.get(k) != v}
    for name, run in runs.items()
  }
  assert changed == {
    "full": set(),
    "shallow": {"n_layers"},
    "halting": {"depth"},
    "routed": {"depth"},
  }
  assert runs["shallow"].model.n_layers == 3
  halting = runs["halting"].halt()
  assert halting.weight == 0.1
  # Half of the prior is behind half of the layers.
  assert (1 - halting.prior) ** 2 == pytest.approx(0.5)
  again = type(runs["halting"]).from_dict(runs["halting"].to_dict())
  assert again == runs["halting"]
  for wrong, words in (
    ({"variants": ("deep",)}, "adaptive_depth has no 'deep'"),
    ({"goal": 0.0}, r"goal must be in \(0, 1\]"),
  ):
    with pytest.raises(ValueError, match=words):
      adaptive_depth.variants(adaptive_depth.Config(**wrong))
  for scale in adaptive_depth.SCALES.values():
    adaptive_depth.variants(adaptive_depth.Config(**scale))


@pytest.mark.slow
@pytest.mark.parametrize("depth", ["none", "halting", "routed"])
def test_what_is_read_of_tokens(depth):
  """In loops over layers, texts and tokens."""
  cfg = sinkjax.TINY.replace(depth=depth, positions="none")
  params = scaled(sinkjax.init_params(cfg, jax.random.key(3)), 2)
  rows = np.random.default_rng(0).integers(64, size=(4, 9))
  got = experiment.tokens_of(cfg, params, jnp.asarray(rows))
  see = {"p": ("pattern", lambda p: p)}
  if depth != "none":
    see["open"] = ("depth_open", lambda x: x)
  run = jax.jit(sinkjax.capture(sinkjax.forward(cfg), see))
  out = jax.tree.map(
    lambda x: np.asarray(x, np.float64), run(params, jnp.asarray(rows))
  )
  alpha = out.trace["p"][..., 0].mean(axis=2)  # [L, B, T]
  taken = out.trace.get("open", np.ones(alpha.shape))
  np.testing.assert_allclose(got["taken"], taken.mean(axis=1))
  open_rows = [
    alpha[i] for i in np.ndindex(alpha.shape) if taken[i] and i[2] > 0
  ]
  np.testing.assert_allclose(got["first_share"], np.mean(open_rows), rtol=1e-5)
  if depth == "none":
    assert [got[k] for k in ("stops", "goes", "nats_few")] == [None] * 3
    return
  pairs = []
  for layer in range(2):
    split = {0: [], 1: []}
    for b, t in np.ndindex(rows.shape):
      if t and taken[layer, b, t]:
        split[int(taken[layer + 1, b, t])].append(alpha[layer, b, t])
    if split[0] and split[1]:
      pairs.append([np.mean(split[0]), np.mean(split[1])])
  assert pairs
  np.testing.assert_allclose(
    [got["stops"], got["goes"]], np.mean(pairs, axis=0), rtol=1e-5
  )
  logs = out.logits - np.log(np.exp(out.logits).sum(-1, keepdims=True))
  nats, count = [], []
  for b, t in np.ndindex(rows.shape):
    if 0 < t < rows.shape[1] - 1:
      nats.append(-logs[b, t, rows[b, t + 1]])
      count.append(taken[:, b, t].sum())
  nats, count = np.array(nats), np.array(count)
  few = count < np.median(count)
  few = few if few.any() else count <= np.median(count)
  want = nats[few].mean(), nats[~few].mean()
  np.testing.assert_allclose(
    [got["nats_few"], got["nats_many"]], want, rtol=1e-4
  )


@pytest.mark.slow
def test_tiny_models_are_trained_and_read_again(corpus, tmp_path):
  config = adaptive_depth.Config(
    corpus=corpus,
    layers=2,
    d_model=32,
    head_dim=16,
    vocab_size=300,
    length=32,
    batch=4,
    steps=4,
    warmup=2,
    every=2,
    texts=16,
    seeds=(0, 1),
    lengths=(16, 64),
    starts=4,
    map_tokens=8,
    map_texts=2,
  )
  result = adaptive_depth.EXPERIMENT.measure(config, folder=tmp_path / "runs")
  rows = {row["variant"]: row for row in result.numbers["controls"]}
  assert list(rows) == ["full", "shallow", "halting", "routed"]
  for row in rows.values():
    assert np.shape(row["taken"]) == (2, 2, 32)
    assert all(0 < x < 1 for x in row["mixing_rest"])
  all_drawn(adaptive_depth, result.as_stored(config))
