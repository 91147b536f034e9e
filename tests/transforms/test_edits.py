"""Ready-made edits, on the model and by themselves."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import sinkjax


def trace(f, params, tokens, *sites):
  observers = {site: (site, lambda x: x) for site in sites}
  return sinkjax.capture(f, observers)(params, tokens).trace


def test_knockout_hides_one_key_from_a_layer_on(tiny, tokens):
  params, cfg = tiny
  f = sinkjax.forward(cfg)
  g = sinkjax.intervene(f, {"scores": sinkjax.knockout(2, from_layer=1)})
  plain = trace(f, params, tokens, "pattern")["pattern"]
  edited = np.asarray(trace(g, params, tokens, "pattern")["pattern"])
  np.testing.assert_array_equal(edited[0], plain[0])
  assert np.all(edited[1:, ..., 3:, 2] == 0)
  assert np.all(edited[1:, ..., 2, 2] > 0)  # it still sees itself
  np.testing.assert_allclose(edited.sum(-1), 1, rtol=1e-5)


def test_knockout_of_the_first_token_leaves_its_own_row(tiny, tokens):
  params, cfg = tiny
  f = sinkjax.forward(cfg)
  g = sinkjax.intervene(f, {"scores": sinkjax.knockout(0)})
  sites = ("pattern", "resid_post")
  plain, edited = (trace(fn, params, tokens, *sites) for fn in (f, g))
  assert np.all(np.asarray(edited["pattern"])[..., 0, 0] == 1)
  assert np.all(np.asarray(edited["pattern"])[..., 1:, 0] == 0)
  np.testing.assert_array_equal(
    edited["resid_post"][:, :, 0], plain["resid_post"][:, :, 0]
  )


def test_knockout_equals_renormalising_the_row(tiny, tokens):
  """In the first hidden layer: the row without the key, divided by its sum."""
  params, cfg = tiny
  f = sinkjax.forward(cfg)
  g = sinkjax.intervene(f, {"scores": sinkjax.knockout(0, from_layer=2)})
  plain = np.asarray(trace(f, params, tokens, "pattern")["pattern"][2])
  edited = trace(g, params, tokens, "pattern")["pattern"][2]
  rest = plain[..., 1:, 1:]
  np.testing.assert_allclose(
    edited[..., 1:, 1:], rest / rest.sum(-1, keepdims=True), rtol=2e-4
  )


def test_knockout_in_some_heads(tiny, tokens):
  params, cfg = tiny
  f = sinkjax.forward(cfg)
  edit = sinkjax.knockout(0, heads=[False, True, False, False])
  g = sinkjax.intervene(f, {"scores": edit})
  pattern = np.asarray(trace(g, params, tokens, "pattern")["pattern"][0])
  assert np.all(pattern[:, 1, 1:, 0] == 0)
  assert np.all(pattern[:, [0, 2, 3], 1:, 0] > 0)


@pytest.mark.parametrize("mean", [False, True])
def test_ablate_heads(tiny, tokens, mean):
  params, cfg = tiny
  f = sinkjax.forward(cfg)
  heads = np.zeros((3, 4), bool)
  heads[1, 2] = heads[2, 0] = True
  z = trace(f, params, tokens, "z")["z"]
  average = z.mean(axis=(1, 2)) if mean else None
  edit = sinkjax.ablate_heads(heads, mean=average)
  edited = trace(sinkjax.intervene(f, {"z": edit}), params, tokens, "z")["z"]
  want = average[1, 2] if mean else jnp.zeros(cfg.head_dim)
  np.testing.assert_array_equal(
    edited[1, :, :, 2], jnp.broadcast_to(want, edited[1, :, :, 2].shape)
  )
  np.testing.assert_array_equal(edited[0], z[0])
  np.testing.assert_array_equal(
    edited[1, :, :, [0, 1, 3]], z[1, :, :, [0, 1, 3]]
  )


def test_ablating_every_head_leaves_no_attention(tiny, tokens):
  params, cfg = tiny
  f = sinkjax.forward(cfg)
  edit = sinkjax.ablate_heads(np.ones((3, 4), bool))
  g = sinkjax.intervene(f, {"z": edit})
  assert np.all(
    np.asarray(trace(g, params, tokens, "attn_out")["attn_out"]) == 0
  )
  zeroed = sinkjax.intervene(f, {"attn_out": sinkjax.scale(0.0)})
  np.testing.assert_array_equal(
    g(params, tokens).logits, zeroed(params, tokens).logits
  )


def test_ablate_heads_wants_layers_by_heads():
  with pytest.raises(ValueError, match=r"\[L, H\]"):
    sinkjax.ablate_heads([True, False])


@pytest.mark.parametrize("layers", [1, [1], np.array([1, 1])])
def test_layers_select(tiny, tokens, layers):
  params, cfg = tiny
  f = sinkjax.forward(cfg)
  for edit in (
    sinkjax.scale(0.0, layers=layers),
    sinkjax.replace(0.0, layers=layers),
  ):
    g = sinkjax.intervene(f, {"mlp_out": edit})
    out = np.asarray(trace(g, params, tokens, "mlp_out")["mlp_out"])
    assert np.all(out[1] == 0)
    assert np.all(np.abs(out[[0, 2]]).max(axis=(1, 2, 3)) > 0)


def test_chain_applies_in_order():
  edit = sinkjax.chain(sinkjax.add(1.0), sinkjax.scale(3.0))
  assert edit(jnp.zeros(()), 0) == 3
  assert len(jax.tree.leaves(edit)) == 2


@pytest.mark.parametrize(
  "edit",
  [
    sinkjax.knockout(3, from_layer=1),
    sinkjax.knockout(0, heads=[True, False]),
    sinkjax.scale(np.array([2.0, 3.0])[None, :, None, None]),
    sinkjax.add(1.0, layers=[1]),
    sinkjax.replace(0.5),
    sinkjax.chain(sinkjax.add(1.0), sinkjax.knockout(2)),
  ],
)
@pytest.mark.parametrize("layer", [0, 1])
def test_rows_are_rows_of_the_whole(edit, layer):
  """Of queries 2 to 4 and the keys that they see."""
  scores = jax.random.normal(jax.random.key(0), (1, 2, 6, 6))
  rows = edit.rows(scores[:, :, 2:5, :5], layer, 2)
  np.testing.assert_array_equal(rows, edit(scores, layer)[:, :, 2:5, :5])


@pytest.mark.parametrize(
  ("edit", "name"),
  [
    (sinkjax.scale(jnp.ones(6)), "Scale"),
    (sinkjax.add(jnp.ones((6, 1))), "Add"),
    (sinkjax.replace(jnp.ones((1, 2, 6, 6))), "Replace"),
    (sinkjax.chain(sinkjax.patch(jnp.ones((3, 1)))), "Patch"),
  ],
)
def test_rows_need_an_edit_that_is_the_same_for_all(edit, name):
  with pytest.raises(ValueError, match=f"{name} .*of .*rows"):
    edit.rows(jnp.zeros((1, 2, 3, 6)), 0, 2)
