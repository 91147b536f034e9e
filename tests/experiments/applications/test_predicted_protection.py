"""Verdicts on losses made by hand, tokens that are kept, a run, its page."""

import jax
import numpy as np
import pytest

import sinkjax
from sinkjax.experiments.applications.predicted_protection import EXPERIMENT
from sinkjax.experiments.applications.predicted_protection import (
  experiment as module,
)
from sinkjax.experiments.applications.predicted_protection.experiment import (
  Config,
  Policy,
  first_of,
  measure,
)
from sinkjax.experiments.harness.api import Result
from sinkjax.experiments.harness.protocol import Verdict, judge
from sinkjax.experiments.shared.prompt_corpus import Text
from sinkjax.inference.quantize import quantize_kv
from sinkjax.transforms.find_sinks import FoundSinks, Sink

YES, NO = Verdict.SUPPORTED, Verdict.CONTRADICTED


def verdicts(keep=(1, 4), one=0.0, **more):
  """Of 12 texts, by nats that rounding adds with each policy; 0.2 else."""
  rng = np.random.default_rng(0)

  def noise(*shape):
    return 3 + 0.001 * rng.normal(size=shape)

  arrays = {"whole": noise(12), "nothing": noise(12) + 0.5}
  for policy in Policy:
    loss = noise(len(keep), 12) + more.get(policy.name.lower(), 0.2)
    loss[0] += one
    arrays[f"loss, {policy}"] = loss
  hits = {str(policy): [0.5] * len(keep) for policy in Policy}
  numbers = {"templates": list(range(12)), "hits": hits}
  made = Result(numbers, {}, arrays).as_stored(Config(keep=keep))
  return {claim.id: claim.verdict for claim in judge(EXPERIMENT.claims(made))}


def test_verdicts():
  good = verdicts(first=0.2, predicted=0.1, found=0.1, random=0.5, attended=0.2)
  assert len(good) == 6
  assert set(good.values()) == {YES}
  bad = verdicts(
    one=0.3, first=0.2, predicted=0.4, found=0.4, random=0.3, attended=0.3
  )
  assert bad == {
    "first_lowers_loss": YES,
    "predicted_over_first": NO,
    "found_over_first": NO,
    "predicted_over_random": NO,
    "found_over_attended": NO,
    "one_is_enough": NO,
  }
  # What any token does as well says nothing about the first ones.
  assert verdicts()["first_lowers_loss"] == Verdict.INCONCLUSIVE
  assert verdicts(keep=(4,))["one_is_enough"] == Verdict.NOT_TESTABLE


def test_order_is_filled_up_with_the_first_tokens():
  score = np.array([[0.0, 0.0, 5.0, 0.0, 9.0]])
  order = np.argsort(-score, axis=1, kind="stable")
  assert np.flatnonzero(first_of(order, 1)).tolist() == [4]
  assert np.flatnonzero(first_of(order, 3)).tolist() == [0, 2, 4]


@pytest.mark.thorough
def test_run_and_page(reader, monkeypatch):
  """A massive word in the middle, and sinks that are found elsewhere."""
  reader = reader._replace(tokenizer=type(reader.tokenizer)())
  rng = np.random.default_rng(0)
  words = "the old man saw a red bird and went to his garden by night"
  words = words.split()  # noqa: SIM905
  texts = [
    Text("a", f"{i}", " ".join([*rng.choice(words, 6 + i), "big"] + words))
    for i in range(5)
  ]
  rows = np.array([reader.encode([one.text])[0][:16] for one in texts])
  params = dict(reader.params)
  big, first = reader.tokenizer.ids[" big"], rows[:, 0]
  params["embed"] = params["embed"].at[first, 3].set(900.0).at[big, 3].set(1e3)

  def find(fn, params, tokens):
    found = [
      Sink(t, 9, 7, "lasting", 0, 1, 5, 0.9, 50.0, 0.9, 0.1)
      for t in range(len(tokens))
    ]
    return FoundSinks(found, None, None)

  monkeypatch.setattr(module, "find_sinks", find)
  kept, real = {}, module.first_of

  def spy(order, count):
    kept[len(kept)] = real(order, count)
    return kept[len(kept) - 1]

  monkeypatch.setattr(module, "first_of", spy)
  config = Config(tokens=16, keep=(1, 2), claim_keep=2, per="token", bits=3)
  seen = []
  done = measure(
    reader._replace(params=params),
    config,
    texts=texts,
    progress=lambda *at: seen.append(at),
  )
  assert seen[-1][0] == seen[-1][1]
  found = done.as_stored(config, "tiny")
  masks = dict(
    zip([(p, k) for p in Policy for k in (1, 2)], kept.values(), strict=True)
  )
  assert all((m.sum(axis=1) == k).all() for (_, k), m in masks.items())
  assert masks[Policy.FIRST, 2][:, :2].all()
  assert (masks[Policy.PREDICTED, 1] == (rows == big)).all()
  assert (np.argwhere(masks[Policy.FOUND, 1])[:, 1] == 9).all()
  assert masks[Policy.FOUND, 2][:, [0, 9]].all()
  assert found.numbers["sinks"] == 1 and found.numbers["hits"][
    "found sinks"
  ] == [1, 1]
  # Each text has the loss that it has alone, with its own tokens kept.
  f = sinkjax.forward(reader.cfg)

  @jax.jit
  def loss(row, keep):
    edited = sinkjax.intervene(f, quantize_kv(3.0, keep=keep, per="token"))
    logs = jax.nn.log_softmax(edited(params, row[None]).logits[0, :-1])
    return -logs[np.arange(15), row[1:]].mean()

  want = [
    float(loss(row, mask))
    for row, mask in zip(rows, masks[Policy.PREDICTED, 2], strict=True)
  ]
  got = found.arrays["loss, predicted"][1]
  np.testing.assert_allclose(got, want, rtol=1e-3)
  assert np.abs(found.arrays["nothing"] - found.arrays["whole"]).max() > 1e-3
  drawn = EXPERIMENT.draw(found)
  assert set(drawn) == {"policies.png"}
  assert len(EXPERIMENT.sections(found, drawn)) == 1
  assert len(EXPERIMENT.claims(found)) == 6


@pytest.mark.parametrize(
  ("config", "message"),
  [
    (Config(claim_keep=3), "claim_keep must be one of"),
    (Config(tokens=8), "keep must be at most tokens=8, got 16"),
    (Config(per="head"), "per must be one of"),
  ],
)
def test_what_has_no_meaning_is_refused(reader, config, message):
  with pytest.raises(ValueError, match=message):
    measure(reader, config)
