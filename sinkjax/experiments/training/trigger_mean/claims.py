"""The theorems about the task, and what else frees a model of its sink."""

import numpy as np

from sinkjax.experiments.harness.api import Claim, Result
from sinkjax.experiments.harness.effects import (
  LOG_RATIO,
  RELATIVE,
  SHARE,
  Effect,
  Expect,
)
from sinkjax.experiments.harness.stats import mean
from sinkjax.experiments.shared.seed_effects import seed_effect
from sinkjax.experiments.training.trigger_mean.experiment import (
  FORCED,
  MODELS,
  Config,
)

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


def loss_of_nothing(config: Config) -> float:
  """The expected loss of an answer that is zero everywhere.

  The mean of t - 1 independent directions of squared norm `width`, over the
  places t of the trigger, which are equally often 2 to `length` - 1.
  """
  places = np.arange(2, config.length)
  return float(config.width * np.mean(1 / (places - 1)))


def _loss(result: Result, model: str, name: str = "loss") -> str:
  return mean(_final(result, name, model), ".1e")


def _learnt_as_much(result: Result, model: str) -> Effect:
  """That a model leaves no more of the loss than softmax does."""
  other, plain = (_final(result, "loss", x) for x in (model, "softmax"))
  return seed_effect(
    # Losses of models that solve the task differ by factors that mean nothing,
    # so they are compared in units of what there is to learn.
    (other - plain) / loss_of_nothing(result.config),
    f"the loss with {MODELS[model].words}, less that with softmax, over that "
    "of no answer",
    RELATIVE,
    Expect.NOT_MORE,
  )


def _sink_forms(result: Result, model: str) -> Claim:
  first = _final(result, "rest_first", model)
  return Claim(
    f"sink_forms_{model}",
    f"On the trigger-mean task with {MODELS[model].words}, dormant queries put "
    "nearly all of their attention on the first token.",
    SOURCE,
    "a theorem: at least 1 - eps of it" if model == "softmax" else "not tried",
    f"{mean(first)} of their attention, against {NEARLY_ALL}; uniform "
    f"attention {result.numbers['uniform_first']:.3f}; loss "
    f"{_loss(result, model)}",
    seed_effect(
      first - NEARLY_ALL,
      f"attention of dormant queries on the first token, less {NEARLY_ALL},",
      SHARE,
      Expect.MORE,
    ),
    f"a sink is there if it has more than {NEARLY_ALL} of their attention",
  )


def _value_is_small(result: Result, model: str) -> Claim:
  ratio = _final(result, "value_ratio", model)
  return Claim(
    f"first_value_is_small_{model}",
    f"On the trigger-mean task with {MODELS[model].words}, the value vector of "
    "the first token has a smaller norm than those of other tokens.",
    SOURCE,
    "what is read of it must be 0",
    f"{mean(ratio)} times the others' norm; squared output of dormant queries "
    f"{_loss(result, model, 'loss_rest')}",
    seed_effect(
      np.log(ratio),
      "the norm of the first token's value over that of the others' values",
      LOG_RATIO,
      Expect.LESS,
    ),
  )


def _no_sink(result: Result, model: str) -> Claim:
  first = _final(result, "rest_first", model)
  total = _final(result, "rest_sum", model)
  return Claim(
    f"no_sink_{model}",
    f"On the trigger-mean task with {MODELS[model].words}, dormant queries put "
    "less than half of their attention on the first token.",
    SOURCE,
    "a theorem: loss 0 without a sink" if model == "relu" else "not tried",
    f"{mean(first)} of their attention, against {HALF}, of rows that sum to "
    f"{mean(total)}; loss {_loss(result, model)} against "
    f"{_loss(result, 'softmax')} with softmax",
    seed_effect(
      first - HALF,
      f"attention of dormant queries on the first token, less {HALF},",
      SHARE,
      Expect.LESS,
    ),
    "attention is the share of a query's total; a model that has not learnt "
    "the task needs no sink",
    (_learnt_as_much(result, model),),
  )
