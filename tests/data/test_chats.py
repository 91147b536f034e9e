"""Chats in corpora: read from lines, written out by a chat template."""

import json

import pytest

from sinkjax.data.corpus import gather, tokenize, train_tokenizer
from sinkjax.data.prepare import prepare, save, tokenized
from sinkjax.weights.chat import encode_chats
from sinkjax.weights.validate import WeightsError

TEMPLATE = (
  "{% for m in messages %}{% if m.content == 'fail' %}"
  "{{ raise_exception('cannot say that') }}{% endif %}<{{ m.role }}>"
  "{{ m.content | trim }}{{ eos_token }}{% endfor %}"
  "{% if add_generation_prompt %}<assistant>{% endif %}"
)
ASKED = [
  {"role": "system", "content": "Be brief."},
  {"role": "user", "content": "Why is the sky blue?"},
]
CHATS = [
  [*ASKED, {"role": "assistant", "content": "It scatters light."}],
  ASKED,
]


@pytest.fixture(scope="module")
def tokenizer():
  made = train_tokenizer([json.dumps(CHATS)], 300)
  made.chat_template = TEMPLATE
  return made


def write(path, lines):
  path.write_text("\n".join(json.dumps(line) for line in lines), "utf-8")
  return [str(path)]


@pytest.fixture
def names(tmp_path):
  """A chat, a text, and another chat."""
  first, second = ({"messages": chat} for chat in CHATS)
  lines = [first, {"text": "plain <user> text"}, second]
  return write(tmp_path / "a.jsonl", lines)


def documents_of(corpus):
  ends = corpus.starts + corpus.lengths
  return [
    corpus.tokens[a:b].tolist()
    for a, b in zip(corpus.starts, ends, strict=True)
  ]


def test_chats_have_the_ids_that_generation_reads(tokenizer, names):
  corpus = tokenize(gather(names, chats=True), tokenizer)
  found = documents_of(corpus)
  asking = tokenizer.encode("<assistant>")
  for ids, chat in zip((found[0], found[2]), CHATS, strict=True):
    # Generation asks for an answer; what is trained on ends as the chat does.
    (generated,) = encode_chats(tokenizer, [chat])
    assert [*ids, *asking] == generated.ids
    assert ids.count(tokenizer.eos_id) == len(chat)
  assert found[1] == tokenizer.encode("plain <user> text")


def test_the_manifest_names_the_template(tokenizer, names):
  corpus = tokenize(gather(names, chats=True), tokenizer)
  (source,) = corpus.about["sources"]
  assert (source["documents"], source["chats"]) == (3, 2)
  about = corpus.about["chats"]
  assert about["documents"] == 2 and not about["starts_with_bos"]
  assert len(about["template_sha256"]) == 64
  tokenizer.chat_template = "{{ bos_token }}" + TEMPLATE
  other = tokenize(gather(names, chats=True), tokenizer).about["chats"]
  tokenizer.chat_template = TEMPLATE
  assert other["starts_with_bos"]
  assert other["template_sha256"] != about["template_sha256"]


def test_texts_alone_have_no_chats_in_their_manifest(tokenizer, tmp_path):
  names = write(tmp_path / "a.jsonl", [{"text": "plain"}])
  corpus = tokenize(gather(names, chats=True), tokenizer)
  assert "chats" not in corpus.about
  assert "chats" not in corpus.about["sources"][0]


def test_another_template_is_another_corpus(tokenizer, names, monkeypatch):
  """The cache's key holds what a template makes the ids of."""
  first, _ = tokenized(names, vocab_size=300, tokenizer=tokenizer)
  again, _ = tokenized(names, vocab_size=300, tokenizer=tokenizer)
  monkeypatch.setattr(tokenizer, "chat_template", "!" + TEMPLATE)
  other, _ = tokenized(names, vocab_size=300, tokenizer=tokenizer)
  assert first.digest == again.digest != other.digest


def test_a_prepared_folder_goes_with_its_own_tokenizer(
  tokenizer, names, tmp_path
):
  corpus = tokenize(gather(names, chats=True), tokenizer)
  save(tmp_path / "made", corpus, tokenizer)
  folder = [str(tmp_path / "made")]
  found = prepare(folder, vocab_size=9, held_out=0.2, tokenizer=tokenizer)
  assert found.train.about["chats"] == corpus.about["chats"]
  other = train_tokenizer(["another text"], 270)
  with pytest.raises(ValueError, match="holds ids"):
    prepare(folder, vocab_size=9, tokenizer=other)


@pytest.mark.parametrize(
  ("line", "message"),
  [
    ({"messages": []}, "line 2: messages must be a list of at least one"),
    ({"messages": "hi"}, "line 2: messages must be a list"),
    ({"messages": [{"role": "user"}]}, "must have a role and a content"),
    ({"messages": [{"role": "usr", "content": "a"}]}, "role 'usr' is none of"),
    ({"messages": [{"role": "user", "content": 3}]}, "must be text"),
    ({"messages": ASKED, "text": "a"}, "'text' or 'messages', not both"),
  ],
)
def test_lines_that_are_no_chat(tmp_path, line, message):
  names = write(tmp_path / "a.jsonl", [{"text": "a"}, line])
  with pytest.raises(ValueError, match=message) as caught:
    gather(names, chats=True)
  assert "a.jsonl" in str(caught.value)


def test_who_cannot_write_chats_out_refuses_them(tokenizer, names, tmp_path):
  with pytest.raises(ValueError, match="line 1: no JSON object with 'text'"):
    gather(names)
  # A tokenizer that is trained on the corpus has no template.
  with pytest.raises(ValueError, match="chats .2.,.*--start=MODEL.*--token"):
    tokenized(names, vocab_size=300)
  bad = [ASKED, [{"role": "user", "content": "fail"}]]
  names = write(tmp_path / "b.jsonl", [{"messages": chat} for chat in bad])
  with pytest.raises(WeightsError, match="chat 2: .*cannot say that"):
    tokenize(gather(names, chats=True), tokenizer)


def test_empty_messages_are_chats(tokenizer, tmp_path):
  empty = [{"role": "user", "content": ""}]
  names = write(tmp_path / "a.jsonl", [{"messages": empty}])
  (ids,) = documents_of(tokenize(gather(names, chats=True), tokenizer))
  text = f"<user>{tokenizer.token(tokenizer.eos_id)}"
  assert ids == tokenizer.encode(text, parse_special=True)


def test_many_chats_are_rendered_together(tokenizer, monkeypatch):
  """More than one process's worth, in order, by a process for each batch."""
  from sinkjax.weights import chat

  monkeypatch.setattr(chat, "BATCH_CHATS", 20)
  calls, run = [], chat._in_a_process
  monkeypatch.setattr(
    chat, "_in_a_process", lambda *a: calls.append(len(a[2])) or run(*a)
  )
  chats = [[{"role": "user", "content": f"number {i}"}] for i in range(45)]
  texts = list(chat.render_chats(tokenizer, chats))
  assert calls == [20, 20, 5]
  assert all(f"number {i}" in text for i, text in enumerate(texts))
