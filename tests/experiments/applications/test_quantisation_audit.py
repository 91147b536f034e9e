"""Verdicts on losses made by hand, settings, a run and its page."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import sinkjax
from sinkjax.experiments.applications.quantisation_audit import EXPERIMENT
from sinkjax.experiments.applications.quantisation_audit.experiment import (
  INPUTS,
  NOTHING,
  OTHER,
  SINK,
  WEIGHTS,
  Config,
  attributed,
  measure,
  settings,
)
from sinkjax.experiments.harness.api import Result
from sinkjax.experiments.harness.protocol import Verdict, judge
from sinkjax.experiments.shared.prompt_corpus import Text
from sinkjax.inference.quantize_linear import (
  inputs_of,
  quantize_inputs,
  quantize_weights,
)

LAYERS = 3
SITES = inputs_of(sinkjax.TINY)
KERNELS = ["attn.q", "mlp.down"]


def verdicts(added=None, by_layer=0.0, lost=0.0, broken=False):
  """Of 9 texts, by nats added with a step a tensor and what is left out."""
  rng, arrays, added = np.random.default_rng(0), {}, added or {}
  usual = added.get(NOTHING, 0.0)
  outs = [NOTHING, WEIGHTS, INPUTS, SINK, OTHER, *KERNELS, *SITES]

  def put(per, out, nats):
    noise = 0.001 * rng.normal(size=9)
    arrays[f"loss, {per}, without {out}"] = nats + noise
    arrays[f"kl, {per}, without {out}"] = nats + noise

  for out in outs:
    put("tensor", out, added.get(out, usual))
    put("token", out, 0.0)
  for s, site in enumerate(SITES):
    dispersion = 1 + s + np.arange(LAYERS)[:, None] / 10 + np.zeros(9)
    arrays[f"dispersion, {site}"] = dispersion
    for layer in range(LAYERS):
      given = by_layer * dispersion[layer, 0]
      put("tensor", f"{site}, layer {layer}", usual - given)
    arrays[f"underflow, tensor, {site}"] = np.full((LAYERS, 9), 0.1 + lost)
    arrays[f"underflow, token, {site}"] = np.full((LAYERS, 9), 0.1)
  numbers = {
    "templates": list(range(9)),
    "inputs": list(SITES),
    "kernels": KERNELS,
    "broken": {"tensor": broken, "token": False},
  }
  made = Result(numbers, {}, arrays).as_stored(Config())
  found = judge(EXPERIMENT.claims(made))
  assert len({claim.id for claim in found}) == 7
  assert found[-1].verdict == Verdict.NOT_TESTABLE
  return [claim.verdict for claim in found[:-1]], found


def test_verdicts():
  yes, no = Verdict.SUPPORTED, Verdict.CONTRADICTED
  same, without = Verdict.NO_EFFECT, Verdict.NOT_TESTABLE
  costly = {NOTHING: 0.5, SINK: 0.1, "mlp_act": 0.1}
  found, _ = verdicts(costly, by_layer=0.02, lost=0.2)
  assert found == [yes] * 6
  other = {NOTHING: 0.5, OTHER: 0.1, "attn_in": 0.1}
  found, claims = verdicts(other, by_layer=-0.02, lost=-0.2)
  assert found == [yes, yes, no, no, no, no]
  assert "most by attn_in, +0.40" in claims[3].ours
  found, _ = verdicts()
  assert found[:4] == [same, yes, same, same]
  found, claims = verdicts({NOTHING: 3.0}, broken=True)
  assert found == [yes, yes, without, without, without, same]
  assert "above 10 times the reference's" in claims[2].untested


def test_every_tensor_is_left_out_once():
  cfg = sinkjax.TINY.replace(gate="head")
  found = dict(settings(cfg, KERNELS, "tensor"))
  sites = inputs_of(cfg)
  assert "z_gated" in sites
  assert len(found) == 5 + len(KERNELS) + 4 + 4 * cfg.n_layers
  count = {
    name: sum(int(x.sum()) for x in one.sites.values())
    for name, one in found.items()
  }
  every = 4 * cfg.n_layers
  assert count[INPUTS] == 0 and count[NOTHING] == every
  assert count["z_gated"] == every - cfg.n_layers
  assert count["z_gated, layer 1"] == every - 1
  assert not found["z_gated, layer 1"].sites["z_gated"][1]
  assert found["attn.q"].kernel == "attn.q" and count["attn.q"] == every
  assert (found[SINK].keep, found[OTHER].keep, found[NOTHING].keep) == (
    0,
    1,
    -1,
  )
  # Single layers are told apart with a step a tensor alone.
  assert len(dict(settings(cfg, KERNELS, "token"))) == 5 + len(KERNELS) + 4


@pytest.mark.thorough
@pytest.mark.slow
@pytest.mark.parametrize("gate", ["none", "head"])
def test_run_and_page(reader, gate):
  # Ids of its own, whatever other tests have read.
  cfg = reader.cfg.replace(gate=gate)
  reader = reader._replace(
    tokenizer=type(reader.tokenizer)(),
    cfg=cfg,
    params=sinkjax.init_params(cfg, jax.random.key(1)),
  )
  rng = np.random.default_rng(0)
  words = "the old man saw a red bird and went to his garden by night"
  words = words.split()  # noqa: SIM905
  texts = [Text("a", f"{i}", " ".join(rng.choice(words, 30))) for i in range(5)]
  config, seen = Config(tokens=12, bits=4), []
  done = measure(
    reader, config, texts=texts, progress=lambda *at: seen.append(at)
  )
  assert seen[-1][0] == seen[-1][1]
  found = done.as_stored(config, "tiny")
  ids = np.array([reader.encode([one.text])[0][:12] for one in texts])
  f = sinkjax.forward(cfg)

  def loss(params, edits):
    logits = jax.jit(sinkjax.intervene(f, edits))(params, ids).logits
    logs = np.asarray(jax.nn.log_softmax(logits[:, 2:-1]), float)
    return -np.take_along_axis(logs, ids[:, 3:, None], -1)[..., 0].mean(-1)

  rounded = quantize_weights(reader.params, 4)
  edits = quantize_inputs(cfg, 4, ranges="tensor", keep=0)
  whole = loss(reader.params, {})
  np.testing.assert_allclose(found.numbers["loss"], whole.mean(), rtol=1e-5)
  for out, want in (
    (INPUTS, loss(rounded, {})),
    (SINK, loss(rounded, edits)),
    ("mlp_in", None),
  ):
    got = found.arrays[f"loss, tensor, without {out}"]
    if want is None:
      rest = quantize_inputs(cfg, 4, ranges="tensor")
      want = loss(rounded, {k: x for k, x in rest.items() if k != "mlp_in"})
    np.testing.assert_allclose(got, want - whole, atol=1e-3, err_msg=out)
    assert np.abs(want - whole).max() > 5e-3
    assert (found.arrays[f"kl, tensor, without {out}"] > 0).all()
  given = attributed(found, "tensor", "mlp_in")
  assert np.abs(given).max() > 1e-4
  rows = found.records("tensors.csv")
  assert [row["tensor"] for row in rows][:4] == list(inputs_of(cfg))
  assert "attn.gate" in found.numbers["kernels"] or gate == "none"
  x = sinkjax.capture(f, {"x": ("mlp_in", lambda x: x)})
  x = jax.jit(lambda *a: x(*a).trace["x"])(reader.params, jnp.asarray(ids))
  sizes = np.abs(np.asarray(x, float)).max(-1)
  want = sizes.max(-1) / np.median(sizes, axis=-1)
  np.testing.assert_allclose(
    found.arrays["dispersion, mlp_in"], want, rtol=1e-4
  )
  drawn = EXPERIMENT.draw(found)
  assert set(drawn) == {"left_out.png", "rows.png"}
  assert len(EXPERIMENT.sections(found, drawn)) == 2
  assert len(EXPERIMENT.claims(found)) == 7


def test_refusals(reader):
  with pytest.raises(ValueError, match=r"bits must be in \[2, 16\], got 1"):
    measure(reader, Config(bits=1))
  with pytest.raises(ValueError, match="tokens must be at least 4, got 3"):
    measure(reader, Config(tokens=3))
