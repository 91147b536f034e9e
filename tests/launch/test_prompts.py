"""Texts and prefixes as the launchers read them."""

import json

import pytest

from launch import prompts
from sinkjax.data.corpus import gather
from sinkjax.weights.chat import encode_chats, messages_of

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
    ("", ([], "none")),
    ("id:0", ([0], "given")),
    ("id:5", ([5], "bos")),
    ("cat", ([1], "given")),
  ],
)
def test_prefix(prefix, found):
  assert prompts.resolve_prefix(prefix, Vocabulary("the", "cat")) == found


def test_a_number_of_two_readings_is_refused():
  with pytest.raises(ValueError, match="two ways: .*--prefix=id:0,.*=id:1"):
    prompts.resolve_prefix("0", Vocabulary("the", "0"))


def test_none_of_two_readings_is_refused():
  """SmolLM2's vocabulary has such a token."""
  vocabulary = Vocabulary("the", "none")
  with pytest.raises(ValueError, match="two ways: as no token, .*=id:1$"):
    prompts.resolve_prefix("none", vocabulary)
  assert prompts.resolve_prefix("", vocabulary) == ([], "none")
  assert prompts.resolve_prefix("id:1", vocabulary) == ([1], "given")


def test_the_default_comes_before_a_token_of_that_text():
  """SmolLM2's vocabulary has it; the default must not be refused."""
  vocabulary = Vocabulary("the", "auto")
  assert prompts.resolve_prefix("auto", vocabulary) == ([5], "bos")
  assert prompts.resolve_prefix("id:1", vocabulary) == ([1], "given")


@pytest.mark.parametrize("prefix", ["3", "id:6", "id:", "id:-1", "id:٣"])
def test_a_prefix_that_is_no_token_is_refused(prefix):
  with pytest.raises(ValueError, match="no such token.*id:N"):
    prompts.resolve_prefix(prefix, Vocabulary("the"))


CHAT = [
  {"role": "system", "content": "Be brief."},
  {"role": "user", "content": "Why is the sky blue?"},
]


def test_chats_are_read_from_lines_and_from_flags(tmp_path):
  file = tmp_path / "chats.jsonl"
  lines = [json.dumps({"messages": CHAT}), json.dumps({"messages": CHAT[1:]})]
  file.write_text("\n".join(lines), "utf-8")
  assert prompts.read_texts(None, str(file)) == [CHAT, CHAT[1:]]
  message, system = (CHAT[i]["content"] for i in (1, 0))
  assert prompts.read_texts(None, None, message, system) == [CHAT]
  with pytest.raises(ValueError, match="one of --text_file, --prompts_file"):
    prompts.read_texts(None, str(file), message)
  with pytest.raises(ValueError, match="--system goes with --chat"):
    prompts.read_texts(None, None, None, system)


@pytest.mark.parametrize(
  "line",
  [
    {"messages": []},
    {"messages": "hello"},
    {"messages": [{"role": "user"}]},
    {"messages": [{"role": "usr", "content": "a"}]},
    {"messages": [{"role": "user", "content": 3}]},
    {"messages": [{"role": "user", "content": "a", "name": "b"}]},
    {"messages": CHAT, "text": "a"},
    {"text": "a \ud800 b"},
    {"messages": [{"role": "user", "content": "\udfff"}]},
  ],
)
def test_lines_that_are_neither_text_nor_chat(tmp_path, line):
  file = tmp_path / "chats.jsonl"
  file.write_text(json.dumps(line), "utf-8")
  with pytest.raises(ValueError, match="jsonl, line 1: expected .*messages"):
    prompts.read_texts(None, str(file))


def test_a_chat_is_encoded_as_in_generation(smollm2):
  from sinkjax.weights.chat import render_chat

  tokenizer = smollm2.tokenizer
  found = prompts.encode([CHAT], tokenizer, "auto", 99)
  text = render_chat(tokenizer, CHAT)
  assert found.ids == [tokenizer.encode(text, parse_special=True)]
  # Control tokens are one id each, not the characters that spell them.
  assert found.ids[0][0] == tokenizer.token_to_id("<|im_start|>")
  assert found.prefix == "chat template"
  assert found.template == "<|im_start|>system\n"
  assert (
    prompts.encode([CHAT], tokenizer, "auto", 7).ids[0] == (found.ids[0][:7])
  )
  # Without a system message the template writes its own, which is named.
  (alone,) = [prompts.encode([CHAT[1:]], tokenizer, "auto", 99)]
  assert "helpful AI assistant" in alone.template
  assert (found.system, found.system_from) == ("Be brief.", "chat")
  own = "You are a helpful AI assistant named SmolLM, trained by Hugging Face"
  assert (alone.system, alone.system_from) == (own, "template")
  assert alone.record() == {
    "chat_template": alone.template,
    "chat_system": {"text": own, "from": "template"},
  }
  assert f"from the template, is '{own}'" in prompts.describe_template(
    alone.record()
  )
  assert repr(alone.template) in alone.plan() and repr(own) in alone.plan()
  texts = prompts.encode(["some text"], tokenizer, "auto", 9)
  assert texts.record() == {} and texts.plan() == ""


def test_an_empty_message_is_one(smollm2):
  chats = [messages_of("")]
  ((ids, before),) = encode_chats(smollm2.tokenizer, chats)
  assert ids[0] == smollm2.tokenizer.token_to_id("<|im_start|>")
  assert before == ""


def test_chats_are_neither_mixed_nor_prefixed(smollm2):
  with pytest.raises(ValueError, match="not both in one file"):
    prompts.encode(["text", CHAT], smollm2.tokenizer, "auto", 9)
  with pytest.raises(ValueError, match="--prefix=none goes with texts"):
    prompts.encode([CHAT], smollm2.tokenizer, "none", 9)
