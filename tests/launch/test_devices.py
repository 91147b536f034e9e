"""--mesh and --dtype of the launchers, on 8 fake devices."""

import json
import os

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from launcher import run

import sinkjax
from launch import devices
from sinkjax.analysis.sink_profile import sink_profile
from sinkjax.models.transformer import param_shapes

EIGHT = {
  "XLA_FLAGS": os.environ.get("XLA_FLAGS", "")
  + " --xla_force_host_platform_device_count=8"
}
TEXTS = ["The king sat by the window.", "A fox ran home.", "The king sat down."]


@pytest.fixture(scope="module")
def texts(tmp_path_factory):
  path = tmp_path_factory.mktemp("texts") / "texts.jsonl"
  path.write_text("".join(json.dumps({"text": t}) + "\n" for t in TEXTS))
  return path


def analyze(texts, out, *flags):
  done = run(
    "analyze",
    "--model=glassllm-en",
    f"--prompts_file={texts}",
    "--max_tokens=6",
    f"--out={out}",
    *flags,
    env=EIGHT,
  )
  assert done.returncode == 0, done.stderr
  return json.loads((out / "summary.json").read_text())


@pytest.mark.slow
def test_the_report_is_that_of_one_device(texts, tmp_path, glassllm_path):
  data = analyze(texts, tmp_path / "mesh", "--mesh=data:2,fsdp:4")
  assert data["mesh"] == {"data": 2, "fsdp": 4, "tensor": 1}
  params, cfg, _ = sinkjax.load("glassllm-en")
  want = sink_profile(params, cfg, data["prompts"])
  np.testing.assert_allclose(
    data["alpha_first"], want.mean("alpha"), rtol=1e-5, atol=1e-6
  )
  np.testing.assert_allclose(data["nll"], want.nll.mean(), rtol=1e-5)
  np.testing.assert_allclose(
    data["hidden_norm_first"], want.mean("hidden_norm_first"), rtol=1e-5
  )
  # The mesh is no other request: the result is there.
  again = run(
    "analyze",
    "--model=glassllm-en",
    f"--prompts_file={texts}",
    "--max_tokens=6",
    f"--out={tmp_path / 'mesh'}",
  )
  assert "Already done" in again.stdout


@pytest.mark.slow
def test_all_devices_in_half_precision(texts, tmp_path, glassllm_path):
  data = analyze(texts, tmp_path / "all", "--dtype=bfloat16")
  # 0.85M parameters fit a device many times, and are copied to each.
  assert data["mesh"] == {"data": 8, "fsdp": 1, "tensor": 1}
  assert data["weights_dtype"] == "bfloat16"
  assert data["request"]["dtype"] == "bfloat16"


@pytest.mark.parametrize(
  ("room", "mesh"), [(4.01, "data:8"), (3.99, "fsdp:2,tensor:4")]
)
def test_a_model_is_split_where_it_does_not_fit_four_times(
  monkeypatch, room, mesh
):
  shapes = param_shapes(sinkjax.TINY.replace(n_heads=4, n_kv_heads=4, d_ff=64))
  whole = 4 * sum(x.size for x in jax.tree.leaves(shapes))
  monkeypatch.setattr(devices, "item_bytes", lambda: 4)
  monkeypatch.setattr(devices, "_room", lambda: room * whole)
  assert str(devices._automatic(shapes, 8)) == mesh


@pytest.mark.parametrize(
  ("launcher", "flags", "message"),
  [
    ("analyze", ["--mesh=tensor:8"], "take --mesh=fsdp:8, or data:2,fsdp:4"),
    ("analyze", ["--mesh=data:3"], "there are 8"),
    ("analyze", ["--mesh=rows:8"], "'rows:8' is no axis"),
    ("analyze", ["--mesh=data:8", "--offload"], "leave out --mesh and --dtype"),
    ("jacobian", ["--dtype=bfloat16", "--offload"], "leave out --mesh"),
    ("analyze", ["--dtype=float16"], "dtype"),
  ],
)
def test_what_cannot_be_is_one_line(
  launcher, flags, message, tmp_path, glassllm_path
):
  done = run(
    launcher,
    "--model=glassllm-en",
    f"--out={tmp_path / 'never'}",
    *flags,
    env=EIGHT,
  )
  errors = [x for x in done.stderr.splitlines() if x.startswith("error: ")]
  assert done.returncode == 1 and len(errors) == 1, done.stderr
  assert message in errors[0]


