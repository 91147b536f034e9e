"""The theorems about the task, and what else frees a model of its sink."""

import numpy as np

from sinkjax.experiments.harness.api import Claim, Result
from sinkjax.experiments.harness.stats import compare, mean
from sinkjax.experiments.training.trigger_mean.experiment import FORCED, MODELS

SOURCE = "arXiv 2603.11487"

NEARLY_ALL, HALF = 0.9, 0.5
"""Attention of dormant queries on the first token from which a sink is there,
and below which there is none. The theorem has 1 - eps and 0 at a loss of 0;
between the two, both claims are false."""


def claims(result: Result) -> list[Claim]:
  """Of the models that were trained, if softmax is among them."""
  models = result.numbers["models"]
  if "softmax" not in models or len(result.numbers["seeds"]) < 2:
    return []
  found = []
  for model in FORCED:
    if model in models:
      found += [_sink_forms(result, model), _value_is_small(result, model)]
  return found + [
    _no_sink(result, model) for model in models if model not in FORCED
  ]


def _final(result: Result, name: str, model: str) -> np.ndarray:
  """[S] a quantity at the end of training."""
  return result.arrays[name][result.numbers["models"].index(model), :, -1]


def _loss(result: Result, model: str, name: str = "loss") -> str:
  return mean(_final(result, name, model), ".1e")


def _sink_forms(result: Result, model: str) -> Claim:
  first = _final(result, "rest_first", model)
  return compare(
    f"sink_forms_{model}",
    f"On the trigger-mean task with {MODELS[model].words}, dormant queries put "
    "nearly all of their attention on the first token.",
    SOURCE,
    "a theorem: at least 1 - eps of it" if model == "softmax" else "not tried",
    first,
    f"{mean(first)} of their attention, against {NEARLY_ALL}; uniform "
    f"attention {result.numbers['uniform_first']:.3f}; loss "
    f"{_loss(result, model)}",
    against=NEARLY_ALL,
  )


def _value_is_small(result: Result, model: str) -> Claim:
  ratio = _final(result, "value_ratio", model)
  return compare(
    f"first_value_is_small_{model}",
    f"On the trigger-mean task with {MODELS[model].words}, the value vector of "
    "the first token has a smaller norm than those of other tokens.",
    SOURCE,
    "what is read of it must be 0",
    1 - ratio,
    f"{mean(ratio)} times the others' norm; squared output of dormant queries "
    f"{_loss(result, model, 'loss_rest')}",
  )


def _no_sink(result: Result, model: str) -> Claim:
  first = _final(result, "rest_first", model)
  total = _final(result, "rest_sum", model)
  return compare(
    f"no_sink_{model}",
    f"On the trigger-mean task with {MODELS[model].words}, dormant queries put "
    "less than half of their attention on the first token.",
    SOURCE,
    "a theorem: loss 0 without a sink" if model == "relu" else "not tried",
    HALF - first,
    f"{mean(first)} of their attention, against {HALF}, of rows that sum to "
    f"{mean(total)}; loss {_loss(result, model)} against "
    f"{_loss(result, 'softmax')} with softmax",
  )
