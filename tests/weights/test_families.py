"""One table of families: golden models, documents and code agree with it."""

import ast
import json
import pathlib
import pkgutil
import sys

import pytest

from sinkjax.weights import families
from sinkjax.weights.hf_config import config_from_hf
from sinkjax.weights.validate import WeightsError

sys.path.insert(0, str(pathlib.Path(__file__).parent))
from golden_models import FAMILIES, NAMES, family_of

ROOT = pathlib.Path(__file__).parents[2]
# Where a family's name means something else, or is a default.
_OTHER_MEANINGS = {
  "sinkjax/config.py": "the default of model_type, a field of saved configs",
  "sinkjax/weights/unsupported.py": "the family nearest to what is not read",
  "sinkjax/weights/tokenizer_gguf.py": "kinds of vocabulary in GGUF files",
  "sinkjax/weights/pre_tokenizers.py": "llama.cpp's names of regexes",
  "sinkjax/weights/tokenizer_legacy.py": "kinds of vocabulary, regexes",
}


@pytest.fixture(scope="module")
def parity_table():
  sys.path.insert(0, str(ROOT / "tests" / "golden"))
  import parity_table

  return parity_table


def test_each_module_registers_one_family():
  modules = [
    module.name
    for module in pkgutil.iter_modules(families.__path__)
    if not module.name.startswith("_")
  ]
  made_in = {
    family.read_config.__module__.split(".")[-1]
    for family in families.FAMILIES.values()
  }
  assert len(modules) == len(families.FAMILIES)
  assert made_in == set(modules)


def test_every_family_has_a_golden_model_and_every_model_a_family():
  found = {name: family_of(name) for name in NAMES}
  assert all(found.values()), found
  assert {f.name for f in found.values()} == set(families.FAMILIES)
  for name in NAMES:
    files = {path.name for path in (FAMILIES / name).iterdir()}
    assert files == {"config.json", "golden.npz", "model.safetensors"}


def test_the_parity_table_is_of_these_models(parity_table):
  found = json.loads((ROOT / "docs" / "parity.json").read_text())
  assert sorted(row["family"] for row in found["families"]) == NAMES
  text = (ROOT / "docs" / "parity.csv").read_text()
  assert sorted(line.split(",")[0] for line in text.splitlines()[1:]) == NAMES
  page = (ROOT / "docs" / "parity.md").read_text()
  assert page == parity_table.page(found)
  for family in families.FAMILIES.values():
    assert f"| `{family.name}` |" in page


def test_names_are_taken_once():
  one = families.FAMILIES["llama"]
  with pytest.raises(ValueError, match="'llama' is registered already"):
    families.register(one)
  assert families.find("gemma3") is families.find("gemma3_text")
  assert families.find(["llama"]) is None
  assert families.find_architecture("llama") is one
  assert families.find_architecture(None) is None


# For each family of which something is not supported: changes of a golden
# config that ask for it. Those without are left out, or of GGUF files alone.
NOT_READ = {
  "apertus": ("apertus", [{"hidden_act": "silu"}]),
  "bloom": ("bloom", [{"apply_residual_connection_post_layernorm": True}]),
  "cohere": ("cohere", [{"use_qk_norm": True}]),
  "deepseek_v3": (
    "deepseek_v3",
    [
      {"scoring_func": "softmax"},
      {"topk_method": "group_limited_greedy"},
      {"n_shared_experts": 0},
    ],
  ),
  "falcon": ("falcon", [{"num_ln_in_parallel_attn": 2}]),
  "gemma3_text": (
    "gemma3",
    [
      {
        "rope_parameters": {
          "sliding_attention": {"rope_type": "linear", "factor": 2.0}
        }
      }
    ],
  ),
  "gpt_bigcode": ("gpt_bigcode", [{"multi_query": False}]),
  "gpt_oss": ("gpt_oss", [{"swiglu_alpha": 1.5}]),
  "granite": ("granite", []),
  "mpt": (
    "mpt",
    [
      {"no_bias": False},
      {"logit_scale": 2.0},
      {"attn_config": {"alibi": False}},
      {"attn_config": {"attn_type": "multiquery_attention"}},
      {"attn_config": {"qk_ln": True}},
      {"attn_config": {"prefix_lm": True}},
    ],
  ),
  "olmo3": (
    "olmo3",
    [
      {
        "rope_parameters": {
          "full_attention": {"rope_type": "default"},
          "sliding_attention": {"rope_type": "linear", "factor": 2.0},
        }
      }
    ],
  ),
  "opt": (
    "opt",
    [
      {"_remove_final_layer_norm": True},
      {"layer_norm_elementwise_affine": False},
    ],
  ),
  "phi": ("phi", [{"qk_layernorm": True}]),
  "phi3": (
    "phi3",
    [{"rope_parameters": {"rope_type": "linear", "factor": 2.0}}],
  ),
  "qwen2_moe": (
    "qwen2_moe",
    [{"decoder_sparse_step": 2}, {"mlp_only_layers": [0]}],
  ),
  "qwen3": ("gated_headwise", [{"qkv_bias": True}]),
  "qwen3_moe": (
    "qwen3_moe",
    [{"decoder_sparse_step": 2}, {"mlp_only_layers": [0]}],
  ),
  "stablelm": ("stablelm", [{"qk_layernorm": True}]),
}


def test_what_is_said_of_families_is_complete(parity_table):
  said = {n for n, f in families.FAMILIES.items() if f.not_read}
  assert said == set(NOT_READ)
  page = (ROOT / "docs" / "parity.md").read_text()
  for name in said:
    assert families.FAMILIES[name].not_read in page


@pytest.mark.parametrize(
  ("model", "change"),
  [(m, change) for m, changes in NOT_READ.values() for change in changes],
)
def test_what_is_not_supported_is_refused(model, change):
  values = json.loads((FAMILIES / model / "config.json").read_text())
  config_from_hf(values, "config.json")  # as it is, it is read
  with pytest.raises(WeightsError, match="config.json"):
    config_from_hf(values | change, "config.json")


def literals(path):
  """Every string constant of a module that is not a docstring."""
  tree = ast.parse(path.read_text("utf-8"))
  strings = {
    id(node.value)
    for node in ast.walk(tree)
    if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
  }
  return [
    node.value
    for node in ast.walk(tree)
    if isinstance(node, ast.Constant)
    and isinstance(node.value, str)
    and id(node) not in strings
  ]


def test_no_other_source_file_names_a_family():
  names = set(families.FAMILIES)
  for family in families.FAMILIES.values():
    names.update(family.also_called, [family.transformers_class])
    if family.gguf:
      names.add(family.gguf.architecture)
  naming = set()
  for path in sorted((ROOT / "sinkjax").rglob("*.py")):
    words = {word for text in literals(path) for word in text.split()}
    if names & words and "families" not in path.parts:
      naming.add(str(path.relative_to(ROOT)))
  assert naming <= set(_OTHER_MEANINGS), naming - set(_OTHER_MEANINGS)
