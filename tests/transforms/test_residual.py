"""Points on the residual stream, and the map between them."""

import pathlib
import re
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import sinkjax
from sinkjax.transforms.residual import (
  parse_pair,
  parse_point,
  residual_map,
  taken_apart,
)

sys.path.insert(0, str(pathlib.Path(__file__).parent))
from dense_jacobian import BASE, model, outputs, points, quickly_compiled, text

LENGTH = 5
ENDS = [
  ("embed", "final"),
  (("resid_pre", 1), ("resid_mid", 2)),
  (("resid_mid", 1), ("resid_post", 1)),
]
EDITS = {
  "resid_pre": sinkjax.scale(1.5),
  "scores": sinkjax.knockout(1, from_layer=1),
  "resid_mid": sinkjax.scale(0.5, layers=1),
  "final": sinkjax.scale(3.0),
}


@pytest.mark.thorough
def test_the_map_is_the_model_with_a_shift_at_the_source():
  """The shift comes after the edit of its site; so does what is returned."""
  f, params = model(BASE)
  g, tokens = sinkjax.intervene(f, EDITS), text(LENGTH)
  shift = jax.random.normal(jax.random.key(3), (LENGTH, BASE.d_model))
  pairs = [parse_pair(BASE, *ends) for ends in ENDS]

  @jax.jit
  def both(params, shift):
    got, want = [], []
    for source, target in pairs:
      y = residual_map(g, params, tokens[None], source=source, target=target)
      got.append(y(shift[None])[0])
      size = (BASE.n_layers, *shift.shape)
      shifts = {source.site: jnp.zeros(size).at[source.layer].set(shift)}
      found = outputs(f, params, tokens, EDITS, shifts, [target.site])
      want.append(found[target.site][target.layer])
    return got, want

  for amount in (jnp.zeros_like(shift), shift):
    with quickly_compiled():
      got, want = both(params, amount)
    for mine, theirs in zip(got, want, strict=True):
      np.testing.assert_allclose(mine, theirs, rtol=1e-4, atol=1e-4)


def test_every_point_in_order():
  found = [parse_point(BASE, point, 0) for point in points(BASE)]
  assert [tuple(point) for point in found] == points(BASE)
  order = [point.order(BASE.n_layers) for point in found]
  assert order == list(range(len(found)))


def test_names_and_negative_layers():
  pair = parse_pair(BASE, "resid_mid", "resid_mid")
  assert [tuple(p) for p in pair] == [("resid_mid", 0), ("resid_mid", 2)]
  pair = parse_pair(BASE, ("resid_pre", -2), ("final", -1))
  assert [tuple(p) for p in pair] == [("resid_pre", 1), ("final", 0)]


@pytest.mark.parametrize(
  ("source", "target", "message"),
  [
    ("mlp_out", "final", "'mlp_out' is no residual site; valid: ['embed', "),
    ("embed", ("resid_post", 3), "layer 3 of 'resid_post' is outside a model "),
    ("final", "resid_post", "the target ('resid_post', 2) comes before the so"),
    (("resid_post", 0), "embed", "the target ('embed', 0) comes before the s"),
  ],
)
def test_mistakes_are_named(source, target, message):
  with pytest.raises(ValueError, match=re.escape(message)):
    parse_pair(BASE, source, target)


def test_a_function_is_taken_apart():
  f = sinkjax.forward(BASE)
  edit = sinkjax.scale(2.0)
  g = sinkjax.capture(
    sinkjax.intervene(f, {"z": edit}), {"a": ("pattern", sinkjax.sink_score)}
  )
  assert taken_apart(f) == (BASE, {})
  assert taken_apart(g) == (BASE, {"z": edit})
  with pytest.raises(TypeError, match="is needed, got <lambda>"):
    taken_apart(lambda params, tokens: tokens)
  with pytest.raises(TypeError, match="is needed, got Partial"):
    taken_apart(jax.tree_util.Partial(f))
