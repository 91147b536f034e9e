"""The loss's sensitivity against jax.grad, and the map's bookkeeping."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import sinkjax
from sinkjax.analysis import sensitivity as module
from sinkjax.analysis.loss_sensitivity import loss_gradient, loss_sensitivity
from sinkjax.analysis.sensitivity import Columns, Sensitivity, sensitivity_map
from sinkjax.analysis.sensitivity_config import SensitivityConfig, work
from sinkjax.analysis.sink_profile import token_nll
from sinkjax.metrics import spread
from sinkjax.models.layerwise import InMemory
from sinkjax.transforms.jacobian import jacobian_norms

IDS = [3, 1, 4, 1, 5, 9]
EDITS = {
  "none": {},
  "knockout": {"scores": sinkjax.knockout(0, from_layer=1)},
  "same site": {
    "embed": sinkjax.scale(1.3),
    "resid_mid": sinkjax.scale(0.7),
    "final": sinkjax.scale(2.0),
  },
}
CASES = [
  ("none", "embed"),
  ("none", ("resid_pre", 1)),
  ("none", "resid_post"),
  ("knockout", "embed"),
  ("knockout", ("resid_mid", 1)),
  ("same site", "embed"),
  ("same site", ("resid_mid", 1)),
  ("same site", "final"),
]


def edited(cfg, name):
  f = sinkjax.forward(cfg)
  return sinkjax.intervene(f, EDITS[name]) if EDITS[name] else f


def loss_of(cfg, params, edits, source):
  """f(shift): the loss when it is added at the source, by the whole model."""
  site, layer = source if isinstance(source, tuple) else (source, 0)
  own = {} if site in ("embed", "final") else {"layers": layer}

  def loss(shift):
    mine = sinkjax.add(shift[None], **own)
    mine = sinkjax.chain(edits[site], mine) if site in edits else mine
    fn = sinkjax.intervene(sinkjax.forward(cfg), {**edits, site: mine})
    tokens = jnp.array([IDS])
    return token_nll(fn(params, tokens).logits, tokens)[0]

  return loss


@pytest.mark.slow
@pytest.mark.parametrize(("edit", "source"), CASES)
def test_loss_gradient_is_grad_of_the_model(tiny, source, edit):
  params, cfg = tiny
  loss = loss_of(cfg, params, EDITS[edit], source)
  zero = jnp.zeros((len(IDS), cfg.d_model))
  want, gradient = jax.jit(jax.value_and_grad(loss))(zero)
  fn = edited(cfg, edit)
  got, mine = loss_gradient(fn, params, IDS, source=source)
  assert got == pytest.approx(float(want), rel=1e-5)
  scale = float(np.abs(gradient).max())
  np.testing.assert_allclose(mine, gradient, atol=1e-5 * scale)
  norms = loss_sensitivity(fn, params, IDS, source=source)
  np.testing.assert_allclose(norms, np.linalg.norm(gradient, axis=1), rtol=1e-4)
  assert norms[-1] == 0


@pytest.mark.thorough
def test_loss_gradient_by_finite_differences(tiny):
  params, cfg = tiny
  rng = np.random.default_rng(0)
  way = rng.standard_normal((len(IDS), cfg.d_model))
  with jax.enable_x64(True):
    cfg64 = cfg.replace(dtype="float64")
    params64 = jax.tree.map(lambda x: jnp.asarray(x, jnp.float64), params)
    loss = loss_of(cfg64, params64, EDITS["knockout"], ("resid_mid", 1))
    slope = (loss(1e-5 * way) - loss(-1e-5 * way)) / 2e-5
  fn = edited(cfg, "knockout")
  _, gradient = loss_gradient(fn, params, IDS, source=("resid_mid", 1))
  assert np.sum(gradient * way) == pytest.approx(float(slope), rel=1e-3)


@pytest.mark.thorough
def test_loss_gradient_of_layers_untied_and_capped():
  cfg = sinkjax.TINY.replace(tie_embeddings=False, logit_softcap=3.0)
  params = sinkjax.init_params(cfg, jax.random.key(1))
  zero = jnp.zeros((len(IDS), cfg.d_model))
  want = jax.jit(jax.grad(loss_of(cfg, params, {}, "embed")))(zero)
  f = sinkjax.forward(cfg)
  for weights in (params, InMemory(cfg, params)):
    _, got = loss_gradient(f, weights, IDS)
    np.testing.assert_allclose(got, want, atol=1e-5 * np.abs(want).max())


def test_vocabulary_in_pieces(tiny, monkeypatch):
  params, cfg = tiny
  f = sinkjax.forward(cfg)
  want = loss_sensitivity(f, params, IDS)
  monkeypatch.setattr("sinkjax.models.layerwise.UNEMBED_COLUMNS", 24)
  np.testing.assert_allclose(loss_sensitivity(f, params, IDS), want, rtol=1e-5)


@pytest.mark.parametrize("tokens", [[1], [[1, 2], [3, 4]]])
def test_loss_needs_one_text_of_two_tokens(tiny, tokens):
  with pytest.raises(ValueError, match="one text"):
    loss_sensitivity(sinkjax.forward(tiny[1]), tiny[0], tokens)


@pytest.fixture(scope="module")
def found(tiny):
  params, cfg = tiny
  config = SensitivityConfig(per_layer=True)
  return sensitivity_map(sinkjax.forward(cfg), params, IDS, config)


@pytest.mark.thorough
def test_map_is_the_transform_s(tiny, found):
  params, cfg = tiny
  f = sinkjax.forward(cfg)
  layers = jacobian_norms(f, params, jnp.array(IDS), per_layer=True)
  np.testing.assert_allclose(found.layers, layers, rtol=1e-5)
  np.testing.assert_array_equal(found.norms, found.layers[-1])
  assert found.crossed == list(range(cfg.n_layers))
  assert found.checked == len(IDS)
  assert 0 <= found.check < 1e-3
  assert found.mixing() == pytest.approx(
    float(spread.total_mixing(jnp.asarray(found.norms, jnp.float32)))
  )
  assert found.mixing_by_layer().shape == (cfg.n_layers,)
  assert found.mixing_by_layer()[-1] == pytest.approx(found.mixing())
  np.testing.assert_allclose(found.last_by_distance(), found.norms[-1][::-1])
  assert found.mean_by_distance().shape == found.reach().shape == (len(IDS),)


@pytest.mark.parametrize(
  ("source", "target"),
  [
    ("embed", "resid_post"),
    ("resid_post", "resid_post"),
    ("embed", "final"),
    ("resid_mid", ("resid_post", 1)),
    (("resid_post", 1), ("resid_mid", 2)),
    ("embed", "embed"),
    ("final", "final"),
    ("resid_post", ("resid_post", 0)),
  ],
)
def test_crossed_is_what_the_engine_crosses(tiny, source, target):
  from sinkjax.transforms import jacobian_engine, residual

  cfg = tiny[1]
  config = SensitivityConfig(source=source, target=target)
  steps, _ = jacobian_engine._steps(
    cfg, *residual.parse_pair(cfg, source, target)
  )
  assert config.crossed(cfg) == [layer for layer, _ in steps]


@pytest.mark.parametrize("per_layer", [False, True])
def test_goes_on_from_known_columns(tiny, found, per_layer, monkeypatch):
  params, cfg = tiny
  asked, calls = [], []

  def watched(*args, cols, **kwargs):
    asked.append(cols)
    return jacobian_norms(*args, cols=cols, **kwargs)

  monkeypatch.setattr(module, "jacobian_norms", watched)
  columns = Columns.none(len(IDS), cfg.n_layers if per_layer else None)
  whole = found.layers if per_layer else found.norms
  columns.add([1, 4], whole[..., [1, 4]])
  assert columns.missing() == [0, 2, 3, 5]
  config = SensitivityConfig(per_layer=per_layer)
  f = sinkjax.forward(cfg)
  again = sensitivity_map(
    f, params, IDS, config, columns=columns, finished=lambda: calls.append(1)
  )
  assert asked == [[0, 2, 3, 5]]
  assert calls
  assert again.checked == 4
  np.testing.assert_allclose(again.norms, found.norms, rtol=1e-5)
  assert columns.missing() == []
  final = sensitivity_map(f, params, IDS, config, columns=columns)
  assert len(asked) == 1
  assert final.check is None
  np.testing.assert_array_equal(final.norms, again.norms)


def test_estimates_carry_errors(tiny, found):
  params, cfg = tiny
  config = SensitivityConfig(method="hutchinson", samples=32)
  got = sensitivity_map(sinkjax.forward(cfg), params, IDS, config)
  assert got.stderr.shape == got.norms.shape
  assert got.layers is None and got.check is None
  seen = np.tri(len(IDS), dtype=bool)
  gap = np.abs(got.norms - found.norms)[seen]
  assert np.all(gap <= 8 * got.stderr[seen] + 1e-3 * found.norms[seen])
  assert np.all(got.norms[~seen] == 0)


def test_ratio_and_names(tiny, found):
  one = Sensitivity(IDS, SensitivityConfig(), found)
  assert one.ratio() is None
  assert list(one.maps()) == ["as it is"]
  two = Sensitivity(IDS, SensitivityConfig(), found, found, "twice")
  assert list(two.maps()) == ["as it is", "twice"]
  seen = np.tri(len(IDS), dtype=bool)
  np.testing.assert_allclose(two.ratio()[seen], 1)
  assert np.isnan(two.ratio()[~seen]).all()


def test_work_counts(tiny):
  cfg = tiny[1]
  exact = work(cfg, SensitivityConfig(), 12)
  some = work(cfg, SensitivityConfig(), 12, [3])
  plain = work(cfg, SensitivityConfig(method="reference"), 12)
  few = work(cfg, SensitivityConfig(method="hutchinson", samples=2), 12)
  assert 0 < some.flops < exact.flops < plain.flops
  assert few.flops < plain.flops
  assert exact.seconds(2e9) == pytest.approx(exact.seconds(1e9) / 2)
  assert min(exact.bytes, some.bytes, plain.bytes, few.bytes) > 0


@pytest.mark.parametrize(
  ("fields", "message"),
  [
    ({"norm": "nope"}, "norm must be one of"),
    ({"method": "nope"}, "method must be one of"),
    ({"method": "hutchinson", "norm": "max"}, "the norm fro only"),
    ({"method": "hutchinson", "per_layer": True}, "need the method exact"),
    ({"samples": 1}, "samples must be at least 2"),
    ({"budget_bytes": 0}, "must be positive"),
  ],
)
def test_refusals(fields, message):
  with pytest.raises(ValueError, match=message):
    SensitivityConfig(**fields)


@pytest.mark.parametrize(
  ("fields", "message"),
  [
    ({"target": "final", "per_layer": True}, "need a target at resid_post"),
    ({"source": ("resid_post", 2), "per_layer": True}, "a layer before it"),
    ({"source": "q"}, "no residual site"),
    ({"source": ("resid_pre", 99)}, "outside a model"),
    ({"source": "final", "target": "embed"}, "comes before"),
  ],
)
def test_points_are_checked(tiny, fields, message):
  with pytest.raises(ValueError, match=message):
    SensitivityConfig(**fields).crossed(tiny[1])


def test_weights_on_disk(tiny):
  params, cfg = tiny
  f, layers = sinkjax.forward(cfg), InMemory(cfg, params)
  config = SensitivityConfig(method="reference")
  with pytest.raises(ValueError, match="weights in memory"):
    sensitivity_map(f, layers, IDS, config)
  config = SensitivityConfig(method="hutchinson", samples=4)
  got = sensitivity_map(f, layers, IDS, config)
  want = sensitivity_map(f, params, IDS, config)
  np.testing.assert_allclose(got.norms, want.norms, rtol=1e-5)
