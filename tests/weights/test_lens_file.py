"""Lenses in files: round trips and refusals."""

import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import save_file

import sinkjax
from sinkjax.transforms.lens import Lens

CFG = sinkjax.TINY


def made(width=CFG.d_model):
  rng = np.random.default_rng(0)

  def draw(*shape):
    return rng.normal(size=shape).astype(np.float32)

  return Lens(
    maps=draw(2, width, width),
    means=draw(2, width),
    final_mean=draw(width),
    layers=(0, 2),
    skip=16,
    texts=7,
    tokens=40,
  )


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_what_is_saved_is_loaded(tmp_path, dtype):
  lens, path = made(), tmp_path / "new" / "lens.safetensors"
  lens = Lens(
    **{
      name: value.astype(dtype) if isinstance(value, np.ndarray) else value
      for name, value in vars(lens).items()
    }
  )
  sinkjax.save_lens(path, lens, CFG)
  got = sinkjax.load_lens(path, CFG)
  for name, value in vars(lens).items():
    np.testing.assert_array_equal(getattr(got, name), value)
    assert type(getattr(got, name)) is type(value)
  assert got.maps.dtype == dtype
  with safe_open(path, "numpy") as file:
    assert file.metadata()["skip"] == "16"


def test_another_model_is_refused(tmp_path):
  path = tmp_path / "lens.safetensors"
  sinkjax.save_lens(path, made(), CFG)
  other = CFG.replace(d_model=2 * CFG.d_model)
  with pytest.raises(sinkjax.weights.WeightsError) as error:
    sinkjax.load_lens(path, other)
  said = str(error.value)
  assert f"d_model {CFG.d_model}" in said and "\n" not in said
  assert f"this model is model_type llama, d_model {other.d_model}" in said


def test_other_files_are_refused(tmp_path):
  path = tmp_path / "lens.safetensors"
  save_file({"maps": np.zeros((1, 2), np.float32)}, path)
  with pytest.raises(sinkjax.weights.WeightsError, match="is no Jacobian lens"):
    sinkjax.load_lens(path, CFG)
  path.write_bytes(b"nothing of the kind")
  with pytest.raises(sinkjax.weights.WeightsError):
    sinkjax.load_lens(path, CFG)
  with pytest.raises(sinkjax.weights.WeightsError):
    sinkjax.load_lens(tmp_path / "absent.safetensors", CFG)


@pytest.mark.parametrize(
  ("changed", "message"),
  [
    ({"layers": "[0]"}, r"has maps of \[2, .* not \[1, "),
    ({"skip": "many"}, "damaged header"),
    ({"layers": "none"}, "damaged header"),
    ({"model": "3"}, "is the lens of an unknown model"),
  ],
)
def test_damaged_headers_are_refused(tmp_path, changed, message):
  path, lens = tmp_path / "lens.safetensors", made()
  sinkjax.save_lens(path, lens, CFG)
  with safe_open(path, "numpy") as file:
    about = file.metadata()
  arrays = {k: v for k, v in vars(lens).items() if isinstance(v, np.ndarray)}
  save_file(arrays, path, metadata=about | changed)
  with pytest.raises(sinkjax.weights.WeightsError, match=message):
    sinkjax.load_lens(path, CFG)
