"""The check that a device's kernels pass before they are used."""

import jax
import numpy as np
import pytest

from sinkjax.models import flash_check, flash_statistics


@pytest.fixture(autouse=True)
def unknown():
  flash_check.agrees.cache_clear()
  yield
  flash_check.agrees.cache_clear()


@pytest.mark.thorough
@pytest.mark.parametrize("where", ["gpu", "tpu"])
def test_interpreted_kernels_pass(where):
  """Also within a trace, as where a model asks for them."""
  seen = []

  @jax.jit
  def traced(x):
    seen.append(flash_check.largest_error(where))
    return x

  traced(1.0)
  assert seen[0] < flash_check.TOLERANCE / 10


@pytest.fixture
def on_a_card(monkeypatch):
  """As where this process had one."""

  class Card:
    platform = "gpu"

  monkeypatch.setattr(jax, "local_devices", lambda: [Card])
  monkeypatch.setattr(jax, "default_backend", lambda: "gpu")


@pytest.mark.parametrize(
  ("error", "words"),
  [
    (1e-3, "differ from NumPy by 1.0e-03"),
    (np.inf, "differ from NumPy by inf"),
    (
      RuntimeError("no such instruction"),
      r"does not run .*no such instruction",
    ),
  ],
)
def test_kernels_that_are_wrong_are_not_used(
  error, words, monkeypatch, on_a_card
):
  """Once, with a warning; plain JAX takes their place."""
  asked = []

  def largest_error(where):
    asked.append(where)
    if isinstance(error, Exception):
      raise error
    return error

  monkeypatch.setattr(flash_check, "largest_error", largest_error)
  with pytest.warns(UserWarning, match=words):
    assert flash_statistics.device() is None
  assert flash_statistics.device() is None and asked == ["gpu"]


def test_kernels_that_are_right_are_used(monkeypatch, on_a_card):
  monkeypatch.setattr(flash_check, "largest_error", lambda where: 1e-6)
  assert flash_statistics.device() == "gpu"


@pytest.mark.parametrize("place", [(0, 0, 150, 3), (0, 3, 199, 0)])
def test_one_wrong_number_is_seen(place, monkeypatch):
  """Of 25,600, by less than the largest."""

  def wrong(*args, **more):
    q, k, v = (np.asarray(x, np.float64) for x in args[3:])
    found = flash_check._by_numpy(q, k, v, np.asarray(more["sinks"]))
    found["z"][place] += 0.01
    return found

  def right(*args, **more):
    return known["diagonals" if more["diagonals"] else "columns"]

  known = {}

  def keep(*args):
    known.update(by_numpy(*args))
    return dict(known)

  by_numpy = flash_check._by_numpy
  monkeypatch.setattr(flash_check, "rows", wrong)
  monkeypatch.setattr(flash_check, "squares", right)
  monkeypatch.setattr(flash_check, "_by_numpy", keep)
  assert flash_check.largest_error("gpu") > flash_check.TOLERANCE
