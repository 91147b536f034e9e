"""Vocabularies of GGUF files that merge characters in place of bytes."""

import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sinkjax.weights.pre_tokenizers import CHARACTERS, SPACES_STAY
from sinkjax.weights.tokenizer_gguf import tokenizer_from_gguf

UNKNOWN, CONTROL, BYTE = 2, 3, 6
MERGES = [
  *["a b", "▁ ab", "\n \n", "ab ab", "c ▁", "▁ ▁", "\n\n \n", "é a", "▁▁ ▁ab"],
  *["b ▁", "a c"],
]
LETTERS = [*"abcé▁\n"]
BYTES = [f"<0x{byte:02X}>" for byte in range(256)]
TOKENS = [
  *["<unk>", "<bos>", "<eos>"],
  *BYTES,
  *LETTERS,
  *(line.replace(" ", "") for line in MERGES),
]
TYPES = [UNKNOWN, CONTROL, CONTROL] + [BYTE] * 256 + [1] * (len(TOKENS) - 259)
IDS = {token: i for i, token in enumerate(TOKENS)}
RANKS = {tuple(line.split(" ")): i for i, line in enumerate(MERGES)}


def metadata(**changes) -> dict:
  values = {
    "model": "gpt2",
    "pre": "gemma4",
    "tokens": TOKENS,
    "token_type": TYPES,
    "merges": MERGES,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "unknown_token_id": 0,
  } | changes
  return {f"tokenizer.ggml.{key}": value for key, value in values.items()}


def by_hand(text: str) -> list[int]:
  """The ids by the rule itself: of all neighbours, the first merge first."""
  ids = []
  escaped = text.replace(" ", "▁")
  for _, run in itertools.groupby(escaped, lambda c: c == "\n"):
    pieces = list(run)
    while True:
      pairs = list(itertools.pairwise(pieces))
      known = [
        (RANKS[pair], i) for i, pair in enumerate(pairs) if pair in RANKS
      ]
      if not known:
        break
      at = min(known)[1]
      pieces[at : at + 2] = [pieces[at] + pieces[at + 1]]
    for piece in pieces:
      found = (
        [piece] if piece in IDS else [f"<0x{b:02X}>" for b in piece.encode()]
      )
      ids += [IDS[token] for token in found]
  return ids


@given(st.text("abcé \nñ漢", max_size=30))
@settings(max_examples=200)
def test_ids_are_those_of_the_merges(text):
  tokenizer = tokenizer_from_gguf(metadata())
  assert tokenizer.encode(text) == by_hand(text)
  assert tokenizer.decode(by_hand(text)) == text


@pytest.mark.parametrize("pre", sorted(CHARACTERS.keys() - SPACES_STAY))
def test_every_name_of_such_a_vocabulary(pre):
  tokenizer = tokenizer_from_gguf(metadata(pre=pre))
  text = "ab ab\n\n\nñ  ab"
  assert tokenizer.encode(text) == by_hand(text)
  assert not tokenizer.add_bos


def test_a_file_may_name_it_as_its_model():
  values = metadata(model="gemma4")
  del values["tokenizer.ggml.pre"]
  tokenizer = tokenizer_from_gguf(values)
  assert tokenizer.add_bos
  assert tokenizer.encode(" ab ab") == by_hand(" ab ab")


def test_a_vocabulary_without_spaces_gives_them_no_ids():
  """As in the one that has this name: no token for them, and no bytes."""
  tokens = ["<unk>", *"abc", "ab", "abab"]
  tokenizer = tokenizer_from_gguf(
    metadata(
      pre="whitespace",
      tokens=tokens,
      token_type=[UNKNOWN] + [1] * 5,
      merges=["a b", "ab ab"],
      bos_token_id=None,
      eos_token_id=None,
    )
  )
  ids = [tokens.index(x) for x in ("abab", "c", "ab", "ab")]
  assert tokenizer.encode("ababc ab\n\n\tab") == ids
  assert tokenizer.encode(" \n") == []
