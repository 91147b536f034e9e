"""The layer that builds, planted neurons, derivatives, and verdicts."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import sinkjax
from sinkjax.experiments.harness.api import Result
from sinkjax.experiments.harness.protocol import Verdict, judge
from sinkjax.experiments.paper.sink_circuit import EXPERIMENT, detectors
from sinkjax.experiments.paper.sink_circuit import neurons as module
from sinkjax.experiments.paper.sink_circuit.experiment import Config, measure
from sinkjax.experiments.paper.sink_circuit.neurons import Norms, builder
from sinkjax.experiments.shared.prompt_corpus import Text

LAYER, NEURON = 1, 5
SMALL = Config(tokens=14, neurons=3, few=1, eps=0.2, at=6, gates=4)


def test_the_builder_leaves_the_range_and_makes_the_stream_grow():
  rng = np.random.default_rng(0)
  mlp = rng.random((5, 3, 8))
  mid, post = np.ones((5, 3, 8)), np.ones((5, 3, 8))
  mlp[1, :, 0], post[1, :, 0] = 5, 3
  mlp[2, :, 0], post[2, :, 0] = 50, 20
  mlp[4, :, 0], post[4, :, 0] = 60, 0.1  # takes the norm away again
  post[3, :, 0] = 40  # grows, and is in range
  empty = np.zeros((5, 3, 1))
  norms = Norms(mlp, mid, post, empty, empty, empty)
  found = builder(norms, 2.0)
  assert (found.layer, found.first) == (2, 1)
  assert found.out[[1, 2, 4]].tolist() == [1, 1, 1]
  none = builder(norms._replace(mlp=np.ones((5, 3, 8))), 2.0)
  assert none.layer is None and none.first is None


def by_hand(numbers=None, **change):
  """Of 12 texts: arrays by their names with _ for what stands between."""
  rng = np.random.default_rng(0)
  noise = lambda: 0.01 * rng.normal(size=12)  # noqa: E731
  arrays = {
    "over": np.exp(change.get("over", 1.0) + noise())[None].repeat(3, 0),
    "carried": change.get("carried", 0.9) + noise(),
    "agreement": change.get("agreement", 0.9) + noise(),
    "falls": np.ones((12, 4)),
    "slopes": np.ones((12, 4)),
    "later, ordinary": np.exp(noise()),
    "later, repeated": np.exp(change.get("repeated", 1.0) + noise()),
  }
  rates = {"none": 0.8, "few": change.get("few", 0.1), "random": 0.8}
  for name, rate in rates.items():
    arrays[f"rate, ordinary, {name}"] = rate + noise()
    arrays[f"loss, ordinary, {name}"] = 3 + noise()
  score = {"content": 3.0, "query_bias": 0.5, "position": -0.2}
  score = {name: change.get(name, x) for name, x in score.items()}
  for name, value in (score | {"total": sum(score.values())}).items():
    arrays[f"score, {name}"] = value + noise()
  rows = [["repeated", "none", 9.0], ["repeated", "few", 1.0]]
  numbers = {
    "templates": list(range(12)),
    "chosen_layer": 1,
    "first_out": 1,
    "peak": 2,
    "neurons": [5, 6, 7, 8],
    "few": 2,
    "sink_heads": 4,
    "biases": True,
    "parts": True,
  } | (numbers or {})
  tables = {"ablation.csv": (["text", "ablated", "others"], rows)}
  names = ["gate", "distance_in_sd", "auroc_on_other_texts"]
  tables["gates.csv"] = (names, [[3, 9.0, 0.98]])
  # A distance of 4 between first and token, of 5 between first and others.
  gates = {
    "told": change.get("told", 0.97),
    "first": 5.0,
    "others": 0.0,
    "token": 1.0,
    "token alone": 1 + 4 * change.get("alone", 0.9),
    "token indexed": 1 + 4 * change.get("indexed", 0.1),
    "first averaged": 5 * change.get("left", 0.1),
  }
  for name, value in gates.items():
    arrays[f"gates, {name}"] = value + noise()
  made = Result(numbers, tables, arrays).as_stored(Config())
  found = judge(EXPERIMENT.claims(made))
  assert len(found) == 10
  return {claim.id: claim.verdict for claim in found}


def test_verdicts():
  yes, no = Verdict.SUPPORTED, Verdict.CONTRADICTED
  without = Verdict.NOT_TESTABLE
  assert set(by_hand().values()) == {yes}
  found = by_hand(over=-1.0, carried=0.2, agreement=-0.5, few=0.8, repeated=-1)
  assert list(found.values())[:5] == [no] * 5
  biased = by_hand(content=0.3, query_bias=3.0)
  assert biased["sink_is_content"] == no
  assert biased["sink_is_query_bias"] == yes
  # The first key has no higher score than others: content gives it none.
  low = by_hand(content=0.5, position=-3.0)
  assert low["sink_is_content"] == Verdict.INCONCLUSIVE
  plain = by_hand({"biases": False})
  assert plain["sink_is_query_bias"] == without
  assert plain["sink_is_content"] == yes
  capped = by_hand({"parts": False})
  assert capped["sink_is_content"] == capped["sink_is_query_bias"] == without
  other = by_hand(told=0.3, indexed=1.0, left=0.9)
  assert list(other.values())[-3:] == [no] * 3
  # Neither of them makes a token the first.
  neither = by_hand(alone=0.4, indexed=0.1)["first_by_lack_of_mixing"]
  assert neither == Verdict.INCONCLUSIVE
  last = by_hand({"chosen_layer": 2})
  assert last["ablation_removes_sink"] == without


@pytest.fixture(scope="module")
def texts():
  rng = np.random.default_rng(0)
  words = "the old man saw a red bird and went to his garden by night"
  words = words.split()  # noqa: SIM905
  return [Text("a", f"{i}", " ".join(rng.choice(words, 30))) for i in range(9)]


@pytest.mark.thorough
def test_a_planted_neuron_is_found_and_its_derivative_is_exact(
  reader, texts, monkeypatch
):
  """What the MLP of layer 1 reads at position 0 points along one neuron."""
  # Ids of its own, whatever other tests have read.
  reader = reader._replace(tokenizer=type(reader.tokenizer)())
  mlp = reader.params["blocks"]["mlp"]
  along = sum(mlp[x]["kernel"][LAYER, :, NEURON] for x in ("gate", "up"))
  along = 40 * along / jnp.linalg.norm(along)
  plain = sinkjax.forward

  def forward(cfg):
    def point(value, layer):
      return value.at[:, 0].add(jnp.where(layer == LAYER, along, 0))

    return sinkjax.intervene(plain(cfg), {"mlp_in": point})

  monkeypatch.setattr(module, "forward", forward)
  seen = []
  done = measure(
    reader, SMALL, texts=texts, progress=lambda *at: seen.append(at)
  )
  assert seen[-1][0] == seen[-1][1]
  found = done.as_stored(SMALL, "tiny")
  numbers = found.numbers
  assert numbers["chosen_layer"] == LAYER and numbers["neurons"][0] == NEURON
  assert found.arrays["carried"].min() > 0.5
  assert found.arrays["norm, ordinary, few"].mean() < 0.9 * (
    found.arrays["norm, ordinary, none"].mean()
  )
  # At the layer itself the norm is |r|, and its derivative <r, a w> / |r|.
  run = module.Ablation(reader, LAYER, LAYER, 0.2, lambda count: None)
  ids = np.array([reader.encode([one.text])[0][:14] for one in texts[:3]])
  watch = {"r": ("resid_post", lambda x: x), "a": ("mlp_act", lambda x: x)}
  watched = jax.jit(sinkjax.capture(forward(reader.cfg), watch))
  trace = watched(reader.params, ids).trace
  r, a = (np.asarray(trace[x][LAYER, :, 0], np.float64) for x in "ra")
  down = np.asarray(mlp["down"]["kernel"][LAYER], np.float64)
  want = a * (r @ down.T) / np.linalg.norm(r, axis=1, keepdims=True)
  size = np.abs(want).max()
  np.testing.assert_allclose(run.slopes(ids), want, atol=1e-5 * size)
  gone = r - a[:, NEURON, None] * down[NEURON]
  np.testing.assert_allclose(
    run(ids, [NEURON]).norm, np.linalg.norm(gone, axis=1), rtol=1e-4
  )
  np.testing.assert_allclose(
    sum(found.arrays[f"score, {x}"] for x in ("content", "query_bias",
                                              "position")),
    found.arrays["score, total"], atol=1e-4,
  )  # fmt: skip
  drawn = EXPERIMENT.draw(found)
  assert set(drawn) == {"neurons.png", "scores.png", "gates.png"}
  assert len(EXPERIMENT.sections(found, drawn)) == 4
  assert len(EXPERIMENT.claims(found)) == 10


@pytest.mark.thorough
def test_gates_by_hand(reader, texts):
  """A token that sees itself alone in layer 0 is one that stands first."""
  ids = np.array([reader.encode([one.text])[0][:14] for one in texts[:3]])
  read = detectors.Reader(reader, 0, 6, lambda count: None)
  plain = read(ids, detectors.Case.PLAIN)
  mlp = reader.params["blocks"]["mlp"]
  watch = {x: (x, lambda x: x) for x in ("mlp_in", "attn_out", "resid_mid")}
  watched = jax.jit(sinkjax.capture(sinkjax.forward(reader.cfg), watch))
  trace = watched(reader.params, ids).trace
  gate = np.asarray(mlp["gate"]["kernel"][0], np.float64)
  want = np.asarray(trace["mlp_in"][0], np.float64) @ gate
  np.testing.assert_allclose(plain.values, want, atol=1e-5 * np.abs(want).max())
  written = np.asarray(trace["attn_out"][0])[:, 1:].mean(axis=(0, 1))
  np.testing.assert_allclose(plain.average, written, atol=1e-5)
  alone = read(ids, detectors.Case.ALONE).values
  # Positions rotate: the texts cut so that token 6 comes first.
  cut = read(ids[:, 6:], detectors.Case.PLAIN).values[:, 0]
  np.testing.assert_allclose(alone[:, 6], cut, atol=1e-5 * np.abs(cut).max())
  np.testing.assert_array_equal(
    np.delete(alone, 6, axis=1), np.delete(plain.values, 6, axis=1)
  )
  index = np.arange(14)
  index[[0, 6]] = 6, 0
  swapped = read(ids, detectors.Case.INDEX).values
  trace = watched(reader.params, ids, positions=np.tile(index, (3, 1))).trace
  want = np.asarray(trace["mlp_in"][0], np.float64) @ gate
  np.testing.assert_allclose(swapped, want, atol=1e-5 * np.abs(want).max())
  given = read(ids, detectors.Case.AVERAGE, plain.average).values
  assert np.abs(given[:, 0] - plain.values[:, 0]).max() > 1e-3
  np.testing.assert_array_equal(given[:, 1:], plain.values[:, 1:])


def test_refusals(reader, texts):
  with pytest.raises(ValueError, match=r"layer must be in \[0, 3\), got 9"):
    measure(reader, dataclasses.replace(SMALL, layer=9), texts=texts)
  with pytest.raises(ValueError, match=r"gates_layer must be in \[0, 3\)"):
    measure(reader, dataclasses.replace(SMALL, gates_layer=3), texts=texts)
  with pytest.raises(ValueError, match=r"at must be in \[1, 14\), got 14"):
    measure(reader, dataclasses.replace(SMALL, at=14), texts=texts)
  with pytest.raises(ValueError, match="at least 4 are needed"):
    measure(reader, SMALL, texts=texts[:2])
  experts = reader._replace(cfg=reader.cfg.replace(n_experts=2))
  with pytest.raises(ValueError, match="model with experts"):
    measure(experts, SMALL, texts=texts)
