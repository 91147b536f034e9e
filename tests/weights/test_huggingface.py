"""Hugging Face folders: the same function as transformers, in and out."""

import functools
import itertools
import json
import pathlib
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from quick import quick

import sinkjax
from sinkjax.weights import families, registry, unsupported
from sinkjax.weights.huggingface import load, save
from sinkjax.weights.offload import open_layers
from sinkjax.weights.validate import WeightsError, WeightsWarning

sys.path.insert(0, str(pathlib.Path(__file__).parent))
from golden_models import FAMILIES, NAMES, write_sharded

TOLERANCE = 1e-4
CASES = ("single", "batch", "right_padded", "left_padded")
QUICK = (
  "bloom",
  "deepseek_v3",
  "gemma3",
  "gpt2",
  "gpt_oss",
  "llama3",
  "olmo3",
  "phi3_longrope",
  "qwen2_moe",
  "smollm2",
)
"""Between them they have each kind of norm, position, MLP and sink."""


def everything(cfg):
  """Observers that keep every site as it is."""
  sites = [*sinkjax.SITES, *(sinkjax.EXPERT_SITES if cfg.n_experts else ())]
  return sinkjax.Taps(observers={site: (site, whole) for site in sites})


def whole(value):
  return value


@functools.lru_cache(maxsize=2)
def model(name, scan):
  """(params, cfg, compiled); cases of one shape share a program."""
  params, cfg = load(FAMILIES / name)
  return params, cfg, jax.jit(sinkjax.forward(cfg.replace(scan_layers=scan)))


def padding(case, shape):
  valid = np.ones(shape, bool)
  if case == "right_padded":
    valid[1, 9:] = False
  elif case == "left_padded":
    valid[1, :5] = False
  return valid


def golden_tokens(case):
  rng = np.random.default_rng(0)
  tokens = rng.integers(3, 96, (2, 14))
  if case == "single":
    return tokens[:1], np.ones((1, 14), bool)
  valid = padding(case, tokens.shape)
  return np.where(valid, tokens, 0), valid


def check(got, want, valid, site):
  """Equal where both query and, for patterns, key are no padding."""
  got, want = np.asarray(got), np.asarray(want)
  batch_axis = 0 if site in ("logits", "final", "embed") else 1
  got, want = np.moveaxis(got, batch_axis, 0), np.moveaxis(want, batch_axis, 0)
  for row, keep in enumerate(valid):
    a, b = got[row], want[row]
    if site == "pattern":
      a, b = a[..., keep, :][..., keep], b[..., keep, :][..., keep]
    else:
      axis = 0 if batch_axis == 0 else 1
      a, b = np.compress(keep, a, axis), np.compress(keep, b, axis)
    assert a.shape == b.shape, site
    np.testing.assert_allclose(a, b, atol=TOLERANCE, rtol=0, err_msg=site)


def runs():
  """(model, case, whether layers are scanned).

  The gate compares each family with transformers live.
  """
  # All cases of a model in turn, so that they find their program compiled.
  for name, scan, case in itertools.product(NAMES, (True, False), CASES):
    # Unrolled layers are the same layers: another program of the same code.
    marks = [] if scan and name in QUICK else [pytest.mark.slow]
    how = "scan" if scan else "unroll"
    yield pytest.param(name, case, scan, marks=marks, id=f"{name}-{case}-{how}")


@pytest.mark.parametrize(("name", "case", "scan"), list(runs()))
def test_matches_transformers(name, case, scan):
  params, cfg, forward = model(name, scan)
  tokens, valid = golden_tokens(case)
  out = forward(params, tokens, taps=everything(cfg), valid=jnp.asarray(valid))
  golden = np.load(FAMILIES / name / "golden.npz")
  seen = {**out.trace, "logits": out.logits}
  checked = 0
  for key in golden.files:
    golden_case, site = key.split("/")
    if golden_case == case:
      check(seen[site], golden[key], valid, site)
      checked += 1
  # Routers are recorded as well, where there are some.
  every = 14 if cfg.n_experts else 13
  assert checked == (every if case == "single" else 3)


@pytest.mark.parametrize("name", quick(NAMES, *QUICK, others="thorough"))
def test_export_is_bit_exact(name, tmp_path):
  params, cfg = load(FAMILIES / name)
  save(tmp_path / "out", params, cfg)
  again, cfg_again = load(tmp_path / "out")
  assert cfg_again == cfg
  jax.tree.map(np.testing.assert_array_equal, params, again)


