"""Tokenizers: the ids of the references, and what is refused.

The golden ids come from `tests/golden/tokenizer/make_golden.py`.
"""

import functools
import gzip
import io
import json
import lzma
import pathlib
import re
import warnings

import jax.numpy as jnp
import numpy as np
import pytest
import tokenizers
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tokenizers import models, pre_tokenizers

from sinkjax.weights.formats import gguf
from sinkjax.weights.pre_tokenizers import PRE_TOKENIZERS
from sinkjax.weights.tokenizer import Tokenizer
from sinkjax.weights.tokenizer_files import (
  tokenizer_from_folder,
  tokenizer_from_glassllm,
)
from sinkjax.weights.tokenizer_gguf import tokenizer_from_gguf
from sinkjax.weights.validate import WeightsError

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
few = settings(
  deadline=None,
  max_examples=150,
  suppress_health_check=[HealthCheck.function_scoped_fixture],
)


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


def differing(tokenizer, texts, ids, **kwargs) -> set[str]:
  pairs = zip(texts, ids, strict=True)
  return {t for t, row in pairs if tokenizer.encode(t, **kwargs) != row}


def test_there_are_enough_texts():
  assert len(TEXTS) == len(set(TEXTS)) >= 2200
  assert len(TEXTS[::PRE_STEP]) >= 500
  size = sum(path.stat().st_size for path in GOLDEN.iterdir())
  assert size < 450_000


# Same ids as the references.


@ignore_missing
@pytest.mark.parametrize("special", [False, True])
@pytest.mark.parametrize("name", LLAMA_CPP)
def test_same_ids_as_llama_cpp(real, name, special):
  ids = golden(f"{name}.special" if special else name)
  found = differing(real[name], TEXTS, ids, parse_special=special)
  assert found == NOT_AS_LLAMA_CPP.get(name, set())


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


# What holds for every text.


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


@functools.cache
def byte_level(pre: str) -> Tokenizer:
  return tokenizer_from_gguf(metadata("bytes", pre=pre))


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


# Saving.


@pytest.fixture(scope="session")
def saved(real, tmp_path_factory):
  """The folder of each tokenizer, saved."""
  folder = tmp_path_factory.mktemp("tokenizers")
  for name, tokenizer in real.items():
    tokenizer.save(folder / name)
  return folder


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


# BOS, special tokens and decoding.


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


@pytest.mark.parametrize(
  "name, changes, want",
  [
    ("bytes", {"pre": "gpt-2"}, False),
    ("bytes", {"pre": "llama-bpe"}, True),
    ("bytes", {"pre": "tekken"}, True),
    ("bytes", {"pre": "tekken", "add_bos_token": False}, False),
    ("bytes", {"pre": "gpt-2", "add_bos_token": True}, True),
    ("bytes", {"pre": "llama-bpe", "bos_token_id": None}, False),
    ("spm", {}, True),
    ("spm", {"add_bos_token": False}, False),
  ],
)
def test_whether_a_gguf_adds_bos(name, changes, want):
  tokenizer = tokenizer_from_gguf(metadata(name, **changes))
  assert tokenizer.add_bos is want
  assert tokenizer.encode("a")[0] != tokenizer.bos_id


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


# What GGUF files may leave out or say oddly.


def test_defaults_of_sentencepiece_ids():
  none = {f"{name}_token_id": None for name in ("bos", "eos", "unknown")}
  tokenizer = tokenizer_from_gguf(metadata("spm", **none))
  ids = tokenizer.bos_id, tokenizer.eos_id, tokenizer.unk_id
  assert ids == (1, 2, 0)
  types = [1] * 3 + VOCAB["spm"]["tokenizer.ggml.token_type"][3:]
  changed = metadata("spm", token_type=types, **none)
  changed["tokenizer.ggml.tokens"] = ["A0", "A1", "A2"] + (
    changed["tokenizer.ggml.tokens"][3:]
  )
  assert tokenizer_from_gguf(changed).bos_id is None


def test_no_pre_tokenizer_is_the_default_one():
  tokenizer = tokenizer_from_gguf(metadata("bytes"))
  assert differing(tokenizer, TEXTS[::PRE_STEP], golden("pre.default")) == set()


