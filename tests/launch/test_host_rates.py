"""Estimates of time: what this machine does, and closed forms of the work."""

import pytest

import sinkjax
from launch import host_rates
from launch.host_rates import Host

SMOLLM2 = sinkjax.ModelConfig(
  vocab_size=49152,
  d_model=576,
  n_layers=30,
  n_heads=9,
  n_kv_heads=3,
  head_dim=64,
  d_ff=1536,
  max_len=8192,
)
PARAMETERS = 134_515_008
CORE = Host(product=50.8e9, score=20.1e-9, slowness=1)
"""One busy core on which the seconds below were measured, of `sink_profile`."""


@pytest.mark.parametrize(
  ("tokens", "took"), [(64, 1.09), (512, 8.24), (2048, 47.5)]
)
def test_what_was_measured_of_smollm2(tokens, took):
  """Within twice; the squares of the text are not left out."""
  said = host_rates.forward_seconds(SMOLLM2, PARAMETERS, [tokens], CORE)
  assert 1 / 1.5 < said / took < 1.5


def test_texts_add_up_and_squares_count():
  def said(*lengths):
    return host_rates.forward_seconds(SMOLLM2, PARAMETERS, lengths, CORE)

  assert said(64, 512) == pytest.approx(said(64) + said(512))
  # 30 layers x 9 heads x 8,192 x 8,192 scores, each of 20.1 ns.
  assert said(8192) - 8192 * said(1) == pytest.approx(364.2, rel=1e-3)


def test_only_the_start_waits_for_a_busy_machine():
  """Rates of products are measured busy as they are."""
  assert Host(1e9, 1e-9, 3.0).seconds(8, 100) == 124


@pytest.mark.thorough
def test_a_machine_is_measured():
  host = host_rates.measure()
  assert 1e8 < host.product < 1e14
  assert 1e-13 < host.score < 1e-5
  assert host.slowness > 0
