"""Tests of sinkjax.data.synthetic."""

import jax
import numpy as np
import pytest

from sinkjax.data.synthetic import (
  backcopy_optimum,
  backcopy_task,
  sample_backcopy,
  sample_trigger_mean,
)

TEXT = "the cat and the dog ran to the old red barn at ten and then sat "


@pytest.fixture
def task():
  return backcopy_task(TEXT, triggers=3)


def test_triggers_are_the_most_frequent_characters(task):
  counts = [TEXT.count(char) for char in task.characters]
  assert counts == sorted(counts, reverse=True)
  assert np.flatnonzero(task.triggers).tolist() == [1, 2, 3]
  assert task.triggers.sum() == 3 and not task.triggers[0]
  assert np.allclose(task.bigram[~task.triggers].sum(axis=1), 1)
  assert not task.unigram[task.triggers].any() and task.unigram[0] == 0


def test_rows_follow_the_rule(task):
  rows = np.asarray(sample_backcopy(task, jax.random.key(0), 64, 40))
  assert rows.shape == (64, 40) and (rows[:, 0] == 0).all()
  assert not task.triggers[rows[:, 1]].any()
  before, now, after = rows[:, :-2], rows[:, 1:-1], rows[:, 2:]
  copied = task.triggers[now]
  assert copied.any() and (after[copied] == before[copied]).all()
  assert (task.bigram[now[~copied], after[~copied]] > 0).all()


def test_the_optimum_is_the_loss_of_who_knows_the_task(task):
  """Sampled log-probabilities of the true rule, within five errors."""
  rows = np.asarray(sample_backcopy(task, jax.random.key(1), 20_000, 12))
  now, after = rows[:, :-1], rows[:, 1:]
  with np.errstate(divide="ignore"):
    nats = np.where(task.triggers[now], 0.0, -np.log(task.bigram[now, after]))
  error = nats.std(axis=0) / np.sqrt(len(rows))
  gap = np.abs(nats.mean(axis=0) - backcopy_optimum(task, 12))
  assert (gap < 5 * error + 1e-9).all() and error.max() < 0.02


@pytest.mark.thorough
def test_the_trigger_mean():
  task = sample_trigger_mean(jax.random.key(0), 50, 9, 6)
  inputs, targets = np.asarray(task.inputs), np.asarray(task.targets)
  at = np.asarray(task.trigger).argmax(axis=1)
  assert (np.asarray(task.trigger).sum(axis=1) == 1).all() and at.min() >= 2
  for row, place in enumerate(at):
    wanted, marks = np.zeros((9, 6)), np.zeros((9, 3))
    wanted[place, 3:] = inputs[row, 1:place, 3:].mean(axis=0)
    np.testing.assert_allclose(targets[row], wanted, atol=1e-6)
    marks[0, 0], marks[place, 1:] = 1, (1, 1 / (place - 1))
    np.testing.assert_allclose(inputs[row, :, :3], marks, rtol=1e-6)
  assert (inputs[:, 0] == [1, 0, 0, 0, 0, 0]).all()
  np.testing.assert_allclose((inputs[:, 1:] ** 2).mean(axis=-1), 1, rtol=1e-5)


def test_what_is_wrong_is_said():
  with pytest.raises(ValueError, match="triggers must be 1 to"):
    backcopy_task("abc", triggers=2)
  with pytest.raises(ValueError, match="at least 3 and width 4"):
    sample_trigger_mean(jax.random.key(0), 1, 2, 5)
