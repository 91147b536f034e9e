"""Tests of sinkjax.data.packing: laws over every row of the table."""

import itertools

import hypothesis
import hypothesis.strategies as st
import jax.numpy as jnp
import numpy as np
import pytest

from sinkjax.data.packing import BOS, FILLS, MASKS, Packing, Windows
from sinkjax.data.tokens import TokenCorpus
from sinkjax.transforms.branches import separate

BOS_ID, EOS_ID, FIRST = 0, 1, 2
REGISTER = 100_000  # above every id of a text

packings = st.builds(
  Packing,
  length=st.integers(5, 12),
  mask=st.sampled_from(MASKS),
  bos=st.sampled_from(BOS),
  eos=st.booleans(),
  reset_positions=st.booleans(),
  fill=st.sampled_from(FILLS),
  cross_targets=st.booleans(),
  registers=st.integers(0, 2),
  seed=st.integers(0, 3),
)
sizes = st.lists(st.integers(0, 30), min_size=1, max_size=12).filter(any)


def _corpus(lengths):
  """Documents of ids that occur once each."""
  ids, found = itertools.count(FIRST), []
  for size in lengths:
    found.append([next(ids) for _ in range(size)])
  return TokenCorpus.of(found, vocab_size=FIRST + sum(lengths))


def _windows(lengths, packing):
  corpus = _corpus(lengths)
  windows = Windows(
    corpus, packing, bos_id=BOS_ID, eos_id=EOS_ID, register_id=REGISTER
  )
  owner = np.full(REGISTER + packing.registers, -1)
  owner[FIRST : corpus.vocab_size] = np.repeat(np.arange(len(lengths)), lengths)
  return [windows[i] for i in range(len(windows))], owner


@hypothesis.given(sizes, packings)
def test_no_token_is_lost_or_doubled(lengths, packing):
  windows, _ = _windows(lengths, packing)
  real = [w["tokens"][w["segments"] >= 0] for w in windows]
  ids = np.concatenate(real)
  content = ids[(ids >= FIRST) & (ids < REGISTER)]
  assert sorted(content) == list(range(FIRST, FIRST + sum(lengths)))
  assert (ids == EOS_ID).sum() == packing.eos * len(lengths)
  wanted = {"none": 0, "document": len(lengths), "pinned": len(windows)}
  assert (ids == BOS_ID).sum() == wanted[packing.bos]
  for window in windows:
    registers = REGISTER + np.arange(packing.registers)
    assert (window["tokens"][: packing.registers] == registers).all()
    assert (window["segments"][: packing.front] == 0).all()
    assert not window["weights"][: packing.front].any()
    if packing.bos == "pinned":
      assert window["tokens"][packing.registers] == BOS_ID


@hypothesis.given(sizes, packings, st.randoms(use_true_random=False))
def test_a_batch_is_its_windows(lengths, packing, random):
  windows = Windows(
    _corpus(lengths),
    packing,
    bos_id=BOS_ID,
    eos_id=EOS_ID,
    register_id=REGISTER,
  )
  numbers = random.choices(range(len(windows)), k=5)
  for name, rows in windows.rows(numbers).items():
    one_by_one = np.stack([windows[i][name] for i in numbers])
    np.testing.assert_array_equal(rows, one_by_one)
  for wrong in (-1, len(windows)):
    with pytest.raises(IndexError, match=f"window {wrong} of"):
      windows.rows([0, wrong])


@hypothesis.given(sizes, packings)
def test_order_is_kept_within_a_document(lengths, packing):
  windows, owner = _windows(lengths, packing)
  for window in windows:
    ids = window["tokens"][window["segments"] >= 0]
    ids = ids[(ids >= FIRST) & (ids < REGISTER)]
    for document in set(owner[ids]):
      inside = ids[owner[ids] == document]
      assert (np.diff(inside) == 1).all()


