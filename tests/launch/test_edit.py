"""--edit: each launcher runs the edited model, and says so."""

import json

import jax
import launcher
import numpy as np
import pytest

import sinkjax
from launch import edit_flag
from sinkjax.data.activations import Activations
from sinkjax.data.corpus import train_tokenizer
from sinkjax.experiments.harness.api import Subject
from sinkjax.experiments.paper import smoothing
from sinkjax.experiments.shared.swap_texts import SWAP_TEXTS
from sinkjax.transforms.edit_grammar import parse_edits

EDIT = "graded key=0 by=3; ablate neurons=1:5 to=mean; ablate head=2.1 to=mean"
TEXT = "The king sat by the window and looked at the sea."


@pytest.fixture(scope="module")
def model(tmp_path_factory):
  """(folder, params, cfg, tokenizer) of a small model."""
  tokenizer = train_tokenizer([SWAP_TEXTS], 300)
  cfg = sinkjax.TINY.replace(vocab_size=300, max_len=96)
  params = sinkjax.init_params(cfg, jax.random.key(0))
  folder = tmp_path_factory.mktemp("model") / "tiny"
  sinkjax.save(folder, params, cfg, tokenizer)
  return folder, params, cfg, tokenizer


def means(model, rows):
  """Of the neuron and of the head over all tokens, by their definition."""
  _, params, cfg, _ = model
  watch = {site: (site, lambda x: x) for site in ("mlp_act", "z")}
  trace = jax.jit(sinkjax.capture(sinkjax.forward(cfg), watch))(params, rows)[1]
  flat = [trace["mlp_act"][1, ..., 5].reshape(-1)]
  return np.mean(flat), trace["z"].mean(axis=(1, 2))


def by_hand(model, rows):
  """`EDIT` as Python."""
  neuron, heads = means(model, rows)
  chosen = np.zeros((3, 4), bool)
  chosen[2, 1] = True
  return sinkjax.intervene(
    sinkjax.forward(model[2]),
    {
      "scores": sinkjax.graded(0, 3.0),
      "mlp_act": sinkjax.ablate_neurons([(1, 5)], to=neuron),
      "z": sinkjax.ablate_heads(chosen, mean=heads),
    },
  )


def run(name, model, *flags):
  return launcher.run(name, f"--model={model[0]}", *flags)


def ran(name, model, *flags):
  done = run(name, model, *flags)
  assert done.returncode == 0, done.stderr
  return done.stdout


@pytest.mark.slow
def test_analyze(model, tmp_path):
  (tmp_path / "text").write_text(TEXT, "utf-8")
  flags = [f"--text_file={tmp_path}/text", "--max_tokens=9"]
  flags += [f"--out={tmp_path}/out", "--find_sinks"]
  ran("analyze", model, *flags, f"--edit={EDIT}")
  data = json.loads((tmp_path / "out" / "summary.json").read_text())
  rows = np.array([data["token_ids"]])
  watch = {"sink": ("pattern", sinkjax.sink_score)}
  g = jax.jit(sinkjax.capture(by_hand(model, rows), watch))
  want = g(model[1], rows).trace["sink"][:, 0]
  np.testing.assert_allclose(data["alpha_first"], want, rtol=1e-4)
  assert data["edit"] == data["request"]["edit"] == EDIT
  # What a record says of means is an edit itself, of the same number.
  (_, neurons, _) = parse_edits(data["edit_with_means"])
  assert neurons.to == pytest.approx(float(means(model, rows)[0]), rel=1e-4)
  page = (tmp_path / "out" / "report.html").read_text()
  assert f"tiny, edited: {EDIT}</title>" in page
  again = ran("analyze", model, *flags, f"--edit= {EDIT.replace('; ', ' ;')}")
  assert "Already done" in again
  for other in ([], ["--edit=graded key=0 by=4"]):
    done = run("analyze", model, *flags, *other)
    assert done.returncode == 1 and "another command" in done.stderr


@pytest.mark.thorough
def test_capture(model, tmp_path):
  for i, text in enumerate(SWAP_TEXTS.split("\n\n")[:3]):
    (tmp_path / f"{i}.txt").write_text(text, "utf-8")
  flags = [f"--corpus={tmp_path}", f"--out={tmp_path}/out", "--length=8"]
  flags += ["--windows=6", "--sites=final", "--batch=4"]
  ran("capture", model, *flags, f"--edit={EDIT}")
  data = Activations(tmp_path / "out")
  rows = np.stack([data[i]["tokens"] for i in range(len(data))])
  watch = {"x": ("final", lambda x: x)}
  g = jax.jit(sinkjax.capture(by_hand(model, rows), watch))
  got = np.stack([data[i]["final.0"] for i in range(len(data))])
  np.testing.assert_allclose(got, g(model[1], rows).trace["x"], atol=1e-4)
  record = json.loads((tmp_path / "out" / "summary.json").read_text())
  assert record["edit"] == record["request"]["edit"] == EDIT
  assert run("capture", model, *flags).returncode == 1


