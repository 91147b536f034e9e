"""Fixtures: the tokenizers that are tested, and their saved folders."""

import pathlib
import sys

import pytest

from sinkjax.weights.formats import gguf
from sinkjax.weights.tokenizer_files import tokenizer_from_glassllm
from sinkjax.weights.tokenizer_gguf import tokenizer_from_gguf

sys.path.insert(0, str(pathlib.Path(__file__).parent))
from tokenizer_cases import metadata


@pytest.fixture(scope="session")
def real(smollm2_path, glassllm_path):
  """Every tokenizer of `NAMES`."""
  found = {
    "smollm2": tokenizer_from_gguf(gguf.open_gguf(smollm2_path).metadata),
    "spm.prefix": tokenizer_from_gguf(metadata("spm")),
    "spm.bare": tokenizer_from_gguf(metadata("spm", add_space_prefix=False)),
    "gemma": tokenizer_from_gguf(metadata("gemma")),
    "shuffled": tokenizer_from_gguf(metadata("shuffled")),
    "unspaced": tokenizer_from_gguf(metadata("unspaced")),
    "bytes": tokenizer_from_gguf(metadata("bytes", pre="gpt-2")),
  }
  for language in ("en", "pt"):
    path = glassllm_path / f"{language}.tokenizer.json"
    found[f"glassllm.{language}"] = tokenizer_from_glassllm(path)
  return found


@pytest.fixture(scope="session")
def saved(real, tmp_path_factory):
  """The folder of each tokenizer, saved."""
  folder = tmp_path_factory.mktemp("tokenizers")
  for name, tokenizer in real.items():
    tokenizer.save(folder / name)
  return folder
