"""Neurons scaled in one layer, at some positions."""

import jax.numpy as jnp
import numpy as np
import pytest

from sinkjax.config import TINY
from sinkjax.transforms.neuron_edits import ScaleNeurons

VALUE = np.random.default_rng(0).normal(size=(2, 3, 4)).astype(np.float32)
GAINS = np.array([1, 0, 2, 1], np.float32)


def test_chosen_activations_alone_are_scaled():
  edit = ScaleNeurons(GAINS, 1, np.array([True, False, False]))
  want = VALUE.copy()
  want[:, 0] *= GAINS
  np.testing.assert_array_equal(edit(jnp.asarray(VALUE), 1), want)
  np.testing.assert_array_equal(edit(jnp.asarray(VALUE), 0), VALUE)
  everywhere = ScaleNeurons(GAINS, 1)(jnp.asarray(VALUE), 1)
  np.testing.assert_array_equal(everywhere, VALUE * GAINS)
  by_row = ScaleNeurons(np.stack([GAINS, 0 * GAINS]), 1)
  found = by_row(jnp.asarray(VALUE), 1)
  np.testing.assert_array_equal(found[0], VALUE[0] * GAINS)
  assert not np.any(found[1])


def test_indices_are_checked_against_the_model():
  gains = np.ones(TINY.d_ff, np.float32)
  edit = ScaleNeurons(gains, -1, [0]).placed(TINY, 5, "mlp_act")
  assert edit.layer == TINY.n_layers - 1
  with pytest.raises(ValueError, match="gains must be of the"):
    ScaleNeurons(GAINS, 0).placed(TINY, 5, "mlp_act")
  with pytest.raises(ValueError, match="layer 9"):
    ScaleNeurons(gains, 9).placed(TINY, 5, "mlp_act")
