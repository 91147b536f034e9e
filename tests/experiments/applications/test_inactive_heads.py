"""Verdicts on values made by hand, and a run against the ablated model."""

import dataclasses

import jax
import numpy as np
import pytest

import sinkjax
from sinkjax.experiments.applications.inactive_heads import EXPERIMENT
from sinkjax.experiments.applications.inactive_heads.claims import BEST
from sinkjax.experiments.applications.inactive_heads.experiment import (
  OUTPUTS,
  RANDOM,
  WHOLE,
  Config,
  measure,
)
from sinkjax.experiments.harness.api import Result
from sinkjax.experiments.harness.protocol import Verdict, judge
from sinkjax.experiments.shared.benchmark_tasks import grade
from sinkjax.experiments.shared.prompt_corpus import Text
from sinkjax.inference.inactive_heads import SCORES
from sinkjax.inference.prune import lowest

SMALL = Config(tokens=20, shares=(0.12, 0.5), seeds=2)


def verdicts(
  right=0.0,
  own=0.002,
  mean=0.001,
  first=0.1,
  random=0.2,
  missed=0.1,
  answered=0,
):
  """Of 12 texts, at both shares alike."""
  rng, arrays = np.random.default_rng(0), {}
  for name in (*SCORES, RANDOM):
    loss = {BEST: own, "first_weight": first, RANDOM: random}.get(name, 0.0)
    for output in OUTPUTS:
      value = mean if (name, output) == (BEST, "mean") else loss
      noise = 1e-4 * rng.normal(size=(2, 12))
      arrays[f"loss, {name}, {output}"] = value + noise
      arrays[f"right, {name}, {output}"] = right + noise
    arrays[f"missed, {name}"] = missed + 1e-3 * rng.normal(size=12)
  some = {"value": 0.1, "low": 0.1, "high": 0.1, "passes": True}
  names = [f"{name}, {o}" for name in (*SCORES, RANDOM) for o in OUTPUTS]
  numbers = {
    "share_at_one_percent": dict.fromkeys(names, some),
    "templates": list(range(12)),
    "rank_templates": list(range(12)),
    "items": {"a": 200},
  }
  # Of 200 items the whole model answers half; `answered` more are wrong.
  right = np.arange(200) % 2 == 0
  arrays |= {f"answered, {x}": right for x in (WHOLE, "first_weight", RANDOM)}
  arrays |= {"chance": 0.25 * np.ones(200), f"answered, {BEST}": right.copy()}
  arrays[f"answered, {BEST}"][: 2 * answered : 2] = False
  made = Result(numbers, {}, arrays).as_stored(SMALL)
  found = judge(EXPERIMENT.claims(made))
  assert len(found) == 7
  return {claim.id: claim.verdict for claim in found}


def test_verdicts():
  yes, no, same = (Verdict.SUPPORTED, Verdict.CONTRADICTED, Verdict.NO_EFFECT)
  found = verdicts(mean=-0.1)
  assert set(found.values()) == {yes}
  assert verdicts(right=-0.02)["twelve_percent_inactive"] == no
  assert verdicts(answered=10)["twelve_percent_of_choice"] == no
  unsure = verdicts(answered=2)
  assert unsure["twelve_percent_of_choice"] == Verdict.INCONCLUSIVE
  worse = verdicts(own=0.2, first=0.1, random=0.2)
  assert worse["twelve_percent_of_loss"] == no
  assert worse["norm_over_first_weight"] == no
  assert worse["inactive_over_random"] == same
  assert worse["mean_costs_less"] == yes
  assert verdicts()["mean_costs_less"] == same
  assert verdicts(missed=0.03)["first_weight_misses"] == no


@pytest.mark.thorough
def test_run_and_page(reader, items):
  # Ids of its own, whatever other tests have read.
  reader = reader._replace(tokenizer=type(reader.tokenizer)())
  rng = np.random.default_rng(0)
  words = "the old man saw a red bird and went to his garden by night"
  words = words.split()  # noqa: SIM905
  texts = [Text("a", f"{i}", " ".join(rng.choice(words, 30))) for i in range(8)]
  seen = []
  asked = items()
  done = measure(
    reader,
    SMALL,
    texts=texts,
    items={"a": asked},
    progress=lambda *at: seen.append(at),
  )
  assert seen[-1][0] == seen[-1][1]
  found = done.as_stored(SMALL, "tiny")
  # Heads of the least output norm, removed from the model by hand.
  order = found.arrays["score, output_norm"]
  gone = lowest(order, round(0.5 * order.size))
  f = sinkjax.forward(reader.cfg)
  g = sinkjax.intervene(f, {"z": sinkjax.ablate_heads(gone)})
  ids = np.array([reader.encode([one.text])[0][:20] for one in texts])

  def loss(f):
    logits = np.asarray(jax.jit(f)(reader.params, ids).logits, np.float64)[
      :, :-1
    ]
    logs = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    return -np.take_along_axis(logs, ids[:, 1:, None], -1)[..., 0].mean(-1)

  plain = loss(f)
  at = [np.abs(plain - one).argmin() for one in found.arrays["loss"]]
  assert len(set(at)) == 4  # half of the texts rank
  want = (loss(g) - plain)[at] / plain[at].mean()
  have = found.arrays["loss, output_norm, zero"][-1]
  np.testing.assert_allclose(have, want, atol=5e-5)
  assert np.abs(want).max() > 1e-3
  order = found.arrays["score, output_norm_by_layer"]
  gone = lowest(order, round(SMALL.share * order.size))
  edits = {"z": sinkjax.ablate_heads(gone)}
  np.testing.assert_array_equal(
    found.arrays[f"answered, {BEST}"], grade(reader, asked, [], edits)
  )
  np.testing.assert_array_equal(
    found.arrays[f"answered, {WHOLE}"], grade(reader, asked, [])
  )
  rows = {row["score"]: row for row in found.records("scores.csv")}
  assert set(rows) == set(SCORES)
  assert rows["first_weight"]["missed_by_first_weight"] == 0
  drawn = EXPERIMENT.draw(found)
  assert set(drawn) == {"removal.png", "overlap.png"}
  assert len(EXPERIMENT.sections(found, drawn)) == 3
  assert len(EXPERIMENT.claims(found)) == 7
  none = {k: x for k, x in found.arrays.items() if k != "chance"}
  claims = EXPERIMENT.claims(dataclasses.replace(found, arrays=none))
  assert claims[1].untested == "no items were asked"
  numbers = {k: x for k, x in found.numbers.items() if k != "items"}
  earlier = dataclasses.replace(found, numbers=numbers, arrays=none)
  assert len(EXPERIMENT.claims(earlier)) == 6


def test_refusals(reader):
  texts = [Text("a", "a", "the old man saw a red bird " * 8)]
  with pytest.raises(ValueError, match="at least 8 are needed"):
    measure(reader, Config(items=0), texts=texts)
  with pytest.raises(ValueError, match="between 0 and 1, increasing"):
    measure(reader, Config(shares=(0.5, 0.12)), texts=texts)
  with pytest.raises(ValueError, match="share must be one of shares"):
    measure(reader, Config(share=0.3), texts=texts)
