"""What is not finite becomes no result, wherever it comes from."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import sinkjax
from sinkjax import finite
from sinkjax.analysis.sink_profile import sink_profile
from sinkjax.data.packing import Packing
from sinkjax.experiments.harness.stats import Mean
from sinkjax.inference import kv_policy, scoring
from sinkjax.inference.generate import generate
from sinkjax.metrics.sinks import sink_rate, sink_rate_stderr
from sinkjax.train.optimizer import OptimizerConfig
from sinkjax.train.run_config import TrainConfig


def overflowing(tiny, layer):
  """The tiny model with values in one layer that float32 cannot hold."""
  params, cfg = tiny
  large = jax.tree.map(lambda x: x.at[layer].set(3e38), params["blocks"]["mlp"])
  return {**params, "blocks": {**params["blocks"], "mlp": large}}, cfg


@pytest.mark.parametrize("layer", [0, 1])
def test_a_profile_names_the_first_layer_that_overflows(tiny, layer):
  params, cfg = overflowing(tiny, layer)
  with pytest.raises(finite.NotFiniteError, match=f"at layer {layer}"):
    sink_profile(params, cfg, [[1, 2, 3, 4, 5]])


def test_generation_draws_nothing_from_such_logits(tiny):
  params, cfg = overflowing(tiny, 0)
  policy = kv_policy.full(16, chunk=8)
  tokens = generate(cfg, params, [1, 2, 3], policy=policy, max_tokens=3)
  with pytest.raises(finite.NotFiniteError, match="after 3 tokens"):
    list(tokens)


def test_losses_of_a_long_text_are_checked(tiny):
  params, cfg = overflowing(tiny, 0)
  policy = kv_policy.full(16, chunk=8)
  with pytest.raises(finite.NotFiniteError, match="loss"):
    scoring.stream_nats(cfg, params, [1, 2, 3, 4], policy=policy)


@pytest.mark.parametrize("order", ["threshold_first", "mean_first"])
def test_a_score_that_is_nan_is_no_head_without_a_sink(order):
  alpha = np.full((2, 1, 2), 0.9)
  alpha[0, 0, 1] = np.nan
  assert np.isnan(sink_rate(jnp.asarray(alpha), order=order))
  assert np.isnan(sink_rate_stderr(alpha, eps=0.3))


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_results_with_a_number_that_is_none(value):
  def check(numbers, **arrays):
    finite.require_result(numbers, arrays, "smoothing")

  with pytest.raises(finite.NotFiniteError, match=r"smoothing: a\.b\[1\]"):
    check({"a": {"b": [1.0, value]}})
  with pytest.raises(finite.NotFiniteError, match="change.value"):
    check({"change": Mean(value, 0.0, 1.0, 3, 0.1)})
  with pytest.raises(finite.NotFiniteError, match=r"norms .* at \[1, 0\]"):
    check({}, norms=np.array([[1.0, 2.0], [value, 3.0]]))
  with pytest.raises(finite.NotFiniteError, match="scores"):
    check({}, scores=jnp.array([value], jnp.bfloat16))


def test_what_is_undefined_or_zero_is_a_result():
  one_group = Mean(0.5, np.nan, np.nan, 1, np.nan)
  numbers = {"change": one_group, "left_out": None, "name": "nan"}
  logs = {"log10_norms": np.array([0.0, -np.inf]), "ids": np.arange(3)}
  finite.require_result(numbers, logs, "bound")


WILD = [np.nan, np.inf, -np.inf, 1e300, -1e300]


def train_config(**changes):
  return TrainConfig(
    dataclasses.replace(sinkjax.TINY),
    Packing(length=32),
    OptimizerConfig(**changes.pop("optimizer", {})),
    probe_tokens=32,
    **changes,
  )


@pytest.mark.parametrize("value", WILD)
@pytest.mark.parametrize(
  "name",
  [
    field.name
    for field in dataclasses.fields(OptimizerConfig)
    if "float" in str(field.type)
  ],
)
def test_every_number_of_an_optimizer_is_finite(name, value):
  with pytest.raises(ValueError, match=name):
    train_config(optimizer={name: value})


@pytest.mark.parametrize("value", WILD)
@pytest.mark.parametrize(
  "name",
  [
    field.name
    for field in dataclasses.fields(sinkjax.ModelConfig)
    if "float" in str(field.type)
  ],
)
def test_every_number_of_a_model_is_finite(name, value):
  with pytest.raises(ValueError, match=name):
    sinkjax.TINY.replace(**{name: value})


@pytest.mark.parametrize("value", WILD)
@pytest.mark.parametrize("name", ["noise", "train_share"])
def test_every_number_of_a_run_is_finite(name, value):
  with pytest.raises(ValueError, match=name):
    train_config(**{name: value})


def test_configs_that_are_in_use_pass():
  train_config()
  train_config(optimizer={"clip": None, "spike": 4.0, "final": 0.0})
