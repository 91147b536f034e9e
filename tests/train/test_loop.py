"""Tests of sinkjax.train.loop: a run is a function of its config."""

import dataclasses
import json

import jax
import numpy as np
import pytest

import sinkjax
from sinkjax.data.corpus import Documents, tokenize, train_tokenizer
from sinkjax.data.packing import Packing
from sinkjax.data.pipeline import StateError
from sinkjax.data.prepare import Prepared
from sinkjax.experiments.shared.swap_texts import SWAP_TEXTS
from sinkjax.train.checkpoint import RunCheckpoints
from sinkjax.train.loop import BAD_STEPS, DivergedError, probe_tokens, run
from sinkjax.train.optimizer import OptimizerConfig
from sinkjax.train.run_config import Stage, TrainConfig


@pytest.fixture(scope="module")
def data():
  texts = [text for text in SWAP_TEXTS.split("\n\n") if len(text) > 200]
  tokenizer = train_tokenizer(texts, 300)
  corpus = tokenize(Documents("swaps", texts, {}), tokenizer)
  return Prepared(*corpus.split(0.2), tokenizer)


@pytest.fixture
def config():
  return TrainConfig(
    model=sinkjax.TINY.replace(vocab_size=300),
    packing=Packing(32, mask="document", bos="pinned", reset_positions=True),
    optimizer=OptimizerConfig(peak=1e-2, warmup=3, schedule="constant"),
    steps=12,
    batch=4,
    log_every=3,
    eval_every=6,
    eval_windows=8,
    probe_every=4,
    probe_texts=2,
    probe_tokens=16,
    save_every=4,
  )


def _go(config, data, folder, stop=lambda: False):
  checkpoints = RunCheckpoints(folder, keep=config.keep)
  kinds, records, state = [], [], None
  try:
    for record, records, state in run(config, data, checkpoints, stop=stop):  # noqa: B007
      kinds.append((record["kind"], record["step"]))
  finally:
    checkpoints.close()
  return kinds, records, state


def _bits(state):
  return [np.asarray(x).tobytes() for x in jax.tree.leaves(state)]


def _timeless(records):
  return [
    {k: v for k, v in r.items() if k not in ("tokens_per_second", "waited")}
    for r in records
  ]


def _by(name, config):
  optimizer = dataclasses.replace(config.optimizer, name=name)
  return dataclasses.replace(config, optimizer=optimizer)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["adamw", "muon"])
def test_an_interrupted_run_ends_as_an_uninterrupted_one(
  name, config, data, tmp_path
):
  config = _by(name, config)
  kinds, records, state = _go(config, data, tmp_path / "a")
  assert ("eval", 0) in kinds and ("saved", 12) in kinds
  counts = {k: sum(kind == k for kind, _ in kinds) for k in ("eval", "probe")}
  assert counts == {"eval": 3, "probe": 4}
  steps = []

  def stop():
    steps.append(None)
    return len(steps) in (2, 5, 7)

  for kind in ("stopped", "stopped", "stopped", "saved"):
    again, its_records, its_state = _go(config, data, tmp_path / "b", stop)
    assert again[-1][0] == kind
  assert _bits(its_state) == _bits(state)
  # A stop adds a record of its own; evaluations and probes are the same.
  for kind in ("eval", "probe"):
    a, b = (
      [r for r in _timeless(x) if r["kind"] == kind]
      for x in (records, its_records)
    )
    assert a == b
  assert records[-1] == its_records[-1] or records[-1]["kind"] == "probe"


@pytest.mark.thorough
def test_it_learns_and_says_so(config, data, tmp_path):
  # Step 7 is no multiple of any interval; it is measured as step 8 is.
  longer = dataclasses.replace(
    config, steps=60, save_every=60, probe_steps=(1, 7)
  )
  kinds, records, state = _go(longer, data, tmp_path)
  at = {kind: [step for k, step in kinds if k == kind] for kind, _ in kinds}
  assert at["probe"][:5] == [0, 1, 4, 7, 8] and at["eval"][:4] == [0, 1, 6, 7]
  assert {1, 7} <= set(at["train"])
  losses = [r["loss"] for r in records if r["kind"] == "eval"]
  assert losses[0] == pytest.approx(np.log(300), abs=0.7)
  assert losses[-1] < losses[0] - 0.5
  probe = [r for r in records if r["kind"] == "probe"][-1]
  assert 0 < probe["first_mass"] < 1 and len(probe["alpha"]) == 3
  assert int(state.step) == 60


