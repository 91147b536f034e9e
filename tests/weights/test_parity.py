"""Live parity with Hugging Face transformers; needs the extra `parity`."""

import pathlib
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import sinkjax
from sinkjax.inference import kv_policy
from sinkjax.inference.generate import generate
from sinkjax.models.cache import split_layers
from sinkjax.models.positions import rotary_tables
from sinkjax.weights import huggingface
from sinkjax.weights.families import FAMILIES
from sinkjax.weights.hf_config import config_from_hf

pytestmark = pytest.mark.parity
GOLDEN = pathlib.Path(__file__).parents[1] / "golden"

GATED = {
  "cohere2",
  "deepseek_v3",
  "falcon_alibi",
  "gemma3",
  "gpt2",
  "gpt_oss",
  "opt_350m",
  "phi3_longrope",
  "qwen3",
  "smollm3",
}
"""Families that stand for the others in the gate, among them every kind of
position, norm, attention and block. The rest, whose recorded numbers the quick
tests compare with, run with the slow tests."""

EVERY = [
  pytest.param(name, marks=() if name in GATED else pytest.mark.slow)
  for name in sorted(path.name for path in (GOLDEN / "families").iterdir())
]


@pytest.fixture(scope="module")
def families():
  sys.path.insert(0, str(GOLDEN))
  import families

  return families


@pytest.mark.parametrize("name", EVERY)
def test_every_site_of_a_fresh_random_model(families, name, tmp_path):
  found = families.errors(name, tmp_path, seed=7)
  assert set(found) == {"single", "batch", "right_padded", "left_padded"}
  for case, worst in found.items():
    assert set(worst) >= {"logits", "pattern", "q", "k", "v", "resid_mid"}
    for site, error in worst.items():
      assert error < 1e-4, (case, site)


@pytest.mark.parametrize("name", EVERY)
def test_transformers_reads_our_export(families, name, tmp_path):
  import torch

  params, cfg = huggingface.load(GOLDEN / "families" / name)
  huggingface.save(tmp_path / "out", params, cfg)
  model = families.load(tmp_path / "out")
  tokens = np.arange(3, 17)[None]
  with torch.no_grad():
    theirs = model(torch.tensor(tokens)).logits.numpy()
  ours = sinkjax.forward(cfg)(params, tokens).logits
  np.testing.assert_allclose(ours, theirs, atol=1e-4)


@pytest.mark.parametrize("name", EVERY)
def test_forty_tokens_with_a_cache_are_those_of_transformers(families, name):
  """Greedy, from a prompt of 12; the likeliest two are nowhere a tie."""
  import torch

  folder = GOLDEN / "families" / name
  model = families.load(folder)
  prompt = list(range(3, 15))
  with torch.no_grad():
    theirs = model.generate(
      torch.tensor([prompt]),
      attention_mask=torch.ones(1, len(prompt), dtype=torch.long),
      max_new_tokens=40,
      do_sample=False,
      use_cache=True,
      # Random models may say "the end": both go on.
      eos_token_id=-1,
      pad_token_id=0,
    )[0, len(prompt) :].tolist()
  params, cfg = huggingface.load(folder)
  policy = kv_policy.full(len(prompt) + 40)
  tokens = generate(
    cfg, split_layers(params), prompt, policy=policy, max_tokens=40
  )
  assert list(tokens) == theirs


@pytest.mark.parametrize(
  "name", [f.name for f in FAMILIES.values() if f.defaults]
)
def test_defaults_are_those_of_the_class(name):
  from transformers import AutoConfig

  theirs = AutoConfig.for_model(name).to_dict()
  theirs |= {"bos_token_id": None, "eos_token_id": None}
  ours = config_from_hf({"model_type": name}, "config.json")
  assert ours == config_from_hf(theirs, "config.json")


YARN = {"rope_type": "yarn", "rope_theta": 1e4, "factor": 8.0}


