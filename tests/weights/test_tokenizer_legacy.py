"""Tokenizers of folders without tokenizer.json: ids of who made the files."""

import json

import pytest
import tokenizers
from tokenizers import decoders, models, normalizers, pre_tokenizers

from sinkjax.weights.tokenizer_files import tokenizer_from_folder
from sinkjax.weights.validate import WeightsError
from tests.weights.tokenizer_cases import TEXTS, VOCAB, differing, golden

TRAINING = [
  "The sea, the sea! It's 1234567 waves' foam\r\n\n  and naïve Ångström's",
  "they'LL   see\tthe sea 12 times; the sea\u00a0is 海 and 水 \u0301e",
] * 8
OWN = [*TRAINING[:2], "  the  the\n", "e\u0301 é 99's", "", "<|end|> the"]


def trained(qwen2=False, prefix_space=False):
  """A byte-level BPE, by the library's own trainer and parts."""
  backend = tokenizers.Tokenizer(models.BPE())
  if qwen2:
    regex = (
      r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}"
      r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
    )
    backend.normalizer = normalizers.NFC()
    split = pre_tokenizers.Split(tokenizers.Regex(regex), "isolated")
    level = pre_tokenizers.ByteLevel(prefix_space, use_regex=False)
    backend.pre_tokenizer = pre_tokenizers.Sequence([split, level])
  else:
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(prefix_space)
  backend.decoder = decoders.ByteLevel()
  trainer = tokenizers.trainers.BpeTrainer(
    vocab_size=330,
    show_progress=False,
    initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
  )
  backend.train_from_iterator(TRAINING, trainer)
  return backend


def write(folder, backend, config, **files):
  backend.model.save(str(folder))
  files = {"tokenizer_config.json": config, **files}
  for name, value in files.items():
    name = name.replace("__", ".")
    (folder / name).write_text(json.dumps(value), "utf-8")


@pytest.mark.parametrize("kind", ["GPT2Tokenizer", "Qwen2TokenizerFast"])
@pytest.mark.parametrize("space", [False, True])
def test_ids_are_those_of_the_parts(tmp_path, kind, space):
  backend = trained(kind.startswith("Qwen2"), space)
  config = {"tokenizer_class": kind, "add_prefix_space": space}
  write(tmp_path, backend, config)
  assert not (tmp_path / "tokenizer.json").exists()
  found = tokenizer_from_folder(tmp_path)
  for text in OWN:
    assert found.encode(text) == backend.encode(text).ids, text
  text = "the sea 1234567 and waves' foam"
  # With the prefix Qwen2's class puts a space before each piece, as it did.
  if not space:
    assert found.decode(found.encode(text)) == text


def test_the_model_says_the_kind_where_the_config_does_not(tmp_path):
  backend = trained(qwen2=True)
  write(tmp_path, backend, {}, config__json={"model_type": "qwen3"})
  found = tokenizer_from_folder(tmp_path)
  # Digits one by one are Qwen2's; GPT-2 keeps them together.
  assert [found.encode(t) for t in OWN] == [backend.encode(t).ids for t in OWN]


def test_special_and_added_tokens(tmp_path):
  backend = trained()
  size = backend.get_vocab_size()
  config = {
    "tokenizer_class": "GPT2Tokenizer",
    "bos_token": {"content": "<|end|>"},
    "eos_token": "<|end|>",
    "add_bos_token": True,
    "added_tokens_decoder": {
      str(size): {"content": "<|end|>", "special": True},
      str(size + 1): {"content": "sea", "special": False},
    },
  }
  write(tmp_path, backend, config)
  found = tokenizer_from_folder(tmp_path)
  assert (found.bos_id, found.eos_id, found.add_bos) == (size, size, True)
  assert found.encode("<|end|>", parse_special=True) == [size]
  assert size not in found.encode("<|end|>")
  assert size + 1 in found.encode("the sea")


def test_ids_that_do_not_follow_are_refused(tmp_path):
  backend = trained()
  write(
    tmp_path,
    backend,
    {"tokenizer_class": "GPT2Tokenizer"},
    added_tokens__json={"<|new|>": 900},
  )
  with pytest.raises(WeightsError, match="'<|new|>' has id 900; here it would"):
    tokenizer_from_folder(tmp_path)


