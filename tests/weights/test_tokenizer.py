"""Tokenizers: what holds for every text, and one token for people.

The golden vocabularies come from `tests/golden/tokenizer/make_golden.py`.
"""

import pathlib
import re
import sys
import warnings

import jax.numpy as jnp
import numpy as np
import pytest
import tokenizers
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tokenizers import models, pre_tokenizers

from sinkjax.weights.tokenizer import Tokenizer
from sinkjax.weights.tokenizer_files import tokenizer_from_folder
from sinkjax.weights.tokenizer_gguf import tokenizer_from_gguf
from sinkjax.weights.validate import WeightsError

sys.path.insert(0, str(pathlib.Path(__file__).parent))
from tokenizer_cases import (
  NAMES,
  SPM_USER,
  TEXTS,
  VOCAB,
  byte_level,
  ignore_missing,
  metadata,
)

few = settings(
  deadline=None,
  max_examples=150,
  suppress_health_check=[HealthCheck.function_scoped_fixture],
)
TEXT = st.lists(
  st.one_of(
    st.text(),
    st.text("ab1 .,'\n\r\t▁"),
    st.sampled_from(TEXTS),
    st.sampled_from(
      [
        "<|im_start|>",
        "<|endoftext|>",
        "<s>",
        "</s>",
        "<unk>",
        "<bos>",
        "<start_of_turn>",
        "<|tool|>",
      ]
    ),
  ),
  max_size=5,
).map("".join)


@few
@given(text=TEXT, pre=st.sampled_from(sorted(set(VOCAB["pre"].values()))))
def test_byte_level_decodes_to_the_same_text(text, pre):
  tokenizer = byte_level(pre)
  for special in (False, True):
    ids = tokenizer.encode(text, parse_special=special)
    assert tokenizer.decode(ids) == text


@few
@given(text=TEXT)
def test_smollm2_decodes_to_the_same_text(real, text):
  smollm2 = real["smollm2"]
  # It has no token for these, and none for the bytes 0xf1 and 0xf2.
  text = re.sub("[\x04\x06\x13\x14\x16\x1d\U00040000-\U000bffff]", "", text)
  with warnings.catch_warnings():
    warnings.simplefilter("error")
    ids = smollm2.encode(text)
  assert smollm2.decode(ids) == text


@few
@given(text=TEXT)
def test_byte_fallback_decodes_to_the_same_text(real, text):
  shown = text.replace("▁", " ")
  for name in ("spm.bare", "gemma"):
    assert real[name].decode(real[name].encode(text)) == shown
  if not any(token in text for token in SPM_USER):
    prefix = real["spm.prefix"]
    assert prefix.decode(prefix.encode(text)) == shown


@few
@ignore_missing
@given(text=TEXT)
@pytest.mark.parametrize("name", NAMES)
def test_special_ids_only_when_asked(real, name, text):
  tokenizer = real[name]
  special = tokenizer._special - {tokenizer.unk_id}
  before = tokenizer.encode(text)
  assert not special & set(before)
  tokenizer.encode(text, parse_special=True)
  assert tokenizer.encode(text) == before


@pytest.mark.parametrize("name", NAMES)
def test_special_ids_when_asked(real, name):
  tokenizer = real[name]
  assert tokenizer._special
  for token in tokenizer._special - {tokenizer.unk_id}:
    text = tokenizer.token(token)
    assert tokenizer.encode(text, parse_special=True) == [token]
    assert tokenizer.decode([token]) == text
    assert tokenizer.decode([token], skip_special=True) == ""


@pytest.mark.parametrize("name", NAMES)
def test_token_tells_ids_apart(real, name):
  tokenizer = real[name]
  ids = range(tokenizer.vocab_size)
  shown = [tokenizer.token(token) for token in ids]
  assert len(set(shown)) == tokenizer.vocab_size
  assert all(text.isprintable() for text in shown)
  assert [tokenizer.token_to_id(text) for text in shown] == list(ids)


@pytest.mark.parametrize("name", NAMES)
def test_every_token_decodes(real, name):
  tokenizer = real[name]
  for token in range(tokenizer.vocab_size):
    assert isinstance(tokenizer.decode([token]), str)


def test_bos_only_when_asked(real):
  for name in NAMES:
    tokenizer = real[name]
    ids = tokenizer.encode("Hi")
    assert tokenizer.encode("Hi", add_bos=True) == [tokenizer.bos_id, *ids]
    assert ids[0] != tokenizer.bos_id
    assert tokenizer.encode("") == []
    assert tokenizer.encode("", add_bos=True) == [tokenizer.bos_id]


def test_no_bos_to_add():
  tokenizer = tokenizer_from_gguf(metadata("bytes", bos_token_id=None))
  assert tokenizer.bos_id is None
  assert not tokenizer.add_bos
  with pytest.raises(ValueError, match="no BOS"):
    tokenizer.encode("a", add_bos=True)


