"""Rules that would lengthen a text without end are refused unread."""

import json
import time

import pytest
import tokenizers

from sinkjax.weights import tokenizer_rules
from sinkjax.weights.tokenizer_files import tokenizer_from_folder
from sinkjax.weights.validate import WeightsError


def replace(pattern, content):
  return {"type": "Replace", "pattern": pattern, "content": content}


def sequence(*steps):
  return {"type": "Sequence", "normalizers": list(steps)}


BOMBS = {
  "twice": sequence(*[replace({"String": "e"}, "ee")] * 9),
  "long": replace({"String": "th"}, "x" * 1000),
  "nothing": sequence(*[replace({"Regex": ""}, "ab")] * 6),
  "prepended": {"type": "Prepend", "prepend": "x" * 300},
  "nested": sequence(sequence(sequence(replace({"Regex": "a*"}, "b" * 256)))),
  "many": sequence(*[replace({"String": "a"}, "b")] * 300),
}


@pytest.mark.parametrize("part", ["normalizer", "pre_tokenizer", "decoder"])
@pytest.mark.parametrize("bomb", BOMBS)
def test_bombs_are_refused(tmp_path, bomb, part):
  backend = tokenizers.Tokenizer(tokenizers.models.WordLevel({"a": 0}, "a"))
  data = json.loads(backend.to_str())
  data[part] = BOMBS[bomb]
  (tmp_path / "tokenizer.json").write_text(json.dumps(data))
  with pytest.raises(WeightsError, match=f"its {part} (makes|has)") as error:
    tokenizer_from_folder(tmp_path)
  assert str(tmp_path) in str(error.value)


@pytest.mark.parametrize(
  "rules",
  [
    None,
    [],
    {"normalizer": 3, "decoder": "x"},
    {"normalizer": sequence(*[replace({"String": " "}, "▁")] * 20)},
    {"normalizer": replace({"Regex": " {2,}"}, "▁")},
    {"decoder": [{"type": "Strip", "content": " ", "start": 1, "stop": 0}] * 3},
    {"normalizer": {"type": "Prepend", "prepend": "▁"}},
  ],
)
def test_what_published_tokenizers_do_is_allowed(rules):
  assert tokenizer_rules.refusal(rules) is None


def of_words(regex):
  return {
    "pre_tokenizer": {
      "type": "Split",
      "pattern": {"Regex": regex},
      "behavior": "Isolated",
      "invert": False,
    }
  }


PIECES = {
  "type": "WordPiece",
  "unk_token": "?",
  "continuing_subword_prefix": "##",
  "max_input_chars_per_word": 10**12,
  "vocab": {"?": 0, "a": 1, "##a": 2},
}


def backend(data):
  empty = tokenizers.Tokenizer(tokenizers.models.WordLevel({"a": 0}, "a"))
  text = json.dumps(json.loads(empty.to_str()) | data)
  return tokenizers.Tokenizer.from_str(text)


# Within the bound that the library has for an expression, at every letter; and
# the square of the length of a word.
@pytest.mark.parametrize(
  "data",
  [of_words(r"a{0,99}a{0,99}a{0,99}[^a! ]"), {"model": PIECES}],
  ids=["expression", "word"],
)
def test_rules_that_take_hours(data):
  begun = time.process_time()
  with pytest.raises(ValueError, match=r"s for its first \d+ characters"):
    tokenizer_rules.require_speed(backend(data), "a" * 1_000_000)
  assert time.process_time() - begun < 8


def test_rules_that_take_no_time():
  text = "The king sat down, and looked at 12 ships. " * 9000
  for data in (of_words(r"\p{L}+|\p{N}{1,3}|\s+(?!\S)"), {"model": PIECES}):
    tokenizer_rules.require_speed(backend(data), text)