@pytest.mark.parametrize(
  ("file", "text", "message"),
  [
    ("merges.txt", "#version: 0.2\nt h e\n", "line 2 is 't h e'; expected two"),
    ("merges.txt", "t  h\n", "line 1 is 't  h'; expected two tokens"),
    ("merges.txt", "ŁŁ a\n", "bad merges"),
    ("vocab.json", "[]", "expected an object of token ids"),
    ("vocab.json", '{"a": -1}', "expected an object of token ids"),
    ("vocab.json", '{"a": 1, "b": 1}', "two tokens have the same id"),
    ("vocab.json", "{", "not valid JSON"),
    ("tokenizer_config.json", '{"tokenizer_class": "CTRLTokenizer"}',
     "tokenizer_class 'CTRLTokenizer' are not read"),
    ("tokenizer_config.json", "{}", "tokenizer_class None are not read"),
  ],
)  # fmt: skip
def test_damage_is_one_line(tmp_path, file, text, message):
  write(tmp_path, trained(), {"tokenizer_class": "GPT2Tokenizer"})
  (tmp_path / file).write_text(text, "utf-8")
  with pytest.raises(WeightsError, match=message) as error:
    tokenizer_from_folder(tmp_path)
  assert "\n" not in str(error.value)


def pieces(name, *, prefix=True, **changes):
  """A vocabulary of the golden ones as SentencePiece's own file."""
  from sentencepiece import sentencepiece_model_pb2

  fields = {key.rpartition(".")[2]: value for key, value in VOCAB[name].items()}
  proto = sentencepiece_model_pb2.ModelProto()
  rows = zip(
    fields["tokens"], fields["scores"], fields["token_type"], strict=True
  )
  for token, score, kind in rows:
    text = token.replace(" ", "▁") if kind == 4 else token
    proto.pieces.add(piece=text, score=score, type=kind)
  proto.trainer_spec.model_type = changes.get("model_type", 2)
  proto.normalizer_spec.add_dummy_prefix = prefix
  proto.normalizer_spec.precompiled_charsmap = changes.get("charsmap", b"")
  return proto.SerializeToString()


@pytest.mark.parametrize(
  ("name", "prefix", "ids"),
  [
    ("spm", False, "sentencepiece.bare"),
    ("spm", True, "spm.prefix"),
    ("gemma", False, "sentencepiece.gemma"),
  ],
)
def test_sentencepiece_files_give_its_ids(tmp_path, name, prefix, ids):
  (tmp_path / "tokenizer.model").write_bytes(pieces(name, prefix=prefix))
  found = tokenizer_from_folder(tmp_path)
  differ = differing(found, TEXTS, golden(ids))
  # As with the same vocabulary from a GGUF file, "▁" in a text is a letter
  # beside tokens of spaces; SentencePiece takes it for a space.
  assert [text for text in differ if name != "gemma" or "▁" not in text] == []


def test_bos_comes_first_unless_the_config_says_otherwise(tmp_path):
  (tmp_path / "tokenizer.model").write_bytes(pieces("spm"))
  assert not tokenizer_from_folder(tmp_path).add_bos, "no BOS is named"
  for config, wanted in (
    ({"bos_token": "<s>"}, True),
    ({"bos_token": "<s>", "add_bos_token": False}, False),
  ):
    path = tmp_path / "tokenizer_config.json"
    path.write_text(json.dumps(config), "utf-8")
    found = tokenizer_from_folder(tmp_path)
    assert found.add_bos is wanted and found.bos_id is not None


@pytest.mark.parametrize(
  ("raw", "message"),
  [
    (b"\xff\xff\xff", "not a SentencePiece model"),
    (b"", "of another kind than BPE"),
    (pieces("spm", model_type=1), "of another kind than BPE"),
    (pieces("spm", charsmap=b"x"), "its normalisation .* is not read"),
  ],
)
def test_other_sentencepiece_files_are_refused(tmp_path, raw, message):
  (tmp_path / "tokenizer.model").write_bytes(raw)
  with pytest.raises(WeightsError, match=message):
    tokenizer_from_folder(tmp_path)


def test_a_folder_with_neither_has_no_tokenizer(tmp_path):
  (tmp_path / "vocab.json").write_text("{}", "utf-8")
  assert tokenizer_from_folder(tmp_path) is None
