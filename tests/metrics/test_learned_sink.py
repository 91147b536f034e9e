"""The weight on sinks that are no token: its metrics, and where they show."""

import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from quick import quick
from variants import scaled

import sinkjax
from sinkjax.analysis.sink_profile import sink_profile
from sinkjax.metrics import registry, rows
from sinkjax.models import normalizers
from sinkjax.report import profile as report
from sinkjax.train.probe import make_probe
from sinkjax.transforms.streaming import stream_statistics
from sinkjax.weights import huggingface

FAMILIES = pathlib.Path(__file__).parents[1] / "golden" / "families"
NAMES = ("learned_sink", "first_and_learned")
SINKS = {
  "sink_logit": {"sink_logit": True},
  "softmax1": {"normalizer": "softmax1"},
  "k": {"attn_bias": "k"},
  "kv": {"attn_bias": "kv"},
}
PROMPTS = [[3, 1, 4, 1, 5, 9, 2, 6], [2, 7, 1, 8, 2, 8, 1, 8]]


def model(**fields):
  cfg = sinkjax.TINY.replace(**fields)
  return scaled(sinkjax.init_params(cfg, jax.random.key(0)), 2), cfg


def test_equal_scores_leave_one_part_to_the_sink():
  """softmax1 of n scores of 0 leaves 1 / (n + 1), and each key gets as much."""
  length = 9
  mask = jnp.tril(jnp.ones((length, length), bool))
  pattern = normalizers.softmax1(jnp.zeros((1, 2, length, length)), mask)
  left = 1 / np.arange(2, length + 2)
  found = [
    rows.dense(rows.learned_sink_mass(with_first=with_first))(pattern)
    for with_first in (False, True)
  ]
  # A few units in the last place of sums of float32.
  np.testing.assert_allclose(found[0], np.full((1, 2), left.mean()), rtol=1e-6)
  np.testing.assert_allclose(found[1], 2 * found[0], rtol=1e-6)


@pytest.mark.thorough
@pytest.mark.parametrize("name", quick(SINKS, *list(SINKS)[:1], others="slow"))
def test_both_masses_are_what_the_rows_say(name):
  params, cfg = model(**SINKS[name])
  assert cfg.learned_sink
  seen = registry.observers(NAMES) | {"pattern": ("pattern", lambda p: p)}
  h = sinkjax.capture(sinkjax.forward(cfg), seen)
  trace = jax.jit(h)(params, jnp.asarray(PROMPTS)).trace
  pattern = np.asarray(trace["pattern"], np.float64)
  left = 1 - pattern.sum(axis=-1)
  # A head that attends to a token leaves nothing; most of these leave some.
  assert left.mean() > 0.01
  both = left + pattern[..., 0]
  # One minus a sum of about one has the rounding of float32, 6e-8 a step.
  for metric, want in zip(NAMES, (left, both), strict=True):
    np.testing.assert_allclose(trace[metric], want.mean(axis=-1), atol=1e-6)
  streamed = stream_statistics(
    sinkjax.capture(sinkjax.forward(cfg), registry.observers(NAMES)),
    {},
    block=3,
  )(params, jnp.asarray(PROMPTS)).trace
  for metric in NAMES:
    np.testing.assert_allclose(streamed[metric], trace[metric], atol=1e-6)


def test_rows_of_a_softmax_leave_nothing():
  params, cfg = model()
  assert not cfg.learned_sink
  h = sinkjax.capture(sinkjax.forward(cfg), registry.observers(NAMES))
  trace = jax.jit(h)(params, jnp.asarray(PROMPTS)).trace
  # The rounding of a sum of eight float32 numbers.
  assert np.abs(trace["learned_sink"]).max() < 1e-6


@pytest.mark.slow
@pytest.mark.parametrize("name", SINKS)
def test_report_and_probe_show_it_where_there_is_one(name):
  params, cfg = model(**SINKS[name])
  profile = sink_profile(params, cfg, PROMPTS)
  data = report.summary(profile, eps=(0.3,))
  alpha = data["first_token_mass"]
  mass, both = data["learned_sink_mass"], data["first_and_learned_mass"]
  assert 0 < mass < 1
  np.testing.assert_allclose(both, mass + alpha, rtol=1e-5)
  header, _ = report.head_rows(profile)
  assert set(NAMES) <= set(header)
  cards = [card.label for card in report._numbers(data)]
  assert "attention on the learned sink" in cards
  record = make_probe(cfg)(params, jnp.asarray(PROMPTS))
  np.testing.assert_allclose(record["learned_sink_mass"], mass, rtol=1e-5)
  np.testing.assert_allclose(record["first_and_learned_mass"], both, rtol=1e-5)


def test_nothing_shows_it_where_there_is_none():
  params, cfg = model()
  profile = sink_profile(params, cfg, PROMPTS)
  data = report.summary(profile, eps=(0.3,))
  header, _ = report.head_rows(profile)
  shown = [*data, *header, *make_probe(cfg)(params, jnp.asarray(PROMPTS))]
  assert not [key for key in shown if "learned" in key]
  assert "attention on the learned sink" not in [
    card.label for card in report._numbers(data)
  ]


@pytest.mark.parametrize("name", ["gpt_oss", "granite_swa"])
def test_published_architectures_with_sinks(name):
  """Against the patterns that transformers recorded, padding left out."""
  folder = FAMILIES / name
  params, cfg = huggingface.load(folder)
  golden = np.load(folder / "golden.npz")
  # As `make_golden` drew them.
  tokens = np.random.default_rng(0).integers(3, 96, (2, 14))[:1]
  profile = sink_profile(params, cfg, tokens.tolist())
  left = 1 - golden["single/pattern"].astype(np.float64).sum(axis=-1)
  # The parity table's error of the pattern, 2e-6, on each of 14 keys.
  np.testing.assert_allclose(
    profile.mean("learned_sink"), left.mean(axis=(1, -1)), atol=3e-5
  )


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("name", quick(SINKS, *list(SINKS)[:1], others="slow"))
def test_padding_changes_nothing(name, side):
  """What the real queries leave to the sink, beside keys that are padding."""
  params, cfg = model(**SINKS[name])
  seen = {"pattern": ("pattern", lambda p: p)}
  h = jax.jit(sinkjax.capture(sinkjax.forward(cfg), seen))
  alone = h(params, jnp.asarray(PROMPTS[:1])).trace["pattern"]
  real = np.arange(11) >= 3 if side == "left" else np.arange(11) < 8
  tokens = np.zeros((1, 11), int)
  tokens[0, real] = PROMPTS[0]
  out = h(params, jnp.asarray(tokens), valid=jnp.asarray(real[None]))
  padded = out.trace["pattern"][..., real, :]
  learned = rows.learned_sink_mass()
  # The same sums in another order of the keys: the rounding of float32.
  np.testing.assert_allclose(
    rows.of_pattern(learned, padded), rows.of_pattern(learned, alone), atol=1e-6
  )
