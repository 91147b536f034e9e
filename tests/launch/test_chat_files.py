"""Chats from files, and what a plan and a record say of their template."""

import json

import launcher
import pytest

import sinkjax
from sinkjax.data.activations import Activations
from sinkjax.weights import huggingface
from sinkjax.weights.chat import encode_chats

OWN = "You are a small model."
TEMPLATE = (
  "{% if messages[0].role != 'system' %}<system>" + OWN + "\n{% endif %}"
  "{% for m in messages %}<{{ m.role }}>{{ m.content }}\n{% endfor %}"
)
CHATS = [
  [
    {"role": "user", "content": "Why is the sky blue?"},
    {"role": "assistant", "content": "It scatters the blue light. " * n},
  ]
  for n in (1, 3, 9)
] + [
  [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "Who sat by the window and saw the sea?"},
  ]
]
LENGTH = 60


@pytest.fixture(scope="module")
def model(tmp_path_factory, glassllm_path):
  folder = tmp_path_factory.mktemp("model") / "model"
  huggingface.save(folder, *sinkjax.load("glassllm-en"))
  path = folder / "tokenizer_config.json"
  config = json.loads(path.read_text()) | {"chat_template": TEMPLATE}
  path.write_text(json.dumps(config))
  return folder


@pytest.fixture(scope="module")
def file(tmp_path_factory):
  path = tmp_path_factory.mktemp("chats") / "chats.jsonl"
  path.write_text("".join(json.dumps({"messages": c}) + "\n" for c in CHATS))
  return path


@pytest.fixture(scope="module")
def ids(model):
  tokenizer = sinkjax.load(model).tokenizer
  found = encode_chats(tokenizer, CHATS, answer=False)
  return [one.ids for one in found]


def run(name, model, *flags):
  done = launcher.run(name, f"--model={model}", *flags)
  assert done.returncode == 0, done.stderr
  return done.stdout


@pytest.mark.slow
def test_capture_takes_the_beginning_of_each(model, file, ids, tmp_path):
  """That is all that the template stands before."""
  flags = [f"--corpus={file}", "--sites=resid_post@0", f"--length={LENGTH}"]
  plan = run("capture", model, *flags, "--dry_run")
  assert f"system    {OWN!r}, from the template" in plan
  run("capture", model, *flags, f"--out={tmp_path / 'out'}")
  found = Activations(tmp_path / "out")
  rows = [found[i]["tokens"].tolist() for i in range(len(found))]
  whole = [row for row in ids if len(row) >= LENGTH]
  assert rows == [row[:LENGTH] for row in whole] and 0 < len(rows) < len(ids)
  assert any(len(row) > 2 * LENGTH for row in ids)  # cut once all the same
  summary = json.loads((tmp_path / "out" / "summary.json").read_text())
  assert summary["first_token"]["prefix"] == "chat template"
  assert summary["chat_template"] == f"<system>{OWN}\n<user>"
  assert summary["chat_system"] == {"text": OWN, "from": "template"}
  assert summary["tokens_left_out"] == sum(map(len, ids)) - LENGTH * len(rows)


@pytest.mark.slow
@pytest.mark.thorough
@pytest.mark.parametrize(
  ("prompt", "template", "system", "said"),
  [
    (0, f"<system>{OWN}\n<user>", OWN, "template"),
    (-1, "<system>", "Be brief.", "chat"),
  ],
)
def test_jacobian_of_one_of_them(
  model, file, ids, tmp_path, prompt, template, system, said
):
  flags = [f"--prompts_file={file}", f"--prompt={prompt}", "--max_tokens=4"]
  plan = run("jacobian", model, *flags, "--dry_run")
  assert f"template  {template!r} before" in plan
  assert f"system    {system!r}, from the {said}" in plan
  run("jacobian", model, *flags, f"--out={tmp_path / 'out'}")
  data = json.loads((tmp_path / "out" / "summary.json").read_text())
  assert data["token_ids"] == ids[prompt][:4]
  assert data["chat_template"] == template
  assert data["chat_system"] == {"text": system, "from": said}
  assert data["request"]["text"] == CHATS[prompt]
  assert system in (tmp_path / "out" / "report.html").read_text()


@pytest.mark.parametrize(
  ("flags", "words"),
  [
    (["--prompts_file={}", "--prompt=4"], "--prompt=4 is not among the 4 of"),
    (["--prompt=1"], "--prompt goes with --prompts_file"),
    (["--prompts_file={}", "--chat=hi"], "give one of --text_file, --prompts"),
  ],
)
def test_a_prompt_that_is_not_there(model, file, flags, words):
  flags = [flag.format(file) for flag in flags]
  done = launcher.run("jacobian", f"--model={model}", "--dry_run", *flags)
  assert done.returncode == 1 and done.stderr.count("\n") == 1
  assert words in done.stderr


@pytest.mark.thorough
@pytest.mark.parametrize("launched", ["analyze", "jacobian", "generate"])
def test_a_plan_shows_the_template(model, launched):
  plan = run(launched, model, "--chat=hi", "--dry_run")
  template = f"<system>{OWN}\n<user>"
  assert f"template  {template!r} before the first message" in plan
  assert f"system    {OWN!r}, from the template" in plan


@pytest.mark.slow
def test_reproduce_s_plan_shows_it(model):
  flags = ["--chat", "--experiment=massive", "--config.massive.tokens=90"]
  plan = run("reproduce", model, *flags, "--dry_run")
  assert f"system       {OWN!r}, from the template" in plan
  given = run("reproduce", model, *flags, "--system=Be brief.", "--dry_run")
  assert "system       'Be brief.', from the chat" in given


def test_texts_and_chats_are_not_mixed(model, file, tmp_path):
  mixed = tmp_path / "mixed.jsonl"
  mixed.write_text(file.read_text() + '{"text": "a"}\n')
  for launched, flag in (("capture", "corpus"), ("analyze", "prompts_file")):
    done = launcher.run(
      launched, f"--model={model}", f"--{flag}={mixed}", "--dry_run"
    )
    assert done.returncode == 1
    assert "give texts or messages, not both" in done.stderr
