"""The trained model that the documentation keeps."""

import csv
import pathlib

import jax.numpy as jnp
import pytest

import sinkjax
from sinkjax.analysis.sink_profile import sink_profile

STRONG = pathlib.Path(__file__).parents[2] / "docs" / "models" / "strong"


@pytest.fixture(scope="module")
def model():
  return sinkjax.load(STRONG)


@pytest.mark.thorough
def test_its_sinks_are_at_bos(model):
  """With BOS in front many heads have a sink, without it none has."""
  params, cfg, tokenizer = model
  text = (
    "The people of this country have asked their government for many things "
    "in the last two hundred years, and the first of them was to be let alone. "
    "A river runs from the mountains in the north to the sea."
  )
  ids = tokenizer.encode(text)[:63]
  rates = [
    float((sink_profile(params, cfg, [row]).mean("alpha") > 0.3).mean())
    for row in ([tokenizer.bos_id, *ids], ids)
  ]
  # 33 % on the texts held out in training, with a spread from text to text.
  assert rates[0] > 0.2 and rates[1] == 0


def test_it_is_small_and_whole(model):
  """A clone of the repository pays for it, and it is what the run measured."""
  size = sum(file.stat().st_size for file in STRONG.iterdir())
  assert size < 2_500_000
  params, cfg, _ = model
  assert cfg.n_layers == 4 and params["embed"].dtype == jnp.float32
  with open(STRONG / "probe.csv", newline="") as stream:
    rows = list(csv.DictReader(stream))
  steps = [int(row["step"]) for row in rows]
  assert steps == sorted(set(steps)) and (steps[0], steps[-1]) == (0, 6000)
  assert sum(0 < step < 50 for step in steps) >= 5