@pytest.mark.parametrize(
  "more",
  [
    {},
    {"truncate": False, "beta_fast": 16, "beta_slow": 2},
    {"attention_factor": 1.5},
    {"mscale": 0.7, "mscale_all_dim": 0.4},
    {"factor": None},
    {"partial_rotary_factor": 0.5},
  ],
  ids=str,
)
def test_yarn_within_and_beyond_the_trained_length(more):
  """Cosines and sines of positions 0 to 4 times what was trained on."""
  import torch
  from transformers import LlamaConfig
  from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

  rope = {**YARN, "original_max_position_embeddings": 64, **more}
  theirs = LlamaConfig(
    hidden_size=64,
    num_attention_heads=2,
    num_hidden_layers=1,
    max_position_embeddings=256,
    rope_parameters=rope,
  )
  cfg = config_from_hf(theirs.to_dict(), "config.json")
  at = np.arange(256)[None]
  want = LlamaRotaryEmbedding(theirs)(torch.zeros(1), torch.tensor(at))
  for got, table in zip(rotary_tables(cfg, jnp.asarray(at)), want, strict=True):
    half = table.shape[-1] // 2
    # A float32 angle of 256 is off by 3e-5.
    np.testing.assert_allclose(got[0], table[..., :half], atol=1e-4)


BEYOND = {
  "dynamic": {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 4.0},
  "longrope": {
    "rope_type": "longrope",
    "rope_theta": 1e4,
    "short_factor": [1.0 + 0.1 * i for i in range(16)],
    "long_factor": [1.0 + 0.5 * i for i in range(16)],
    "original_max_position_embeddings": 64,
  },
}


@pytest.mark.parametrize("length", [40, 64, 65, 150, 256])
@pytest.mark.parametrize("kind", BEYOND)
def test_scalings_that_depend_on_the_length(kind, length):
  """Within the 64 tokens trained on, at the edge, and beyond."""
  import torch
  from transformers import LlamaConfig
  from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

  theirs = LlamaConfig(
    hidden_size=64,
    num_attention_heads=2,
    num_hidden_layers=1,
    max_position_embeddings=64 if kind == "dynamic" else 256,
    rope_parameters=dict(BEYOND[kind]),
  )
  cfg = config_from_hf(theirs.to_dict(), "config.json")
  assert cfg.max_len == 256
  at = np.arange(length)[None]
  want = LlamaRotaryEmbedding(theirs)(torch.zeros(1), torch.tensor(at))
  for got, table in zip(rotary_tables(cfg, jnp.asarray(at)), want, strict=True):
    half = table.shape[-1] // 2
    # A float32 angle of 256 is off by 3e-5.
    np.testing.assert_allclose(got[0], table[..., :half], atol=1e-4)


def test_phi3_beyond_the_trained_length(families):
  """Logits of 100 tokens, where 56 are those of the short factors."""
  import torch

  folder = GOLDEN / "families" / "phi3_longrope"
  params, cfg = huggingface.load(folder)
  tokens = np.random.default_rng(0).integers(3, 96, (1, 100))
  model, f = families.load(folder), jax.jit(sinkjax.forward(cfg))
  for length in (56, 57, 100):
    part = tokens[:, :length]
    with torch.no_grad():
      theirs = model(torch.tensor(part), use_cache=False).logits.numpy()
    # Angles of 100 are off by 6e-6, and random weights enlarge that.
    atol = 1e-4 * np.abs(theirs).max()
    np.testing.assert_allclose(f(params, part).logits, theirs, atol=atol)


def test_smollm2_from_the_same_file(families, smollm2, smollm2_path):
  """192 tokens: logits within 2e-3, attention within 2e-5."""
  found = families.smollm2_errors(smollm2, smollm2_path)
  assert found["tokens"] == 192
  assert found["logits"] < 2e-3
  assert found["pattern"] < 2e-5


def test_exported_smollm2_in_transformers(smollm2, tmp_path):
  """Same logits and same token ids from the exported folder."""
  import torch
  from transformers import AutoModelForCausalLM, AutoTokenizer

  huggingface.save(tmp_path / "out", *smollm2)
  model = AutoModelForCausalLM.from_pretrained(tmp_path / "out").eval()
  tokenizer = AutoTokenizer.from_pretrained(tmp_path / "out")
  text = "Été 2025: the cat's <code>\n\n  sat  🙂 on 1234 mats."
  ids = smollm2.tokenizer.encode(text)
  assert tokenizer(text, add_special_tokens=False)["input_ids"] == ids
  with torch.no_grad():
    theirs = model(torch.tensor([ids])).logits.numpy()
  ours = jax.jit(sinkjax.forward(smollm2.cfg))(smollm2.params, jnp.array([ids]))
  np.testing.assert_allclose(ours.logits, theirs, atol=2e-3)
