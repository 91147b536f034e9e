"""The recipe "add a family", followed: one file, and everything finds it.

A throw-away family is written into a folder that stands for
`sinkjax/weights/families/`, and no other source file is touched: a random model
of it goes to a Hugging Face folder, an Orbax folder and a GGUF file and comes
back through the public functions.
"""

import json
import sys

import gguf
import jax
import numpy as np
import pytest

import sinkjax
from sinkjax.weights import families
from sinkjax.weights.assemble import disassemble
from sinkjax.weights.hf_config import config_to_hf
from sinkjax.weights.validate import WeightsError

RECIPE = '''
"""Throwaway: ReLU, biases on queries, keys and values, names of its own."""

import functools

from sinkjax.weights.families._config import decoder_fields, decoder_values
from sinkjax.weights.families._family import Family, Gguf, register
from sinkjax.weights.families._gguf import gguf_tensors
from sinkjax.weights.families._tensors import fused_qkv, linear, norms, tables
from sinkjax.weights.fused_layouts import FusedThirds


def read_config(read):
  return decoder_fields(read, tied=True, rope_base=500.0) | {
    "activation": read.activation("hidden_act", default="relu"),
    "qkv_bias": True,
    "gated_mlp": False,
  }


def write_config(cfg):
  return decoder_values(cfg)


def tensors(cfg):
  at = "decoder.block.{i}."
  names = {
    "blocks/attn_norm": at + "norm1",
    "blocks/mlp_norm": at + "norm2",
    "final_norm": "decoder.norm",
  }
  return [
    *norms(names, bias=False),
    *fused_qkv(at + "qkv", True, FusedThirds),
    *linear("attn/o", at + "out", False),
    *linear("mlp/up", at + "up", False),
    *linear("mlp/down", at + "down", False),
    *tables(cfg, "decoder.words", "head"),
  ]


def read_gguf(read, fields):
  return {
    "activation": "relu",
    "gated_mlp": False,
    "norm_eps": read.get("attention.layer_norm_rms_epsilon", float, 1e-6),
  }


register(
  Family(
    name="throwaway",
    transformers_class="ThrowawayForCausalLM",
    read_config=read_config,
    write_config=write_config,
    tensors=tensors,
    optional_prefix="decoder.",
    gguf=Gguf(
      architecture="throwaway",
      tensors=functools.partial(gguf_tensors, interleaved_rope=True),
      read_config=read_gguf,
    ),
  )
)
'''


@pytest.fixture
def family(tmp_path, monkeypatch):
  """The folder of families with one file more."""
  folder = tmp_path / "families"
  folder.mkdir()
  (folder / "throwaway.py").write_text(RECIPE)
  assert families.find("throwaway") is None
  path = [*families.__path__, str(folder)]
  monkeypatch.setattr(families, "__path__", path)
  families.import_all()
  yield families.FAMILIES["throwaway"]
  del families.FAMILIES["throwaway"]
  del sys.modules["sinkjax.weights.families.throwaway"]


@pytest.fixture
def model(family):
  """(params, cfg) of a random model, biases and norms included."""
  cfg = sinkjax.TINY.replace(
    model_type="throwaway",
    n_kv_heads=4,
    activation="relu",
    qkv_bias=True,
    gated_mlp=False,
    tie_embeddings=True,
    rope_base=500.0,
    norm_eps=1e-6,
  )
  rng = np.random.default_rng(0)
  params = jax.tree.map(
    lambda x: x + np.float32(0.2) * rng.normal(size=x.shape).astype(x.dtype),
    sinkjax.init_params(cfg, jax.random.key(0)),
  )
  return params, cfg


TOKENS = np.arange(3, 17)[None]


def check(path, params, cfg, layers=True):
  """What is at the path is the model, whichever way it is opened."""
  loaded = sinkjax.load(path)
  assert loaded.cfg.replace(bos_id=None, eos_id=None) == cfg
  jax.tree.map(np.testing.assert_array_equal, loaded.params, params)
  np.testing.assert_array_equal(
    jax.jit(sinkjax.forward(loaded.cfg))(loaded.params, TOKENS).logits,
    jax.jit(sinkjax.forward(cfg))(params, TOKENS).logits,
  )
  if layers:
    layer = sinkjax.open_layers(path).layer(1)
    want = jax.tree.map(lambda x: x[1], params["blocks"])
    jax.tree.map(np.testing.assert_array_equal, layer, want)


@pytest.mark.thorough
def test_a_folder_of_it(model, tmp_path):
  params, cfg = model
  sinkjax.save(tmp_path / "out", params, cfg)
  values = json.loads((tmp_path / "out" / "config.json").read_text())
  assert values["architectures"] == ["ThrowawayForCausalLM"]
  check(tmp_path / "out", params, cfg)
  # Its defaults hold where keys are left out.
  for key in ("rope_theta", "hidden_act", "tie_word_embeddings"):
    del values[key]
  (tmp_path / "out" / "config.json").write_text(json.dumps(values))
  check(tmp_path / "out", params, cfg)
  sinkjax.save(tmp_path / "orbax", params, cfg, form="orbax")
  check(tmp_path / "orbax", params, cfg, layers=False)


@pytest.mark.thorough
def test_a_folder_without_the_prefix(model, tmp_path):
  from safetensors.numpy import load_file, save_file

  params, cfg = model
  sinkjax.save(tmp_path / "out", params, cfg)
  path = tmp_path / "out" / "model.safetensors"
  tensors = load_file(path)
  assert {name.split(".")[0] for name in tensors} == {"decoder"}
  save_file(
    {name.removeprefix("decoder."): x for name, x in tensors.items()}, path
  )
  check(tmp_path / "out", params, cfg)


def test_a_gguf_file_of_it(family, model, tmp_path):
  params, cfg = model
  writer = gguf.GGUFWriter(tmp_path / "m.gguf", "throwaway")
  writer.add_context_length(cfg.max_len)
  writer.add_embedding_length(cfg.d_model)
  writer.add_block_count(cfg.n_layers)
  writer.add_feed_forward_length(cfg.d_ff)
  writer.add_head_count(cfg.n_heads)
  writer.add_head_count_kv(cfg.n_kv_heads)
  writer.add_rope_freq_base(cfg.rope_base)
  writer.add_layer_norm_rms_eps(1e-6)
  writer.add_tokenizer_model("llama")
  writer.add_token_list([f"t{i}" for i in range(cfg.vocab_size)])
  writer.add_token_scores([-float(i) for i in range(cfg.vocab_size)])
  for name, x in disassemble(cfg, family.gguf.tensors(cfg), params).items():
    writer.add_tensor(name, x)
  writer.write_header_to_file()
  writer.write_kv_data_to_file()
  writer.write_tensors_to_file()
  writer.close()
  eps = sinkjax.load(tmp_path / "m.gguf").cfg.norm_eps
  check(tmp_path / "m.gguf", params, cfg.replace(norm_eps=eps))


def test_what_it_cannot_express_is_refused(model, tmp_path):
  params, cfg = model
  with pytest.raises(ValueError, match="throwaway config.json cannot express"):
    config_to_hf(cfg.replace(logit_softcap=3.0))
  with pytest.raises(ValueError, match="form must be 'huggingface' or 'orbax'"):
    sinkjax.save(tmp_path / "out", params, cfg, form="gguf")
  assert not (tmp_path / "out").exists()


def test_nothing_of_it_is_left(tmp_path):
  (tmp_path / "config.json").write_text('{"model_type": "throwaway"}')
  with pytest.raises(WeightsError, match="unknown model_type 'throwaway'"):
    sinkjax.load(tmp_path)
