"""The paper's measurements by one command, on a real small model."""

import csv
import json
import shutil

import launcher
import numpy as np
import pytest

from sinkjax.experiments import named
from sinkjax.experiments.harness.protocol import Verdict

pytestmark = pytest.mark.thorough


def reproduce(*flags):
  return launcher.run("reproduce", "--model=glassllm-en", *flags, timeout=1500)


BOTH = ("perturbation", "model_size")
PLAIN = ("claims.csv", "claims.md", "summary.json")


@pytest.fixture(scope="module")
def done(tmp_path_factory, glassllm_path):
  """(folder, the runs): one experiment, then one more, then both again."""
  out = tmp_path_factory.mktemp("reproduce")
  runs = [
    reproduce(f"--out={out}", f"--experiment={names}")
    for names in ("model_size", "model_size,perturbation", ",".join(BOTH))
  ]
  for ran in runs:
    assert ran.returncode == 0, ran.stderr
  return out, runs


@pytest.mark.slow
def test_experiments_leave_their_files(done):
  check_files(done[0], BOTH)


@pytest.mark.slow
def test_every_experiment_leaves_its_files(tmp_path, glassllm_path):
  ran = reproduce(f"--out={tmp_path}")
  assert ran.returncode == 0, ran.stderr
  # This model has no experts, and the group goes on without them.
  assert "experts: left out for glassllm-en" in ran.stdout
  assert not (tmp_path / "experts").exists()
  check_files(tmp_path, [name for name in named("paper") if name != "experts"])


def check_files(out, names):
  for name in names:
    data = json.loads((out / name / "result.json").read_text())
    assert list(data)[-1] == "complete" and data["complete"] is True
    assert data["claims"] and data["seconds"] > 0
    drawn = list((out / name).glob("*.png"))
    assert drawn
    for figure in drawn:
      assert figure.stat().st_size > 5000
    assert list((out / name).glob("*.csv"))
    with np.load(out / name / "arrays.npz") as arrays:
      for array in arrays.values():
        assert array.dtype.kind in "biufU"
        if array.size and array.dtype.kind != "U":
          assert np.isfinite(array.astype(float)).any()


def test_claims_stand_side_by_side(done):
  out, runs = done
  with open(out / "claims.csv", newline="") as stream:
    rows = list(csv.DictReader(stream))
  assert {row["experiment"] for row in rows} == set(BOTH)
  assert {row["verdict"] for row in rows} <= set(Verdict)
  page = (out / "report.html").read_text()
  lines = (out / "claims.md").read_text().splitlines()
  assert len(lines) == 2 + len(rows)
  for row in rows:
    assert row["claim"] in runs[-1].stdout
    assert any(row["claim"] in x and f"| {row['where']} |" in x for x in lines)
    assert row["verdict"] in page
  summary = json.loads((out / "summary.json").read_text())
  assert summary["complete"] is True
  assert [c["claim"] for c in summary["claims"]] == [r["claim"] for r in rows]


def test_what_is_done_is_not_done_again(done):
  _, (first, second, third) = done
  assert "already done" not in first.stdout
  assert second.stdout.count("already done") == 1
  assert "model_size: already done" in second.stdout
  assert third.stdout.count("already done") == 2


@pytest.mark.slow
def test_all_is_made_again_from_what_git_keeps(done, tmp_path):
  """--report --compact, then --report from that, then the command itself."""
  out = tmp_path / "out"
  shutil.copytree(done[0], out)
  before = {name: (out / name).read_text() for name in PLAIN}
  ran = reproduce(f"--out={out}", "--report", "--compact")
  assert ran.returncode == 0, ran.stderr
  assert not (out / "report.html").exists()
  for name in BOTH:
    files = list((out / name).iterdir())
    assert len(files) <= 6 and (out / name / "recorded.tar.xz") in files
    assert not (out / name / "arrays.npz").exists()
  assert {name: (out / name).read_text() for name in PLAIN} == before
  again = reproduce(f"--out={out}", "--report")
  assert again.returncode == 0, again.stderr
  assert {name: (out / name).read_text() for name in PLAIN} == before
  old, new = (
    (folder / "report.html").read_text().count("<img")
    for folder in (done[0], out)
  )
  assert old == new > 2
  third = reproduce(f"--out={out}", f"--experiment={','.join(BOTH)}")
  assert third.stdout.count("already done") == 2


