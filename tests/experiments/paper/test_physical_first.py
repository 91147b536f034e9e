"""Indices and BOS moved by hand, verdicts, a run, and its page."""

import jax
import numpy as np
import pytest

import sinkjax
from sinkjax.experiments.harness.api import Result
from sinkjax.experiments.harness.protocol import Verdict, judge
from sinkjax.experiments.paper.physical_first import EXPERIMENT
from sinkjax.experiments.paper.physical_first.experiment import (
  Case,
  Config,
  inputs_of,
  measure,
)
from sinkjax.experiments.shared.key_rates import LAST, rate_at, rate_elsewhere
from sinkjax.experiments.shared.prompt_corpus import Text

YES, NO, SAME = Verdict.SUPPORTED, Verdict.CONTRADICTED, Verdict.NO_EFFECT
IDS = np.arange(2, 2 + 3 * 20).reshape(3, 20)
CONFIG = Config(tokens=20, at=5, shift=7)


def test_what_is_moved(reader):
  found = inputs_of(reader, CONFIG, IDS)
  assert set(found) == set(Case)
  plain, swapped = found[Case.PLAIN], found[Case.SWAPPED]
  assert (plain.index == np.arange(20)).all() and (plain.zero == 0).all()
  assert (found[Case.SHIFTED].index == plain.index + 7).all()
  assert swapped.index[0].tolist() == [5, 1, 2, 3, 4, 0, *range(6, 20)]
  assert (swapped.zero == 5).all() and (swapped.ids == IDS).all()
  permuted = found[Case.PERMUTED]
  assert (np.sort(permuted.index) == np.arange(20)).all()
  assert (rate_at(permuted.index, permuted.zero) == 0).all()
  assert ((permuted.zero > 0) & (permuted.zero < 20 - LAST)).all()
  assert len({tuple(x) for x in permuted.index.tolist()}) == 3
  # BOS is one token more, and the last one falls off.
  first, moved = (
    found[x].ids[0].tolist() for x in (Case.BOS_FIRST, Case.BOS_MOVED)
  )
  words = IDS[0].tolist()
  assert first == [1, *words[:19]]
  assert moved == [*words[:5], 1, *words[5:19]]
  # A BOS that is there already moves.
  with_bos = reader._replace(prefix=[1])
  ids = IDS.copy()
  ids[:, 0] = 1
  again = inputs_of(with_bos, CONFIG, ids)
  assert (again[Case.BOS_FIRST].ids == ids).all()
  assert (again[Case.BOS_MOVED].ids == 1).sum() == 3
  assert again[Case.BOS_MOVED].ids[0].tolist() == [*words[1:6], 1, *words[6:]]


def test_models_without_positions_or_bos(reader):
  class Plain:
    bos_id = None

  cfg = reader.cfg.replace(positions="none")
  without = reader._replace(tokenizer=Plain(), cfg=cfg)
  assert list(inputs_of(without, CONFIG, IDS)) == [Case.PLAIN]


def verdicts(cases=tuple(Case), **rates):
  """Of 12 texts, by rates (first, moved) of cases, 0.8 and 0 else."""
  rng, arrays = np.random.default_rng(0), {}
  for case in cases:
    first, moved = rates.get(case.name.lower(), (0.8, 0.0))
    found = np.abs(0.001 * rng.normal(size=(12, 20)))
    found[:, 0] += first
    found[:, 5] += moved
    arrays |= {f"rates, {case}": found, f"zero, {case}": np.full(12, 5)}
  numbers = {"templates": list(range(12)), "cases": [str(x) for x in cases]}
  made = Result(numbers, {}, arrays).as_stored(CONFIG)
  return {claim.id: claim.verdict for claim in judge(EXPERIMENT.claims(made))}


