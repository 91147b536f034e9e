"""Collapse: places to look at, rounding, and numbers of single runs."""

import dataclasses

import jax.numpy as jnp
import numpy as np
import pytest

import sinkjax
from sinkjax.experiments.harness.protocol import Verdict, judge
from sinkjax.experiments.harness.stats import mean_of
from sinkjax.experiments.paper.collapse import EXPERIMENT
from sinkjax.experiments.paper.collapse import experiment as module
from sinkjax.experiments.paper.collapse.experiment import (
  Config,
  Digits,
  indistinct,
  measure,
  repeated,
)
from sinkjax.metrics.collapse import collapse_measures

pytestmark = pytest.mark.thorough


class Marks:
  """Words, digits and commas, one token each."""

  def __init__(self, words):
    self.words, self.bos_id = words, None
    self.marks = {mark: 40 + i for i, mark in enumerate("0123456789,")}

  def encode(self, text):
    return self.words.encode(text)

  def token_to_id(self, mark):
    return self.marks.get(mark)


@pytest.fixture(scope="module")
def marked(subject):
  return subject._replace(tokenizer=Marks(subject.tokenizer))


@pytest.fixture(scope="module")
def config(text):
  return Config(
    texts=text,
    tokens=14,
    lengths=(5, 14),
    from_layer=1,
    prompt="the old cat",
    repeats=11,
  )


@pytest.fixture(scope="module")
def result(marked, config):
  return measure(marked, config).as_stored(config, "tiny")


def test_repeated_digits_and_where_to_look(marked, config):
  ids, places, counts = repeated(marked, config, Digits.PLAIN)
  assert ids.shape == (10, 3 + 11)
  assert np.all(ids[4, 3:] == 44)
  assert places.tolist() == list(range(4, 14))
  assert counts.tolist() == list(range(2, 12))
  ids, places, counts = repeated(marked, config, Digits.COMMAS)
  shown = "".join("," if i == 50 else "7" for i in ids[7, 3:])
  assert shown == "777,777,777,77"
  assert np.all(ids[7, places] == 47) and np.all(ids[7, places - 1] == 47)
  assert counts.tolist() == [2, 3, 5, 6, 8, 9, 11]


def test_indistinct_is_equality_after_rounding():
  x = np.ones((1, 4, 2), np.float32)
  x[0, 2, 1] = 1 + 2.0**-10  # float16 can tell it, bfloat16 cannot
  x[0, 3] = x[0, 2]
  places = np.array([1, 2, 3])
  assert indistinct(x, places, "float16").tolist() == [[True, False, True]]
  assert indistinct(x, places, "bfloat16").tolist() == [[True, True, True]]
  same = np.array([[True, False, True, True], [False] * 4, [True] * 4])
  assert module._merged_from(same, np.array([2, 3, 4, 5])) == [4, None, 2]


@pytest.mark.slow
def test_gaps_are_of_a_sequence_and_the_same_once_more(marked, config, result):
  """Two runs of different length, as the definition has it."""
  edit = {"scores": sinkjax.knockout(0, from_layer=1)}
  f = sinkjax.forward(marked.cfg)
  watch = {"x": ("final", lambda x: x)}
  ids = repeated(marked, config, Digits.PLAIN)[0][:1]
  for name, fn in (("gap", f), ("gap_hidden", sinkjax.intervene(f, edit))):
    h = sinkjax.capture(fn, watch)
    for n in (2, 11):
      short, long = (
        np.asarray(h(marked.params, ids[:, : 3 + k]).trace["x"])[0, -1]
        for k in (n - 1, n)
      )
      want = np.abs(long - short).max()
      got = result.arrays[name][0, n - 2]
      assert got == pytest.approx(want, rel=1e-3)


@pytest.mark.slow
def test_measures_leave_out_the_first_token(result, marked, config):
  x = np.random.default_rng(0).normal(size=(2, 6, 8))
  other = x.copy()
  other[:, 0] *= 1e6
  got, want = (collapse_measures(jnp.asarray(v)) for v in (x, other))
  np.testing.assert_array_equal(got, want)
  row = x[0, 1:]
  unit = row / np.linalg.norm(row, axis=1, keepdims=True)
  cosines = (unit @ unit.T)[~np.eye(5, dtype=bool)]
  assert float(got[0, 0]) == pytest.approx(cosines.mean(), rel=1e-5)
  gaps = np.linalg.norm(np.diff(row, axis=0), axis=1)
  norms = np.linalg.norm(row, axis=1)
  relative = gaps / np.maximum(norms[1:], norms[:-1])
  assert float(got[0, 3]) == pytest.approx(relative.min(), rel=1e-5)
  short = result.arrays["by_length"][0, 1]
  np.testing.assert_allclose(short, result.arrays["by_layer"][0, -1], rtol=1e-5)


