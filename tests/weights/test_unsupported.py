"""What is not read is refused from its config alone, with what to do."""

import dataclasses
import json
import pathlib
import re

import numpy as np
import pytest

import sinkjax
from sinkjax.weights import families, unsupported
from sinkjax.weights.hf_config import config_from_hf
from sinkjax.weights.validate import WeightsError

GOLDEN = pathlib.Path(__file__).parents[1] / "golden" / "families"
LLAMA = {"model_type": "llama", "hidden_size": 32}


def refusal(values):
  with pytest.raises(WeightsError) as error:
    config_from_hf(values, "config.json")
  message = str(error.value)
  assert "\n" not in message and message.startswith("config.json: ")
  return message


@pytest.mark.parametrize("name", sorted(unsupported.KINDS))
def test_each_is_named_with_what_to_do(name):
  message = refusal({"model_type": name})
  what, advice = unsupported.KINDS[name]
  assert message.startswith(f"config.json: {name!r} is {what}: {advice}")
  assert "--list_models" in message and "unknown" not in message
  # llama.cpp spells the same names without signs.
  assert unsupported.reason(re.sub("[-_.]", "", name)) is not None


@pytest.mark.parametrize(
  ("name", "words"),
  [
    ("mamba", "state-space model, .*: take a decoder with attention"),
    ("rwkv7", "state-space model, .*: take a decoder with attention"),
    ("qwen3_next", "hybrid of attention .*: take a decoder"),
    ("bert", "an encoder, .*: take a decoder"),
    ("t5", "an encoder with a decoder: .*take a decoder"),
    ("clip", "a vision or audio model: take a language model"),
    ("glm", "GLM 4 of 2024, .*family glm4 is read"),
    ("glm4_moe", "GLM 4.5, .*family glm4 is read"),
    ("deepseek_v2", "family deepseek_v3 is read"),
    ("internlm2", "family llama is read"),
    ("gemma3n", "family gemma3_text is read"),
  ],
)
def test_families_of_public_reports(name, words):
  assert re.search(words, refusal({"model_type": name}))


def test_the_nearest_family_is_one_that_is_read():
  for name, (_, near) in unsupported._DECODERS.items():
    assert families.find(near) is not None, name
    assert families.find(name) is None, f"{name} is read"


@pytest.mark.parametrize("name", unsupported._WRAPPERS)
@pytest.mark.parametrize(
  "more", [{}, {"vision_config": {}}, {"text_config": {}}]
)
def test_models_of_text_with_images(name, more):
  message = refusal({"model_type": name, **more})
  assert f"{name!r} is a model of text with images or sound" in message
  assert "take a model of text alone" in message


@pytest.mark.parametrize(
  "name", ["llava", "mistral3", "internvl", "a_model_of_tomorrow"]
)
@pytest.mark.parametrize("inner", ["text_config", "llm_config"])
def test_a_language_model_that_is_read_is_to_be_saved_alone(name, inner):
  message = refusal({"model_type": name, inner: LLAMA, "vision_config": {}})
  assert f"{name!r} is a model of text with images or sound" in message
  assert "around a 'llama': save that language model alone" in message
  assert f"m.config.{inner}" in message


@pytest.mark.parametrize(
  ("name", "inner", "words"),
  [
    ("mllama", "mllama_text_model", "the family llama is read"),
    ("qwen2_5_vl", "qwen2_5_vl_text", "the family qwen2 is read"),
    ("gemma3n", "gemma3n_text", "the family gemma3_text is read"),
    ("made_up", "other", "take a model of text alone"),
  ],
)
def test_a_language_model_that_is_not_read(name, inner, words):
  config = {"model_type": name, "text_config": {"model_type": inner}}
  assert words in refusal(config | {"vision_config": {}})


def test_towers_without_a_listed_name():
  flat = {**LLAMA, "model_type": "made_up_vl", "vision_config": {}}
  assert "'made_up_vl' is a model of text with images" in refusal(flat)
  assert "unknown model_type" in refusal({**LLAMA, "model_type": "made_up"})


def test_a_family_of_ones_own_comes_first(monkeypatch):
  """Whoever registers one of these names has it read."""
  mine = dataclasses.replace(families.FAMILIES["llama"], name="llava")
  monkeypatch.setitem(families.FAMILIES, "llava", mine)
  golden = GOLDEN / "llama3" / "config.json"
  values = json.loads(golden.read_text()) | {"model_type": "llava"}
  assert config_from_hf(values, "c").model_type == "llava"


@pytest.mark.parity
def test_the_advice_on_a_language_model_alone_works(tmp_path):
  """Its statements, run as they are written."""
  import torch
  import transformers

  text = transformers.LlamaConfig(
    vocab_size=64,
    hidden_size=32,
    intermediate_size=48,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    max_position_embeddings=64,
    tie_word_embeddings=False,
  )
  vision = transformers.CLIPVisionConfig(
    hidden_size=16,
    intermediate_size=32,
    num_hidden_layers=2,
    num_attention_heads=2,
    image_size=16,
    patch_size=8,
  )
  both = transformers.LlavaConfig(
    text_config=text, vision_config=vision, image_token_index=63
  )
  torch.manual_seed(0)
  m = transformers.LlavaForConditionalGeneration(both).eval()
  m.save_pretrained(tmp_path / "llava")
  values = json.loads((tmp_path / "llava" / "config.json").read_text())
  statements = refusal(values).partition("m being the model: ")[2]
  assert statements.count(";") == 2
  names = {
    "m": m,
    "FOLDER": tmp_path / "text",
    "AutoModelForCausalLM": transformers.AutoModelForCausalLM,
  }
  exec(statements, names)
  tokens = np.arange(3, 17)[None]
  with torch.no_grad():
    theirs = m(input_ids=torch.tensor(tokens)).logits.numpy()
  params, cfg, _ = sinkjax.load(tmp_path / "text")
  ours = sinkjax.forward(cfg)(params, tokens).logits
  np.testing.assert_allclose(ours, theirs, atol=1e-4)
