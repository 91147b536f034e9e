"""A model's row in the gallery, and the table of all."""

import json

import pytest
from launcher import run
from sitegen import gallery as table

import sinkjax
from sinkjax.analysis.sink_profile import sink_profile
from sinkjax.experiments.shared import gallery
from sinkjax.experiments.shared.swap_texts import SWAP_TEXTS, parse_swaps


@pytest.mark.slow
def test_a_row_is_what_the_transforms_say(tmp_path, glassllm_path):
  flags = ("gallery", "--model=glassllm-en", f"--out={tmp_path}")
  done = run(*flags)
  assert done.returncode == 0, done.stderr
  row = json.loads((tmp_path / "glassllm-en.json").read_text())
  assert row["complete"] and row["texts"] == 12
  params, cfg, tokenizer = sinkjax.load("glassllm-en")
  texts = {swap.text: swap.before for swap in parse_swaps(SWAP_TEXTS)}
  ids = [tokenizer.encode(text)[: gallery.TOKENS] for text in texts.values()]
  profile = sink_profile(params, cfg, ids)
  for eps, (rate, _, _) in row["sink_rate"].items():
    assert rate == pytest.approx(profile.sink_rate(float(eps)))
  assert row["loss"][0] == pytest.approx(profile.nll.mean(), rel=1e-5)
  start = [tokenizer.bos_id] + ids[0][:-1]
  alpha = sink_profile(params, cfg, [start]).alpha
  assert row["bos"]["with"][0] > 0 and (alpha > gallery.EPS).any()
  assert row["bos"]["without"] == row["sink_rate"]["0.3"]
  again = run(*flags)
  assert "Already done" in again.stdout
  damaged = tmp_path / "glassllm-en.json"
  damaged.write_text("[]")
  refused = run(*flags)
  assert (
    refused.returncode == 1 and "is no row of the gallery" in refused.stderr
  )


def test_the_table_has_every_row():
  rows, page = table.rows(), table.page()
  assert {"smollm2-135m", "strong"} <= {row["name"] for row in rows}
  for row in rows:
    assert row["complete"] and len(row["weights"]["sha256"]) == 64
    assert f"| {row['name']} | {row['layers']} x {row['heads']} |" in page


def test_a_plan_writes_nothing(tmp_path, glassllm_path):
  done = run(
    "gallery", "--model=glassllm-en", f"--out={tmp_path}/a", "--dry_run"
  )
  assert done.returncode == 0 and "4 layers x 4 heads" in done.stdout
  assert not (tmp_path / "a").exists()