@pytest.mark.thorough
@pytest.mark.parametrize("name", ["adamw", "muon"])
def test_a_finished_run_does_nothing(name, config, data, tmp_path):
  config = _by(name, config)
  _, _, state = _go(config, data, tmp_path)
  kinds, _, again = _go(config, data, tmp_path)
  assert kinds == [("resume", 12)]
  assert _bits(again) == _bits(state)


@pytest.mark.thorough
def test_other_data_is_refused(config, data, tmp_path):
  _go(dataclasses.replace(config, steps=8), data, tmp_path)
  other = dataclasses.replace(config, seed=1)
  with pytest.raises(StateError, match="seed"):
    _go(other, data, tmp_path)


@pytest.mark.thorough
@pytest.mark.parametrize(
  "save_every", [pytest.param(1, marks=pytest.mark.slow), 5]
)
def test_a_diverged_run_stays_refused(config, data, tmp_path, save_every):
  """However often the command is repeated: no count begins again, and no state
  that is not finite is saved."""
  wild = dataclasses.replace(
    config,
    steps=60,
    log_every=5,
    save_every=save_every,
    eval_every=60,
    probe_every=60,
    keep=100,
    optimizer=OptimizerConfig(
      peak=1e30, warmup=0, schedule="constant", clip=None
    ),
  )
  for _ in range(4):
    with pytest.raises(DivergedError):
      _go(wild, data, tmp_path)
  calm = dataclasses.replace(
    wild, optimizer=OptimizerConfig(warmup=0, clip=None)
  )
  checkpoints = RunCheckpoints(tmp_path, keep=100)
  record, _, state = next(iter(run(calm, data, checkpoints)))
  checkpoints.close()
  assert save_every > 1 or record["kind"] == "resume"
  assert all(np.isfinite(x).all() for x in jax.tree.leaves(state.params))


@pytest.mark.thorough
def test_divergence_ends_the_run(config, data, tmp_path):
  wild = dataclasses.replace(
    config,
    steps=200,
    log_every=5,
    save_every=200,
    eval_every=200,
    probe_every=200,
    optimizer=OptimizerConfig(
      peak=1e30, warmup=0, schedule="constant", clip=None
    ),
  )
  with pytest.raises(DivergedError, match="no finite gradient") as found:
    _go(wild, data, tmp_path)
  assert int(str(found.value).split()[0]) >= BAD_STEPS


def test_probes_are_held_out_texts_with_the_bos_of_training(config, data):
  rows = probe_tokens(config, data)
  assert rows.shape[1] == 16 and (rows[:, 0] == data.tokenizer.bos_id).all()
  bare = probe_tokens(dataclasses.replace(config, packing=Packing(32)), data)
  held = {
    tuple(data.held_out.part([i]).tokens[:16].tolist())
    for i in range(len(data.held_out))
  }
  assert {tuple(row.tolist()) for row in bare} <= held
  fronted = dataclasses.replace(
    config, packing=Packing(32, bos="pinned", registers=2)
  )
  first = data.tokenizer.vocab_size
  rows = probe_tokens(fronted, data)
  assert rows.shape[1] == 16
  assert (rows[:, :3] == [first, first + 1, data.tokenizer.bos_id]).all()
  with pytest.raises(ValueError, match="no held-out document has"):
    long = dataclasses.replace(
      config, probe_tokens=10_000, model=config.model.replace(max_len=10_000)
    )
    probe_tokens(long, data)


def test_what_is_wrong_is_said(config):
  with pytest.raises(ValueError, match="save_every must be at least 1"):
    dataclasses.replace(config, save_every=0)
  with pytest.raises(ValueError, match=r"must fit model\.max_len=64"):
    dataclasses.replace(config, packing=Packing(65))
  with pytest.raises(ValueError, match="probe_steps must be from 1 to"):
    dataclasses.replace(config, probe_steps=(1, config.steps + 1))
  with pytest.raises(ValueError, match="train_share must be in"):
    dataclasses.replace(config, train_share=0.0)
  with pytest.raises(ValueError, match="leave no id"):
    dataclasses.replace(
      config,
      packing=Packing(32, registers=4),
      model=config.model.replace(vocab_size=4),
    )