@pytest.mark.slow
@pytest.mark.parametrize("launcher", ["analyze", "jacobian", "reproduce"])
def test_a_plan_needs_no_devices(launcher, smollm2_path):
  """134,515,008 parameters of 2 bytes in halves; norms alone are copied."""
  done = run(
    launcher,
    "--model=smollm2-135m",
    "--dry_run",
    "--mesh=data:4,fsdp:2",
    "--dtype=bfloat16",
  )
  assert done.returncode == 0, done.stderr
  assert "each of 8 devices, --mesh=data:4,fsdp:2" in done.stdout
  assert "0.13 GB of" in done.stdout or "0.13 of it weights" in done.stdout


def test_help_teaches_the_mesh():
  launchers = "analyze", "jacobian", "generate", "reproduce", "capture", "bench"
  for launcher in (*launchers, "train"):
    done = run(launcher, "--help")
    assert "--mesh" in done.stdout and "data:2,fsdp:2,tensor:4" in done.stdout
    assert ("--dtype" in done.stdout) == (launcher != "train")


@pytest.mark.slow
def test_a_map_of_half_the_bytes(tmp_path, glassllm_path):
  done = run(
    "jacobian",
    "--model=glassllm-en",
    "--max_tokens=6",
    "--mesh=fsdp:8",
    "--dtype=bfloat16",
    f"--out={tmp_path}",
    env=EIGHT,
  )
  assert done.returncode == 0, done.stderr
  data = json.loads((tmp_path / "summary.json").read_text())
  params, cfg, _ = sinkjax.load("glassllm-en")
  rounded = jax.tree.map(
    lambda x: x.astype(jnp.bfloat16).astype(jnp.float32), params
  )
  with np.load(tmp_path / "jacobian.npz") as found:
    ids, norms = found["ids"], found["norms"]
  want = sinkjax.jacobian_norms(sinkjax.forward(cfg), rounded, jnp.array(ids))
  np.testing.assert_allclose(norms, want, rtol=2e-5, atol=1e-6)
  assert data["request"]["dtype"] == "bfloat16"


def test_a_benchmark_of_no_model_takes_no_mesh(tmp_path):
  done = run("bench", "--suite=train", "--mesh=data:8", f"--out={tmp_path}")
  assert done.returncode == 1
  assert "go with --suite=jacobian|streaming|forward|generate" in done.stderr


@pytest.mark.slow
@pytest.mark.parametrize("mesh", ["--mesh=data:4", "--mesh=fsdp:8"])
def test_a_benchmark_on_a_mesh(mesh, tmp_path, smollm2_path):
  """A mesh of 4 among 8 devices is refused by the measuring process."""
  done = run(
    "bench",
    "--suite=forward",
    "--peers=ours",
    "--tokens=32",
    "--rounds=1",
    "--dtype=bfloat16",
    f"--out={tmp_path}",
    mesh,
    env=EIGHT,
  )
  if mesh == "--mesh=data:4":
    assert done.returncode == 1 and "there are 8" in done.stderr
    return
  assert done.returncode == 0, done.stderr
  data = json.loads((tmp_path / "bench.json").read_text())
  assert (data["mesh"], data["dtype"]) == ("fsdp:8", "bfloat16")
  assert all(row["seconds"] > 0 for row in data["rows"])


@pytest.mark.slow
def test_the_same_text_is_generated(smollm2_path):
  texts = [
    run(
      "generate",
      "--prompt=The lighthouse keeper",
      "--max_tokens=6",
      *flags,
      env=env,
    )
    for flags, env in (((), {}), (("--mesh=fsdp:8",), EIGHT))
  ]
  assert [text.returncode for text in texts] == [0, 0], texts[1].stderr
  assert texts[0].stdout == texts[1].stdout
  assert "donated" not in texts[1].stderr


@pytest.mark.slow
def test_an_experiment_on_a_mesh(tmp_path, glassllm_path):
  results = []
  for name, flags, env in ("one", (), {}), ("mesh", ("--mesh=fsdp:8",), EIGHT):
    done = run(
      "reproduce",
      "--model=glassllm-en",
      "--experiment=massive",
      f"--out={tmp_path / name}",
      *flags,
      env=env,
    )
    assert done.returncode == 0, done.stderr
    with np.load(tmp_path / name / "massive" / "arrays.npz") as found:
      results.append({key: found[key] for key in found.files})
  assert results[0].keys() == results[1].keys() and results[0]
  for key, want in results[0].items():
    if want.dtype.kind == "f":
      np.testing.assert_allclose(
        results[1][key], want, rtol=1e-4, atol=1e-5, err_msg=key
      )
