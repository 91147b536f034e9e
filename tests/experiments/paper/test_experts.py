"""Experts by hand, verdicts on made-up results, a run where one is large."""

import jax
import numpy as np
import pytest
from jitted import jitted
from variants import scaled

import sinkjax
from sinkjax.experiments.harness.api import Result
from sinkjax.experiments.harness.protocol import Verdict, judge
from sinkjax.experiments.paper.experts import EXPERIMENT
from sinkjax.experiments.paper.experts.experiment import (
  Config,
  controls,
  look,
  measure,
  super_experts,
  unfit,
)
from sinkjax.experiments.shared.prompt_corpus import Text

YES, SAME = Verdict.SUPPORTED, Verdict.NO_EFFECT
TEXTS, LAYERS, EXPERTS = 12, 3, 4


def verdicts(
  rate=0.8, norm=100.0, loss=3.0, first=1.0, same=True, at_first=1, sinks=True
):
  """Of made texts, by what is left without expert 1.2."""
  rng = np.random.default_rng(0)

  def near(value, *shape):
    return value + 0.001 * rng.normal(size=(*shape, TEXTS))

  shape = (LAYERS, TEXTS, EXPERTS)
  peak, routed = rng.uniform(1, 2, shape), rng.uniform(0.245, 0.255, shape)
  peak[1, :, 2] = 900
  if not same:
    peak[0, ::2, 1] = 950
  arrays = {"peak": peak, "elsewhere": routed}
  arrays |= {
    "first": np.where(peak > 800, first, routed),
    "at_first": np.full(shape, at_first),
  }
  for name in ("largest", "others"):
    arrays[f"rate, {name}"] = near(0.8, 3)
    arrays[f"loss, {name}"] = near(3.0, 3)
    arrays[f"norm, {name}"] = near(100.0, 3, LAYERS)
  arrays["rate, largest"][1:] = near(rate, 2)
  if not sinks:
    arrays |= {
      f"rate, {x}": np.zeros((3, TEXTS)) for x in ("largest", "others")
    }
  arrays["loss, largest"][1:] = near(loss, 2)
  arrays["norm, largest"][1:, 1] = near(norm, 2)
  numbers = {
    "templates": list(range(TEXTS)),
    "first_tokens": 5,
    "experts": LAYERS * EXPERTS,
    "found": 1,
    "order": [[1, 2], [0, 1]],
    "layer": 1,
  }
  made = Result(numbers, {}, arrays).as_stored(Config(most=2))
  return {claim.id: claim.verdict for claim in judge(EXPERIMENT.claims(made))}


def test_verdicts():
  strong = verdicts(rate=0.1, norm=5.0, loss=6.0)
  assert set(strong.values()) == {YES} and len(strong) == 6
  weak = verdicts(first=0.25, same=False, at_first=0)
  assert weak["largest_at_first"] == Verdict.CONTRADICTED
  assert weak["same_in_all_texts"] == Verdict.CONTRADICTED
  assert weak["first_is_routed"] == SAME
  assert {weak[x] for x in weak if x.startswith("ablation")} == {SAME}
  none = verdicts(sinks=False)
  assert none["ablation_lowers_sinks"] == Verdict.NOT_TESTABLE


def test_super_experts_are_rare_and_large():
  rng = np.random.default_rng(0)
  peak = rng.uniform(1, 2, (10, 100))
  peak[2, :3] = 500, 90, 40  # the last is below a tenth of the largest
  assert super_experts(peak) == 2
  # Above a tenth are more, but no more than a two-hundredth are rare.
  peak[3, :20] = 300
  assert super_experts(peak) <= 5
  assert super_experts(np.full((2, 4), 1.0)) == 1


def test_controls_are_others_of_the_layer_with_as_many_tokens():
  load = np.random.default_rng(0).uniform(size=(2, 16))
  order = [(0, 3), (1, 5), (0, 4)]
  for draw in controls(order, load, 5, 0):
    assert len(set(draw)) == 3 and not set(draw) & set(order)
    for (layer, expert), (other, found) in zip(order, draw, strict=True):
      assert other == layer
      gap = np.abs(load[layer] - load[layer, expert])
      # Itself, two of the order and one that is taken may be nearer.
      assert np.sort(gap)[6] >= gap[found]


