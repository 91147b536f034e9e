"""Tokenizers of folders and glassllm: special tokens, and what is refused."""

import json
import pathlib
import sys
import warnings

import pytest
import tokenizers

from sinkjax.weights.tokenizer_files import (
  tokenizer_from_folder,
  tokenizer_from_glassllm,
)
from sinkjax.weights.validate import WeightsError, WeightsWarning

sys.path.insert(0, str(pathlib.Path(__file__).parent))
from tokenizer_cases import SIZE, TEXTS, byte_level, differing


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
    (None, {"config": {"bos_token_id": True}}, "bos_token_id True is not a"),
    (None, {"config": {"eos_token_id": "2"}}, "eos_token_id '2' is not a tok"),
    (None, {"config": {"eos_token_id": []}}, "eos_token_id .* is not a token"),
    (template(START, END), {}, "adds more than one BOS token"),
    (
      {"type": "Sequence", "processors": [template(START), template(END)]},
      {},
      "adds more than one BOS token",
    ),
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
  "processor, files, message, bos",
  [
    (template(END), {}, "of several: .* in tokenizer.json", END),
    (None, {"special_tokens_map": {"bos_token": END}}, "of several", START),
  ],
)
def test_files_that_name_two_bos(tmp_path, processor, files, message, bos):
  """What the post-processor puts first is BOS, else the first file's."""
  folder = folder_with(tmp_path, processor, **files)
  with pytest.warns(WeightsWarning, match=message) as seen:
    tokenizer = tokenizer_from_folder(folder)
  assert len(seen) == 1
  assert tokenizer.token(tokenizer.bos_id) == bos


@pytest.mark.parametrize("token_id", [SIZE, 1 << 40, -2])
@pytest.mark.parametrize(
  "file, name, warns",
  [
    ("config", "bos", 0),  # who reads the config says it
    ("config", "pad", 1),
    ("generation_config", "eos", 1),
  ],
)
def test_ids_that_are_no_tokens(tmp_path, file, name, warns, token_id):
  files = {file: {f"{name}_token_id": token_id}}
  folder = folder_with(tmp_path, tokenizer_config={}, **files)
  with warnings.catch_warnings(record=True) as seen:
    warnings.simplefilter("always")
    tokenizer = tokenizer_from_folder(folder)
  assert getattr(tokenizer, f"{name}_id") is None
  assert [f"{token_id} is not in the" in str(w.message) for w in seen] == (
    [True] * warns
  )


def test_the_config_has_no_say_in_the_tokenizers_bos(tmp_path):
  folder = folder_with(tmp_path, config={"bos_token_id": 3})
  tokenizer = tokenizer_from_folder(folder)
  assert tokenizer.token(tokenizer.bos_id) == START


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


def test_every_end_of_a_text(tmp_path):
  """Of all files, alone or in lists; saved and read again."""
  end = {"eos_token": END}
  folder = folder_with(
    tmp_path / "model",
    tokenizer_config=end,
    config={"eos_token_id": [5, 6, 1 << 20]},
    generation_config={"eos_token_id": 7},
  )
  tokenizer = tokenizer_from_folder(folder)
  assert tokenizer.end_ids == {tokenizer.token_to_id(END), 5, 6, 7}
  tokenizer.save(tmp_path / "again")
  again = tokenizer_from_folder(tmp_path / "again")
  assert again.end_ids == tokenizer.end_ids
  assert again.eos_id == tokenizer.eos_id == tokenizer.token_to_id(END)
  folder = folder_with(tmp_path / "one", tokenizer_config=end)
  assert tokenizer_from_folder(folder).end_ids == {tokenizer.eos_id}


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
