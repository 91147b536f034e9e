"""Chat templates, from files to text."""

import json

import pytest

from sinkjax.weights.chat import render_chat
from sinkjax.weights.registry import peek
from sinkjax.weights.tokenizer_files import tokenizer_from_folder
from sinkjax.weights.validate import WeightsError

HELLO = [{"role": "user", "content": "Hello"}]
SMOLLM2 = (
  "<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by "
  "Hugging Face<|im_end|>\n<|im_start|>user\nHello<|im_end|>\n"
  "<|im_start|>assistant\n"
)


@pytest.fixture(scope="module")
def smollm2_tokenizer(smollm2_path):
  return peek("smollm2-135m")[1]


def test_gguf(smollm2_tokenizer):
  text = render_chat(smollm2_tokenizer, HELLO)
  assert text == SMOLLM2
  ids = smollm2_tokenizer.encode(text, parse_special=True)
  assert ids.count(smollm2_tokenizer.token_to_id("<|im_start|>")) == 3
  told = [{"role": "system", "content": "Be brief."}, *HELLO]
  assert "SmolLM," not in render_chat(smollm2_tokenizer, told)


def test_hugging_face_folder(smollm2_tokenizer, tmp_path):
  smollm2_tokenizer.save(tmp_path)
  assert render_chat(tokenizer_from_folder(tmp_path), HELLO) == SMOLLM2


def write(folder, tokenizer, template):
  tokenizer.save(folder)
  path = folder / "tokenizer_config.json"
  config = json.loads(path.read_text()) | {"chat_template": template}
  path.write_text(json.dumps(config))
  return tokenizer_from_folder(folder)


@pytest.mark.parametrize(
  ("template", "why"),
  [
    ("{{ ''.__class__.__mro__[1].__subclasses__() }}", "unsafe"),
    ("{{ messages.clear() }}", "unsafe"),
    ("{{ raise_exception('no system role') }}", "no system role"),
    ("{% for %}", "cannot be rendered"),
    ("{{ nothing.there }}", "undefined"),
    ("{{ 1 + 'a' }}", "cannot be rendered"),
    ("{{ range(10 ** 9) | list }}", "too big"),
    (None, "no chat template"),
  ],
)
def test_bad_templates_are_one_line(smollm2_tokenizer, tmp_path, template, why):
  tokenizer = write(tmp_path, smollm2_tokenizer, template)
  with pytest.raises(WeightsError, match=why) as caught:
    render_chat(tokenizer, HELLO)
  assert "\n" not in str(caught.value)


def test_special_tokens_have_names(smollm2_tokenizer, tmp_path):
  tokenizer = write(tmp_path, smollm2_tokenizer, "{{bos_token}}|{{eos_token}}")
  assert render_chat(tokenizer, HELLO) == "<|im_start|>|<|im_end|>"
