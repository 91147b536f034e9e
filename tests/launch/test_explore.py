"""launch.explore: its plan, its page, and how it goes on after a stop."""

import json

import jax
import launcher
import numpy as np
import pytest

import sinkjax
from launch import explore_run, prompts
from sinkjax.data.corpus import train_tokenizer
from sinkjax.experiments.shared.swap_texts import SWAP_TEXTS
from sinkjax.report import explore
from sinkjax.transforms.edit_grammar import parse_edits
from sinkjax.weights.registry import Model

pytestmark = pytest.mark.thorough

CFG = sinkjax.TINY.replace(vocab_size=300, max_len=96, n_layers=2)


@pytest.fixture(scope="module")
def tokenizer():
  return train_tokenizer([SWAP_TEXTS], 300)


@pytest.fixture(scope="module")
def model(tmp_path_factory, tokenizer):
  """A small model as a folder, and one with more heads than a page holds."""
  folder = tmp_path_factory.mktemp("model")
  wide = CFG.replace(n_layers=40, n_heads=32, n_kv_heads=32, head_dim=2)
  for name, cfg in (("small", CFG), ("wide", wide)):
    params = sinkjax.init_params(cfg, jax.random.key(0))
    sinkjax.save(folder / name, params, cfg, tokenizer)
  return folder


def run(model, *flags):
  return launcher.run("explore", f"--model={model}", *flags)


def test_a_plan_says_how_large_the_page_will_be(model, tmp_path):
  done = run(model / "small", "--dry_run", f"--out={tmp_path / 'out'}")
  assert done.returncode == 0, done.stderr
  most = explore.page_bytes(CFG, 64) / 1e6
  assert f"at most {most:.1f} of 6 MB; 96 tokens would fit" in done.stdout
  assert "as it is and knockout key=0" in done.stdout
  assert not (tmp_path / "out").exists()


def test_a_text_that_does_not_fit_is_refused(model, tmp_path):
  out = f"--out={tmp_path / 'out'}"
  done = run(model / "wide", "--max_tokens=90", out)
  most = explore.most_tokens(
    CFG.replace(n_layers=40, n_heads=32, n_kv_heads=32)
  )
  assert done.returncode == 1 and "Traceback" not in done.stderr
  assert f"take at most {most}, or leave out the edit" in done.stderr
  assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_the_page_is_the_library_s(model, tokenizer, tmp_path):
  out = tmp_path / "out"
  flags = ["--max_tokens=9", "--edit=graded key=1 by=3", f"--out={out}"]
  done = run(model / "small", *flags)
  assert done.returncode == 0, done.stderr
  assert {p.name for p in out.iterdir()} == {"explore.html", "summary.json"}
  data = json.loads((out / "summary.json").read_text())
  assert data["complete"] is True and list(data)[-1] == "complete"
  assert data["edit"] == "graded key=1 by=3"
  text = (out / "explore.html").read_text("utf-8")
  found = explore.read(text)
  ids = tokenizer.encode(prompts.PARAGRAPH)[:9]
  assert [token["id"] for token in found["tokens"]] == ids
  f = sinkjax.forward(CFG)
  g = sinkjax.intervene(f, {"scores": sinkjax.graded(1, by=3.0)})
  params = sinkjax.load(str(model / "small")).params
  assert [x["name"] for x in found["conditions"]] == ["as it is", data["edit"]]
  for fn, one in zip((f, g), found["conditions"], strict=True):
    h = jax.jit(sinkjax.capture(fn, {"p": ("pattern", lambda p: p)}))
    pattern = np.asarray(h(params, np.array([ids])).trace["p"])[:, 0]
    kept = explore.unpacked(one["arrays"]["pattern"])
    wanted = pattern[:, :, *np.tril_indices(9)]
    np.testing.assert_allclose(kept, wanted, rtol=2.0**-11, atol=2.0**-24)
  again = run(model / "small", *flags)
  assert again.returncode == 0 and "Already done" in again.stdout
  other = run(model / "small", *flags[:1], f"--out={out}")
  assert other.returncode == 1 and "another command" in other.stderr


@pytest.mark.slow
def test_carriers_of_every_pair_are_the_library_s(model, tmp_path):
  alone = run(model / "small", "--carriers", f"--out={tmp_path / 'out'}")
  assert alone.returncode == 1
  assert "--carriers goes with --jacobian" in alone.stderr
  size = 6
  done = run(
    model / "small",
    f"--out={tmp_path / 'out'}",
    f"--max_tokens={size}",
    "--edit=none",
    "--jacobian",
    "--carriers",
  )
  assert done.returncode == 0, done.stderr
  page = (tmp_path / "out" / "explore.html").read_text("utf-8")
  assert len(page.encode()) < explore.page_bytes(CFG, size, 1, True, True)
  found = explore.read(page)["carriers"]
  assert found["rows"] == list(range(size)) and len(found["conditions"]) == 1
  kept = explore.unpacked(found["conditions"][0]).astype(np.float64)
  assert kept.shape == (2 + 3 * CFG.n_heads, CFG.n_layers, size, size)
  params, cfg, _ = sinkjax.load(str(model / "small"))
  ids = [token["id"] for token in explore.read(page)["tokens"]]
  f = sinkjax.forward(cfg)
  shares = sinkjax.carriers(f, params, jax.numpy.array(ids)).shares
  by_name = dict(zip(found["names"], kept, strict=True))
  for name, of in (
    ("residual", shares["residual"]),
    ("mlp", shares["mlp"]),
    ("head 3, values", shares["values"][:, 3]),
    ("head 1, scores", shares["scores"][:, 1]),
  ):
    np.testing.assert_allclose(by_name[name], of, rtol=1e-3, atol=1e-4)
  # Of a pair they sum to one in every layer.
  past = np.tril_indices(size)
  np.testing.assert_allclose(kept.sum(axis=0)[:, *past], 1, atol=0.01)


@pytest.mark.slow
def test_a_stopped_jacobian_goes_on(tokenizer, tmp_path):
  """From the columns that are in the file, which are not computed again."""
  params = sinkjax.init_params(CFG, jax.random.key(0))
  model = Model(params, CFG, tokenizer)
  encoded = prompts.encode([prompts.PARAGRAPH], tokenizer, "none", 4)
  job = explore_run.Job(
    CFG, tokenizer, 1, encoded, parse_edits("knockout key=0")
  )
  functions, about = job.functions(model.params)
  assert about == {"edit": "knockout key=0"}
  assert list(functions) == job.names == ["as it is", "knockout key=0"]
  partial = explore_run.partial(tmp_path, job, "sha", overwrite=False)
  mark = np.full((2, 4, 2), 7.0)
  partial.maps["map_1"].add([0, 3], mark)
  partial.save()
  again = explore_run.partial(tmp_path, job, "sha", overwrite=False)
  assert again.resumed == 2
  found = explore_run.jacobians(job, functions, model.params, again)
  assert (found["knockout key=0"][..., [0, 3]] == 7.0).all()
  for name, fn in functions.items():
    norms = sinkjax.jacobian_norms(fn, params, jax.numpy.array(job.ids))
    columns = [1, 2] if name in about.values() else [0, 1, 2, 3]
    np.testing.assert_allclose(
      found[name][-1][:, columns], norms[:, columns], rtol=1e-4
    )
  with pytest.raises(ValueError, match="another command, model file"):
    explore_run.partial(tmp_path, job, "other", overwrite=False)