def test_ends_of_texts_are_control_tokens_whatever_their_type():
  plain = metadata("bytes", token_type=None)
  tokenizer = tokenizer_from_gguf(plain)
  assert len(tokenizer.encode("<|im_end|>")) > 1
  end = tokenizer.token_to_id("<|im_end|>")
  assert tokenizer.encode("<|im_end|>", parse_special=True) == [end]
  start = tokenizer.encode("<|im_start|>", parse_special=True)
  assert len(start) > 1


def test_empty_tokens_and_repeated_merges():
  tokens = [*VOCAB["bytes"]["tokenizer.ggml.tokens"], "", ""]
  merges = VOCAB["bytes"]["tokenizer.ggml.merges"]
  merges = merges + merges[::-1]
  tokenizer = tokenizer_from_gguf(
    metadata(
      "bytes", tokens=tokens, merges=merges, token_type=None, pre="qwen2"
    )
  )
  assert tokenizer.token(len(tokens) - 1) == f"[EMPTY_{len(tokens) - 1}]"
  plain = [text for text in TEXTS[::PRE_STEP] if "<|" not in text]
  ids = zip(TEXTS[::PRE_STEP], golden("pre.qwen2"), strict=True)
  ids = [row for text, row in ids if "<|" not in text]
  assert differing(tokenizer, plain, ids) == set()


def test_user_defined_tokens_are_no_stand_ins_for_bytes():
  """Each letter of "né" could be one, as in other tokens."""
  tokens = [*VOCAB["bytes"]["tokenizer.ggml.tokens"], "né"]
  types = [*VOCAB["bytes"]["tokenizer.ggml.token_type"], 4]
  tokenizer = tokenizer_from_gguf(
    metadata("bytes", tokens=tokens, token_type=types)
  )
  assert tokenizer.encode("né") == [len(tokens) - 1]
  assert tokenizer.decode(tokenizer.encode("né Ené")) == "né Ené"
  assert tokenizer.token(len(tokens) - 1) == "né"


def test_numpy_arrays_as_gguf_files_give_them():
  spm = VOCAB["spm"]
  tokenizer = tokenizer_from_gguf(
    metadata(
      "spm",
      scores=np.array(spm["tokenizer.ggml.scores"], np.float32),
      token_type=np.array(spm["tokenizer.ggml.token_type"], np.int32),
    )
  )
  assert differing(tokenizer, TEXTS, golden("spm.prefix")) == set()


# What is refused.


def change(name: str, key: str, index: int, value) -> list:
  values = list(VOCAB[name][f"tokenizer.ggml.{key}"])
  values[index] = value
  return values


SIZE = len(VOCAB["bytes"]["tokenizer.ggml.tokens"])