def test_claims_and_page(result):
  claims = {claim.id: claim for claim in EXPERIMENT.claims(result)}
  assert len(claims) == 5
  mean = result.numbers["shrinks"]
  shown = f"change {np.exp(mean['value']):.2f} ("
  assert shown in claims["repetition_changes_less"].ours
  # Of ten repetitions the last tenth is one.
  late = {k: np.log(result.arrays[k][:, -1]) for k in ("gap", "gap_hidden")}
  hidden = claims["digits_collapse_without_sink"].effect
  want = (late["gap"] - late["gap_hidden"]).mean()
  assert hidden.mean.value == pytest.approx(want, rel=1e-4)
  assert (hidden.n, hidden.per) == (10, "digit")
  alike = claims["tokens_alike_without_sink"].effect
  last = result.arrays["by_layer"][:, -1, :, 0].mean(axis=1)
  assert alike.mean.value == pytest.approx(last[1] - last[0], abs=1e-5)
  drawn = EXPERIMENT.draw(result)
  assert set(drawn) == {"layers.png", "lengths.png", "digits.png"}
  table = EXPERIMENT.sections(result, drawn)[-1].table
  assert len(table.rows) == 2 * 2 * 3


@pytest.mark.parametrize(
  ("log", "verdict"),
  [
    (0.5, Verdict.SUPPORTED),
    (0.0, Verdict.NO_EFFECT),
    (-0.5, Verdict.CONTRADICTED),
  ],
)
def test_verdicts_on_changes(result, log, verdict):
  noise = 0.02 * np.random.default_rng(0).normal(size=10)
  # The margin of a cosine is a fifth of that of a logarithm of a ratio.
  names = ("mean cosine", "effective rank")
  numbers = result.numbers | {
    **{name: mean_of(log + noise) for name in ("shrinks", "comma", "hidden")},
    "change_without_sink": {x: mean_of((log + noise) / 5) for x in names},
  }
  planted = dataclasses.replace(result, numbers=numbers).as_stored(
    result.config, "tiny"
  )
  claims = judge(EXPERIMENT.claims(planted))
  of_changes = [c for c in claims if c.id != "digits_merge_in_bfloat16"]
  assert {claim.verdict for claim in of_changes} == {verdict}


@pytest.mark.parametrize(
  ("merged", "verdict"),
  [
    ([50] * 10, Verdict.SUPPORTED),
    ([None] * 10, Verdict.CONTRADICTED),
    ([150] * 10, Verdict.CONTRADICTED),  # not after about 50
    ([50] * 5 + [None] * 5, Verdict.INCONCLUSIVE),
    ([50] + [None] * 9, Verdict.INCONCLUSIVE),  # after Holm's correction
  ],
)
def test_verdicts_on_rounding(result, merged, verdict):
  name = "with the sink, digits, bfloat16"
  stored = result.numbers["indistinct_from"]
  numbers = result.numbers | {"indistinct_from": stored | {name: merged}}
  claims = judge(
    EXPERIMENT.claims(dataclasses.replace(result, numbers=numbers))
  )
  (one,) = (c for c in claims if c.id == "digits_merge_in_bfloat16")
  assert one.verdict == verdict


def test_refusals(subject, marked, text):
  with pytest.raises(ValueError, match="lengths must be above 2"):
    measure(marked, Config(texts=text, tokens=14, lengths=(15,)))
  with pytest.raises(ValueError, match="repeats must exceed 3"):
    measure(marked, Config(texts=text, tokens=14, lengths=(5,), repeats=3))

  mine = {"texts": text, "tokens": 14, "lengths": (5,)}
  other = Marks(subject.tokenizer)
  del other.marks["4"]
  with pytest.raises(ValueError, match="'4' is not a token of tiny"):
    measure(subject._replace(tokenizer=other), Config(**mine, prompt="the"))
  short = marked._replace(cfg=marked.cfg.replace(max_len=16))
  ids, _, _ = repeated(
    short, Config(**mine, prompt="the old cat"), Digits.COMMAS
  )
  assert ids.shape[1] <= 16
  with pytest.raises(ValueError, match="no room for more than 3 digits"):
    repeated(short, Config(**mine, prompt="the " * 12), Digits.COMMAS)