def test_bfloat16_weights_are_written_as_they_are(tmp_path):
  params, cfg = load(FAMILIES / "smollm2")
  narrow = jax.tree.map(lambda x: x.astype(jnp.bfloat16), params)
  save(tmp_path / "half", narrow, cfg)
  again, _ = load(tmp_path / "half")
  jax.tree.map(np.testing.assert_array_equal, narrow, again)
  file = (tmp_path / "half" / "model.safetensors").read_bytes()
  header = 8 + int.from_bytes(file[:8], "little")
  numbers = sum(x.size for x in jax.tree.leaves(params))
  assert len(file) - header == 2 * numbers
  said = json.loads((tmp_path / "half" / "config.json").read_text())
  assert said["torch_dtype"] == "bfloat16"


def test_export_refuses_a_full_folder(tmp_path):
  params, cfg = load(FAMILIES / "smollm2")
  (tmp_path / "precious").write_text("x")
  with pytest.raises(ValueError, match="not an empty folder"):
    save(tmp_path, params, cfg)
  assert [path.name for path in tmp_path.iterdir()] == ["precious"]


def test_export_refuses_what_the_family_cannot_say(tmp_path):
  cfg = sinkjax.TINY.replace(model_type="llama", logit_softcap=3.0)
  params = sinkjax.init_params(cfg, jax.random.key(0))
  with pytest.raises(ValueError, match="cannot express logit_softcap"):
    save(tmp_path / "out", params, cfg)
  assert not (tmp_path / "out").exists()


def config(**changes):
  values = json.loads((FAMILIES / "llama3" / "config.json").read_text())
  return {**values, **changes}


@pytest.mark.parametrize(
  ("changes", "message"),
  [
    ({"model_type": "made_up"}, "unknown model_type 'made_up'; .*list_models"),
    ({"model_type": "mamba"}, "'mamba' is a state-space model"),
    ({"model_type": "bert"}, "'bert' is an encoder, whose attention"),
    ({"model_type": "qwen3_next"}, "'qwen3_next' is a hybrid of attention"),
    ({"model_type": None}, "unknown model_type None"),
    ({"rope_parameters": {"rope_type": "ntk"}}, "unknown RoPE scaling 'ntk'"),
    ({"rope_parameters": {"rope_type": "yarn"}}, "'factor' is missing"),
    ({"rope_parameters": {"rope_type": "linear"}}, "'factor' is missing"),
    ({"hidden_size": "32"}, "'hidden_size' must be int"),
    ({"hidden_size": True}, "'hidden_size' must be int"),
    ({"hidden_size": None}, "'hidden_size' is missing"),
    ({"num_attention_heads": 0, "head_dim": None}, "no multiple of 0 heads"),
    ({"num_hidden_layers": 0}, "n_layers must be a positive integer"),
    ({"num_hidden_layers": 4}, "is missing"),
    ({"num_hidden_layers": 2}, "has no place"),
    ({"num_hidden_layers": 4000}, "is missing"),
    ({"num_hidden_layers": 10**9}, "at most 4096"),
    ({"hidden_size": 10**12}, "at most"),
    ({"vocab_size": 97}, "has shape"),
    ({"hidden_act": "softsign"}, "unknown activation"),
    ({"is_encoder_decoder": True}, "is_encoder_decoder"),
    ({"bos_token_id": "1"}, "'bos_token_id' must be a token id"),
    ({"rms_norm_eps": float("nan")}, "'rms_norm_eps' must be a finite"),
    ({"tie_word_embeddings": True}, "differs from"),
  ],
)
def test_refuses_config(changes, message, tmp_path):
  (tmp_path / "config.json").write_text(json.dumps(config(**changes)))
  weights = (FAMILIES / "llama3" / "model.safetensors").read_bytes()
  (tmp_path / "model.safetensors").write_bytes(weights)
  with pytest.raises(WeightsError, match=message) as error:
    load(tmp_path)
  assert "\n" not in str(error.value)


@pytest.mark.parametrize(
  ("text", "message"),
  [("", "not valid JSON"), ("[" * 10**5, "not valid JSON"), ("[]", "object")],
)
def test_refuses_broken_config(text, message, tmp_path):
  (tmp_path / "config.json").write_text(text)
  with pytest.raises(WeightsError, match=message):
    load(tmp_path)


@pytest.mark.parametrize("dtype", [None, "float16", "bfloat16"])
def test_sharded_and_half_precision_folders(dtype, tmp_path):
  import ml_dtypes

  kind = ml_dtypes.bfloat16 if dtype == "bfloat16" else dtype
  write_sharded(tmp_path, kind)
  params, _ = load(tmp_path)
  want, _ = load(FAMILIES / "llama3")
  if kind is not None:
    want = jax.tree.map(
      lambda x: np.asarray(x).astype(kind).astype(np.float32), want
    )
  jax.tree.map(np.testing.assert_array_equal, params, want)


