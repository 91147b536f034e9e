"""Configs of models that we do not have, run on small random ones."""

import dataclasses
import json
import pathlib
import runpy

import jax
import launcher
import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from variants import scaled

import sinkjax
from sinkjax.experiments import REGISTRY, named
from sinkjax.experiments.shared.swap_texts import SWAP_TEXTS
from sinkjax.weights import huggingface

ROOT = pathlib.Path(__file__).parents[2]
FAMILIES = ROOT / "tests" / "golden" / "families"
CONFIGS = {
  "gemma": "configs/reproduce/gemma_7b.py",
  "llama3": "configs/reproduce/llama31.py:70b",
}
SOME = {"gemma": ("smoothing", "model_size"), "llama3": ("model_size",)}
"""What the fast test runs; every other experiment is in the slow one."""

FETCHING = ("noop_heads", "prompts", "first_token")
"""These need texts from packages; the slow test of reproduce runs them."""


def model_of(family: str, folder: pathlib.Path) -> pathlib.Path:
  """A random model of a family, with a byte-level tokenizer that has BOS."""
  _, cfg = huggingface.load(FAMILIES / family)
  cfg = cfg.replace(vocab_size=640, max_len=256)
  params = sinkjax.init_params(cfg, jax.random.key(0))
  huggingface.save(folder, scaled(params, 1.5), cfg)
  tokenizer = Tokenizer(models.BPE())
  tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
  tokenizer.decoder = decoders.ByteLevel()
  trainer = trainers.BpeTrainer(
    vocab_size=cfg.vocab_size,
    special_tokens=["<pad>", "<bos>"],
    show_progress=False,
    initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
  )
  plain = SWAP_TEXTS.replace("{", "").replace("|", " ").replace("}", "")
  tokenizer.train_from_iterator([plain], trainer)
  tokenizer.save(str(folder / "tokenizer.json"))
  (folder / "tokenizer_config.json").write_text(
    json.dumps({"bos_token": "<bos>", "add_bos_token": True})
  )
  return folder


def reproduce(*flags):
  return launcher.run("reproduce", *flags, timeout=900)


@pytest.mark.thorough
@pytest.mark.parametrize(
  ("family", "everything"),
  [
    *(
      pytest.param(f, False, marks=pytest.mark.slow)
      for f in ("llama3", "gemma")
    ),
    *(pytest.param(f, True, marks=pytest.mark.slow) for f in CONFIGS),
  ],
)
def test_a_config_runs_on_its_family(family, everything, tmp_path):
  model = model_of(family, tmp_path / family)
  other = model_of(family, tmp_path / "other")
  every = [n for n in named("paper") if n not in (*FETCHING, "experts")]
  names = every if everything else SOME[family]
  ran = reproduce(
    f"--config={CONFIGS[family]}",
    f"--model={model}",
    f"--models={other}",
    "--offload",
    f"--experiment={','.join(names)}",
    f"--out={tmp_path / 'out'}",
    "--config.perturbation.shown=('finest','leading')",
    "--config.lens.every=1",  # the models here have three layers
  )
  assert ran.returncode == 0, ran.stderr
  for name in names:
    data = json.loads((tmp_path / "out" / name / "result.json").read_text())
    assert data["complete"] and data["claims"]
    request = data["request"]
    assert request["model"] == str(model) and request["prefix"] == "auto"
    if name in ("smoothing", "massive"):
      assert request["config"]["eps"] == 0.8
    if name == "perturbation":
      assert "without BOS" in data["numbers"]["conditions"]
      assert data["numbers"]["shown"]["words"] == ["finest", "leading"]
    if name == "model_size":
      assert request["config"]["offload"] is True
      assert [row["model"] for row in data["numbers"]["models"]] == [
        str(model),
        str(other),
      ]


LLAMA = {
  "architectures": ["LlamaForCausalLM"],
  "model_type": "llama",
  "vocab_size": 128256,
  "hidden_act": "silu",
  "rms_norm_eps": 1e-5,
  "max_position_embeddings": 131072,
  "rope_theta": 500000.0,
  "tie_word_embeddings": False,
}
SIZES = {
  "8b": (4096, 32, 32, 14336, "32.1 GB", "1.74 GB"),
  "70b": (8192, 80, 64, 28672, "282 GB", "6.85 GB"),
  "405b": (16384, 126, 128, 53248, "1.62e+03 GB", "25.5 GB"),
}
"""Width, layers, heads, MLP; what the dry run prints, whole and offloaded."""


@pytest.mark.slow
def test_the_dry_run_says_what_each_size_needs(tmp_path):
  folders = []
  for name, (width, layers, heads, ff, *_) in SIZES.items():
    (tmp_path / name).mkdir()
    sizes = {
      "hidden_size": width,
      "num_hidden_layers": layers,
      "num_attention_heads": heads,
      "num_key_value_heads": 8,
      "intermediate_size": ff,
    }
    config = json.dumps({**LLAMA, **sizes})
    (tmp_path / name / "config.json").write_text(config)
    folders.append(str(tmp_path / name))
  model = model_of("llama3", tmp_path / "small")
  ran = reproduce(
    "--config=configs/reproduce/llama31.py:405b",
    f"--model={model}",
    f"--models={','.join(folders)}",
    "--dry_run",
  )
  assert ran.returncode == 0, ran.stderr
  lines = [x for x in ran.stdout.splitlines() if "other model" in x]
  for line, (*_, whole, offloaded) in zip(lines, SIZES.values(), strict=False):
    assert f"{whole} of" in line and f"{offloaded} at a time" in line
  assert len(lines) == 3


@pytest.mark.parametrize(
  ("flags", "message"),
  [
    (
      ["default.py", "--config.perturbation.sold=1"],
      "--config has no field 'perturbation.sold'; there is",
    ),
    (
      ["default.py", "--config.pruned.count=1"],
      "--config has no field 'pruned'; there is pruning",
    ),
    (["../../tests/launch/bad_config.py"], "no field 'perturbation.colour'"),
    (["nowhere.py"], "nowhere.py"),
    (["llama31.py:9b"], "must be one of ['8b', '70b', '405b']"),
  ],
)
def test_mistakes_in_a_config_are_one_line(flags, message, glassllm_path):
  path, *others = flags
  ran = reproduce(
    f"--config=configs/reproduce/{path}",
    *others,
    "--model=glassllm-en",
    "--dry_run",
  )
  assert ran.returncode == 1, ran.stdout
  assert message in ran.stderr and "Traceback" not in ran.stderr


def test_the_default_config_has_every_experiment_on_a_model():
  """Its fields are their `Config`'s, those of uses among them."""
  path = str(ROOT / "configs" / "reproduce" / "default.py")
  config = runpy.run_path(path)["get_config"]()
  for entry in REGISTRY:
    experiment = entry.load()
    if experiment.scales is None:
      wanted = dataclasses.asdict(experiment.config())
      assert config[entry.name].to_dict() == wanted


@pytest.mark.slow
def test_the_default_config_is_no_config(glassllm_path):
  plain = reproduce("--model=glassllm-en", "--dry_run")
  same = reproduce(
    "--config=configs/reproduce/default.py", "--model=glassllm-en", "--dry_run"
  )
  assert same.returncode == 0, same.stderr
  assert same.stdout == plain.stdout
