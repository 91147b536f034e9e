"""launch.generate: a small model's text, and what it refuses."""

import re

import launcher
import pytest


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
  "--prompt=a --policy=full --max_tokens=99999": "leave the model's context",
  "--prompt=a --window=99999": "a cache of 100003 tokens leave",
}


@pytest.mark.parametrize("words", MISTAKES)
def test_mistakes_are_one_line(words, glassllm_path):
  done = launch("--model=glassllm-en", *words.split())
  assert done.returncode == 1 and done.stdout == ""
  assert done.stderr.startswith("error: ") and done.stderr.count("\n") == 1
  assert MISTAKES[words] in done.stderr


def test_dry_run(smollm2_path):
  """The cache's size, for any number of tokens; the file's own template."""
  done = launch("--chat=Hello", "--max_tokens=0", "--dry_run")
  # 30 layers, keys and values, 3 heads of 64, 4 + 1020 + 63 slots, 4 bytes.
  assert "31 tokens of prompt, endlessly many" in done.stdout, done.stderr
  assert "a cache of 1024 tokens, 50.1 MB" in done.stdout
