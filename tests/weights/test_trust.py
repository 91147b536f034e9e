"""A model's folder decides about its own files, and about nothing else."""

import json
import shutil

import jax
import pytest
import tokenizers
from golden_models import FAMILIES

import sinkjax
from sinkjax.data.corpus import train_tokenizer
from sinkjax.weights import registry
from sinkjax.weights.tokenizer import Tokenizer
from sinkjax.weights.tokenizer_files import tokenizer_from_folder
from sinkjax.weights.validate import WeightsError

TEXT = ["the cat sat on the mat and the dog lay by the door " * 9]


@pytest.fixture
def folder(tmp_path):
  """A model whose files are all its own."""
  folder = tmp_path / "model"
  shutil.copytree(FAMILIES / "gpt2", folder)
  rows = json.loads((folder / "config.json").read_text())["vocab_size"]
  tokens = {f"t{i}": i for i in range(rows)}
  backend = tokenizers.Tokenizer(tokenizers.models.WordLevel(tokens, "t0"))
  backend.save(str(folder / "tokenizer.json"))
  (folder / "tokenizer_config.json").write_text('{"eos_token": "t1"}')
  (folder / "chat_template.jinja").write_text("{{ messages }}")
  registry.peek(str(folder))
  return folder


@pytest.mark.parametrize(
  "name",
  [
    "config.json",
    "model.safetensors",
    "tokenizer.json",
    "tokenizer_config.json",
    "chat_template.jinja",
  ],
)
def test_links_out_of_a_folder_are_not_followed(folder, tmp_path, name):
  secret = tmp_path / "secret"
  (folder / name).rename(secret)
  (folder / name).symlink_to(secret)
  for read in (registry.peek, sinkjax.load):
    with pytest.raises(WeightsError, match="is a link to .*secret"):
      read(str(folder))
  # Within the folder, and in the Hub's cache, links are as good as files.
  (folder / name).unlink()
  secret.rename(folder / "kept")
  (folder / name).symlink_to("kept")
  registry.peek(str(folder))


@pytest.fixture
def saved(tmp_path):
  """An Orbax folder with a tokenizer."""
  tokenizer = train_tokenizer(TEXT, 270)
  cfg = sinkjax.TINY.replace(vocab_size=tokenizer.vocab_size)
  params = sinkjax.init_params(cfg, jax.random.key(0))
  sinkjax.save(tmp_path / "m", params, cfg, tokenizer, form="orbax")
  return tmp_path / "m"


@pytest.mark.parametrize(
  ("name", "content", "message"),
  [
    ("tokenizer.json", "{}", "not what was written"),
    ("tokenizer_config.json", None, "not what was written"),
    ("chat_template.jinja", "{{ 1 }}", "not listed in sinkjax.json"),
    ("generation_config.json", "{}", "not listed in sinkjax.json"),
  ],
)
def test_a_tokenizer_is_what_was_saved(saved, name, content, message):
  assert sinkjax.load(saved).tokenizer.vocab_size == 270
  if content is None:
    (saved / name).unlink()
  else:
    (saved / name).write_text(content)
  for read in (registry.peek, sinkjax.load):
    with pytest.raises(WeightsError, match=f"{name}: {message}"):
      read(str(saved))


def test_folders_from_before_tokenizers_were_listed(saved):
  path = saved / "sinkjax.json"
  manifest = json.loads(path.read_text())
  del manifest["files"]
  path.write_text(json.dumps(manifest))
  assert sinkjax.load(saved).tokenizer.vocab_size == 270


@pytest.mark.parametrize("twin", [("a", "b"), ("a", "\x1b[31m" * 99)])
def test_two_tokens_of_one_id(tmp_path, twin):
  """Which of them an id means would be chance."""
  vocab = {"c": 0, **dict.fromkeys(twin, 1)}
  backend = tokenizers.Tokenizer(tokenizers.models.BPE(vocab, []))
  with pytest.raises(WeightsError, match="have the same id 1") as error:
    Tokenizer(backend)
  assert str(error.value).isprintable() and len(str(error.value)) < 300
  data = json.loads(backend.to_str())
  data["model"]["vocab"] = vocab
  (tmp_path / "tokenizer.json").write_text(json.dumps(data))
  with pytest.raises(WeightsError, match="have the same id 1"):
    tokenizer_from_folder(tmp_path)
