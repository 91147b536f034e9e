"""Names of the Hugging Face Hub, by its own client and a server on loopback."""

import json
import os
import pathlib
import subprocess
import sys

import pytest
from golden_models import write_gguf
from hub_server import Hub, serving

from sinkjax.weights import hub
from sinkjax.weights.validate import WeightsError

GOLDEN = pathlib.Path(__file__).parents[1] / "golden" / "families"

# The client reads its settings when it is imported, so each load has a process.
LOAD = """
import json, sys
import sinkjax
from sinkjax.weights import registry
from sinkjax.weights.validate import WeightsError

found = []
for action, name in json.loads(sys.argv[1]):
  try:
    if action == "peek":
      seen = registry.peek(name)
      found.append(None if seen is None else seen[0].norm_eps)
    else:
      model = sinkjax.load(name)
      found.append([model.cfg.norm_eps, float(model.params["embed"][0, 0])])
  except WeightsError as error:
    found.append(str(error))
print(json.dumps(found))
"""


def files_of(folder, **changes):
  files = {
    path.name: path.read_bytes()
    for path in folder.iterdir()
    if path.name in ("config.json", "model.safetensors")
  }
  config = json.loads(files["config.json"]) | changes
  return files | {"config.json": json.dumps(config).encode()}


def ask(url, home, *actions, **env):
  ran = subprocess.run(
    [sys.executable, "-c", LOAD, json.dumps(actions)],
    capture_output=True,
    text=True,
    check=False,
    env={
      **os.environ,
      "HF_ENDPOINT": url,
      "HF_HOME": str(home),
      "HF_HUB_DISABLE_XET": "1",
      **env,
    },
  )
  assert ran.returncode == 0, ran.stderr
  return json.loads(ran.stdout.splitlines()[-1])


@pytest.mark.parametrize(
  ("name", "parts"),
  [
    ("hf:org/name", ("org/name", None, None)),
    ("hf:a-b/c.d_2@step1000", ("a-b/c.d_2", "step1000", None)),
    ("hf:o/n@refs/pr/1:q.gguf", ("o/n", "refs/pr/1", "q.gguf")),
  ],
)
def test_parts_of_a_name(name, parts):
  assert hub.parse(name) == parts


@pytest.mark.parametrize(
  "name",
  [
    *("hf:name", "hf:o/n@", "hf:o/n:", "hf:a/b/c", "hf:../n", "hf:o/."),
    *("hf:o/n@../x", "hf:o/n@a/../../x", "hf:o/n:../a.gguf", "hf:o/n:\x1b"),
  ],
)
def test_other_forms_are_refused(name):
  with pytest.raises(WeightsError, match="expected hf:org/name"):
    hub.parse(name)


def test_a_pickle_is_refused():
  with pytest.raises(WeightsError, match=r"only a \.gguf file"):
    hub.parse("hf:o/n:pytorch_model.bin")


@pytest.mark.slow
def test_revisions_the_cache_and_what_is_fetched(tmp_path):
  files = files_of(GOLDEN / "llama3", rms_norm_eps=0.01)
  older = files_of(GOLDEN / "llama3", rms_norm_eps=0.02)
  others = {"pytorch_model.bin": b"x", "onnx/config.json": b"{}"}
  revisions = {
    "main": ("a" * 40, {**files, **others, "chat_template.jinja": b"{{ 1 }}"}),
    "step1000": ("b" * 40, older),
  }
  server = Hub(revisions, token="hf_secret")
  with serving(server) as url:
    peeked, error = ask(
      url,
      tmp_path,
      ("peek", "hf:org/tiny"),
      ("load", "hf:org/tiny@nothing"),
      HF_TOKEN="hf_secret",
    )
    assert peeked == 0.01
    assert "could not be fetched" in error and "\n" not in error
    assert sorted(server.fetched) == ["chat_template.jinja", "config.json"]
    (main, old) = ask(
      url,
      tmp_path,
      ("load", "hf:org/tiny"),
      ("load", "hf:org/tiny@step1000"),
      HF_TOKEN="hf_secret",
    )
    assert (main[0], old[0]) == (0.01, 0.02)
    assert not set(server.fetched) & set(others)
    (refused,) = ask(
      url, tmp_path / "other", ("load", "hf:org/tiny"), HF_TOKEN="hf_wrong"
    )
    assert "could not be fetched" in refused
  again = ask(url, tmp_path, ("load", "hf:org/tiny"), HF_HUB_OFFLINE="1")
  assert again == [main]


@pytest.mark.thorough
def test_a_repository_of_gguf_files(tmp_path):
  path = tmp_path / "model.gguf"
  write_gguf(path, "llama3")
  files = {"tiny-Q8.gguf": path.read_bytes(), "README.md": b"words"}
  with serving(Hub({"main": ("a" * 40, files)})) as url:
    missing, error, loaded, here = ask(
      url,
      tmp_path / "home",
      ("peek", "hf:org/tiny:tiny-Q8.gguf"),
      ("load", "hf:org/tiny"),
      ("load", "hf:org/tiny:tiny-Q8.gguf"),
      ("peek", "hf:org/tiny:tiny-Q8.gguf"),
    )
  assert missing is None
  assert "name one of them, as hf:org/tiny:tiny-Q8.gguf" in error
  assert loaded[0] == here