@pytest.mark.parametrize(
  "name, changes, message",
  [
    ("bytes", {"model": None}, "model is nothing; expected a string"),
    ("bytes", {"model": 3}, "model is int; expected a string"),
    ("bytes", {"model": "bert"}, "unknown model 'bert'; known: gpt2"),
    ("bytes", {"model": "x\n" * 99}, "unknown model"),
    ("bytes", {"pre": "gpt-5"}, "unknown pre-tokenizer 'gpt-5'; known: "),
    ("bytes", {"pre": 1}, "pre is int; expected a string"),
    ("bytes", {"tokens": None}, "tokens is nothing; expected an array of str"),
    ("bytes", {"tokens": []}, "tokens is list of 0; expected an array of str"),
    ("bytes", {"tokens": "ab"}, "tokens is str; expected an array of strings"),
    ("bytes", {"tokens": np.arange(3)}, "tokens is ndarray of 3; expected"),
    ("bytes", {"tokens": change("bytes", "tokens", 7, 7)}, "entry 7 is int"),
    ("bytes", {"tokens": change("bytes", "tokens", 7, b"a")}, "7 is bytes"),
    ("bytes", {"tokens": change("bytes", "tokens", 7, "a")}, "duplicate .*'a'"),
    ("bytes", {"tokens": change("bytes", "tokens", 7, "\ud800")}, "Unicode"),
    ("bytes", {"token_type": [1]}, f"list of 1; expected an array of {SIZE}"),
    ("bytes", {"token_type": "x" * SIZE}, "token_type is str; expected"),
    ("bytes", {"token_type": [1.0] * SIZE}, "int numbers; entry 0 is '1.0'"),
    ("bytes", {"token_type": [True] * SIZE}, "int numbers; entry 0 is 'True'"),
    ("bytes", {"merges": None}, "merges is nothing; expected an array of str"),
    ("bytes", {"merges": "a b"}, "merges is str; expected an array of str"),
    ("bytes", {"merges": [["a", "b"]]}, "entry 0 is list"),
    ("bytes", {"merges": ["a"]}, "merge 0 is 'a'; expected two tokens"),
    ("bytes", {"merges": ["a b c"]}, "merge 0 is 'a b c'; expected two"),
    ("bytes", {"merges": ["a "]}, "merge 0 is 'a '; expected two tokens"),
    ("bytes", {"merges": ["ŁŁ a"]}, "merge 0, 'ŁŁ a': 'ŁŁ' is not in"),
    ("bytes", {"merges": ["a ŁŁ"]}, "merge 0, 'a ŁŁ': 'ŁŁ' is not in"),
    ("bytes", {"merges": ["ł ł"]}, "merge 0, 'ł ł': 'łł' is not in the vocab"),
    ("bytes", {"merges": ["\udfff a"]}, "merges .* valid Unicode"),
    ("bytes", {"bos_token_id": SIZE}, f"bos_token_id {SIZE} is outside"),
    ("bytes", {"eos_token_id": -1}, "eos_token_id -1 is outside"),
    ("bytes", {"unknown_token_id": 2**32 - 1}, "unknown_token_id .* outside"),
    ("bytes", {"padding_token_id": SIZE}, "padding_token_id .* is outside"),
    ("bytes", {"bos_token_id": True}, "bos_token_id is bool; expected a token"),
    ("bytes", {"bos_token_id": 1.0}, "bos_token_id is float; expected a token"),
    ("bytes", {"add_bos_token": 1}, "add_bos_token is int; expected true or"),
    (
      "bytes",
      {"add_bos_token": True, "bos_token_id": None},
      "adds a BOS token but names none",
    ),
    ("spm", {"scores": None}, "scores is nothing; expected an array of"),
    ("spm", {"scores": [0.0]}, "scores is list of 1; expected an array of"),
    ("spm", {"scores": change("spm", "scores", 5, "1")}, "entry 5 is '1'"),
    ("spm", {"scores": change("spm", "scores", 5, float("nan"))}, "5 is 'nan'"),
    ("spm", {"scores": change("spm", "scores", 5, float("inf"))}, "5 is 'inf'"),
    ("spm", {"token_type": [1, 2]}, "token_type is list of 2; expected"),
    ("spm", {"tokens": change("spm", "tokens", 9, "<s>")}, "duplicate .*'<s>'"),
    ("spm", {"add_space_prefix": 1}, "add_space_prefix is int; expected true"),
  ],
)
def test_refused_gguf_metadata(name, changes, message):
  with pytest.raises(WeightsError, match=message) as error:
    tokenizer_from_gguf(metadata(name, **changes))
  assert "\n" not in str(error.value)


def test_refused_chat_template():
  values = VOCAB["bytes"] | {"tokenizer.chat_template": 3}
  with pytest.raises(WeightsError, match="chat_template is int; expected a s"):
    tokenizer_from_gguf(values)


def template(*special: str) -> dict:
  """A post-processor that puts some tokens first."""
  tokens = byte_level("gpt-2")
  pieces = [{"SpecialToken": {"id": name, "type_id": 0}} for name in special]
  pieces.append({"Sequence": {"id": "A", "type_id": 0}})
  return {
    "type": "TemplateProcessing",
    "single": pieces,
    "pair": pieces,
    "special_tokens": {
      name: {"id": name, "ids": [tokens.token_to_id(name)], "tokens": [name]}
      for name in special
    },
  }


def folder_with(path, processor=None, **files) -> pathlib.Path:
  """A saved tokenizer, its post-processor and some files replaced."""
  byte_level("gpt-2").save(path)
  file = path / "tokenizer.json"
  data = json.loads(file.read_text("utf-8"))
  data["post_processor"] = processor
  file.write_text(json.dumps(data), "utf-8")
  for name, content in files.items():
    if not isinstance(content, bytes):
      content = json.dumps(content).encode()
    (path / f"{name}.json").write_bytes(content)
  return path


START, END = "<|im_start|>", "<|im_end|>"
PREFIXED = {
  "model": {
    "type": "BPE",
    "vocab": {"a": 0, "é": 1},
    "merges": [["a", "é"]],
    "continuing_subword_prefix": "#",
  }
}
ROBERTA = {
  "type": "RobertaProcessing",
  "sep": [END, SIZE - 1],
  "cls": [START, SIZE - 2],
  "trim_offsets": True,
  "add_prefix_space": False,
}