@pytest.fixture(scope="module")
def mixture(reader):
  """A reader with experts, one of which is large at "first"."""
  cfg = reader.cfg.replace(
    n_layers=2,
    d_ff=16,
    n_experts=4,
    experts_per_token=2,
    norm_topk=True,
    shared_d_ff=8,
  )
  params = jitted(sinkjax.init_params)(cfg, jax.random.key(3))
  params = scaled(params, 2.5)
  tokenizer = type(reader.tokenizer)()
  return reader._replace(params=params, cfg=cfg, tokenizer=tokenizer)


def ids_of(subject, count, tokens):
  words = [f"w{i}" for i in range(20)]
  rng = np.random.default_rng(0)
  texts = [
    Text("a", f"{i}", "first " + " ".join(rng.choice(words, tokens)))
    for i in range(count)
  ]
  return texts, np.array([subject.encode([t.text])[0][:tokens] for t in texts])


@pytest.mark.thorough
def test_what_experts_write_is_their_last_map_without_its_weight(mixture):
  _, ids = ids_of(mixture, 2, 8)
  cfg, params = mixture.cfg, mixture.params
  seen = look(mixture, ids, lambda count: None)
  watch = {
    "hidden": ("mlp_act", lambda x: x),
    "logits": ("router_logits", lambda x: x),
  }
  f = jitted(sinkjax.capture(sinkjax.forward(cfg), watch))
  trace = {
    k: np.asarray(x, np.float64) for k, x in f(params, ids).trace.items()
  }
  hidden = trace["hidden"][..., : cfg.n_experts * cfg.d_ff]
  hidden = hidden.reshape(*hidden.shape[:3], cfg.n_experts, cfg.d_ff)
  kernel = np.asarray(
    params["blocks"]["mlp"]["expert_down"]["kernel"], np.float64
  )
  size = np.abs(np.einsum("lbtef,lefd->lbted", hidden, kernel)).max(axis=-1)
  chosen = np.argsort(trace["logits"], axis=-1)[..., -2:]
  used = np.zeros(size.shape, bool)
  np.put_along_axis(used, chosen, True, axis=-1)
  size = np.where(used, size, 0)
  np.testing.assert_allclose(seen["peak"], size.max(axis=2), rtol=1e-4)
  np.testing.assert_array_equal(seen["first"], used[:, :, 0])
  np.testing.assert_allclose(seen["elsewhere"], used[:, :, 1:].mean(axis=2))
  at = (size.argmax(axis=2) == 0) & used.any(axis=2)
  np.testing.assert_array_equal(seen["at_first"], at)


@pytest.mark.thorough
def test_run_and_page(mixture):
  texts, ids = ids_of(mixture, 5, 20)
  layer, cfg = 1, mixture.cfg
  plain = look(mixture, ids, lambda count: None)
  # The expert that the first token uses gets a large output.
  expert = int(plain["first"][layer, 0].argmax())
  params = jax.tree.map(lambda x: x, mixture.params)
  down = params["blocks"]["mlp"]["expert_down"]
  down["kernel"] = down["kernel"].at[layer, expert].multiply(100.0)
  seen = []
  config = Config(tokens=20, most=2, draws=2, eps=0.15)
  done = measure(
    mixture._replace(params=params),
    config,
    texts=texts,
    progress=lambda *at: seen.append(at),
  )
  assert seen[-1] == (40, 40)
  found = done.as_stored(config, "tiny")
  assert found.numbers["order"][0] == [layer, expert]
  assert found.numbers["found"] == 1
  assert found.numbers["experts"] == cfg.n_layers * cfg.n_experts
  norm = found.arrays["norm, largest"][:, layer]
  assert (norm[1] < norm[0] / 10).all()
  assert (found.arrays["norm, others"][1, layer] > norm[0] / 10).all()
  drawn = EXPERIMENT.draw(found)
  assert set(drawn) == {"experts.png", "ablated.png"}
  assert len(EXPERIMENT.sections(found, drawn)) == 2
  assert len(EXPERIMENT.claims(found)) == 6


def test_a_model_without_a_choice_of_experts_is_refused(reader):
  with pytest.raises(ValueError, match="this one has none"):
    measure(reader, Config())
  all_used = reader.cfg.replace(n_experts=2, experts_per_token=2)
  assert "2, all in use" in unfit(all_used)
