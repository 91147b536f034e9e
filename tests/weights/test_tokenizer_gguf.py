"""Tokenizers of GGUF files: what these may leave out, and what is refused."""

import pathlib
import sys

import numpy as np
import pytest

from sinkjax.weights.tokenizer_gguf import tokenizer_from_gguf
from sinkjax.weights.validate import WeightsError, WeightsWarning

sys.path.insert(0, str(pathlib.Path(__file__).parent))
from tokenizer_cases import (
  PRE_STEP,
  SIZE,
  TEXTS,
  VOCAB,
  differing,
  golden,
  metadata,
)


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


def test_ends_of_turns_and_messages_end_a_text():
  ids = {"eos_token_id": 3, "eot_token_id": 5, "eom_token_id": 7}
  tokenizer = tokenizer_from_gguf(metadata("bytes", **ids))
  assert tokenizer.end_ids == {3, 5, 7}
  assert tokenizer.eos_id == 3


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


def change(name: str, key: str, index: int, value) -> list:
  values = list(VOCAB[name][f"tokenizer.ggml.{key}"])
  values[index] = value
  return values


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


@pytest.mark.parametrize("token", [SIZE, -1, 2**32 - 1])
@pytest.mark.parametrize("name", ["bos", "eos", "unknown", "padding", "eot"])
def test_an_id_outside_the_vocabulary_is_none(name, token):
  """Published files have such ids; no text produces them."""
  with pytest.warns(
    WeightsWarning, match=f"{name}_token_id {token} is outside"
  ):
    found = tokenizer_from_gguf(
      metadata("bytes", **{f"{name}_token_id": token})
    )
  assert token not in (found.bos_id, found.eos_id, *found.end_ids)
  assert found.decode(found.encode("a word")) == "a word"


def test_more_merges_than_text_has():
  """Beginnings of one long token: merges grow as the square of their number."""
  size = 400
  tokens = ["<unk>", "a", *("a" * n for n in range(2, size))]
  values = {
    "tokens": tokens,
    "scores": [float(-i) for i in range(len(tokens))],
    "token_type": [2] + [1] * (len(tokens) - 1),
    "bos_token_id": None,
    "eos_token_id": None,
  }
  with pytest.raises(WeightsError, match="more than 6400 merges"):
    tokenizer_from_gguf(metadata("spm", **values))


def test_refused_chat_template():
  values = VOCAB["bytes"] | {"tokenizer.chat_template": 3}
  with pytest.raises(WeightsError, match="chat_template is int; expected a s"):
    tokenizer_from_gguf(values)
