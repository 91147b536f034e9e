"""Tests of sinkjax.experiments.training.packing and harness.train_runs."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from variants import scaled

import sinkjax
from sinkjax.data.packing import Packing
from sinkjax.data.prepare import prepare
from sinkjax.experiments.harness.protocol import Verdict, judge
from sinkjax.experiments.harness.sweep import Trained
from sinkjax.experiments.harness.train_runs import ROOM, measure, text_jobs
from sinkjax.experiments.training.packing import (
  EXPERIMENT,
  PAPER,
  WAYS,
  Config,
  variants,
)
from sinkjax.models.transformer import forward, init_params
from sinkjax.train.probe import uniform_mass


@pytest.fixture(scope="module")
def small(corpus):
  """A sweep that takes seconds, on texts of the package's own."""
  return Config(
    ways=("causal-pinned", "separate-none"),
    seeds=(0, 1),
    corpus=corpus,
    layers=2,
    d_model=32,
    vocab_size=300,
    length=32,
    batch=4,
    steps=6,
    warmup=2,
    every=3,
    texts=16,
  )


@pytest.fixture(scope="module")
def trained(small):
  return variants(dataclasses.replace(small, ways=("causal-pinned",)))[
    "causal-pinned"
  ]


@pytest.fixture(scope="module")
def data(trained):
  return prepare(trained.corpus, vocab_size=300, held_out=0.3)


def test_nine_rows_of_five_ways(small):
  runs = variants(dataclasses.replace(small, ways=tuple(WAYS)))
  assert len(PAPER) == 9 and {way for way, _ in PAPER} == set(WAYS)
  rows = [
    (way, form)
    for way, run in runs.items()
    for form in (("bos", "text") if run.packing.bos != "none" else ("text",))
  ]
  assert sorted(rows) == sorted(PAPER)
  assert (
    len({(run.packing.mask, run.packing.bos) for run in runs.values()}) == 5
  )
  with pytest.raises(ValueError, match="no 'loose'"):
    variants(dataclasses.replace(small, ways=("loose",)))


@pytest.mark.slow
def test_with_bos_and_without_are_of_the_same_targets(trained, data):
  """Cross-entropy by hand, token by token of each text."""
  cfg = trained.model.replace(bos_id=data.tokenizer.bos_id)
  params = init_params(cfg, jax.random.key(3))
  params = scaled(params, 4)
  found = measure(params, cfg, data, trained)
  held, length = data.held_out, trained.packing.length
  texts = [
    held.tokens[start : start + length - ROOM]
    for start, count in zip(held.starts, held.lengths, strict=True)
    if count >= length
  ][: trained.probe_texts]
  assert len(texts) == found["bos"]["texts"] == found["text"]["texts"] > 1
  for form, first in (("bos", [cfg.bos_id]), ("text", [])):
    nats = []
    for text in texts:
      row = jnp.asarray([*first, *text], jnp.int32)
      logits = forward(cfg)(params, row[None]).logits[0]
      logp = np.asarray(jax.nn.log_softmax(logits.astype(jnp.float32)))
      at = len(first)
      nats += [-logp[at + i - 1, text[i]] for i in range(1, len(text))]
    np.testing.assert_allclose(found[form]["loss"], np.mean(nats), rtol=1e-5)
  assert found["bos"]["loss"] != found["text"]["loss"]


@pytest.mark.slow
@pytest.mark.thorough
def test_attention_without_keys_is_even(trained, data):
  cfg = trained.model.replace(bos_id=data.tokenizer.bos_id)
  params = init_params(cfg, jax.random.key(0))
  for name, block in params.items():
    if name.startswith("block"):
      block["attn"]["k"] = jax.tree.map(jnp.zeros_like, block["attn"]["k"])
  bare = dataclasses.replace(trained, packing=Packing(trained.packing.length))
  found = measure(params, cfg, data, bare)
  assert list(found) == ["text"]
  even = uniform_mass(trained.probe_tokens)
  for name in ("first_mass", "first_weight", "first_share"):
    np.testing.assert_allclose(found["text"][name], even, rtol=1e-4)
  np.testing.assert_allclose(found["text"]["entropy_of_shares"], 1, rtol=1e-5)
  assert found["text"]["uniform_mass"] == even


