"""Experiments whose texts are messages in a model's chat template."""

import json

import chatting as chats
import numpy as np
import pytest

from sinkjax.data.corpus import train_tokenizer
from sinkjax.experiments import BY_NAME, REGISTRY
from sinkjax.experiments.harness import chat_start, records, runner
from sinkjax.experiments.paper import perturbation, prompts
from sinkjax.experiments.shared.prompt_corpus import Text, apart
from sinkjax.experiments.shared.swap_texts import SWAP_TEXTS
from sinkjax.experiments.shared.text_batches import templates_of
from sinkjax.weights.chat import UserTurn, encode_chats, messages_of
from sinkjax.weights.validate import WeightsError


@pytest.fixture(scope="module")
def chatting():
  """A tiny model whose tokenizer has a template."""
  subject = chats.subject()
  turn = UserTurn.of(subject.tokenizer)
  return subject._replace(prefix=turn.ids, chat=turn)


@pytest.mark.thorough
def test_texts_have_the_ids_that_generation_gives_them(chatting):
  texts = ["The army crossed the river.", "A  cell\n"]
  found = chatting.encode(texts)
  for text, ids in zip(texts, found, strict=True):
    (one,) = encode_chats(chatting.tokenizer, [messages_of(text)])
    assert ids == one.ids
    assert ids[: len(chatting.prefix)] == chatting.prefix
  assert found[0][len(chatting.prefix)] != found[1][len(chatting.prefix)]
  assert chatting.template == len(chatting.prefix) and chatting.has_bos()
  assert (chatting.chat.before, chatting.chat.after) == (
    "<|bos|><user>",
    "</user><assistant>",
  )


def test_a_system_message_stands_before_every_text(chatting):
  turn = UserTurn.of(chatting.tokenizer, "Xyz 047.")
  assert turn.before == "<|bos|><system>Xyz 047.</system><user>"
  assert turn.after == "</user><assistant>"
  (ids,) = turn.encode(chatting.tokenizer, ["Hi"])
  chat = messages_of("Hi", "Xyz 047.")
  assert ids == next(encode_chats(chatting.tokenizer, [chat])).ids


@pytest.mark.parametrize(
  ("template", "message"),
  [
    (None, "no chat template"),
    ("{{ messages[0].role }}", "leaves out the user's message"),
    ("{{ raise_exception('no users here') }}", "no users here"),
  ],
)
def test_models_that_cannot_chat_are_refused(template, message):
  tokenizer = train_tokenizer([SWAP_TEXTS], 300)
  tokenizer.chat_template = template
  with pytest.raises(WeightsError, match=message):
    UserTurn.of(tokenizer)


def test_what_can_be_put_into_a_template():
  """Experiments that train, or make sequences of their own, cannot."""
  able = {entry.name for entry in REGISTRY if entry.load().chat is not None}
  assert able == {
    "perturbation",
    "smoothing",
    "jacobian",
    "bound",
    "noop_heads",
    "prompts",
    "massive",
    "adds_or_rescales",
    "graded_sink",
    "compression_valley",
    "make_a_sink",
    "secondary_sinks",
    "carriers",
    "experts",
    "gradient_sinks",
    "lens",
    "inactive_heads",
    "pruning",
    "kv_quantisation",
    "attention_precision",
    "sink_compute",
  }


def test_texts_need_tokens_after_those_of_the_template(chatting):
  experiment = BY_NAME["massive"].load()
  needed = chatting.template + chat_start.ROOM
  config = experiment.configured("demo", {"tokens": needed})
  chat_start.check_room(chatting.chat, {"massive": (experiment, config)})
  config = experiment.configured("demo", {"tokens": needed - 1})
  with pytest.raises(ValueError, match=f"massive cuts texts to {needed - 1}"):
    chat_start.check_room(chatting.chat, {"massive": (experiment, config)})


def test_texts_of_one_template_do_not_count_as_one_text():
  """All begin with the chat's; pages of one kind begin alike after it."""
  front, page = [9] * 12, [5] * 8
  ids = np.array([front + page + [1], front + [4] * 9, front + page + [2]])
  assert templates_of(ids, len(front)) == [0, 1, 0]
  assert templates_of(ids) == [0, 0, 0]
  one, other = apart(ids, 2, 0, len(front))
  assert {len(one), len(other)} == {1, 2}


@pytest.mark.thorough
def test_prompts_are_chats(chatting):
  words = SWAP_TEXTS.replace("{", "").replace("}", "").replace("|", " ")
  texts = [
    Text("ab"[i % 2], str(i), one) for i, one in enumerate(words.split("\n\n"))
  ]
  config = prompts.Config(tokens=48, lengths=(40, 60))
  found = prompts.measure(chatting, config, texts=texts)
  assert found.numbers["templates"] == list(range(len(texts)))
  # The template has BOS already, so there is no run with one put first.
  assert "special token first" not in found.numbers["by_condition"]


@pytest.mark.thorough
def test_swaps_and_controls_come_after_the_template(chatting):
  some = "\n\n".join(SWAP_TEXTS.split("\n\n")[:3])
  config = perturbation.Config(from_layer=1, batch=8, texts=some)
  found = perturbation.measure(chatting, config)
  assert found.numbers["control_position"] >= chatting.template
  assert found.numbers["first_position_is_bos"]


@pytest.fixture(scope="module")
def folder(chatting, tmp_path_factory):
  """(folder, request) of one experiment run by the runner."""
  entry = BY_NAME["massive"]
  config = entry.load().configured("demo", {"tokens": 40})
  of = {"model": "tiny", "prefix": "auto", "chat": {"system": None}}
  request = chats.Made(entry, config, of)
  out = tmp_path_factory.mktemp("chat") / "massive"
  runner.run(out, request, lambda: chatting, overwrite=False)
  return out, request


@pytest.mark.thorough
def test_record_and_report_name_what_the_template_writes(folder, chatting):
  out, _ = folder
  about = json.loads((out / "result.json").read_text())
  assert about["request"]["chat"] == {"system": None}
  found = about["numbers"]["chat_template"]
  assert found == {
    "before": "<|bos|><user>",
    "after": "</user><assistant>",
    "tokens": len(chatting.prefix),
    "system": None,
    "template_system": None,
    "first_token": {"id": 0, "text": "<|bos|>", "is_bos": True},
    "bos_positions": [0],
  }
  body = records.measured(out).sections()[0].body
  assert "The template writes '<|bos|><user>' before the user's first" in body
  assert "Token at position 0: '<|bos|>'" in body
  assert "BOS stands at position 0." in body


@pytest.mark.parametrize("chat", [None, {"system": "Be brief."}])
def test_a_folder_of_other_texts_is_refused(folder, chat):
  out, request = folder
  assert not runner.is_missing(out, request, overwrite=False)
  of = {k: v for k, v in request.of.items() if k != "chat"}
  of |= {} if chat is None else {"chat": chat}
  with pytest.raises(ValueError, match="another command, on tiny with --chat"):
    runner.is_missing(out, request._replace(of=of), overwrite=False)
