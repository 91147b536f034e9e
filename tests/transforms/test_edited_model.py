"""A config with edits: the model that `intervene` makes, wherever it runs."""

import pathlib
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import sinkjax
from sinkjax.inference import kv_policy
from sinkjax.inference.generate import generate
from sinkjax.metrics import rows
from sinkjax.models.cache import advance, init_cache, split_layers
from sinkjax.models.context import make_context
from sinkjax.models.layerwise import apply_block
from sinkjax.transforms.jacobian import jacobian_norms
from sinkjax.transforms.streaming import stream_statistics

sys.path.insert(0, str(pathlib.Path(__file__).parent))
from dense_jacobian import BASE, model, quickly_compiled, text

EVERY = (
  "knockout key=1 from=1; graded key=0 by=2.5; scale head=0.1,1.2 by=0.5; "
  "ablate neurons=1:3,0:5 to=0.3,-0.2; scale site=mlp_out layers=1 by=1.5"
)


def hand_made(f):
  """The same by `intervene`."""
  first, second = np.ones((2, 1, 1, 4, 1))
  first[:, :, 1] = second[:, :, 2] = 0.5
  return sinkjax.intervene(
    f,
    {
      "scores": sinkjax.chain(
        sinkjax.knockout(1, from_layer=1), sinkjax.graded(0, 2.5)
      ),
      "z": sinkjax.chain(
        sinkjax.scale(first, layers=[0]), sinkjax.scale(second, layers=[1])
      ),
      "mlp_act": sinkjax.ablate_neurons([(1, 3), (0, 5)], to=[0.3, -0.2]),
      "mlp_out": sinkjax.scale(1.5, layers=[1]),
    },
  )


SINK = rows.sink_score()


@pytest.fixture(scope="module")
def case(tiny, tokens):
  """(params, the edited config, its logits) of the tiny model."""
  params, cfg = tiny
  mine = sinkjax.edited(cfg, EVERY)
  logits = jax.jit(sinkjax.forward(mine))(params, tokens).logits
  return params, mine, np.asarray(logits)


def test_it_is_the_model_that_intervene_makes(tiny, tokens, case):
  params, cfg = tiny
  f = sinkjax.forward(cfg)
  plain, want = (jax.jit(g)(params, tokens).logits for g in (f, hand_made(f)))
  np.testing.assert_array_equal(case[2], want)
  assert np.abs(case[2] - np.asarray(plain)).max() > 0.1


def test_what_it_is_and_what_it_leaves(tiny, tokens, case):
  params, cfg = tiny
  mine = case[1]
  assert mine != cfg and hash(mine) != hash(cfg)
  assert isinstance(mine, sinkjax.ModelConfig) and mine.apart()[0] == cfg
  assert mine.to_dict() == cfg.to_dict()
  assert mine.replace(dtype="bfloat16").written == mine.written
  assert sinkjax.edited(cfg, "none") is cfg
  f = sinkjax.forward(mine)
  assert f.cfg == cfg and set(f.taps.edits) == set(mine.apart()[1])
  shapes = [sinkjax.param_shapes(one) for one in (mine, cfg)]
  assert jax.tree.leaves(shapes[0]) == jax.tree.leaves(shapes[1])
  with pytest.raises(ValueError, match="position 99 is out of range"):
    sinkjax.forward(sinkjax.edited(cfg, "knockout key=99"))(params, tokens)
  with pytest.raises(ValueError, match="place in no format"):
    sinkjax.save("never", params, mine, None)


@pytest.mark.thorough
def test_edits_of_an_analysis_come_after_its_own(tiny, tokens):
  params, cfg = tiny
  f = sinkjax.forward(sinkjax.edited(cfg, "scale site=mlp_out by=0.5"))
  g = sinkjax.intervene(f, {"mlp_out": sinkjax.add(1.0)})
  want = sinkjax.intervene(
    sinkjax.forward(cfg),
    {"mlp_out": sinkjax.chain(sinkjax.scale(0.5), sinkjax.add(1.0))},
  )
  function = sinkjax.intervene(f, {"mlp_out": lambda x, layer: x + 1})
  logits = [
    np.asarray(jax.jit(h)(params, tokens).logits) for h in (g, want, function)
  ]
  np.testing.assert_array_equal(logits[0], logits[1])
  np.testing.assert_array_equal(logits[2], logits[1])
  with pytest.raises(ValueError, match="duplicate edit 'mlp_out'"):
    sinkjax.intervene(g, {"mlp_out": sinkjax.add(1.0)})