@pytest.mark.slow
def test_generate(model):
  _, params, cfg, tokenizer = model
  rows = np.array([tokenizer.encode(TEXT)])
  g, new = jax.jit(by_hand(model, rows)), []
  for _ in range(3):
    logits = g(params, np.append(rows, [new], axis=1).astype(int)).logits
    new.append(int(logits[0, -1].argmax()))
  for policy in ("full", "sinks"):
    flags = [f"--prompt={TEXT}", "--prefix=none", "--max_tokens=3"]
    flags += ["--ignore_eos", f"--policy={policy}"]
    text = ran("generate", model, *flags, f"--edit={EDIT}")
    assert text == tokenizer.decode(new) + "\n"


@pytest.mark.slow
@pytest.mark.thorough
def test_reproduce(model, tmp_path):
  _, params, cfg, tokenizer = model
  edit = "graded key=0 by=3; ablate neurons=1:5 to=2"
  flags = ["--experiment=smoothing", f"--out={tmp_path}/out", "--prefix=none"]
  ran("reproduce", model, *flags, f"--edit={edit}")
  found = json.loads((tmp_path / "out" / "smoothing/result.json").read_text())
  assert found["request"]["edit"] == edit
  subject = Subject("tiny", params, sinkjax.edited(cfg, edit), tokenizer, [])
  result = smoothing.EXPERIMENT.measure(subject, smoothing.EXPERIMENT.config())
  for name, want in result.as_stored(None).numbers.items():
    np.testing.assert_equal(found["numbers"][name], want)
  page = (tmp_path / "out" / "report.html").read_text()
  assert f"tiny, edited: {edit}</title>" in page
  assert f"Measured on the edited model: {edit}." in page
  assert "already done" in ran("reproduce", model, *flags, f"--edit={edit}")
  done = run("reproduce", model, *flags)
  assert done.returncode == 1 and f"with --edit='{edit}'" in done.stderr


REFUSED = [
  ("analyze", ["--edit=nope"], "valid are knockout key="),
  ("analyze", ["--edit=scale head=3.0 by=0"], "layer 3 is not among 0 to 2"),
  ("analyze", ["--edit=knockout key=64"], "among the 64 tokens"),
  ("jacobian", ["--edit=graded key=16 by=2"], "among the 16 tokens"),
  ("jacobian", ["--edit=ablate neurons=0:48"], "neuron 48 is out of range"),
  ("generate", ["--prompt=a", "--edit=knockout key=5"], "among the 1 tokens"),
  (
    "generate",
    ["--prompt=a", "--edit=knockout key=0", "--policy=heavy"],
    "use the policy full, window or sinks",
  ),
  ("generate", ["--prompt=a", "--edit=scale site=k by=2"], "edit at 'k'"),
  ("capture", ["--corpus={text}", "--edit=knockout key=8"], "the 8 tokens"),
  (
    "reproduce",
    ["--experiment=packing", "--edit=knockout key=0"],
    "does not go with packing; it goes with --experiment=",
  ),
  (
    "reproduce",
    ["--experiment=pruning", "--edit=scale head=0.0 by=0"],
    "--edit at z does not go with pruning",
  ),
  (
    "reproduce",
    ["--experiment=smoothing", "--edit=ablate neurons=0:1 to=mean"],
    "to=mean is over a given text",
  ),
  (
    "reproduce",
    ["--experiment=smoothing", "--edit=ablate neurons=3:1"],
    "layer 3 is out of range",
  ),
]


@pytest.mark.slow
@pytest.mark.parametrize(("name", "flags", "said"), REFUSED)
def test_a_dry_run_refuses(model, tmp_path, name, flags, said):
  (tmp_path / "text").write_text(TEXT * 9, "utf-8")
  more = {"capture": ["--length=8"], "analyze": [], "jacobian": []}
  if name in ("analyze", "jacobian"):
    more[name] = [f"--text_file={tmp_path}/text"]
  flags = [flag.format(text=tmp_path / "text") for flag in flags]
  done = run(name, model, "--dry_run", *more.get(name, []), *flags)
  assert done.returncode == 1, done.stdout
  assert done.stderr.startswith("error: ") and done.stderr.count("\n") == 1
  assert said in done.stderr and len(done.stderr) <= 308


def test_the_flag_without_a_value_is_no_edit(monkeypatch):
  assert edit_flag.EDIT.default == "none"
  assert edit_flag.record(()) == {} and edit_flag.plan(()) == ""
  assert edit_flag.text(()) == "none"
  assert edit_flag.resolved((), None, None, []) == ((), {})