def test_smollm2_special_tokens(real):
  smollm2 = real["smollm2"]
  assert (smollm2.vocab_size, smollm2.add_bos) == (49152, False)
  assert (smollm2.bos_id, smollm2.eos_id) == (1, 2)
  assert (smollm2.unk_id, smollm2.pad_id) == (0, 2)
  assert smollm2.token(1) == "<|im_start|>"
  assert "{% for message in messages %}" in smollm2.chat_template
  text = "<|im_start|>user\nHi<|im_end|>"
  plain = smollm2.encode(text)
  ids = smollm2.encode(text, parse_special=True)
  assert len(plain) > len(ids) == 5
  assert smollm2.decode(plain) == smollm2.decode(ids) == text
  assert smollm2.decode(ids, skip_special=True) == "user\nHi"
  assert smollm2.decode(plain, skip_special=True) == text


def test_decode_of_arrays_and_odd_ids(real):
  smollm2 = real["smollm2"]
  ids = smollm2.encode("déjà vu 🙂")
  for kind in (tuple, np.array, jnp.array, iter):
    assert smollm2.decode(kind(ids)) == "déjà vu 🙂"
  assert smollm2.decode([]) == ""
  assert smollm2.decode(smollm2.encode("a𐍈")[:-1]) == "a\ufffd"
  for name in NAMES:
    tokenizer = real[name]
    for token in (-1, tokenizer.vocab_size, 10**12):
      with pytest.raises(ValueError, match="outside the vocabulary"):
        tokenizer.decode([0, token])
      with pytest.raises(ValueError, match="outside the vocabulary"):
        tokenizer.token(token)
    with pytest.raises(TypeError):
      tokenizer.decode([1.5])


def test_encode_of_what_is_no_text(real):
  for name in NAMES:
    for text in (b"a", None, ["a"], 3):
      with pytest.raises(TypeError, match="must be a str"):
        real[name].encode(text)
    with pytest.raises(ValueError, match="not valid Unicode"):
      real[name].encode("a\ud800")


def test_missing_bytes_are_told(real):
  smollm2 = real["smollm2"]
  with pytest.warns(UserWarning, match=r"no token for byte 0x04, byte 0x16:"):
    ids = smollm2.encode("a\x16b\x04")
  assert smollm2.decode(ids) == "ab"
  tokens = ["<unk>", "<s>", "</s>", "a", "▁", "▁a"]
  bare = tokenizer_from_gguf(
    {
      "tokenizer.ggml.model": "llama",
      "tokenizer.ggml.tokens": tokens,
      "tokenizer.ggml.scores": [0.0] * 6,
    }
  )
  with pytest.warns(UserWarning, match="no token for 'b', 'é': left out"):
    assert bare.encode("aéba") == [5, 3]


def test_tokens_for_people(real):
  smollm2, spm = real["smollm2"], real["spm.prefix"]
  for text, shown, entry in (
    (" the", " the", "Ġthe"),
    ("\n", r"\n", "Ċ"),
    ("\t", r"\t", "ĉ"),
    ("é", "é", "Ã©"),
    ("\\", r"\\", "\\"),
    ("\0", r"\u0000", "Ā"),
  ):
    [token] = smollm2.encode(text)
    assert smollm2.token(token) == shown
    assert smollm2.token_to_id(shown) == token
    assert smollm2.token_to_id(text) == token
    assert smollm2.token_to_id(entry) == token
  # "â" is a letter; byte 0xe2, which the vocabulary spells so, is not.
  assert smollm2.token(smollm2.token_to_id("â")) == "â"
  byte = smollm2.token_to_id(r"\xe2")
  assert smollm2.token(byte) == r"\xe2"
  assert smollm2.decode([byte]) == "\ufffd"
  assert smollm2.token_to_id("no such token") is None
  assert smollm2.token_to_id("\ud800") is None
  assert [spm.token(t) for t in spm.encode("日")] == [
    " ",
    r"\xe6",
    r"\x97",
    r"\xa5",
  ]
  assert spm.token_to_id("<0x0A>") == spm.encode("\n")[1]
  assert spm.token(spm.token_to_id("<0x0A>")) == r"\n"


def test_refused_ids():
  backend = tokenizers.Tokenizer(models.WordLevel({"a": 0}))
  with pytest.raises(WeightsError, match="eos_id 1 is outside the vocabulary"):
    Tokenizer(backend, eos_id=1)
  with pytest.raises(WeightsError, match="adds a BOS token but names none"):
    Tokenizer(backend, add_bos=True)


def test_a_vocabulary_with_gaps(tmp_path):
  backend = tokenizers.Tokenizer(models.WordLevel({"a": 0, "b": 5}, "a"))
  backend.pre_tokenizer = pre_tokenizers.Whitespace()
  tokenizer = Tokenizer(backend, unk_id=0)
  assert tokenizer.vocab_size == 6
  assert tokenizer.encode("b a c") == [5, 0, 0]
  assert tokenizer.token(3) == "<unused 3>"
  with pytest.raises(ValueError, match="has gaps"):
    tokenizer.decode([3])
  tokenizer.save(tmp_path / "new" / "folder")
  again = tokenizer_from_folder(tmp_path / "new" / "folder")
  assert again.encode("b a c") == [5, 0, 0]