def with_tokenizer(folder, tokens, bos):
  import tokenizers

  vocab = {f"t{i}": i for i in range(tokens)}
  model = tokenizers.models.BPE(vocab, [])
  tokenizers.Tokenizer(model).save(str(folder / "tokenizer.json"))
  text = json.dumps({"bos_token": bos} if bos else {})
  (folder / "tokenizer_config.json").write_text(text)


@pytest.mark.parametrize(
  ("tokens", "bos", "message"),
  [
    (97, "t1", "the tokenizer has 97 tokens, the embedding 96 rows"),
    (96, "t5", "BOS is 5 in the tokenizer, 1 in the config"),
  ],
)
@pytest.mark.parametrize("opened", ["load", "peek", "offload"])
def test_tokenizer_wins_over_the_config(tokens, bos, message, opened, tmp_path):
  write_sharded(tmp_path)
  with_tokenizer(tmp_path, tokens, bos)
  read = {"load": sinkjax.load, "peek": registry.peek, "offload": open_layers}
  with pytest.warns(WeightsWarning, match=message) as seen:
    found = read[opened](tmp_path)
  assert len(seen) == 1
  cfg = found[0] if opened == "peek" else found.cfg
  tokenizer = found[1] if opened == "peek" else found.tokenizer
  assert cfg.bos_id == tokenizer.bos_id == int(bos[1:])
  assert cfg.vocab_size == 96


def test_bos_without_a_row(tmp_path):
  """It is the tokenizer's, and refused where it is asked for."""
  write_sharded(tmp_path)
  with_tokenizer(tmp_path, 97, "t96")
  with pytest.warns(WeightsWarning, match="97 tokens"):
    _, cfg, tokenizer = sinkjax.load(tmp_path)
  assert (cfg.bos_id, tokenizer.bos_id) == (1, 96)
  with pytest.raises(ValueError, match="'t96' has id 96, .* only 96 rows"):
    tokenizer.encode("", add_bos=True)


# 95 and 90 are no multiples of 8: rows may be padded to any number.
@pytest.mark.parametrize("tokens", [96, 95, 90])
def test_tokenizer_that_fits(tokens, tmp_path):
  write_sharded(tmp_path)
  with_tokenizer(tmp_path, tokens, "t1")
  assert sinkjax.load(tmp_path).tokenizer.bos_id == 1


@pytest.mark.filterwarnings("ignore:the vocabulary has no token for")
def test_only_a_text_that_needs_a_missing_row_is_refused(tmp_path):
  import tokenizers

  write_sharded(tmp_path)
  with_tokenizer(tmp_path, 96, "t1")
  file = str(tmp_path / "tokenizer.json")
  backend = tokenizers.Tokenizer.from_file(file)
  backend.add_special_tokens(["<image>"])
  backend.add_tokens(["xyz"])
  backend.save(file)
  with pytest.warns(WeightsWarning, match="a token from 96 on will be refused"):
    tokenizer = sinkjax.load(tmp_path).tokenizer
  assert tokenizer.vocab_size == 98
  assert 96 not in tokenizer.encode("<image>")
  with pytest.raises(ValueError, match="token '<image>' has id 96") as error:
    tokenizer.encode("<image>", parse_special=True)
  assert "\n" not in str(error.value)
  with pytest.raises(ValueError, match="token 'xyz' has id 97"):
    tokenizer.encode("xyz")


def test_special_ids_outside_the_vocabulary_are_none(tmp_path):
  """As of a GPT-2 trained on a vocabulary of its own."""
  write_sharded(tmp_path)
  with_tokenizer(tmp_path, 96, None)
  values = {"bos_token_id": 50256, "eos_token_id": -1}
  (tmp_path / "config.json").write_text(json.dumps(config(**values)))
  (tmp_path / "generation_config.json").write_text(json.dumps(values))
  with pytest.warns(
    WeightsWarning, match="outside the vocabulary of 96"
  ) as seen:
    _, cfg, tokenizer = sinkjax.load(tmp_path)
  assert len(seen) == 2  # one for each of the two tokens
  assert cfg.bos_id is cfg.eos_id is None
  assert tokenizer.bos_id is tokenizer.eos_id is None


def test_tokenizer_that_names_an_unknown_token(tmp_path):
  write_sharded(tmp_path)
  with_tokenizer(tmp_path, 96, "x")
  with pytest.raises(WeightsError, match="'x' is not in the vocabulary"):
    sinkjax.load(tmp_path)


def test_no_family_is_called_unsupported():
  assert not set(families.FAMILIES) & set(unsupported.KINDS)


def test_an_adapter_alone_is_named(tmp_path):
  (tmp_path / "adapter_config.json").write_text("{}")
  with pytest.raises(
    WeightsError, match="an adapter .* merge it into its base"
  ):
    sinkjax.load(tmp_path)