def test_compact_goes_with_report(tmp_path):
  ran = reproduce(f"--out={tmp_path}", "--compact")
  assert ran.returncode == 1 and "--compact goes with --report" in ran.stderr


def test_the_folder_above_an_experiment_is_named(done):
  ran = reproduce(f"--out={done[0] / 'model_size'}", "--report")
  assert ran.returncode == 1
  assert f"holds no complete experiment; give {done[0]}" in ran.stderr


def test_another_model_is_refused(done):
  ran = reproduce(f"--out={done[0]}", "--prefix=<bos>")
  assert ran.returncode == 1
  assert "holds the result of another command, on glassllm-en" in ran.stderr


@pytest.mark.parametrize(
  ("flags", "message"),
  [
    (["--experiment=all"], "--out is missing"),
    (
      ["--experiment=nope", "--dry_run"],
      "valid are paper, applications, training",
    ),
    (["--dry_run", "--prefix=zebra"], "no such token"),
    (["--out=README.md"], "README.md"),
    (
      ["--experiment=model_size", "--models=/nowhere", "--dry_run"],
      "'/nowhere' is neither a file nor a folder nor a known model",
    ),
  ],
)
def test_errors_are_one_line(flags, message, glassllm_path):
  ran = reproduce(*flags)
  assert ran.returncode == 1
  assert message in ran.stderr and "Traceback" not in ran.stderr


def test_dry_run_writes_nothing(tmp_path, glassllm_path):
  ran = reproduce(f"--out={tmp_path / 'out'}", "--dry_run")
  assert ran.returncode == 0, ran.stderr
  for name in named("paper"):
    assert name in ran.stdout
  assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_training_by_one_command(tmp_path):
  """A sweep of four tiny runs, its files, and another config refused."""
  flags = [
    "--config=configs/reproduce/training.py:demo",
    f"--out={tmp_path}",
    "--experiment=bigram_backcopy",
    "--config.bigram_backcopy.steps=12",
    "--config.bigram_backcopy.warmup=2",
    "--config.bigram_backcopy.batch=4",
    "--config.bigram_backcopy.d_model=16",
    "--config.bigram_backcopy.length=20",
    "--config.bigram_backcopy.normalizers=('softmax','relu')",
    "--config.bigram_backcopy.seeds=(0,1)",
  ]
  planned = reproduce(*flags, "--dry_run")
  assert planned.returncode == 0, planned.stderr
  assert "4 runs" in planned.stdout and "glassllm" not in planned.stdout
  refused = reproduce(*flags, "--dry_run", "--scale=cpu")
  assert refused.returncode != 0
  assert "--config is made for --scale=demo" in refused.stderr
  assert not list(tmp_path.iterdir())
  ran = reproduce(*flags)
  assert ran.returncode == 0, ran.stderr
  check_files(tmp_path, ["bigram_backcopy"])
  runs = tmp_path / "bigram_backcopy" / "runs"
  assert len(list(runs.glob("*.json"))) == 4
  summary = json.loads((tmp_path / "summary.json").read_text())
  assert summary["model"] is None and summary["complete"] is True
  assert "Sinks that appear" in (tmp_path / "report.html").read_text()
  other = reproduce(*flags[:-1], "--config.bigram_backcopy.seeds=(0,2)")
  assert other.returncode == 1 and other.stderr.startswith("error: ")
  assert "--overwrite" in other.stderr


def test_a_scale_that_there_is_not(tmp_path):
  ran = reproduce("--experiment=training", "--scale=huge", "--dry_run")
  assert ran.returncode == 1 and "demo|cpu|gpu|paper" in ran.stderr


