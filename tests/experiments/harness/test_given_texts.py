"""Texts and chats of the user in place of an experiment's own."""

import json

import chatting as chats
import numpy as np
import pytest

from sinkjax.experiments import BY_NAME, REGISTRY
from sinkjax.experiments.applications.sink_compute import experiment as computed
from sinkjax.experiments.harness import chat_start, records, runner
from sinkjax.experiments.paper import prompts, which_queries
from sinkjax.experiments.shared import (
  perturb,
  prompt_corpus,
  sink_removal,
  text_batches,
)
from sinkjax.experiments.shared.prompt_corpus import Text
from sinkjax.experiments.shared.swap_texts import SWAP_TEXTS
from sinkjax.weights.chat import GivenChats, encode_chats

TEXTS = [
  " ".join(one.replace("{", "").replace("}", "").replace("|", " ").split())
  for one in SWAP_TEXTS.split("\n\n")
][:6]


def chat(*said):
  return [{"role": role, "content": content} for role, content in said]


CHATS = [
  chat(("system", "Be brief."), ("user", text), ("assistant", "Yes."))
  for text in TEXTS
]


@pytest.fixture(scope="module")
def subject():
  """A tiny model with six texts of the user's."""
  return chats.subject()._replace(texts=TEXTS)


@pytest.fixture
def no_other_texts(monkeypatch):
  """The experiments' own texts cannot be had."""
  for module in (prompt_corpus, computed.corpus):
    monkeypatch.setattr(module, "gather", None)
  monkeypatch.setattr(sink_removal, "parse_swaps", None)


def test_whose_texts_can_be_given():
  """Not where sequences are made, words swapped, or models trained."""
  assert {e.name for e in REGISTRY if not e.load().given_texts} == {
    "perturbation",
    "collapse",
    "model_size",
    "first_token",
    "answers",
    "streaming",
    "streaming_heads",
    *(e.name for e in REGISTRY if e.group == "training"),
  }


@pytest.mark.parametrize(
  "read",
  [
    lambda s: text_batches.texts_of_length(s, None, 20, 40, 0),
    lambda s: perturb.text_rows(s, None, 20, 40, 0)[0],
    lambda s: sink_removal.texts_of(s, SWAP_TEXTS, 40),
    lambda s: np.concatenate(computed.rows_of(s, SIX, None)),
  ],
  ids=["texts_of_length", "text_rows", "texts_of", "rows_of"],
)
def test_the_users_texts_are_read(read, subject, no_other_texts):
  rows = [row[:40] for row in subject.encode(TEXTS)]
  assert sorted(read(subject).tolist()) == sorted(rows)


SIX = computed.Config(fitting=2, counts=(4,), lengths=(40,), timed=(40,))


@pytest.mark.slow
@pytest.mark.parametrize("module", [prompts, which_queries])
def test_an_experiment_of_them(module, subject, no_other_texts):
  small = {"tokens": 32, "lengths": (16, 32)}
  config = module.EXPERIMENT.configured("demo", small)
  texts = [Text("given", f"text {i + 1}", one) for i, one in enumerate(TEXTS)]
  found = module.measure(subject, config)
  same = module.measure(subject._replace(texts=None), config, texts=texts)
  assert found.numbers == same.numbers and found.tables == same.tables


def test_chats_have_the_ids_that_generation_gives_them(subject):
  given = GivenChats.of(subject.tokenizer, CHATS)
  found = given.encode(subject.tokenizer, given.texts)
  assert found == [c.ids for c in encode_chats(subject.tokenizer, CHATS)]
  assert given.before == "<|bos|><system>Be brief.</system><user>"
  assert given.system == "Be brief."
  assert all(row[: len(given.ids)] == given.ids for row in found)
  # Of the texts' own tokens none is the template's.
  assert subject.tokenizer.decode(given.ids, skip_special=False) in given.before


@pytest.mark.parametrize(
  ("chats", "before", "shared"),
  [
    ([chat(("user", "Hi"))] * 2, "<|bos|><user>", "<|bos|><user>"),
    (
      [chat(("user", "Hi"), ("assistant", "x"), ("user", "Hi"))],
      "<|bos|><user>",
      "<|bos|><user>",
    ),
    # A system message that says what the user says.
    (
      [chat(("system", "Hi"), ("user", "Hi"))],
      "<|bos|><system>Hi</system><user>",
      "<|bos|><system>Hi</system><user>",
    ),
    # System messages that differ.
    (
      [chat(("system", s), ("user", "Hi")) for s in ("047", "Xyz")],
      "<|bos|><system>047</system><user>",
      "<|bos|><system>",
    ),
    ([chat(("user", ""))], "<|bos|><user>", None),
    ([chat(("assistant", "Hi"))], "", ""),
  ],
)
def test_what_chats_share_ends_before_the_user(chats, before, shared, subject):
  given = GivenChats.of(subject.tokenizer, chats)
  if shared is None:  # an empty message has no place in the text
    assert given.before in ("", "<|bos|>", "<|bos|><user>")
    return
  assert given.before == before
  tokens = subject.tokenizer.encode(shared, parse_special=True)
  # The last token of the start may be joined with what follows it.
  assert given.ids in (tokens, tokens[:-1])


@pytest.mark.slow
def test_record_and_report_name_the_users_texts(
  subject, tmp_path, no_other_texts
):
  given = GivenChats.of(subject.tokenizer, CHATS)
  chatting = subject._replace(chat=given, prefix=given.ids, texts=given.texts)
  entry = BY_NAME["massive"]
  config = entry.load().configured("demo", {"tokens": 60})
  of = {"model": "tiny", "texts": {"file": "a.jsonl", "sha256": "0" * 64}}
  of["texts"]["count"] = 6
  out = tmp_path / "massive"
  request = chats.Made(entry, config, of)
  runner.run(out, request, lambda: chatting, overwrite=False)
  about = json.loads((out / "result.json").read_text())
  found = about["numbers"]["chat_template"]
  assert found["after"] is None and found["first_token"]["text"] == "<|bos|>"
  assert found["tokens"] == len(given.ids) and found["system"] == "Be brief."
  body = records.measured(out).sections()[0].body
  assert "The 6 texts are those of a.jsonl (SHA-256 000000000000)" in body
  assert "Each text is a chat in the chat template" in body
  assert "The first chat's system message is 'Be brief.'" in body
  other = request._replace(of={"model": "tiny"})
  with pytest.raises(ValueError, match="with --prompts_file=a.jsonl"):
    runner.is_missing(out, other, overwrite=False)


def test_a_template_that_writes_nothing_is_recorded(subject):
  bare = subject.tokenizer
  given = GivenChats("", "", [], ["Hello there."])
  about = chat_start.record(
    subject._replace(chat=given, prefix=[], texts=given.texts)
  )
  assert about["tokens"] == 0
  first = bare.encode("Hello there.", parse_special=True)[0]
  assert about["first_token"]["id"] == first
  assert "no tokens that all texts share" in chat_start.describe(about)
