"""Needles: lengths, depths, and answers against one pass a question."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import sinkjax
from sinkjax.experiments.shared.asked_needles import (
  ask_needles,
  find_needles,
  masses_at_ends,
)
from sinkjax.experiments.shared.needles import haystack


@pytest.mark.parametrize("prefix", [[], [1]])
@pytest.mark.parametrize("tokens", [200, 201, 400])
def test_a_haystack_is_as_long_as_asked(reader, prefix, tokens):
  pile = haystack(reader, prefix, tokens, 6, seed=3)
  row, decode = pile.row, reader.tokenizer.decode
  assert len(row.tokens) == tokens
  assert row.tokens[: len(prefix)].tolist() == prefix
  text = decode(row.tokens[row.branch == 0])
  told = dict(re.findall(r"The password of (\w+) is (\w+)\.", text))
  assert len(told) == len(set(told.values())) == 6
  for i, (place, word) in enumerate(told.items()):
    question = decode(row.tokens[row.branch == i + 1])
    assert question == f"\nThe password of {place} is"
    assert pile.asked[i] == np.flatnonzero(row.branch == i + 1)[-1]
    assert decode([pile.choices[i]]) == f" {word}"
    at = text.index(f"The password of {place}") / len(text)
    assert pile.depth[i] == pytest.approx(at, abs=0.05)
  assert (np.diff(pile.depth) > 0).all()
  again = haystack(reader, prefix, tokens, 6, seed=3)
  assert again.row.tokens.tolist() == row.tokens.tolist()
  other = haystack(reader, prefix, tokens, 6, seed=4)
  assert other.row.tokens.tolist() != row.tokens.tolist()


@pytest.mark.thorough
@pytest.mark.parametrize(
  "edits",
  [
    pytest.param({}, marks=pytest.mark.slow),
    {"scores": sinkjax.knockout(0, from_layer=1)},
  ],
)
def test_answers_are_those_of_a_pass_for_each_question(reader, edits):
  piles = [haystack(reader, [], 220, 8, seed) for seed in range(4)]
  got = find_needles(reader, piles, edits)
  f = sinkjax.forward(reader.cfg)
  if edits:
    f = sinkjax.intervene(f, edits)
  f = jax.jit(f)
  want = np.zeros((4, 8), bool)
  for i, pile in enumerate(piles):
    context = pile.row.tokens[pile.row.branch == 0]
    for j in range(8):
      own = pile.row.tokens[pile.row.branch == j + 1]
      tokens = np.concatenate([context, own])
      row = np.zeros(512, int)  # one program: what follows changes nothing
      row[: len(tokens)] = tokens
      logits = f(reader.params, row).logits[0, len(tokens) - 1, pile.choices]
      want[i, j] = int(jnp.argmax(logits)) == j
  assert got.tolist() == want.tolist()
  assert 0 < want.sum() < want.size


def test_refusals(reader):
  with pytest.raises(ValueError, match="needles must be 2 to"):
    haystack(reader, [], 400, 1, seed=0)
  with pytest.raises(ValueError, match="do not fit 60 tokens"):
    haystack(reader, [], 60, 6, seed=0)

  with pytest.raises(ValueError, match="at most 26, got 27"):
    haystack(reader, [], 400, 6, seed=0, unknown=27)

  class Letters:
    def encode(self, text):
      return [ord(c) for c in text]

  with pytest.raises(ValueError, match="distinguishes 1 of the"):
    haystack(reader._replace(tokenizer=Letters()), [], 400, 6, seed=0)


def test_questions_without_an_answer_come_last(reader):
  pile = haystack(reader, [], 400, 6, seed=3, unknown=4)
  row, decode = pile.row, reader.tokenizer.decode
  text = decode(row.tokens[row.branch == 0])
  for i, at in enumerate([*pile.asked, *pile.unknown]):
    mine = row.branch == i + 1
    assert at == np.flatnonzero(mine)[-1]
    question = decode(row.tokens[mine])
    place = question.removeprefix("\nThe password of ").removesuffix(" is")
    assert (place in text) == (i < 6)
  assert len(pile.choices) == 6 and len(set(pile.unknown)) == 4


@pytest.mark.thorough
def test_attention_at_the_ends_of_questions(reader):
  pile = haystack(reader, [], 220, 4, seed=0, unknown=3)
  answered, unanswered = masses_at_ends(reader, [pile])
  assert (answered.shape, unanswered.shape) == ((1, 4), (1, 3))
  watch = {"mass": ("pattern", lambda x: x[..., 0].mean(axis=1))}
  f = jax.jit(sinkjax.capture(sinkjax.forward(reader.cfg), watch))
  context = pile.row.tokens[pile.row.branch == 0]
  for branch, have in ((2, answered[0, 1]), (7, unanswered[0, 2])):
    own = pile.row.tokens[pile.row.branch == branch]
    row = np.zeros((1, 256), int)  # one program: what follows changes nothing
    length = len(context) + len(own)
    row[0, :length] = [*context, *own]
    mass = np.asarray(f(reader.params, row).trace["mass"], float)
    want = mass[:, 0, length - 1].mean() * length
    np.testing.assert_allclose(have, want, rtol=1e-3)


@pytest.mark.thorough
def test_attention_and_surprisal_of_questions(reader):
  """Each question in a text of its own, by the whole pattern."""
  piles = [haystack(reader, [], 220, 8, seed) for seed in range(2)]
  asked = ask_needles(reader, piles)
  np.testing.assert_array_equal(asked.right, find_needles(reader, piles))
  f = sinkjax.capture(
    sinkjax.forward(reader.cfg),
    {"mass": ("pattern", lambda x: x[..., 0].mean(axis=1))},
  )
  f = jax.jit(f)
  for i, pile in enumerate(piles):
    context = pile.row.tokens[pile.row.branch == 0]
    for q in (0, 5):
      own = pile.row.tokens[pile.row.branch == q + 1]
      at = np.arange(len(context), len(context) + len(own))
      row = np.zeros((1, 256), int)  # one program: what follows changes nothing
      row[0, : at[-1] + 1] = [*context, *own]
      out = f(reader.params, row)
      mass = np.asarray(out.trace["mass"], float)[:, 0, at].mean()
      logs = np.asarray(jax.nn.log_softmax(out.logits[0, at - 1]))
      nats = -logs[np.arange(len(own)), own].mean()
      np.testing.assert_allclose(asked.mass[i, q], mass, rtol=1e-3)
      np.testing.assert_allclose(asked.nats[i, q], nats, rtol=1e-3)