@pytest.mark.parametrize(
  ("flags", "message"),
  [
    (["--chat"], "does not go with collapse, sink_circuit, which_queries, "),
    (["--chat", "--experiment=packing"], "does not go with packing"),
    (["--chat", "--experiment=massive"], "no chat template"),
    (["--chat", "--experiment=massive", "--prefix=none"], "has its own start"),
    (["--system=hi", "--experiment=massive"], "--system goes with --chat"),
  ],
)
def test_chat_is_refused_before_anything_is_measured(
  flags, message, glassllm_path
):
  ran = reproduce(*flags, "--dry_run")
  assert ran.returncode == 1
  assert message in ran.stderr and "Traceback" not in ran.stderr


TEXT, MESSAGE = {"text": "Hi."}, [{"role": "user", "content": "Hi. " * 40}]


@pytest.mark.parametrize(
  ("record", "flags", "message"),
  [
    (TEXT, ["--experiment=collapse,massive"], "does not go with collapse, who"),
    (TEXT, ["--experiment=packing"], "does not go with packing"),
    ({"txt": "Hi"}, ["--experiment=massive"], "line 1: expected"),
    (
      {"messages": MESSAGE},
      ["--experiment=attack"],
      "Chats of --prompts_file do not go with attack",
    ),
    (
      {"messages": MESSAGE},
      ["--experiment=massive", "--prefix=none"],
      "a chat template has its own start",
    ),
    (
      {"messages": MESSAGE},
      ["--experiment=massive", "--chat", "--system=x"],
      "chats have a system message of their own",
    ),
  ],
)
def test_texts_that_are_refused(record, flags, message, tmp_path):
  file = tmp_path / "a.jsonl"
  file.write_text(json.dumps(record))
  ran = reproduce(*flags, f"--prompts_file={file}", "--dry_run")
  assert ran.returncode == 1
  assert message in ran.stderr and "Traceback" not in ran.stderr


def test_chats_of_a_file_in_a_dry_run(smollm2_path, tmp_path):
  file = tmp_path / "a.jsonl"
  file.write_text(json.dumps({"messages": MESSAGE}) + "\n" * 2)
  flags = ("--experiment=massive", f"--prompts_file={file}", "--dry_run")
  ran = launcher.run("reproduce", *flags, "--config.massive.tokens=60")
  assert ran.returncode == 0, ran.stderr
  assert "chat template, " in ran.stdout
  assert "texts        1 of --prompts_file" in ran.stdout


@pytest.mark.slow
def test_texts_of_a_file_are_measured(glassllm_path, tmp_path):
  file, out = tmp_path / "a.jsonl", tmp_path / "out"
  lines = [
    {"text": f"The {word} stood on the hill, and nobody saw it that day. " * 4}
    for word in ("house", "horse", "tower")
  ]
  file.write_text("\n".join(map(json.dumps, lines)))
  flags = (
    "--experiment=massive",
    f"--prompts_file={file}",
    "--config.massive.tokens=24",
    f"--out={out}",
  )
  ran = reproduce(*flags)
  assert ran.returncode == 0, ran.stderr
  about = json.loads((out / "massive" / "result.json").read_text())
  assert about["request"]["texts"]["count"] == 3
  assert "The 3 texts are those of a.jsonl" in (out / "report.html").read_text()
  file.write_text(json.dumps(lines[0]))
  other = reproduce(*flags)
  assert other.returncode == 1
  assert "--prompts_file=a.jsonl; choose another --out" in other.stderr


def test_chat_in_a_dry_run(smollm2_path):
  flags = ("--chat", "--experiment=massive", "--dry_run")
  ran = launcher.run("reproduce", *flags, "--config.massive.tokens=60")
  assert ran.returncode == 0, ran.stderr
  assert "chat template, 2" in ran.stdout
  short = launcher.run("reproduce", *flags, "--config.massive.tokens=20")
  assert short.returncode == 1
  assert "massive cuts texts to 20 tokens" in short.stderr
