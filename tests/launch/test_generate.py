"""launch.generate: a small model's text, and what it refuses."""

import dataclasses
import functools
import re
import types

import launcher
import pytest

from sinkjax import TINY
from sinkjax.rope_scaling import RopeScaling


def launch(*flags):
  return launcher.run("generate", *flags)


@pytest.mark.slow
def test_text_beyond_the_cache(glassllm_path):
  """The same with the same seed; speed to the standard error."""
  flags = [
    "--model=glassllm-en",
    "--prompt=The cat",
    "--sinks=2",
    "--window=10",
    "--max_tokens=40",
    "--ignore_eos",
    "--temperature=0.8",
    "--top_p=0.9",
  ]
  done = launch(*flags)
  assert done.returncode == 0, done.stderr
  assert re.search(r"; 40 new, [\d.]+ tokens/s", done.stderr)
  assert len(done.stdout) > 40
  assert launch(*flags).stdout == done.stdout
  assert launch(*flags, "--seed=1").stdout != done.stdout


MISTAKES = {
  "--top_p=1": "give one of --prompt, --prompt_file and --chat",
  "--prompt=a --chat=b": "give one of --prompt",
  "--prompt=a --system=b": "--system goes with --chat",
  "--prompt=a --top_p=2": "top_p must be in (0, 1], got 2.0",
  "--chat=a": "no chat template",
  "--prompt=a --window=0": "window must be an integer from 1 on",
  "--prompt=a --policy=full --max_tokens=0": "needs an end",
  "--prompt=a --policy=full --max_tokens=99999": (
    "leave the model's context of 128; take at most --max_tokens=127, or "
    "--policy=sinks"
  ),
  "--prompt=a --window=99999": (
    "a cache of 100003 tokens leaves the model's context of 128; take at most "
    "--window=124"
  ),
  "--prompt=a --sinks=128": "take at most --sinks=127",
}


@pytest.mark.parametrize("words", MISTAKES)
def test_mistakes_are_one_line(words, glassllm_path):
  done = launch("--model=glassllm-en", *words.split())
  assert done.returncode == 1 and done.stdout == ""
  assert done.stderr.startswith("error: ") and done.stderr.count("\n") == 1
  assert MISTAKES[words] in done.stderr


PLANS = {
  "": "256 new ones; a cache of 128 tokens",
  "--sinks=127": "256 new ones; a cache of 128 tokens",
  "--max_tokens=127 --window=124": "127 new ones; a cache of 128 tokens",
  "--policy=window": "256 new ones; a cache of 128 tokens",
  "--policy=heavy": "256 new ones; a cache of 128 tokens",
  "--policy=full": "127 new ones; a cache of 128 tokens",
}


@pytest.mark.slow
@pytest.mark.parametrize("words", PLANS)
def test_defaults_fit_a_short_context(words, glassllm_path):
  """glassllm has 128 positions, and the letter is one token."""
  flags = ["--model=glassllm-en", "--prompt=a", "--prefix=none"]
  done = launch(*flags, *words.split(), "--dry_run")
  assert done.returncode == 0, done.stderr
  assert f"1 tokens of prompt, {PLANS[words]}" in done.stdout


def limits_of(monkeypatch, cfg, prompt, **flags):
  """What the flags come to: the tokens kept and the new ones."""
  from launch import generate

  for flag in ("policy", "window", "max_tokens", "heads"):
    value = types.SimpleNamespace(value=flags.get(flag))
    monkeypatch.setattr(generate, flag.upper(), value)
  for flag, value in (("SINKS", 4), ("SEED", 0)):
    monkeypatch.setattr(generate, flag, types.SimpleNamespace(value=value))
  policy, most = generate._policy(cfg, prompt)
  return policy.capacity, most


def test_learned_positions_take_the_full_cache(monkeypatch):
  cfg = dataclasses.replace(TINY, positions="learned", max_len=300)
  fit = functools.partial(limits_of, monkeypatch, cfg)
  assert fit(10) == (266, 256)
  assert fit(100) == (300, 200)
  assert fit(299) == (300, 1)
  with pytest.raises(ValueError, match="take a shorter prompt$"):
    fit(300)
  with pytest.raises(ValueError, match="take at most --max_tokens=290$"):
    fit(10, max_tokens=291)
  with pytest.raises(ValueError, match="use the full cache"):
    fit(10, policy="sinks")