def test_a_layer_by_itself_is_refused(tiny, case):
  params, mine = case[:2]
  block = jax.tree.map(lambda x: x[0], params["blocks"])
  ctx = make_context(mine, jnp.arange(2)[None], None)
  with pytest.raises(ValueError, match="does not know the edits"):
    apply_block(mine, block, jnp.ones((1, 2, 32)), 0, ctx, sinkjax.Taps())


@pytest.mark.thorough
def test_streamed_it_is_the_same(tiny, tokens, case):
  params, mine, logits = case
  watch = {"x": ("final", lambda x: x), "p": ("pattern", rows.dense(SINK))}
  f = sinkjax.capture(sinkjax.forward(mine), watch)
  want = jax.jit(f)(params, tokens).trace
  got = stream_statistics(f, {}, block=5, nll=False)(params, tokens).trace
  for name in watch:
    np.testing.assert_allclose(got[name], want[name], atol=2e-5)


@pytest.mark.thorough
@pytest.mark.parametrize(
  "policy",
  [kv_policy.full(12, chunk=5), kv_policy.sinks(1, 11, chunk=5)],
  ids=["full", "sinks"],
)
def test_a_cache_gives_the_same(tokens, case, policy):
  params, mine, logits = case
  step = jax.jit(advance(mine, policy))
  cache, found = init_cache(mine, policy, 2), []
  for at in (0, 5, 10):
    some, cache = step(split_layers(params), tokens[:, at : at + 5], cache)
    found.append(some)
  np.testing.assert_allclose(np.concatenate(found, 1), logits, atol=1e-4)


@pytest.mark.thorough
def test_a_hidden_key_is_the_token_and_not_the_slot(tiny, tokens):
  """A window's slots are used again: no token but the first is hidden."""
  params, cfg = tiny
  policy, row = kv_policy.window(4, chunk=1), tokens[:1]

  def last(cfg):
    step, cache = jax.jit(advance(cfg, policy)), init_cache(cfg, policy)
    for at in range(9):
      logits, cache = step(split_layers(params), row[:, at : at + 1], cache)
      if at == 3:
        early = np.asarray(logits)
    return early, np.asarray(logits)

  plain = last(cfg)
  hidden = last(sinkjax.edited(cfg, "knockout key=0 from=2"))
  assert np.abs(hidden[0] - plain[0]).max() > 1e-3
  # From the last layer on nobody keeps what it did while it was there.
  np.testing.assert_array_equal(hidden[1], plain[1])


def test_caches_refuse_what_they_cannot_do(tiny):
  params, cfg = tiny
  for edit, policy, said in (
    ("knockout key=0", kv_policy.heavy_hitters(4), "others in each head"),
    ("hold site=pattern", kv_policy.heavy_hitters(4), "others in each head"),
    ("scale site=k by=2", kv_policy.full(8), "an edit at 'k'"),
  ):
    with pytest.raises(ValueError, match=said):
      list(
        generate(
          sinkjax.edited(cfg, edit), params, [1, 2], policy=policy, max_tokens=1
        )
      )


@pytest.mark.thorough
def test_its_jacobian_is_that_of_jacfwd():
  cfg = BASE.replace(n_layers=2, dtype="float64")
  with jax.enable_x64(True), quickly_compiled():
    f, params = model(cfg)
    g, tokens = sinkjax.forward(sinkjax.edited(cfg, EVERY)), text(5)
    got = jacobian_norms(g, params, tokens)
    want = jacobian_norms(g, params, tokens, method="reference")
    by_hand = jacobian_norms(hand_made(f), params, tokens)
    np.testing.assert_allclose(got, want, rtol=1e-9)
    np.testing.assert_array_equal(got, by_hand)
  assert got[4, 0] > 1e-3
