"""Which expert writes to the first token: closed forms, laws, reports."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import sinkjax
from sinkjax.analysis.sink_profile import sink_profile
from sinkjax.metrics import experts, registry
from sinkjax.models.layerwise import InMemory
from sinkjax.report import profile as report
from sinkjax.train.probe import make_probe

NAMES = ("expert_first_norm", "expert_first_share", "expert_peak")
WIDTH, EXPERTS, LAYERS = 8, 4, 2
CFG = sinkjax.TINY.replace(
  d_model=WIDTH,
  n_layers=LAYERS,
  d_ff=WIDTH,
  n_experts=EXPERTS,
  experts_per_token=2,
  norm_topk=True,
  gated_mlp=False,
  activation="relu",
  norm_eps=1e-12,
  vocab_size=8,
)
SINK, OTHER = 1, 2
"""Tokens: the first of a text, and all that follow."""
HEIGHTS = np.array([[3.0, -5.0, 7.0, 11.0], [200.0, 100.0, 2.0, 1.0]])
"""What each expert of a layer multiplies by."""
TEXT = [SINK, OTHER, OTHER, OTHER]


@pytest.fixture(scope="module")
def made():
  """A model by hand: attention writes nothing, and no token reads another.

  A token t is the unit vector of coordinate t. Its norm has the length
  sqrt(D), and expert e writes `HEIGHTS[layer, e] sqrt(D)` into coordinate 7.
  The router gives the first token to experts 0 and 1, by 3 to 1, and all others
  to 2 and 3, equally. In layer 1 the first token is no unit vector: it has what
  layer 0 has written, and the router's logits have another length.
  """
  params = jax.tree.map(
    lambda x: np.zeros(x.shape, x.dtype), sinkjax.param_shapes(CFG)
  )
  params["embed"][:] = 2 * np.eye(8)
  for name, leaf in params["blocks"].items():
    if "norm" in name:
      leaf["scale"][:] = 1
  params["final_norm"]["scale"][:] = 1
  params["blocks"]["attn"]["v"]["kernel"][:] = 1  # which nothing writes out
  mlp = params["blocks"]["mlp"]
  far, near, root = 5.0, np.log(3) / np.sqrt(WIDTH), np.sqrt(WIDTH)
  mlp["router"]["kernel"][:, SINK, :] = [far + near, far, 0, 0]
  mlp["router"]["kernel"][:, OTHER, :] = [0, 0, far, far]
  mlp["expert_up"]["kernel"][:, :, SINK, 0] = 1
  mlp["expert_up"]["kernel"][:, :, OTHER, 0] = 1
  mlp["expert_down"]["kernel"][:, :, 0, 7] = HEIGHTS
  return jax.tree.map(jnp.asarray, params), root


def traces(params, text=TEXT):
  seen = registry.observers(NAMES, experts=True)
  h = jax.jit(sinkjax.capture(sinkjax.forward(CFG), seen))
  return h(params, jnp.array([text])).trace


def test_by_hand(made):
  """The first layer of a text that begins with the token of two experts."""
  params, root = made
  found = traces(params)
  assert set(found) == set(NAMES)
  assert found["expert_peak"].shape == (LAYERS, 1, EXPERTS)
  weighted = np.array([3 / 4 * 3, 1 / 4 * 5, 0, 0]) * root
  np.testing.assert_allclose(
    found["expert_first_norm"][0, 0], weighted, rtol=1e-5
  )
  # Expert 0 writes 9/4 and expert 1 writes -5/4, both into one coordinate.
  np.testing.assert_allclose(
    found["expert_first_share"][0, 0], [9 / 4, -5 / 4, 0, 0], rtol=1e-5
  )
  # At other tokens 2 and 3 have half of the weight each.
  peak = np.array([3 / 4 * 3, 1 / 4 * 5, 7 / 2, 11 / 2]) * root
  np.testing.assert_allclose(found["expert_peak"][0, 0], peak, rtol=1e-5)


def test_what_follows_the_first_token_has_no_part_in_it(made):
  params, _ = made
  one, other = traces(params), traces(params, [SINK, OTHER, 3, 4])
  for name in NAMES[:2]:
    np.testing.assert_allclose(one[name], other[name], rtol=1e-6)


def outputs(shape=(3, 6, 5, 7)):
  return np.random.default_rng(0).standard_normal(shape).astype(np.float32)


def test_laws():
  """Shares sum to one and do not know the scale; norms and peaks have it."""
  out = outputs()
  share = experts.expert_first_share(jnp.asarray(out))
  np.testing.assert_allclose(share.sum(axis=-1), 1, rtol=1e-5)
  first = out[:, 0].astype(np.float64)
  whole = first.sum(axis=1, keepdims=True)
  want = (first * whole).sum(-1) / (whole**2).sum(-1)
  np.testing.assert_allclose(share, want, rtol=1e-4, atol=1e-6)
  # Squares of these would overflow float32.
  huge = jnp.asarray(1e25 * out)
  np.testing.assert_allclose(
    experts.expert_first_share(huge), share, rtol=1e-4, atol=1e-6
  )
  for metric in (experts.expert_first_norm, experts.expert_peak):
    np.testing.assert_allclose(
      metric(jnp.asarray(-2 * out)), 2 * metric(jnp.asarray(out)), rtol=1e-6
    )
  np.testing.assert_allclose(
    experts.expert_first_norm(jnp.asarray(out)),
    np.linalg.norm(first, axis=-1),
    rtol=1e-5,
  )
  np.testing.assert_array_equal(
    experts.expert_peak(jnp.asarray(out)), np.abs(out).max(axis=(1, 3))
  )
  order = np.array([4, 0, 3, 1, 2])
  for metric in (getattr(experts, name) for name in NAMES):
    np.testing.assert_allclose(
      metric(jnp.asarray(out[:, :, order])),
      np.asarray(metric(jnp.asarray(out)))[:, order],
      rtol=1e-4,
      atol=1e-6,
    )


def test_where_nothing_is_written():
  out = jnp.zeros((1, 2, 3, 4))
  assert experts.expert_first_share(out).tolist() == [[0.0] * 3]
  # Two that cancel have no share of what is not there.
  out = out.at[0, 0, :2, 0].set(jnp.array([1.0, -1.0]))
  assert experts.expert_first_share(out).tolist() == [[0.0] * 3]


@pytest.mark.thorough
def test_the_report_names_the_expert(made):
  params, root = made
  profile = sink_profile(params, CFG, [TEXT, TEXT])
  data = report.summary(profile, eps=(0.3,))
  found = profile.mean("expert_first_norm")
  # Layer 1's expert 0 multiplies by 200: the first token's massive activation.
  assert data["sink_expert"]["layer"] == data["peak_expert"]["layer"] == 1
  assert data["sink_expert"]["expert"] == data["peak_expert"]["expert"] == 0
  assert data["sink_expert"]["value"] == found.max() == found[1, 0]
  np.testing.assert_array_equal(
    data["expert_first_share"], profile.mean("expert_first_share")
  )
  (card,) = (c for c in report._numbers(data) if "expert" in c.label)
  assert card.value == "1.0" and "written by 1.0" in card.note


def test_models_without_experts_do_not_show_them(tiny):
  params, cfg = tiny
  data = report.summary(sink_profile(params, cfg, [TEXT]), eps=(0.3,))
  record = make_probe(cfg)(params, jnp.array([TEXT]))
  assert not [key for key in (*data, *record) if "expert" in key]
  assert registry.observers(NAMES) == {}


@pytest.mark.thorough
def test_layers_that_are_streamed_leave_them_out(made):
  """An observer inside the MLP would hold every expert's outputs at once."""
  params, _ = made
  profile = sink_profile(InMemory(CFG, params), CFG, [TEXT])
  data = report.summary(profile, eps=(0.3,))
  assert not [key for key in data if "expert" in key]
  assert report._numbers(data)