@hypothesis.given(sizes, packings)
def test_targets_do_not_cross_documents_unless_asked(lengths, packing):
  windows, owner = _windows(lengths, packing)
  for window in windows:
    tokens, weights = window["tokens"], window["weights"]
    real = window["segments"] >= 0
    assert not weights[0] and not weights[~real].any()
    for t in range(1, packing.length):
      before, now = tokens[t - 1], tokens[t]
      if not real[t] or min(before, now) < FIRST or t <= packing.front:
        continue
      same = owner[before] == owner[now]
      assert weights[t] == (same or packing.cross_targets)
    at = packing.front
    if at and at < packing.length and real[at]:
      assert weights[at] == (tokens[at] != BOS_ID)


@pytest.mark.thorough
@hypothesis.given(sizes, packings)
def test_the_mask_hides_other_documents_and_nothing_else(lengths, packing):
  windows, owner = _windows(lengths, packing)
  for window in windows:
    tokens, segments = window["tokens"], window["segments"]
    size = packing.length
    scores = separate(jnp.asarray(segments)[None])(
      jnp.zeros((1, 1, size, size)), 0
    )
    seen = np.asarray(scores[0, 0] > -1)
    for t, s in itertools.product(range(size), range(size)):
      if s > t or min(segments[t], segments[s]) < 0:
        continue
      if s < packing.front or packing.mask == "causal":
        assert seen[t, s]
      elif t >= packing.front and min(tokens[t], tokens[s]) >= FIRST:
        assert seen[t, s] == (owner[tokens[t]] == owner[tokens[s]])


@hypothesis.given(sizes, packings)
def test_positions(lengths, packing):
  windows, _ = _windows(lengths, packing)
  front = packing.front
  for window in windows:
    positions, real = window["positions"], window["segments"] >= 0
    if not packing.reset_positions:
      assert (positions == np.arange(packing.length)).all()
      continue
    assert (positions[:front] == np.arange(front)).all()
    starts = np.flatnonzero(
      real & ~window["weights"] if not packing.cross_targets else positions < 0
    )
    for start in starts[starts >= front]:
      assert positions[start] == front
    steps = np.diff(positions[real])
    assert set(steps[steps != 1]) <= set(range(-packing.length, 1))


@hypothesis.given(sizes, packings)
def test_what_fits_is_kept_whole(lengths, packing):
  if packing.fill == "concatenate":
    return
  windows, owner = _windows(lengths, packing)
  added = (packing.bos == "document") + packing.eos
  for document, size in enumerate(lengths):
    if size and size + added <= packing.content:
      holders = [w for w in windows if (owner[w["tokens"]] == document).any()]
      assert len(holders) == 1


def test_best_fit_wastes_less_than_first_fit():
  lengths = np.random.default_rng(0).integers(1, 64, 400).tolist()
  counts = {
    fill: len(_windows(lengths, Packing(64, fill=fill))[0]) for fill in FILLS
  }
  assert counts["concatenate"] <= counts["best_fit"] <= counts["first_fit"]
  assert counts["first_fit"] < 1.2 * counts["concatenate"]


def test_what_is_wrong_is_said():
  corpus = _corpus([3])
  for changes, words in (
    ({"mask": "full"}, "packing.mask must be one of"),
    ({"length": 1}, "at least 2"),
    ({"registers": 3}, "at least 5"),
    ({"registers": -1}, "must not be negative"),
  ):
    with pytest.raises(ValueError, match=words):
      Packing(**{"length": 4} | changes)
  with pytest.raises(ValueError, match="needs a BOS token"):
    Windows(corpus, Packing(4, bos="pinned"))
  with pytest.raises(ValueError, match="registers=1 need an id"):
    Windows(corpus, Packing(4, registers=1))
  with pytest.raises(ValueError, match="needs an EOS token"):
    Windows(corpus, Packing(4, eos=True))
  with pytest.raises(IndexError):
    Windows(corpus, Packing(4))[1]
