"""Rules that would lengthen a text without end are refused unread."""

import json

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
