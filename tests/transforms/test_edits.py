"""Ready-made edits, on the model and by themselves."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import sinkjax
from sinkjax.analysis.loss_sensitivity import loss_gradient
from sinkjax.analysis.over_squashing import over_squashing
from sinkjax.analysis.sink_profile import measure
from sinkjax.transforms.layer_gains import layer_gains


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


def same_logits(tiny, tokens, site, *edits):
  params, cfg = tiny
  f = sinkjax.forward(cfg)
  plain = np.asarray(f(params, tokens).logits)
  logits = [sinkjax.intervene(f, {site: e})(params, tokens)[0] for e in edits]
  assert np.any(np.asarray(logits[0]) != plain)
  np.testing.assert_array_equal(*logits)


HEAD_2 = [False, False, True, False]
LAYER_2 = [False, False, True]


@pytest.mark.parametrize(
  ("one", "other"),
  [
    (sinkjax.knockout(-10), sinkjax.knockout(2)),
    (sinkjax.knockout(0, from_layer=-1), sinkjax.knockout(0, from_layer=2)),
    (sinkjax.knockout(0, heads=[2]), sinkjax.knockout(0, heads=HEAD_2)),
    (sinkjax.knockout(0, heads=-2), sinkjax.knockout(0, heads=[2])),
    (sinkjax.scale(0.5, layers=-1), sinkjax.scale(0.5, layers=2)),
    (sinkjax.scale(0.5, layers=LAYER_2), sinkjax.scale(0.5, layers=[2])),
  ],
)
def test_negative_indices_and_masks_of_scores(tiny, tokens, one, other):
  same_logits(tiny, tokens, "scores", one, other)
  same_logits(tiny, tokens, "scores", *map(sinkjax.chain, (one, other)))


@pytest.mark.parametrize(
  ("one", "other"), [(-2, 10), ([-12, 3], [0, 3]), (np.arange(12) == 4, 4)]
)
def test_positions_of_a_patch(tiny, tokens, one, other):
  new = np.ones((3, 2, 12, tiny[1].d_model), np.float32)
  edits = [sinkjax.patch(new, positions=p) for p in (one, other)]
  same_logits(tiny, tokens, "resid_mid", *edits)


def test_a_knockout_from_no_layer_on(tiny, tokens):
  params, cfg = tiny
  f = sinkjax.forward(cfg)
  g = sinkjax.intervene(f, {"scores": sinkjax.knockout(0, from_layer=3)})
  np.testing.assert_array_equal(
    g(params, tokens).logits, f(params, tokens).logits
  )


WRONG = [
  ("scores", sinkjax.knockout(12), "position 12 .* 12"),
  ("scores", sinkjax.knockout(-13), "position -13"),
  ("scores", sinkjax.knockout(0, from_layer=4), "layer 4 .* to 3"),
  ("scores", sinkjax.knockout(0, from_layer=-4), "layer -4"),
  ("scores", sinkjax.knockout(0, heads=[4]), "head 4 .* 4"),
  ("scores", sinkjax.knockout(0, heads=[True]), r"heads must have shape \[4"),
  ("scores", sinkjax.knockout(0, heads=[1.0]), "integer or a bool mask"),
  ("mlp_out", sinkjax.scale(1.0, layers=3), "layer 3"),
  ("mlp_out", sinkjax.add(1.0, layers=[0, -4]), "layer -4"),
  ("mlp_out", sinkjax.replace(1.0, layers=[9]), "layer 9"),
  ("mlp_out", sinkjax.hold(layers=[True, False]), r"shape \[3\]"),
  ("mlp_out", sinkjax.chain(sinkjax.hold(layers=3)), "layer 3"),
  ("mlp_out", sinkjax.patch(np.ones((1, 2, 12, 1))), "3 layers"),
  ("mlp_out", sinkjax.patch(np.ones((3, 1)), positions=12), "position 12"),
  ("z", sinkjax.ablate_heads(np.ones((1, 4), bool)), r"\[3, 4\]"),
  ("z", sinkjax.ablate_heads(np.ones((3, 4), int)), "bool mask"),
  (
    "z",
    sinkjax.ablate_heads(np.ones((3, 4), bool), mean=np.ones((1, 4, 16))),
    "mean must have the model's 3 layers",
  ),
]


@pytest.mark.parametrize(("site", "edit", "message"), WRONG)
def test_an_index_that_is_not_there_raises(tiny, tokens, site, edit, message):
  """In forward, in what takes the model apart, and in the streamed pass."""
  params, cfg = tiny
  g = sinkjax.intervene(sinkjax.forward(cfg), {site: edit})
  with pytest.raises(ValueError, match=message):
    g(params, tokens)
  with pytest.raises(ValueError, match=message):
    sinkjax.jacobian_norms(g, params, tokens[0])
  with pytest.raises(ValueError, match=message):
    sinkjax.stream_statistics(g, {})(params, tokens)


@pytest.mark.parametrize("index", [-1, 12])
def test_a_traced_index_out_of_range_touches_nothing(tiny, tokens, index):
  params, cfg = tiny
  f = sinkjax.forward(cfg)

  @jax.jit
  def run(i):
    edits = {
      "scores": sinkjax.chain(
        sinkjax.knockout(i),
        sinkjax.knockout(0, from_layer=i),
        sinkjax.knockout(0, heads=i),
      ),
      "mlp_out": sinkjax.scale(0.0, layers=i),
      "resid_mid": sinkjax.patch(jnp.ones((3, 1, 1, 1)), positions=i),
    }
    return sinkjax.intervene(f, edits)(params, tokens).logits

  np.testing.assert_array_equal(run(index), jax.jit(f)(params, tokens).logits)


@pytest.mark.parametrize(
  ("text", "message"),
  [([1, 64], "token id 64"), ([-1, 2], "token id -1"), ([1] * 4096, "max_len")],
)
def test_texts_that_the_model_cannot_have(tiny, text, message):
  params, cfg = tiny
  f, text = sinkjax.forward(cfg), jnp.array(text)
  for analysis in (
    lambda: sinkjax.jacobian_norms(f, params, text),
    lambda: sinkjax.jacobian_norms(f, params, text, method="reference"),
    lambda: sinkjax.token_jacobian(f, params, text, [(1, 0)]),
    lambda: sinkjax.estimate_norms(f, params, text, samples=2),
    lambda: sinkjax.power_norms(f, params, text, [(1, 0)]),
    lambda: layer_gains(f, params, text),
    lambda: sinkjax.stream_statistics(f, {})(params, text),
    lambda: loss_gradient(f, params, text),
    lambda: over_squashing(f, params, text),
    lambda: measure(cfg)(params, text[None]),
  ):
    with pytest.raises(ValueError, match=message):
      analysis()
