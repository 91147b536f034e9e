"""Sink rates side by side: each is what the model alone would get."""

import dataclasses

import numpy as np
import pytest

import sinkjax
from sinkjax.experiments.harness.api import Subject
from sinkjax.experiments.harness.protocol import Verdict, judge
from sinkjax.experiments.paper.model_size import EXPERIMENT, Config, measure
from sinkjax.experiments.shared.sink_removal import texts_of
from sinkjax.experiments.shared.swap_texts import SWAP_TEXTS


@pytest.fixture(scope="module")
def english(glassllm_path):
  params, cfg, tokenizer = sinkjax.load("glassllm-en")
  return Subject("glassllm-en", params, cfg, tokenizer, [])


@pytest.fixture(scope="module")
def result(english):
  return measure(english, Config(eps=(0.1, 0.2)))


@pytest.mark.thorough
def test_each_model_is_measured_for_itself(result):
  names = [row["model"] for row in result.numbers["models"]]
  assert names == ["glassllm-en", "glassllm-pt"]
  params, cfg, tokenizer = sinkjax.load("glassllm-pt")
  prefix = [tokenizer.bos_id] if tokenizer.add_bos else []
  subject = Subject("glassllm-pt", params, cfg, tokenizer, prefix)
  ids = texts_of(subject, SWAP_TEXTS, 46)
  watch = {"alpha": ("pattern", sinkjax.sink_score)}
  run_it = sinkjax.capture(sinkjax.forward(cfg), watch)
  alpha = np.asarray(run_it(params, ids).trace["alpha"])
  row = result.numbers["models"][1]
  for eps in (0.1, 0.2):
    want = (alpha > eps).mean()
    assert row["rates"][eps].value == pytest.approx(want)
  np.testing.assert_allclose(
    result.arrays["alpha_1"], alpha.mean(axis=1), rtol=1e-4
  )


def test_no_comparison_is_claimed(result):
  stored = result.as_stored(Config(eps=(0.1, 0.2)))
  (claim,) = judge(EXPERIMENT.claims(stored))
  assert claim.verdict == Verdict.NOT_TESTABLE
  assert "glassllm-en" in claim.ours and "glassllm-pt" in claim.ours


def test_the_page(result):
  stored = result.as_stored(Config(eps=(0.1, 0.2)))
  drawn = EXPERIMENT.draw(stored)
  (section,) = EXPERIMENT.sections(stored, drawn)
  assert [row[0] for row in section.table.rows] == [
    "glassllm-en",
    "glassllm-pt",
  ]


@pytest.mark.slow
def test_layer_by_layer_is_the_same(english, tmp_path):
  from sinkjax.weights import huggingface

  path = tmp_path / "model"
  huggingface.save(path, *sinkjax.load("glassllm-pt"))
  config = Config(models=(str(path),), eps=(0.2,))
  found = [
    measure(english, dataclasses.replace(config, offload=offload))
    for offload in (False, True)
  ]
  a, b = (x.numbers["models"][1]["rates"][0.2] for x in found)
  assert a == pytest.approx(b, abs=1e-6)
  np.testing.assert_allclose(
    *(x.arrays["alpha_1"] for x in found), rtol=1e-4, atol=1e-6
  )


def test_a_missing_model_is_named(english):
  with pytest.raises(ValueError, match="no-such-model"):
    measure(english, Config(models=("no-such-model",)))