def test_rope_by_length_bounds_the_cache(monkeypatch):
  scaling = RopeScaling("dynamic", 2.0, original_max_len=64)
  cfg = dataclasses.replace(TINY, max_len=128, rope_scaling=scaling)
  assert limits_of(monkeypatch, cfg, 3) == (64, 256)
  assert limits_of(monkeypatch, cfg, 3, policy="full") == (64, 61)
  with pytest.raises(ValueError, match="context of 64; take at most --window"):
    limits_of(monkeypatch, cfg, 3, window=61)


@pytest.fixture
def gates(tmp_path):
  """A file of gates for glassllm-en, of whose 4 x 2 KV heads 3 are open."""
  path = tmp_path / "gates.csv"
  rows = [f"{i // 2},{i % 2},{0.5 + 0.1 * (i < 3)},0.2" for i in range(8)]
  path.write_text("\n".join(["layer,kv_head,gate,sink", *rows]) + "\n")
  return path


@pytest.mark.thorough
def test_dry_run_by_head(gates, glassllm_path):
  """What both kinds of heads keep, and what that takes."""
  flags = ["--model=glassllm-en", "--prompt=a", "--prefix=none"]
  by_head = [f"--heads={gates}", "--window=16", "--max_tokens=99"]
  done = launch(*flags, *by_head, "--dry_run")
  slots = 3 * 100 + 5 * (4 + 16 + 63)
  assert (
    "99 new ones; a cache of 100 tokens in 3 of 8 KV heads and of 20 in the "
    f"others, {slots * 2 * 32 * 4 / 1e6:.1f} MB"
  ) in done.stdout, done.stderr


def test_mistakes_by_head(monkeypatch, gates, glassllm_path):
  """Those of flags, in this process, and a file that is not there."""
  cfg = dataclasses.replace(TINY, n_layers=4, max_len=128)
  fit = functools.partial(limits_of, monkeypatch, cfg, 1, heads=str(gates))
  assert fit() == (128, 127) and fit(max_tokens=9) == (10, 9)
  with pytest.raises(ValueError, match="of its own: leave out --policy"):
    fit(policy="sinks")
  with pytest.raises(ValueError, match="--heads needs an end"):
    fit(max_tokens=0)
  with pytest.raises(ValueError, match="most --max_tokens=127, or --policy="):
    fit(max_tokens=128)
  with pytest.raises(ValueError, match="take at most --window=124"):
    fit(window=125)
  done = launch("--model=glassllm-en", "--prompt=a", f"--heads={gates}s")
  assert done.returncode == 1 and done.stdout == ""
  assert done.stderr.startswith("error: ") and done.stderr.count("\n") == 1
  assert "gates.csvs: no such file" in done.stderr


@pytest.mark.slow
def test_text_by_head(gates, glassllm_path):
  """Sampled; another text than with all heads, and the same where all see it.

  A window of 100 tokens closes nothing in a text of 60.
  """
  flags = ["--model=glassllm-en", "--prompt=The cat", "--temperature=0.8"]
  flags += ["--max_tokens=56", "--ignore_eos"]
  whole = launch(*flags, "--policy=full").stdout
  wide = launch(*flags, f"--heads={gates}", "--window=100")
  assert wide.stdout == whole and len(whole) > 40, wide.stderr
  near = launch(*flags, f"--heads={gates}", "--sinks=1", "--window=4")
  assert len(near.stdout) > 40 and near.stdout != whole, near.stderr


def test_dry_run(smollm2_path):
  """The cache's size, for any number of tokens; the file's own template."""
  done = launch("--chat=Hello", "--max_tokens=0", "--dry_run")
  # 30 layers, keys and values, 3 heads of 64, 4 + 1020 + 63 slots, 4 bytes.
  assert "31 tokens of prompt, endlessly many" in done.stdout, done.stderr
  assert "a cache of 1024 tokens, 50.1 MB" in done.stdout
