"""A row of scores that an edit makes -inf is refused, and is never NaN."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from quick import quick

import sinkjax
from sinkjax.analysis.loss_sensitivity import loss_sensitivity
from sinkjax.analysis.over_squashing import over_squashing
from sinkjax.analysis.sensitivity import sensitivity_map
from sinkjax.analysis.sensitivity_config import SensitivityConfig
from sinkjax.metrics import rows
from sinkjax.models.normalizers import MASKED
from sinkjax.taps import Taps
from sinkjax.transforms.jacobian_engine import SelfCheckError
from sinkjax.transforms.layer_gains import layer_gains
from sinkjax.transforms.residual import parse_pair, residual_map

CFG = sinkjax.TINY.replace(n_layers=2)
TOKENS = jnp.array([[3, 1, 4, 1, 5]])
TEXT = TOKENS[0]


@dataclasses.dataclass(frozen=True)
class Row:
  """Gives every score of one row the same value."""

  value: float
  row: int = 3

  def __call__(self, scores, layer):
    return self.rows(scores, layer, 0)

  def rows(self, scores, layer, start):
    at = start + jnp.arange(scores.shape[-2])[:, None]
    return jnp.where(at == self.row, self.value, scores)


@pytest.fixture(scope="module")
def params():
  return sinkjax.init_params(CFG, jax.random.key(0))


def edited(value, cfg=CFG):
  return sinkjax.intervene(sinkjax.forward(cfg), {"scores": Row(value)})


def statistics(fn, params):
  run = sinkjax.stream_statistics(fn, {"alpha": rows.sink_score()})
  return run(params, TOKENS).trace["alpha"]


def residual(fn, params):
  points = parse_pair(CFG, "embed", "resid_post")
  y = residual_map(
    fn, params, TOKENS, **dict(zip(("source", "target"), points, strict=True))
  )
  return y(jnp.zeros((1, TEXT.size, CFG.d_model)))


WAYS = {
  "forward": lambda fn, p: fn(p, TOKENS).logits,
  "unrolled": lambda fn, p: (
    sinkjax.forward(CFG.replace(scan_layers=False))(
      p, TOKENS, taps=fn.taps
    ).logits
  ),
  "capture": lambda fn, p: sinkjax.capture(
    fn, {"a": ("pattern", sinkjax.sink_score)}
  )(p, TOKENS).trace["a"],
  "streamed": statistics,
  "residual": residual,
  "exact": lambda fn, p: sinkjax.jacobian_norms(fn, p, TEXT),
  "reference": lambda fn, p: sinkjax.jacobian_norms(
    fn, p, TEXT, method="reference"
  ),
  "blocks": lambda fn, p: sinkjax.token_jacobian(fn, p, TEXT, [(4, 0)]),
  "by columns": lambda fn, p: sinkjax.estimate_norms(fn, p, TEXT).norms,
  "by rows": lambda fn, p: sinkjax.estimate_norms(fn, p, TEXT, by="rows").norms,
  "power": lambda fn, p: sinkjax.power_norms(fn, p, TEXT, [(4, 0)]).norms,
  "loss": lambda fn, p: loss_sensitivity(fn, p, TEXT),
  "map": lambda fn, p: sensitivity_map(fn, p, TEXT, SensitivityConfig()).norms,
  "gains": lambda fn, p: layer_gains(fn, p, TEXT).mlp_gain,
  "over-squashing": lambda fn, p: over_squashing(fn, p, TEXT).norms,
}


@pytest.mark.parametrize(
  "way", quick(WAYS, "forward", "streamed", others="thorough")
)
def test_no_analysis_returns_nan(way, params):
  refusals = (ValueError, SelfCheckError)
  with pytest.raises(refusals, match=r"-inf|has no gains") as error:
    WAYS[way](edited(-jnp.inf), params)
  assert "\n" not in str(error.value)


@pytest.mark.parametrize(
  "way",
  quick(["forward", "streamed", "exact", "loss"], "forward", others="thorough"),
)
def test_hidden_by_a_finite_number_they_are_uniform(way, params):
  assert np.isfinite(WAYS[way](edited(MASKED), params)).all()


def test_a_uniform_row(params):
  fn = sinkjax.capture(
    edited(MASKED), {"p": ("pattern", lambda pattern: pattern)}
  )
  pattern = fn(params, TOKENS).trace["p"]
  want = np.array([0.25, 0.25, 0.25, 0.25, 0])
  np.testing.assert_allclose(
    pattern[:, 0, :, 3], np.broadcast_to(want, (2, CFG.n_heads, 5))
  )


def test_under_a_jit_of_ones_own_it_is_nan(params):
  """Nothing can raise there, as `intervene` and `taps` say."""
  out = jax.jit(edited(-jnp.inf))(params, TOKENS)
  assert np.isnan(out.logits).any()


def test_other_edits_are_not_looked_at():
  nan = jnp.full((1, 2, 3), jnp.nan)
  Taps({"z": sinkjax.scale(1.0)}).require_numbers(nan, "it")
  Taps({"scores": Row(0.0)}).require_numbers(jnp.full(3, jnp.inf), "it")
  for site in ("scores", "pattern"):
    with pytest.raises(ValueError, match=f"it are NaN, .* at '{site}'"):
      Taps({site: Row(0.0)}).require_numbers(nan, "it")