@pytest.mark.parametrize(
  "processor, files, message",
  [
    (None, {"tokenizer": b""}, "tokenizer.json: not a tokenizer"),
    (None, {"tokenizer": b"{"}, "tokenizer.json: not a tokenizer"),
    (None, {"tokenizer": b"\xff\xfe"}, "tokenizer.json: not a tokenizer"),
    (None, {"tokenizer": []}, "tokenizer.json: not a tokenizer"),
    (None, {"tokenizer": {}}, "tokenizer.json: not a tokenizer"),
    (None, {"tokenizer": {"model": {"type": "BPE"}}}, "not a tokenizer"),
    (None, {"tokenizer": b"[" * 99999}, "not a tokenizer"),
    (None, {"tokenizer": PREFIXED}, "not a tokenizer: merge .* lacks the pref"),
    ({"type": "Unheard", "single": [3]}, {}, "not a tokenizer"),
    (
      template(START) | {"special_tokens": {}},
      {},
      "the post-processor cannot be read: KeyError",
    ),
    (None, {"tokenizer_config": b"{"}, "tokenizer_config.json: not valid JSON"),
    (None, {"tokenizer_config": []}, "tokenizer_config.json: expected a JSON"),
    (None, {"config": b"\xff"}, "config.json: not valid JSON"),
    (
      None,
      {"tokenizer_config": {"bos_token": "<BOS>"}},
      "tokenizer_config.json: bos_token '<BOS>' is not in the vocabulary",
    ),
    (
      None,
      {"special_tokens_map": {"eos_token": {"content": "<EOS>"}}},
      "special_tokens_map.json: eos_token '<EOS>' is not in the vocabulary",
    ),
    (None, {"tokenizer_config": {"bos_token": 3}}, "bos_token 3 is not in the"),
    (None, {"tokenizer_config": {"bos_token": "\ud800"}}, "is not in the voc"),
    (None, {"config": {"bos_token_id": SIZE}}, "bos_token_id .* is not in the"),
    (None, {"config": {"bos_token_id": 1 << 40}}, "bos_token_id .* not in the"),
    (None, {"config": {"bos_token_id": -1}}, "bos_token_id -1 is not in the"),
    (None, {"config": {"bos_token_id": True}}, "bos_token_id True is not in"),
    (None, {"config": {"eos_token_id": "2"}}, "eos_token_id '2' is not in the"),
    (None, {"config": {"eos_token_id": []}}, "eos_token_id .* is not in the"),
    (None, {"generation_config": {"pad_token_id": -2}}, "pad_token_id -2 is"),
    (
      None,
      {"config": {"bos_token_id": 3}},
      "more than one BOS token: .* in tokenizer_config.json, 3 in config.json",
    ),
    (None, {"special_tokens_map": {"bos_token": END}}, "more than one BOS"),
    (template(START, END), {}, "adds more than one BOS token"),
    (
      {"type": "Sequence", "processors": [template(START), template(END)]},
      {},
      "adds more than one BOS token",
    ),
    (template(END), {}, "more than one BOS token: .* in tokenizer.json"),
    (
      None,
      {"tokenizer_config": {"add_bos_token": True}},
      "adds a BOS token but names none",
    ),
  ],
)
def test_refused_folders(tmp_path, processor, files, message):
  folder = folder_with(tmp_path, processor, **files)
  with pytest.raises(WeightsError, match=message) as error:
    tokenizer_from_folder(folder)
  assert "\n" not in str(error.value)


@pytest.mark.parametrize(
  "content, message",
  [
    (b"{", "not valid JSON"),
    (b"\xff", "not valid JSON"),
    (b"[]", "expected a JSON object"),
    (b"{}", "no key 'merges'"),
    (b'{"merges": []}', "no key 'alphabet'"),
    (b'{"merges": [["a"]], "alphabet": ["a"]}', "not a tokenizer"),
    (b'{"merges": 3, "alphabet": ["a"]}', "not a tokenizer"),
    (b'{"merges": [["a", "c"]], "alphabet": ["a", "b"]}', "not a tokenizer"),
    (b'{"merges": [], "alphabet": ["a", "a"]}', "duplicate tokens"),
    (b'{"merges": [], "alphabet": ["<unk>"]}', "duplicate tokens"),
  ],
)
def test_refused_glassllm(tmp_path, content, message):
  path = tmp_path / "en.tokenizer.json"
  path.write_bytes(content)
  with pytest.raises(WeightsError, match=message) as error:
    tokenizer_from_glassllm(path)
  assert "\n" not in str(error.value)


