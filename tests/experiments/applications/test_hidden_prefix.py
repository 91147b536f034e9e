"""Verdicts on values made by hand, and a model whose first token is massive."""

import dataclasses

import jax
import numpy as np
import pytest

import sinkjax
from sinkjax.experiments.applications.hidden_prefix import EXPERIMENT
from sinkjax.experiments.applications.hidden_prefix import experiment as module
from sinkjax.experiments.applications.hidden_prefix.experiment import (
  Condition,
  Config,
  candidates_of,
  measure,
)
from sinkjax.experiments.harness.api import Result
from sinkjax.experiments.harness.protocol import Verdict, judge
from sinkjax.experiments.shared.prompt_corpus import Text

SMALL = Config(tokens=12, search=4, candidates=5, most=2, bits=4)


def verdicts(**change):
  """Of 12 texts: numbers of all conditions, or of one by its name."""
  rng, arrays = np.random.default_rng(0), {}
  for what in ("range", "own_rate", "first_rate", "loss", "rounded"):
    for condition in Condition:
      key = f"{what}_{condition.name}".lower()
      arrays[f"{what}, {condition}"] = change.get(
        key, 1.0
      ) + 0.001 * rng.normal(size=12)
  numbers = {"templates": list(range(12)), "prefix": {Condition.FOUND: [5]}}
  made = Result(numbers, {}, arrays).as_stored(Config())
  found = judge(EXPERIMENT.claims(made))
  assert len(found) == 5
  return {claim.id: claim.verdict for claim in found}


def test_verdicts():
  yes, no, same = (Verdict.SUPPORTED, Verdict.CONTRADICTED, Verdict.NO_EFFECT)
  found = verdicts(
    range_none=2.0, own_rate_none=1.5, rounded_found=0.1, rounded_random=0.4
  )
  assert set(found.values()) == {yes}
  plain = verdicts()
  assert plain.pop("prefix_keeps_loss") == yes
  assert set(plain.values()) == {same}
  worse = verdicts(rounded_found=1.2, loss_found=1.1, range_found=1.5)
  for name in ("prefix_lowers_cost_of_bits", "search_beats_random"):
    assert worse[name] == no
  assert worse["prefix_keeps_loss"] == worse["prefix_takes_ranges"] == no


@pytest.mark.thorough
def test_a_prefix_takes_over_a_massive_first_token(reader, monkeypatch):
  """Dimension 3 of whatever stands first gets 3000 in layer 0."""
  # Ids of its own, whatever other tests have read.
  reader = reader._replace(tokenizer=type(reader.tokenizer)())
  plain = module.forward

  def forward(cfg):
    def grow(value, layer):
      return value.at[:, 0, 3].add(np.float32(3000.0) * (layer == 0))

    return sinkjax.intervene(plain(cfg), {"mlp_out": grow})

  monkeypatch.setattr(module, "forward", forward)
  rng = np.random.default_rng(0)
  words = "the old man saw a red bird and went to his garden by night"
  words = words.split()  # noqa: SIM905
  texts = [Text("a", f"{i}", " ".join(rng.choice(words, 30))) for i in range(9)]
  seen = []
  done = measure(
    reader, SMALL, texts=texts, progress=lambda *at: seen.append(at)
  )
  assert seen[-1][0] <= seen[-1][1]
  found = done.as_stored(SMALL, "tiny")
  value = {key: x.mean() for key, x in found.arrays.items()}
  none, one = Condition.NONE, Condition.FOUND
  # The text's own tokens no longer have the dimension's size.
  assert value[f"range, {none}"] - value[f"range, {one}"] > np.log(1.1)
  kept = value[f"rounded, {Condition.KEPT}"]
  # A random model is wrong with confidence: what blurs it lowers its loss.
  assert abs(value[f"rounded, {none}"]) > 2 * abs(kept)
  assert abs(value[f"rounded, {none}"]) > 2 * abs(value[f"rounded, {one}"])
  # The loss of the text behind the prefix, by a forward pass of its own.
  prefix = found.numbers["prefix"][one]
  random = found.numbers["prefix"][Condition.RANDOM]
  assert len(random) == len(prefix) and not set(random) & set(prefix)
  encoded = [reader.encode([text.text])[0][:12] for text in texts]
  rows = np.array([[*prefix, *ids] for ids in encoded])
  logits = jax.jit(forward(reader.cfg))(reader.params, rows).logits
  logits = np.asarray(logits, np.float64)[:, len(prefix) : -1]
  logs = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
  targets = rows[:, len(prefix) + 1 :, None]
  want = -np.take_along_axis(logs, targets, -1)[..., 0].mean(-1)
  for loss in found.arrays[f"loss, {one}"]:
    assert np.abs(want - loss).min() < 1e-4 * loss
  drawn = EXPERIMENT.draw(found)
  assert set(drawn) == {"prefix.png"}
  assert len(EXPERIMENT.sections(found, drawn)) == 1
  assert len(EXPERIMENT.claims(found)) == 5


def test_candidates_and_refusals(reader):
  found = candidates_of(reader, SMALL)
  assert len(found) == len(set(found)) == 5
  assert found[0] == reader.tokenizer.bos_id
  assert max(found) < reader.cfg.vocab_size
  few = dataclasses.replace(SMALL, candidates=3)
  with pytest.raises(ValueError, match="candidates must be at least 4"):
    measure(reader, few, texts=[])
  with pytest.raises(ValueError, match="at least 4 are needed"):
    measure(reader, SMALL, texts=[Text("a", "a", "the old man " * 9)])
