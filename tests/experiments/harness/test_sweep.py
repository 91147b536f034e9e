"""Sweeps of text models: runs as they are asked for, claims as they follow.

Outcomes are made up here; `test_packing` and `test_noise_training` train.
"""

import re

import numpy as np
import pytest
from made_sweeps import (
  IDS,
  SWEEPS,
  as_the_papers_say,
  config_of,
  made_up,
  outcomes,
  verdicts,
)

from sinkjax.experiments import BY_NAME
from sinkjax.experiments.harness import records, runner, sweep
from sinkjax.experiments.harness.protocol import Verdict
from sinkjax.experiments.training import packing
from sinkjax.report import html


@pytest.mark.parametrize("module", SWEEPS, ids=IDS)
def test_verdicts_follow_the_numbers(module):
  holds = verdicts(module, as_the_papers_say(module))
  assert holds and set(holds) == {Verdict.SUPPORTED}
  against = verdicts(module, as_the_papers_say(module, -1))
  assert set(against) == {Verdict.CONTRADICTED}
  assert Verdict.NO_EFFECT in verdicts(module, as_the_papers_say(module, 0))
  few = verdicts(module, as_the_papers_say(module), seeds=(0, 1, 2))
  assert set(few) == {Verdict.INCONCLUSIVE}
  assert not verdicts(module, as_the_papers_say(module), seeds=(0,))


@pytest.mark.slow
@pytest.mark.parametrize("module", SWEEPS, ids=IDS)
def test_everything_is_written_drawn_and_reported(module, tmp_path):
  """What the runner writes, read again; tables have a row for each seed."""
  entry = BY_NAME[IDS[SWEEPS.index(module)]]
  config, folder = config_of(module), tmp_path / entry.name
  request = runner.Request(entry, config, {"scale": "cpu"})
  with outcomes(module, config, as_the_papers_say(module)):
    runner.run(folder, request, lambda: None, overwrite=False)
  one = records.measured(folder)
  drawn = module.EXPERIMENT.draw(one.result)
  for name, png in drawn.items():
    assert png.startswith(html.PNG_SIGNATURE)
    assert (folder / name).read_bytes() == png
  assert {x.figure for x in one.sections()} == set(drawn.values())
  runner.report(tmp_path, [one], command="x")
  page = (tmp_path / "report.html").read_text()
  assert module.EXPERIMENT.title in page
  for claim in one.claims():
    words = re.split(r"[^\w.]+", f"{claim.ours} {claim.how} {claim.why}")
    assert claim.claim.split("'")[0] in page and "nan" not in words
  numbers = one.result.numbers
  header, rows = one.result.tables["rows.csv"]
  seeds = len(numbers["seeds"])
  assert len(rows) == seeds * len(numbers["rows"])
  assert {len(row) for row in rows} == {len(header)}
  header, rows = one.result.tables["curves.csv"]
  assert len(rows) == 3 * seeds * len(numbers["variants"])


def test_what_was_trained_is_read_back_from_the_files():
  """Every number of the trained models, as far as files keep them."""
  config = config_of(packing)
  runs = packing.variants(config)
  found = made_up(config, runs, as_the_papers_say(packing))
  trained = sweep.Trained.collect(config, list(runs), found)
  again = sweep.Trained.of(trained.as_result({}, {}, {}).as_stored(config))
  assert again.seeds == trained.seeds and again.rate == trained.rate
  assert again.uniform == pytest.approx(trained.uniform, rel=1e-6)
  for key, scalars in trained.final.items():
    assert set(again.final[key]) == set(scalars)
    for name, values in scalars.items():  # files keep seven digits
      np.testing.assert_allclose(again.final[key][name], values, rtol=1e-6)
  for name, probes in again.probes.items():
    assert set(probes) == {"step", "first_mass", "sink_rate_0.1"}
    for key, values in probes.items():
      np.testing.assert_array_equal(values, trained.probes[name][key])
    np.testing.assert_array_equal(again.alpha[name], trained.alpha[name])
    for key, values in again.losses[name].items():
      np.testing.assert_array_equal(values, trained.losses[name][key])
    np.testing.assert_allclose(again.seconds[name], trained.seconds[name])


@pytest.mark.slow
@pytest.mark.parametrize("module", SWEEPS, ids=IDS)
@pytest.mark.parametrize("scale", ["demo", "cpu", "gpu", "paper"])
def test_every_scale_can_be_trained(module, scale):
  """Runs are distinct, fit their model, and say what they need."""
  config = module.Config(**module.SCALES[scale])
  runs = module.variants(config)
  requests = [str(run.to_dict()) for run in runs.values()]
  assert len(set(requests)) == len(requests) > 1
  tokens = {run.steps * run.batch * run.packing.length for run in runs.values()}
  assert len(tokens) == 1  # equal tokens, always
  for run in runs.values():
    if run.batch % run.accumulate:
      pytest.fail("a batch that its parts do not divide")
  lines = module.EXPERIMENT.plan(config)
  assert f"{len(runs) * len(config.seeds)} runs" in lines[0]
  assert any("flop in all" in line for line in lines)


def test_runs_from_before_a_measurement_can_be_gone_on_with():
  config = config_of(packing)
  runs = packing.variants(config)
  found = made_up(config, runs, as_the_papers_say(packing))
  for form in found[3]["final"].values():
    del form["first_share"]
  trained = sweep.Trained.collect(config, list(runs), found)
  assert all("first_share" not in x for x in trained.final.values())
  assert all("first_weight" in x for x in trained.final.values())
