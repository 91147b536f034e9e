"""Texts and prefixes as the launchers read them."""

import json

import pytest

from launch import prompts
from sinkjax.data.corpus import gather

MARK = "\ufeff"


@pytest.mark.parametrize("end", ["\u2028", "\u2029", "\x85"])
def test_lines_end_at_newlines_only(tmp_path, end):
  texts = [f"one{end}line", "two"]
  lines = [json.dumps({"text": t}, ensure_ascii=False) for t in texts]
  file = tmp_path / "p.jsonl"
  file.write_text("\n".join(lines), "utf-8")
  assert prompts.read_texts(None, str(file)) == texts
  assert gather([str(file)]).texts == texts


def test_a_byte_order_mark_is_dropped(tmp_path):
  text, lines = tmp_path / "a.txt", tmp_path / "a.jsonl"
  text.write_text(MARK + "The end", "utf-8")
  lines.write_text(MARK + '{"text": "The end"}\n', "utf-8")
  assert prompts.read_texts(str(text), None) == ["The end"]
  assert prompts.read_texts(None, str(lines)) == ["The end"]


class Vocabulary:
  vocab_size, bos_id, add_bos = 6, 5, True

  def __init__(self, *entries):
    self._entries = entries

  def token_to_id(self, text):
    return self._entries.index(text) if text in self._entries else None


@pytest.mark.parametrize(
  ("prefix", "found"),
  [
    ("auto", ([5], "bos")),
    ("none", ([], "none")),
    ("id:0", ([0], "given")),
    ("id:5", ([5], "bos")),
    ("cat", ([1], "given")),
  ],
)
def test_prefix(prefix, found):
  assert prompts.resolve_prefix(prefix, Vocabulary("the", "cat")) == found


@pytest.mark.parametrize("prefix", ["0", "none", "auto"])
def test_a_prefix_of_two_readings_is_refused(prefix):
  with pytest.raises(ValueError, match="two ways.*--prefix=id:1"):
    prompts.resolve_prefix(prefix, Vocabulary("the", prefix))


@pytest.mark.parametrize("prefix", ["3", "id:6", "id:", "id:-1", "id:٣"])
def test_a_prefix_that_is_no_token_is_refused(prefix):
  with pytest.raises(ValueError, match="no such token.*id:N"):
    prompts.resolve_prefix(prefix, Vocabulary("the"))
