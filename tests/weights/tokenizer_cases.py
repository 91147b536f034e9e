"""The golden texts, ids and vocabularies of the tokenizer tests.

Written by `tests/golden/tokenizer/make_golden.py`.
"""

import functools
import gzip
import io
import json
import lzma
import pathlib

import numpy as np
import pytest

from sinkjax.weights.tokenizer import Tokenizer
from sinkjax.weights.tokenizer_gguf import tokenizer_from_gguf

GOLDEN = pathlib.Path(__file__).parents[1] / "golden" / "tokenizer"
TEXTS = json.loads(gzip.decompress((GOLDEN / "strings.json.gz").read_bytes()))
VOCAB = json.loads(gzip.decompress((GOLDEN / "vocab.json.gz").read_bytes()))
PRE_STEP = 2
LLAMA_CPP = [
  "smollm2",
  "spm.prefix",
  "spm.bare",
  "gemma",
  "shuffled",
  "unspaced",
]
NAMES = [*LLAMA_CPP, "bytes", "glassllm.en", "glassllm.pt"]
SPM_USER = ["<|tool|>", "\n\n"]

# SmolLM2 has no token for the bytes 0x14 and 0x16. Here and in transformers
# the dots beside one meet and merge; llama.cpp keeps them apart.
NOT_AS_LLAMA_CPP = {
  "smollm2": {".\x14.\x10\x15\x1b\x03\x1e\x01\x07\x18\n", ".\x16.\n \x16"}
}
ignore_missing = pytest.mark.filterwarnings("ignore:the vocabulary has no")


@functools.cache
def arrays() -> dict[str, np.ndarray]:
  raw = lzma.decompress((GOLDEN / "ids.npz.xz").read_bytes())
  return dict(np.load(io.BytesIO(raw)))


def golden(name: str) -> list[list[int]]:
  flat, lengths = arrays()[name], arrays()[f"{name}.n"]
  rows = np.split(flat, lengths.cumsum(dtype=int)[:-1])
  return [row.tolist() for row in rows]


def metadata(name: str, **changes) -> dict:
  """A golden vocabulary's keys, some of them changed, `None` to drop."""
  values = dict(VOCAB[name])
  for key, value in changes.items():
    values[f"tokenizer.ggml.{key}"] = value
  return {key: value for key, value in values.items() if value is not None}


def differing(tokenizer, texts, ids, **kwargs) -> set[str]:
  pairs = zip(texts, ids, strict=True)
  return {t for t, row in pairs if tokenizer.encode(t, **kwargs) != row}


@functools.cache
def byte_level(pre: str) -> Tokenizer:
  return tokenizer_from_gguf(metadata("bytes", pre=pre))


SIZE = len(VOCAB["bytes"]["tokenizer.ggml.tokens"])
