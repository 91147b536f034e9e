"""Tokenizers: the ids of the references, also once saved and read again."""

import pathlib
import sys

import pytest
import tokenizers

from sinkjax.weights.pre_tokenizers import PRE_TOKENIZERS
from sinkjax.weights.tokenizer_files import tokenizer_from_folder
from sinkjax.weights.tokenizer_gguf import tokenizer_from_gguf

sys.path.insert(0, str(pathlib.Path(__file__).parent))
from tokenizer_cases import (
  GOLDEN,
  LLAMA_CPP,
  NAMES,
  NOT_AS_LLAMA_CPP,
  PRE_STEP,
  SPM_USER,
  TEXTS,
  VOCAB,
  differing,
  golden,
  ignore_missing,
  metadata,
)


def test_there_are_enough_texts():
  assert len(TEXTS) == len(set(TEXTS)) >= 2200
  assert len(TEXTS[::PRE_STEP]) >= 500
  size = sum(path.stat().st_size for path in GOLDEN.iterdir())
  assert size < 450_000


@ignore_missing
@pytest.mark.parametrize("special", [False, True])
@pytest.mark.parametrize("name", LLAMA_CPP)
def test_same_ids_as_llama_cpp(real, name, special):
  ids = golden(f"{name}.special" if special else name)
  found = differing(real[name], TEXTS, ids, parse_special=special)
  assert found == NOT_AS_LLAMA_CPP.get(name, set())


@pytest.mark.thorough
@pytest.mark.parametrize("pre", PRE_TOKENIZERS)
def test_every_pre_tokenizer_as_in_llama_cpp(pre):
  tokenizer = tokenizer_from_gguf(metadata("bytes", pre=pre))
  ids = golden(f"pre.{VOCAB['pre'][pre]}")
  assert differing(tokenizer, TEXTS[::PRE_STEP], ids) == set()


def test_the_golden_pre_tokenizers_are_all_of_them():
  assert VOCAB["pre"].keys() == PRE_TOKENIZERS.keys()
  distinct = set(VOCAB["pre"].values())
  assert {
    "default",
    "falcon",
    "gpt-2",
    "smollm",
    "llama-bpe",
    "qwen2",
    "qwen35",
    "deepseek-v3",
    "tekken",
    "gpt-4o",
  } <= distinct


def test_same_ids_as_sentencepiece(real):
  """Without its prefix all; with it all, if the caller puts the space."""
  bare = real["spm.bare"]
  assert differing(bare, TEXTS, golden("sentencepiece.bare")) == set()
  ids = golden("sentencepiece.prefix")
  spaced = [text and " " + text for text in TEXTS]
  assert differing(bare, spaced, ids) == set()
  # With llama.cpp's prefix: unless there is a user-defined token, where
  # llama.cpp puts the space after each such token and not in front.
  found = differing(real["spm.prefix"], TEXTS, ids)
  assert [t for t in found if not any(u in t for u in SPM_USER)] == []
  # Runs of spaces are tokens of their own; llama.cpp takes "▁" in a text for
  # the letter then, sentencepiece for a space.
  found = differing(real["gemma"], TEXTS, golden("sentencepiece.gemma"))
  assert [text for text in found if "▁" not in text] == []


@pytest.mark.parametrize("language", ["en", "pt"])
def test_same_ids_as_glassllm(real, language):
  name = f"glassllm.{language}"
  assert differing(real[name], TEXTS, golden(name)) == set()


@pytest.mark.thorough
@ignore_missing
@pytest.mark.parametrize("name", NAMES)
def test_saved_tokenizers_are_the_same(real, saved, name):
  ours, again = real[name], tokenizer_from_folder(saved / name)
  for special in (False, True):
    ids = [ours.encode(text, parse_special=special) for text in TEXTS]
    assert differing(again, TEXTS, ids, parse_special=special) == set()
    decoded = map(ours.decode, ids)
    assert list(map(again.decode, ids)) == list(decoded)
  for field in (
    "vocab_size",
    "bos_id",
    "eos_id",
    "unk_id",
    "pad_id",
    "add_bos",
    "chat_template",
  ):
    assert getattr(again, field) == getattr(ours, field), field
  tokens = range(ours.vocab_size)
  assert list(map(again.token, tokens)) == list(map(ours.token, tokens))


@pytest.mark.parity
@ignore_missing
@pytest.mark.parametrize("name", NAMES)
def test_saved_tokenizers_in_transformers(real, saved, name):
  """Special tokens parsed, as transformers does; with and without BOS."""
  from transformers import AutoTokenizer

  ours, theirs = real[name], AutoTokenizer.from_pretrained(saved / name)
  ids = [theirs(text, add_special_tokens=False)["input_ids"] for text in TEXTS]
  assert differing(ours, TEXTS, ids, parse_special=True) == set()
  for text in TEXTS[::9]:
    row = ours.encode(text, parse_special=True)
    assert theirs.decode(row) == ours.decode(row)
  ids = [theirs(text)["input_ids"] for text in TEXTS[::9]]
  add = {"parse_special": True, "add_bos": ours.add_bos}
  assert differing(ours, TEXTS[::9], ids, **add) == set()
  for field in ("bos", "eos", "unk", "pad"):
    want = getattr(ours, f"{field}_id")
    assert getattr(theirs, f"{field}_token_id") == want, field


@pytest.mark.parametrize("name", ["spm.prefix", "gemma"])
def test_saved_folders_add_bos_elsewhere(real, saved, name):
  """Other libraries add what the file says, from tokenizer.json alone."""
  backend = tokenizers.Tokenizer.from_file(str(saved / name / "tokenizer.json"))
  assert backend.encode("Hi").ids == real[name].encode("Hi", add_bos=True)
  assert backend.encode("Hi", "x").ids[0] == real[name].bos_id