def test_refused_ids():
  backend = tokenizers.Tokenizer(models.WordLevel({"a": 0}))
  with pytest.raises(WeightsError, match="eos_id 1 is outside the vocabulary"):
    Tokenizer(backend, eos_id=1)
  with pytest.raises(WeightsError, match="adds a BOS token but names none"):
    Tokenizer(backend, add_bos=True)


# Folders.


def test_a_folder_without_a_tokenizer(tmp_path):
  assert tokenizer_from_folder(tmp_path) is None


@pytest.mark.parametrize(
  "processor",
  [
    template(START),
    {"type": "Sequence", "processors": [template(START)]},
    ROBERTA,
  ],
  ids=["template", "sequence", "roberta"],
)
def test_a_post_processor_that_adds_bos(tmp_path, processor):
  """It is recognised, and yet nothing is added unless asked."""
  folder = folder_with(tmp_path, processor)
  tokenizer = tokenizer_from_folder(folder)
  plain = byte_level("gpt-2")
  assert tokenizer.add_bos
  assert tokenizer.bos_id == plain.bos_id
  assert (
    differing(tokenizer, TEXTS[::9], map(plain.encode, TEXTS[::9])) == set()
  )
  ids = plain.encode("a", add_bos=True)
  assert tokenizer.encode("a", add_bos=True) == ids
  backend = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
  assert backend.encode("a").ids[: len(ids)] == ids


def test_a_post_processor_names_bos_alone(tmp_path):
  folder = folder_with(tmp_path, template(START), tokenizer_config={})
  assert tokenizer_from_folder(folder).token(SIZE - 2) == START
  assert tokenizer_from_folder(folder).bos_id == SIZE - 2


@pytest.mark.parametrize("name", ["spm.prefix", "gemma"])
def test_saved_folders_add_bos_elsewhere(real, saved, name):
  """Other libraries add what the file says, from tokenizer.json alone."""
  backend = tokenizers.Tokenizer.from_file(str(saved / name / "tokenizer.json"))
  assert backend.encode("Hi").ids == real[name].encode("Hi", add_bos=True)
  assert backend.encode("Hi", "x").ids[0] == real[name].bos_id


def test_where_special_tokens_come_from(tmp_path):
  folder = folder_with(
    tmp_path,
    tokenizer_config={"pad_token": "no such token", "unk_token": None},
    special_tokens_map={"bos_token": {"content": START}},
    config={"eos_token_id": [5, 6], "pad_token_id": -1},
    generation_config={"eos_token_id": 7, "bos_token_id": 8},
  )
  tokenizer = tokenizer_from_folder(folder)
  assert tokenizer.token(tokenizer.bos_id) == START
  assert tokenizer.eos_id == 5
  assert tokenizer.pad_id is None
  assert tokenizer.unk_id is None
  assert not tokenizer.add_bos


def test_chat_templates(tmp_path):
  def read(**config):
    folder = folder_with(tmp_path, tokenizer_config=config)
    return tokenizer_from_folder(folder).chat_template

  assert read() is None
  assert read(chat_template="x") == "x"
  listed = [
    {"name": "rag", "template": "y"},
    {"name": "default", "template": "z"},
  ]
  assert read(chat_template=listed) == "z"
  assert read(chat_template=listed[:1]) is None
  assert read(chat_template=[3]) is None
  (tmp_path / "chat_template.jinja").write_text("é {{ x }}", "utf-8")
  assert read(chat_template="x") == "é {{ x }}"


def test_cutting_padding_and_dropout_are_switched_off(tmp_path):
  folder = folder_with(tmp_path)
  backend = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
  backend.enable_truncation(3)
  backend.enable_padding(length=50)
  backend.model.dropout = 0.5
  backend.save(str(folder / "tokenizer.json"))
  tokenizer = tokenizer_from_folder(folder)
  ids = list(map(byte_level("gpt-2").encode, TEXTS[::9]))
  assert differing(tokenizer, TEXTS[::9], ids) == set()


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