@pytest.mark.slow
@pytest.mark.thorough
def test_rows_that_do_not_sum_to_one_are_measured_as_weights_and_shares(
  trained, data
):
  """Without keys a sigmoid gives 1/2 to each token and shares are even."""
  cfg = trained.model.replace(
    bos_id=data.tokenizer.bos_id, normalizer="sigmoid", attention="einsum"
  )
  params = init_params(cfg, jax.random.key(0))
  for name, block in params.items():
    if name.startswith("block"):
      block["attn"]["k"] = jax.tree.map(jnp.zeros_like, block["attn"]["k"])
  found = measure(params, cfg, data, trained)["bos"]
  length = trained.probe_tokens
  even = uniform_mass(length)
  weight = found["row_sum"] / ((length + 1) / 2)
  np.testing.assert_allclose(found["first_weight"], weight, rtol=1e-4)
  np.testing.assert_allclose(found["first_share"], even, rtol=1e-4)
  np.testing.assert_allclose(found["first_mass"], even, rtol=1e-4)
  np.testing.assert_allclose(found["entropy_of_shares"], 1, rtol=1e-5)


@pytest.mark.thorough
def test_no_text_is_long_enough(trained, data):
  longer = dataclasses.replace(
    trained, probe_tokens=4096, model=trained.model.replace(max_len=4096)
  )
  params = init_params(trained.model, jax.random.key(0))
  with pytest.raises(ValueError, match="no held-out document has 4096 tokens"):
    measure(params, trained.model, data, longer)


@pytest.mark.slow
def test_a_sweep_leaves_models_and_no_checkpoints(small, tmp_path):
  steps = []
  result = EXPERIMENT.measure(
    small, folder=tmp_path, progress=lambda done, total: steps.append(done)
  )
  assert steps[-1] == 4 * small.steps
  for way in small.ways:
    for seed in small.seeds:
      run = tmp_path / "runs" / f"{way}-{seed}"
      assert not (run / "checkpoints").exists()
      model = sinkjax.load(str(run / "model"))
      assert (model.cfg.bos_id is not None) and model.cfg.n_layers == 2
      kept = json.loads((tmp_path / "runs" / f"{way}-{seed}.json").read_text())
      assert kept["complete"] is True and kept["skipped"] == 0
  forms = [(row["variant"], row["form"]) for row in result.numbers["rows"]]
  assert forms == [
    ("causal-pinned", "bos"),
    ("causal-pinned", "text"),
    ("separate-none", "text"),
  ]
  for way in small.ways:
    assert result.arrays[f"first_mass_{way}"].shape == (2, 3)
    assert (np.ptp(result.arrays[f"first_mass_{way}"], axis=0) > 0).all()
  assert set(map(len, result.tables["rows.csv"][1])) == {
    len(result.tables["rows.csv"][0])
  }


@pytest.mark.parametrize(
  ("lift", "verdict"),
  [
    (0.5, Verdict.SUPPORTED),
    (-0.5, Verdict.CONTRADICTED),
    (0.01, Verdict.INCONCLUSIVE),
  ],
)
def test_verdicts(small, lift, verdict):
  """Made up outcomes in which BOS's removal does as the paper says, or not."""
  config = dataclasses.replace(
    small, ways=("causal-pinned",), seeds=tuple(range(8))
  )

  def scalars(seed, mass, loss):
    noise = (0.01, -0.02, 0.013, 0.02, -0.01, 0.004, -0.015, 0.003)[seed]
    return {
      "loss": loss + noise,
      "first_mass": mass - noise,
      "sink_rate_0.1": mass,
      "uniform_mass": 0.07,
    }

  found = [
    {
      "request": {"variant": "causal-pinned"},
      "final": {
        "bos": scalars(seed, 0.5, 3.0),
        "text": scalars((seed + 1) % 8, 0.5 - lift, 3.0 + lift),
      },
      "history": [
        {
          "kind": "probe",
          "step": 0,
          "first_mass": 0.1,
          "sink_rate_0.1": 0.0,
          "value_ratio": 1.0,
        }
      ],
      "alpha": [[0.1]],
      "training_seconds": 1.0,
    }
    for seed in config.seeds
  ]
  trained = Trained.collect(config, config.ways, found)
  claims = EXPERIMENT.claims(trained.as_result({}, {}, {}).as_stored(config))
  assert [claim.verdict for claim in judge(claims)] == [verdict] * 2


def test_jobs_differ_in_seed_and_variant_only(small):
  jobs = text_jobs(variants(small), small.seeds)
  assert [job.name for job in jobs] == [
    "causal-pinned-0",
    "separate-none-0",
    "causal-pinned-1",
    "separate-none-1",
  ]
  configs = [dict(job.request["config"]) for job in jobs]
  assert [one.pop("seed") for one in configs] == [0, 0, 1, 1]
  assert configs[0] == configs[2] != configs[1]
