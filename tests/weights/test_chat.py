"""Chat templates, from files to text."""

import datetime
import json

import pytest

from sinkjax.weights.chat import own_system, render_chat
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


@pytest.mark.slow
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
    ("{{ 1 // 0 }}", "division"),
    ("{{ strftime_now(3) }}", "cannot be rendered"),
    # Endless work, memory, output, and a number too large to print.
    (
      "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}"
      "{% endfor %}",
      "more than 4 seconds",
    ),
    ("{% set x = 'a' * 4000000000 %}{{ x | length }}", "1 GiB of memory"),
    (
      "{% for i in range(99999) %}{{ 'a' * 9999 }}{% endfor %}",
      "more than 16777216 characters",
    ),
    ("{{ 10 ** (10 ** 10) }}", "more than 4 seconds|memory"),
    (None, "no chat template"),
  ],
)
def test_bad_templates_are_one_line(smollm2_tokenizer, tmp_path, template, why):
  tokenizer = write(tmp_path, smollm2_tokenizer, template)
  with pytest.raises(WeightsError, match=why) as caught:
    render_chat(tokenizer, HELLO)
  assert "\n" not in str(caught.value)


FIRST = "messages[0]['role'] == 'system'"
SAID = "{{ messages[0]['content'] }}"
USER = "{{ messages[-1]['content'] }}<end>"


@pytest.mark.parametrize(
  ("template", "own"),
  [
    (
      f"<s>{{% if {FIRST} %}}{SAID}{{% else %}}B{{{{1}}}}.{{% endif %}}{USER}",
      "B1.",
    ),
    (f"<s>{{% if {FIRST} %}}{SAID}{{% endif %}}|{USER}", None),
    # A date stands before both, and is a part of the template alone.
    (f"<s>Today.{{% if {FIRST} %}}{SAID}{{% endif %}}|{USER}", None),
    (
      f"{{% if {FIRST} %}}{{{{ raise_exception('no') }}}}{{% endif %}}{USER}",
      None,
    ),
    (USER, None),
    (f"{{% if {FIRST} %}}<a>{SAID}</a>{{% endif %}}<b>{USER}", None),
  ],
)
def test_a_template_s_own_system_text(
  smollm2_tokenizer, tmp_path, template, own
):
  tokenizer = write(tmp_path, smollm2_tokenizer, template)
  assert own_system(tokenizer) == own


def test_an_error_reaches_no_terminal_s_controls(smollm2_tokenizer, tmp_path):
  template = "{{ raise_exception('\x1b[2Jred\r') }}"
  tokenizer = write(tmp_path, smollm2_tokenizer, template)
  with pytest.raises(WeightsError, match="red") as caught:
    render_chat(tokenizer, HELLO)
  assert str(caught.value).isprintable()


TOOLS = [{"name": "wave", "about": "<é>"}]
AS_TRANSFORMERS = {
  "date": "{{ strftime_now('%d %b %Y') }} {{ messages[0].content }}",
  "generation": (
    "{% for m in messages %}\n  {% generation %}\n{{ m.content }}\n"
    "  {% endgeneration %}\n{% endfor %}|"
  ),
  "scope": (
    "{% set x = 1 %}{% generation %}{% set x = 2 %}{{ x }}{% endgeneration %}"
    "{{ x }}"
  ),
  "tools": "{{ tools | tojson }}{{ tools | tojson(indent=2) }}",
  "none": "{% if documents is none %}{{ add_generation_prompt }}{% endif %}",
}


@pytest.mark.parametrize(
  ("name", "text"),
  [
    ("generation", "Hello\n|"),
    ("scope", "21"),
    ("tools", None),
    ("none", "True"),
  ],
)
def test_what_templates_may_use(smollm2_tokenizer, tmp_path, name, text):
  tokenizer = write(tmp_path, smollm2_tokenizer, AS_TRANSFORMERS[name])
  if text is None:
    text = json.dumps(TOOLS, ensure_ascii=False)
    text += json.dumps(TOOLS, ensure_ascii=False, indent=2)
  assert render_chat(tokenizer, HELLO, tools=TOOLS) == text


def test_today(smollm2_tokenizer, tmp_path):
  tokenizer = write(tmp_path, smollm2_tokenizer, AS_TRANSFORMERS["date"])
  days = {datetime.date.today().strftime("%d %b %Y")}
  text = render_chat(tokenizer, HELLO)
  days.add(datetime.date.today().strftime("%d %b %Y"))  # midnight may pass
  assert text in {f"{day} Hello" for day in days}


@pytest.mark.parity
@pytest.mark.parametrize("name", AS_TRANSFORMERS)
def test_as_transformers_renders_it(smollm2_tokenizer, tmp_path, name):
  from transformers.utils.chat_template_utils import render_jinja_template

  template = AS_TRANSFORMERS[name]
  tokenizer = write(tmp_path, smollm2_tokenizer, template)
  (theirs,), _ = render_jinja_template(
    conversations=[HELLO],
    tools=TOOLS,
    chat_template=template,
    add_generation_prompt=True,
  )
  assert render_chat(tokenizer, HELLO, tools=TOOLS) == theirs


def test_special_tokens_have_names(smollm2_tokenizer, tmp_path):
  tokenizer = write(tmp_path, smollm2_tokenizer, "{{bos_token}}|{{eos_token}}")
  assert render_chat(tokenizer, HELLO) == "<|im_start|>|<|im_end|>"