def test_verdicts():
  assert set(verdicts().values()) == {YES}
  gone = {"swapped": (0.0, 0.8), "permuted": (0.0, 0.8), "bos_moved": (0, 0.8)}
  assert verdicts(shifted=(0.2, 0), **gone) == {
    "sink_needs_no_index_0": NO,
    "sink_is_first_not_index_0": NO,
    "sink_is_first_in_any_order": NO,
    "sink_is_first_not_bos": NO,
    "bos_in_the_middle_is_no_sink": NO,
  }
  # No sink at all is nothing that stays.
  none = verdicts(plain=(0, 0), shifted=(0, 0), swapped=(0, 0))
  assert none["sink_needs_no_index_0"] == Verdict.INCONCLUSIVE
  assert none["sink_is_first_not_index_0"] == SAME
  alone = verdicts(cases=(Case.PLAIN,))
  assert set(alone.values()) == {Verdict.NOT_TESTABLE}


def test_rate_elsewhere_leaves_out_what_is_told():
  rates = np.ones((2, 20))
  rates[:, 0], rates[:, -LAST:] = 9, 9
  rates[0, 3] = rates[1, 4] = 5
  assert rate_elsewhere(rates, np.array([3, 4])).tolist() == [1, 1]
  assert (rate_elsewhere(rates) > 1).all()


@pytest.mark.thorough
def test_run_and_page(reader):
  reader = reader._replace(tokenizer=type(reader.tokenizer)())
  rng = np.random.default_rng(0)
  words = "the old man saw a red bird and went to his garden by night"
  words = words.split()  # noqa: SIM905
  texts = [Text("a", f"{i}", " ".join(rng.choice(words, 30))) for i in range(5)]
  config = Config(tokens=20, at=5, shift=7, eps=0.15)
  seen = []
  done = measure(
    reader, config, texts=texts, progress=lambda *at: seen.append(at)
  )
  assert seen[-1][0] == seen[-1][1]
  found = done.as_stored(config, "tiny")
  # Rotary scores depend on distances alone.
  np.testing.assert_allclose(
    found.arrays[f"loss, {Case.PLAIN}"],
    found.arrays[f"loss, {Case.SHIFTED}"],
    rtol=1e-4,
  )
  # Case by case, the scores of the pattern itself.
  ids = np.array([reader.encode([one.text])[0][:20] for one in texts])
  watched = sinkjax.capture(
    sinkjax.forward(reader.cfg), {"pattern": ("pattern", lambda x: x)}
  )
  f = jax.jit(
    lambda params, ids, index: watched(params, ids, positions=index).trace[
      "pattern"
    ]
  )
  for case, given in inputs_of(reader, config, ids).items():
    pattern = np.asarray(f(reader.params, given.ids, given.index), np.float64)
    score = pattern.sum(axis=-2) / (20 - np.arange(20))
    want = (score > 0.15).mean(axis=(0, 2))
    got = found.arrays[f"rates, {case}"]
    # A score that rounding takes over the threshold is one head of 12.
    assert np.abs(got - want).max() < 0.2 and np.abs(got - want).mean() < 0.01
  differs = [
    np.abs(found.arrays[f"loss, {x}"] - found.arrays[f"loss, {Case.PLAIN}"])
    for x in (Case.SWAPPED, Case.PERMUTED, Case.BOS_FIRST)
  ]
  assert (np.max(differs, axis=1) > 1e-3).all()
  drawn = EXPERIMENT.draw(found)
  assert set(drawn) == {"cases.png", "keys.png"}
  assert len(EXPERIMENT.sections(found, drawn)) == 2
  assert len(EXPERIMENT.claims(found)) == 5


@pytest.mark.parametrize(
  ("config", "message"),
  [
    (Config(tokens=20, at=12), "at must be in"),
    (Config(tokens=20, at=5, shift=510), "at most the model's context of 512"),
  ],
)
def test_what_cannot_be_moved_is_refused(reader, config, message):
  with pytest.raises(ValueError, match=message):
    measure(reader, config)
