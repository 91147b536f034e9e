"""What tells an answer: verdicts on scores made by hand, and a run."""

import dataclasses

import jax
import numpy as np
import pytest
from scipy import stats

import sinkjax
from sinkjax.experiments.harness.api import Result
from sinkjax.experiments.harness.protocol import Verdict, judge
from sinkjax.experiments.paper.answers import EXPERIMENT
from sinkjax.experiments.paper.answers.experiment import (
  Config,
  Score,
  beyond,
  by_haystack,
  by_item,
  measure,
)
from sinkjax.experiments.shared.benchmark_tasks import grade


def verdicts(tasks=("a", "b"), haystacks=9, items=5, **strength):
  """By how far right answers stand above wrong ones, in deviations."""
  arrays, shapes = {}, dict.fromkeys(tasks, (items,))
  if haystacks:
    shapes["needles"] = (haystacks, 30)
  for task, shape in shapes.items():
    at = np.arange(shape[-1])
    # As many right ones everywhere along the scores: areas of 0.5 exactly, but
    # for what a right answer adds.
    right = at % 5 < (4 if task == "b" else 2)
    # Tasks differ in level and in share; within one neither tells anything.
    scores = stats.norm.ppf((at // 5 * 5 + 2.5) / len(at)) + 5 * (task == "b")
    arrays[f"right {task}"] = np.broadcast_to(right, shape)
    for score in Score:
      if score is Score.LAST and task == "needles":
        continue
      gap = strength.get(score.name.lower(), 0.0)
      rows = np.random.default_rng(0).normal(size=(*shape[:-1], 1))
      told = (gap + 0.01 * gap * rows) * right
      arrays[f"{score} {task}"] = np.broadcast_to(scores + told, shape)
  numbers = {"tasks": list(tasks), "haystacks": haystacks, "items": {}}
  made = Result(numbers, {}, arrays).as_stored(Config())
  found = judge(EXPERIMENT.claims(made))
  assert len({claim.id for claim in found}) == 7
  return [claim.verdict for claim in found]


YES, NO = Verdict.SUPPORTED, Verdict.CONTRADICTED
SAME, WITHOUT = Verdict.NO_EFFECT, Verdict.NOT_TESTABLE


def test_verdicts():
  assert verdicts(sink=9, beyond=9) == [YES] * 7
  other = verdicts((), sink=-1.5, length=1.5, surprisal=1.5)
  assert other == [WITHOUT] * 4 + [NO] * 3
  rival = verdicts(sink=-9, beyond=-9, haystacks=0)
  assert rival == [NO] * 4 + [WITHOUT] * 3


@pytest.mark.thorough
def test_levels_of_tasks_tell_nothing():
  """Pooled over tasks they would tell right answers."""
  nothing = verdicts(haystacks=0, items=400)
  assert nothing == [SAME] * 4 + [WITHOUT] * 3


def test_what_rivals_explain_is_left_out():
  rng = np.random.default_rng(0)
  rivals = rng.normal(size=(50, 2))
  rest = rng.normal(size=50)
  left = beyond(rest + rivals @ [2.0, -3.0] + 4, rivals)
  # What is left has nothing in common with them, whatever they are.
  np.testing.assert_allclose(left @ rivals, 0, atol=1e-10)
  np.testing.assert_allclose(left.sum(), 0, atol=1e-10)
  np.testing.assert_allclose(left, beyond(rest, rivals), atol=1e-10)


@pytest.mark.thorough
def test_run_and_page(reader, items):
  # Ids of its own, whatever other tests have read.
  reader = reader._replace(tokenizer=type(reader.tokenizer)())
  made = {"a": items(60), "b/c": items(4)}
  config = Config(tokens=220, needles=8, haystacks=6)
  seen = []
  done = measure(
    reader, config, items=made, progress=lambda *at: seen.append(at)
  )
  assert seen[-1] == (70, 70)
  found = done.as_stored(config, "tiny")
  # Four items have no ten right and ten wrong answers.
  assert found.numbers["tasks"] == ["a"]
  right = found.arrays["right a"]
  np.testing.assert_array_equal(right, grade(reader, made["a"], []))
  watch = {"mass": ("pattern", lambda x: x[..., 0].mean(axis=1))}
  f = jax.jit(sinkjax.capture(sinkjax.forward(reader.cfg), watch))
  for i in (0, 7):
    ids = reader.encode([made["a"][i].context])[0]
    row = np.zeros((1, 64), int)  # one program: what follows changes nothing
    row[0, : len(ids)] = ids
    out = f(reader.params, row)
    mass = np.asarray(out.trace["mass"], float)[:, 0, 1 : len(ids)]
    logs = np.asarray(jax.nn.log_softmax(out.logits[0, : len(ids) - 1]))
    nats = logs[np.arange(len(ids) - 1), ids[1:]].mean()
    for score, want in (
      (Score.SINK, -mass.mean()),
      (Score.LAST, -mass[:, -1].mean()),
      (Score.LENGTH, -np.log(len(ids) - 1)),
      (Score.SURPRISAL, nats),
    ):
      got = found.arrays[f"{score} a"][i]
      np.testing.assert_allclose(got, want, rtol=1e-3, err_msg=score)
  drawn = EXPERIMENT.draw(found)
  assert set(drawn) == {"auroc.png"}
  (section,) = EXPERIMENT.sections(found, drawn)
  assert "left out: b/c" in section.body
  values = by_item(found.numbers, found.arrays, Score.SINK)
  rows = found.records("auroc.csv")
  assert rows[0]["auroc"] == pytest.approx(values.mean())
  some = [0 < one.sum() < 8 for one in found.arrays["right needles"]]
  assert len(by_haystack(found.arrays, Score.LENGTH)) == sum(some)


def test_models_of_short_context_have_no_haystacks(subject, items, monkeypatch):
  cfg = subject.cfg.replace(max_len=64)
  seen = {}

  def scored(subject, rows, progress):
    progress(len(rows))
    return [np.zeros((2, len(row.tokens))) for row in rows]

  monkeypatch.setattr(
    "sinkjax.experiments.paper.answers.experiment.with_mass", scored
  )
  config = dataclasses.replace(Config(), tokens=65)
  done = measure(
    subject._replace(cfg=cfg),
    config,
    items={"a": items(30)},
    progress=lambda *at: seen.update([at]),
  )
  found = done.as_stored(config, "tiny")
  assert found.numbers["haystacks"] == 0 and seen == {30: 30}
  (last,) = {claim.untested for claim in EXPERIMENT.claims(found)[4:]}
  assert last == "the model's context is shorter than 65 tokens"


def test_needles_that_do_not_fit_are_refused_before_anything_is_measured(
  reader, items
):
  def kept(what, *args):
    raise AssertionError(f"{what} was measured")

  reader = reader._replace(kept=kept)
  with pytest.raises(ValueError, match="do not fit 60 tokens"):
    measure(reader, Config(tokens=60, needles=8), items={"a": items(30)})