@pytest.mark.slow
def test_stages_of_context(config, data, tmp_path):
  """Short windows first: as many tokens a step, another base, one run."""
  staged = dataclasses.replace(
    config, probe_tokens=8, stages=(Stage(8, 5, rope_base=1000.0), Stage(32, 7))
  )
  kinds, records, state = _go(staged, data, tmp_path / "a")
  assert ("saved", 5) in kinds and int(state.step) == 12
  lengths = [(r["step"], r["length"]) for r in records if r["kind"] == "train"]
  assert {n for step, n in lengths if step <= 5} == {8}
  assert {n for step, n in lengths if step > 5} == {32}
  first, last = staged.all_stages()
  assert (staged.batch_at(first), staged.batch_at(last)) == (16, 4)
  assert staged.model_at(first).rope_base == 1000.0
  assert staged.trained_model() == config.model
  for stops in (3, 5, 6):
    steps = []

    def stop(steps=steps, stops=stops):
      steps.append(None)
      return len(steps) == stops

    folder = tmp_path / f"b{stops}"
    assert _go(staged, data, folder, stop)[0][-1] == ("stopped", stops)
    assert _bits(_go(staged, data, folder)[2]) == _bits(state)


def test_stages_must_fit_the_run(config):
  for stages, words in {
    (Stage(8, 5), Stage(32, 6)): "11 steps",
    (Stage(32, 6), Stage(16, 6)): "end at 16",
    (Stage(24, 6), Stage(32, 6)): "24 tokens cannot",
  }.items():
    with pytest.raises(ValueError, match=words):
      dataclasses.replace(config, stages=stages)


def test_configs_survive_json(config):
  staged = dataclasses.replace(config, stages=(Stage(8, 5), Stage(32, 7)))
  values = json.loads(json.dumps(staged.to_dict()))
  assert TrainConfig.from_dict(values) == staged
  assert "probe_steps" not in values  # as in runs from before there were such
  early = dataclasses.replace(config, probe_steps=(1, 7))
  values = json.loads(json.dumps(early.to_dict()))
  assert TrainConfig.from_dict(values) == early
  with pytest.raises(ValueError, match="colour"):
    TrainConfig.from_dict({**values, "colour": "red"})


def test_a_share_of_the_texts(config, data, monkeypatch):
  """The documents that are left out are never seen, for any seed."""
  from sinkjax.train import loop

  seen = []
  windows = loop.Windows

  def watched(corpus, *args, **kwargs):
    seen.append({tuple(corpus.part([i]).tokens) for i in range(len(corpus))})
    return windows(corpus, *args, **kwargs)

  monkeypatch.setattr(loop, "Windows", watched)
  mesh = loop.sharding.make_mesh(loop.sharding.MeshConfig())
  for share in (1.0, 0.5):
    for seed in (0, 1):
      one = dataclasses.replace(config, train_share=share, seed=seed)
      loop._Phase(one, one.all_stages()[0], data, mesh, None)
  full, _, again, _, half, _, other, _ = seen
  assert full == again and half == other
  tokens = [sum(map(len, some)) for some in (half, full)]
  assert half < full and tokens[0] >= tokens[1] / 2


@pytest.mark.slow
def test_noise_is_asked_for_by_the_config(config, data, tmp_path):
  """Without it a config is what it was, and so is the run; with it another."""
  assert config.disturbance() is None
  assert not {"noise", "adversarial"} & set(config.to_dict())
  noisy = dataclasses.replace(config, noise=0.5, adversarial=True, seed=3)
  assert noisy.disturbance() == (0.5, True, 3)
  values = json.loads(json.dumps(noisy.to_dict()))
  assert TrainConfig.from_dict(values) == noisy
  short = dataclasses.replace(config, steps=4)
  ends = [
    _go(dataclasses.replace(short, noise=noise), data, tmp_path / f"{noise}")
    for noise in (0.0, 0.5)
  ]
  plain, some = (_bits(state.params) for _, _, state in ends)
  assert plain != some
  for wrong in ({"noise": -1.0}, {"adversarial": True}):
    with pytest.raises(ValueError, match="noise must not be negative"):
      dataclasses.replace(config, **wrong)
