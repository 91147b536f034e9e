"""Tables of a narrow embedding with its projections multiplied in."""

import pathlib

import jax
import numpy as np
import pytest
from safetensors.numpy import save_file

from sinkjax.weights import huggingface
from sinkjax.weights.formats.safetensors_io import open_folder
from sinkjax.weights.projected import Projected
from sinkjax.weights.validate import WeightsError

V, E, D = 7, 3, 5
RNG = np.random.default_rng(0)
EMBED = RNG.normal(size=(V, E)).astype(np.float32)
INTO = RNG.normal(size=(D, E)).astype(np.float32)
OUT = RNG.normal(size=(E, D)).astype(np.float32)
AT = "model.decoder."


def opened(folder, prefix=AT, **tensors):
  named = {
    f"{prefix}embed_tokens.weight": EMBED,
    f"{prefix}project_in.weight": INTO,
    f"{prefix}project_out.weight": OUT,
  } | tensors
  save_file(
    {name: x for name, x in named.items() if x is not None},
    folder / "model.safetensors",
  )
  return Projected(open_folder(folder))


@pytest.mark.parametrize("prefix", [AT, "decoder."])
def test_both_tables_are_products(tmp_path, prefix):
  got = opened(tmp_path, prefix)
  embed, unembed = f"{prefix}embed_tokens.weight", "lm_head.weight"
  assert set(got.tensors) == {embed, unembed}
  for name, want in ((embed, EMBED @ INTO.T), (unembed, EMBED @ OUT)):
    assert got.tensors[name].shape == (V, D)
    got.check_dtype(name)
    np.testing.assert_allclose(got.read(name), want, rtol=1e-6, atol=1e-6)
    whole = got.read(name)
    np.testing.assert_array_equal(got.read_rows(name, [5, 0]), whole[[5, 0]])
    part = slice(2, 6), slice(1, 4)
    np.testing.assert_array_equal(got.read_part(name, part), whole[part])
    out = np.empty((V, D), np.float32)
    np.testing.assert_array_equal(got.read(name, out=out.T.T), whole)
    np.testing.assert_array_equal(out, whole)


def test_an_output_matrix_of_its_own_is_projected(tmp_path):
  head = RNG.normal(size=(V, E)).astype(np.float32)
  got = opened(tmp_path, **{"lm_head.weight": head})
  want = head @ OUT
  np.testing.assert_allclose(
    got.read("lm_head.weight"), want, rtol=1e-6, atol=1e-6
  )


def test_a_folder_without_projections_is_as_it_was(tmp_path):
  got = opened(
    tmp_path,
    **{f"{AT}project_in.weight": None, f"{AT}project_out.weight": None},
  )
  name = f"{AT}embed_tokens.weight"
  assert set(got.tensors) == {name}
  np.testing.assert_array_equal(got.read(name), EMBED)


def test_a_projection_that_does_not_fit_is_refused(tmp_path):
  wrong = {f"{AT}project_out.weight": np.zeros((D, E), np.float32)}
  with pytest.raises(
    WeightsError, match=r"project_out.* has shape \(5, 3\), wh"
  ):
    opened(tmp_path, **wrong)


def test_the_exported_model_is_the_same(tmp_path, opt_350m):
  params, cfg = opt_350m
  huggingface.save(tmp_path / "new", params, cfg)
  again, config = huggingface.load(tmp_path / "new")
  assert config == cfg
  jax.tree.map(np.testing.assert_array_equal, again, params)


@pytest.fixture(scope="module")
def opt_350m():
  """(params, cfg) of the golden model."""
  golden = pathlib.Path(__file__).parents[1] / "golden" / "families"
  return huggingface.load(golden / "opt_350m")
