"""What the variants of the sweeps are, and which there cannot be."""

import dataclasses

import pytest

from sinkjax.experiments.training import (
  attention_variants,
  context_length,
  optimisation,
  progressive_context,
  sink_regulariser,
)


def test_what_each_variant_of_attention_is():
  """One option away from softmax, and on a path that has it."""
  runs = attention_variants.variants(attention_variants.Config())
  base = runs["softmax"]
  for name, run in runs.items():
    model, plain = run.model.to_dict(), base.model.to_dict()
    changed = {key for key in model if model[key] != plain[key]}
    assert changed - {"attention", "vocab_size"} <= {
      "normalizer",
      "attn_bias",
      "gate",
      "sink_logit",
      "qk_norm",
    }, name
    same = not changed - {"vocab_size"} and run.packing == base.packing
    assert same == (name == "softmax")
  assert runs["registers"].text_vocab_size == base.text_vocab_size


def test_knobs_leave_the_tokens_as_they_are():
  runs = optimisation.variants(optimisation.Config())
  assert {run.steps * run.batch for run in runs.values()} == {700 * 8}
  assert runs["data_0.01"].train_share == 0.01
  assert runs["rate_0.01"].optimizer.peak == 0.01
  with pytest.raises(ValueError, match="no whole number"):
    optimisation.variants(optimisation.Config(batches=(0.3,)))


def test_windows_grow_to_the_fixed_length():
  runs = progressive_context.variants(progressive_context.Config())
  growing = runs["growing"]
  assert [stage.length for stage in growing.stages] == [64, 128, 256]
  assert [growing.batch_at(s) * s.length for s in growing.all_stages()] == [
    runs["fixed"].batch * 256
  ] * 3
  with pytest.raises(ValueError, match="add up to 1"):
    progressive_context.variants(
      progressive_context.Config(shares=(0.3, 0.3, 0.3))
    )


@pytest.mark.parametrize(
  ("module", "changes", "words"),
  [
    (context_length, {"contexts": (32,)}, "must be 64 at least"),
    (context_length, {"contexts": (100,)}, "divide the 2048 tokens"),
    (attention_variants, {"variants": ("hardmax",)}, "has no 'hardmax'"),
    (sink_regulariser, {"targets": (1.5,)}, r"must be in \[0, 1\]"),
  ],
)
def test_what_cannot_be_is_said(module, changes, words):
  config = dataclasses.replace(module.Config(), **changes)
  with pytest.raises(ValueError, match=words):
    module.variants(config)
