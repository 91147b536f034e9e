"""The experiment `attention_precision`: costs and verdicts."""

import dataclasses

import numpy as np
import pytest

from sinkjax.experiments.applications import attention_precision as precision
from sinkjax.experiments.applications.attention_precision import (
  EXPERIMENT,
  Config,
  Kept,
)
from sinkjax.experiments.harness.api import Result
from sinkjax.experiments.harness.protocol import Verdict, judge
from sinkjax.experiments.shared.prompt_corpus import Text
from sinkjax.inference.attention_precision import FORMATS

SMALL = Config(tokens=18, batch=4)


def made(loss=0.0, sink=1.0, control=1.0, noise=0.01):
  """A result of twelve texts with KL reduced by these factors."""
  rng = np.random.default_rng(0)
  arrays = {}
  for kind in FORMATS:
    for kept in Kept:
      factor = {Kept.SINK: sink, Kept.CONTROL: control}.get(kept, 1.0)
      spread = np.exp(noise * rng.normal(size=12))
      arrays[f"kl, {kind}, {kept}"] = 1e-3 * spread / factor
      arrays[f"loss, {kind}, {kept}"] = loss + noise * rng.normal(size=12) / 10
  numbers = {"texts": 12, "templates": list(range(12))}
  return Result(numbers, {}, arrays).as_stored(Config())


def verdicts(result):
  return {one.id: one.verdict for one in judge(precision.claims(result))}


@pytest.mark.parametrize(
  ("given", "name", "verdict"),
  [
    ({}, "same_loss_in_int8", Verdict.SUPPORTED),
    ({"loss": 0.3}, "same_loss_in_int8", Verdict.CONTRADICTED),
    ({"noise": 2.0}, "same_loss_in_int8", Verdict.INCONCLUSIVE),
    ({"sink": 3.0}, "sink_in_float32_helps_int8", Verdict.SUPPORTED),
    ({"sink": 0.3}, "sink_in_float32_helps_int8", Verdict.CONTRADICTED),
    ({}, "sink_in_float32_helps_int8", Verdict.NO_EFFECT),
    # What any early token does is no effect of the sink.
    (
      {"sink": 3.0, "control": 3.0},
      "sink_in_float32_helps_int8",
      Verdict.INCONCLUSIVE,
    ),
  ],
)
def test_verdicts(given, name, verdict):
  assert verdicts(made(**given))[name] == verdict


@pytest.mark.thorough
def test_run_and_page(reader, tmp_path):
  rng = np.random.default_rng(0)
  words = "the old man saw a red bird and went to his garden by night".split()  # noqa: SIM905
  texts = [Text("a", f"{i}", " ".join(rng.choice(words, 30))) for i in range(5)]
  seen = []
  found = EXPERIMENT.measure(
    reader, SMALL, texts=texts, progress=lambda *at: seen.append(at)
  )
  assert seen[-1][0] == seen[-1][1] == 3 * len(Kept) * 2
  # A coarser format costs more, and each of them something.
  kl = {k: found.arrays[f"kl, {k}, {Kept.NOTHING}"].mean() for k in FORMATS}
  assert 0 < kl["bfloat16"] < kl["int8"] < kl["float8_e4m3"]
  stored = found.as_stored(SMALL)
  figures = precision.draw(stored)
  (section,) = precision.sections(stored, figures)
  assert figures["formats.png"].startswith(b"\x89PNG")
  assert "10.5 % of the products" in section.body
  assert len(section.table.rows) == 15


def test_a_control_that_is_the_sink_is_refused(reader):
  with pytest.raises(ValueError, match="control must be in"):
    EXPERIMENT.measure(reader, dataclasses.replace(SMALL, control=0))
