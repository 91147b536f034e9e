"""Layers read one by one from disk: the very numbers that `load` gives."""

import os
import pathlib
import shutil
import sys

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from gguf import GGMLQuantizationType as Type
from quick import quick
from safetensors.numpy import load_file, save_file

import sinkjax
from sinkjax.models import layerwise
from sinkjax.weights import offload
from sinkjax.weights.formats import gguf, tiles
from sinkjax.weights.offload import Offloaded, open_layers, peak_estimate
from sinkjax.weights.validate import WeightsError

sys.path.insert(0, str(pathlib.Path(__file__).parent))
import gguf_files as files
from golden_models import (
  FAMILIES,
  GGUF,
  NAMES,
  reading_ahead,
  write_gguf,
  write_sharded,
)

same = np.testing.assert_array_equal


@pytest.fixture(autouse=True)
def small_pieces(monkeypatch):
  """So that 96 tokens are several pieces, the last one shorter."""
  monkeypatch.setattr(offload, "UNEMBED_COLUMNS", 40)


def check(opened, params, layers=None):
  """Every piece, or those layers only, is that of the loaded parameters."""
  cfg = opened.cfg
  # NumPy's slices: JAX would compile one for each shape.
  params = jax.tree.map(np.asarray, params)
  for i in range(cfg.n_layers) if layers is None else layers:
    layer = opened.layer(i)
    want = jax.tree.map(lambda x, i=i: x[i], params["blocks"])
    jax.tree.map(same, layer, want)
    jax.tree.map(one_kind, layer)
  jax.tree.map(same, opened.final_norm(), params.get("final_norm", {}))
  tokens = np.array([[5, 6, 7, 0], [cfg.vocab_size - 1, 7, 7, 6]])
  one_kind(opened.embedding(tokens))
  same(opened.embedding(tokens), params["embed"][tokens])
  same(opened.embedding(jnp.zeros((0,), int)), np.zeros((0, cfg.d_model)))
  if cfg.positions == "learned":
    same(opened.position_embedding(tokens % 9), params["positions"][tokens % 9])


def one_kind(x):
  assert isinstance(x, jax.Array) and x.dtype == jnp.float32


def check_unembedding(opened, params):
  pieces = list(opened.unembedding())
  one_kind(pieces[0].kernel)
  assert all(x.kernel.shape[1] <= offload.UNEMBED_COLUMNS for x in pieces)
  tied = opened.cfg.tie_embeddings
  want = params["embed"].T if tied else params["unembed"]
  same(np.concatenate([x.kernel for x in pieces], axis=1), want)
  if opened.cfg.unembed_bias:
    bias = np.concatenate([x.bias for x in pieces])
    same(bias, params["unembed_bias"])
  else:
    assert all(x.bias is None for x in pieces)


# Reading is the same code for each; what it reads, other tests have for all.
FEW = (
  "llama2", "qwen3", "gemma2", "phi3", "gpt_oss", "mixtral", "falcon_new",
  "bloom", "deepseek_v3", "apertus",
)  # fmt: skip


@pytest.mark.parametrize("prefetch", [True, False], ids=["ahead", "plain"])
@pytest.mark.parametrize("name", quick(NAMES, *FEW))
def test_folder_gives_what_load_gives(name, prefetch):
  params, cfg, _ = sinkjax.load(FAMILIES / name)
  opened = open_layers(FAMILIES / name, prefetch=prefetch)
  assert isinstance(opened, layerwise.Layers) and opened.cfg == cfg
  assert opened.where == str(FAMILIES / name) and opened.tokenizer is None
  check(opened, params)
  check_unembedding(opened, params)


@pytest.mark.parametrize("name", quick(GGUF, *FEW))
def test_gguf_gives_what_load_gives(name, tmp_path):
  factors = [("rope_freqs.weight", np.array([1, 1, 4, 8], np.float32))]
  extra = factors if name == "llama2" else ()
  write_gguf(tmp_path / "m.gguf", name, extra=extra)
  params, cfg, tokenizer = sinkjax.load(tmp_path / "m.gguf")
  opened = open_layers(tmp_path / "m.gguf")
  assert opened.cfg == cfg
  assert opened.tokenizer.vocab_size == tokenizer.vocab_size
  check(opened, params)
  check_unembedding(opened, params)


@pytest.mark.thorough
def test_smollm2_gives_what_load_gives(smollm2, monkeypatch):
  monkeypatch.setattr(offload, "UNEMBED_COLUMNS", 8192)
  opened = open_layers("smollm2-135m")
  check(opened, smollm2.params, layers=(0, 1, 29))
  check_unembedding(opened, smollm2.params)
  assert opened.tokenizer.encode("sink") == smollm2.tokenizer.encode("sink")


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_sharded_half_precision_folder(dtype, tmp_path):
  write_sharded(tmp_path, ml_dtypes.bfloat16 if dtype == "bfloat16" else dtype)
  params, _, _ = sinkjax.load(tmp_path)
  opened = open_layers(tmp_path)
  check(opened, params)
  check_unembedding(opened, params)


def test_layers_in_any_order_and_in_several_threads(monkeypatch):
  monkeypatch.setattr(offload, "_ELEMENTS_A_WORKER", 100)
  monkeypatch.setattr(offload, "default_workers", lambda: 3)
  params, _, _ = sinkjax.load(FAMILIES / "pythia")
  with open_layers(FAMILIES / "pythia") as opened:
    check(opened, params, layers=(2, 0, 0, 2, 1, 0))
  check(opened, params, layers=(1,))  # closed ones still read
  opened.close()
  opened.close()


def test_layers_run_as_the_model_does():
  """The protocol in use: a walk over the layers gives `forward`'s logits."""
  params, cfg, _ = sinkjax.load(FAMILIES / "gpt2")
  opened = open_layers(FAMILIES / "gpt2")
  tokens = jnp.arange(3, 15)[None]
  positions = jnp.arange(12)[None]
  in_memory = layerwise.InMemory(cfg, params)
  same(
    layerwise.embed(opened, tokens, positions),
    layerwise.embed(in_memory, tokens, positions),
  )
  assert layerwise.as_layers(cfg, opened) is opened


@pytest.mark.parametrize("tied", [True, False])
def test_a_tied_model_may_store_its_unembedding(tied, tmp_path, monkeypatch):
  """Compared a few rows at a time, the last of them too."""
  from sinkjax.weights import huggingface

  monkeypatch.setattr(huggingface, "_COMPARED", 1000)
  shutil.copy(FAMILIES / "smollm2" / "config.json", tmp_path)
  tensors = load_file(FAMILIES / "smollm2" / "model.safetensors")
  output = tensors["model.embed_tokens.weight"].copy()
  output[-1, -1] += 0 if tied else 1
  tensors["lm_head.weight"] = output
  save_file(tensors, tmp_path / "model.safetensors")
  if tied:
    check_unembedding(open_layers(tmp_path), sinkjax.load(tmp_path).params)
    return
  for read in (open_layers, sinkjax.load):
    with pytest.raises(WeightsError, match=r"'lm_head.weight' differs from"):
      read(tmp_path)


def changed(folder, change):
  """The tiny Llama 3 with other tensors."""
  shutil.copy(FAMILIES / "llama3" / "config.json", folder)
  tensors = load_file(FAMILIES / "llama3" / "model.safetensors")
  change(tensors)
  save_file(tensors, folder / "model.safetensors")


Q = "model.layers.2.self_attn.q_proj.weight"


def poison(tensors):
  tensors[Q] = (
    np.where(np.arange(tensors[Q].size) == 7, np.nan, 0)
    .astype(np.float32)
    .reshape(tensors[Q].shape)
  )


@pytest.mark.parametrize(
  ("change", "message"),
  [
    (lambda t: t.pop(Q), f"tensor '{Q}' is missing"),
    (lambda t: t.update({Q: t[Q][:-1]}), "has shape"),
    (lambda t: t.update(more=t[Q]), "'more' has no place"),
  ],
)
def test_refuses_other_tensors_at_once(change, message, tmp_path):
  changed(tmp_path, change)
  with pytest.raises(WeightsError, match=message) as error:
    open_layers(tmp_path)
  assert "\n" not in str(error.value)


@pytest.mark.parametrize("prefetch", [True, False], ids=["ahead", "plain"])
def test_damage_in_a_layer_surfaces_where_it_is_asked_for(prefetch, tmp_path):
  changed(tmp_path, poison)
  opened = open_layers(tmp_path, prefetch=prefetch)
  opened.layer(0)
  opened.layer(1)
  for _ in range(2):
    with pytest.raises(WeightsError, match="NaN or infinite") as error:
      opened.layer(2)
    assert Q in str(error.value)
  assert not reading_ahead()
  opened.layer(0)
  opened.close()


@pytest.mark.parametrize("prefetch", [True, False], ids=["ahead", "plain"])
def test_file_cut_short_after_it_was_opened(prefetch, tmp_path):
  path = tmp_path / "m.gguf"
  write_gguf(path, "llama2")
  opened = open_layers(path, prefetch=prefetch)
  os.truncate(path, path.stat().st_size - 20_000)
  with pytest.raises(WeightsError, match="bytes early"):
    for i in range(opened.cfg.n_layers):
      opened.layer(i)
  os.truncate(path, 4000)
  with pytest.raises(WeightsError, match="bytes early"):
    list(opened.unembedding())
  with pytest.raises(WeightsError, match="bytes early"):
    opened.embedding(jnp.array([95]))
  path.unlink()
  with pytest.raises(WeightsError, match="cannot be read"):
    opened.final_norm()


def test_refuses_what_is_outside_the_tables():
  opened = open_layers(FAMILIES / "gpt2", prefetch=False)
  for bad in (-1, opened.cfg.n_layers):
    with pytest.raises(IndexError, match=f"layer {bad} of 3"):
      opened.layer(bad)
  with pytest.raises(ValueError, match="token id 96 is outside the table of"):
    opened.embedding(jnp.array([0, 96]))
  with pytest.raises(ValueError, match="position -1 is outside"):
    opened.position_embedding(jnp.array([-1]))
  with pytest.raises(ValueError, match="token ids must be integers"):
    opened.embedding(jnp.array([0.5]))
  with pytest.raises(ValueError, match="has no table of positions"):
    open_layers(FAMILIES / "llama3").position_embedding(jnp.array([0]))


def test_refuses_formats_without_layers(glassllm_path, tmp_path):
  from sinkjax.weights import orbax_io

  params, cfg, _ = sinkjax.load(FAMILIES / "llama3")
  orbax_io.save(tmp_path / "orbax", params, cfg)
  for name in ("glassllm-en", str(tmp_path / "orbax")):
    with pytest.raises(WeightsError, match="one by one only from") as error:
      open_layers(name)
    wanted = f"python -m launch.convert --model={name} --to=hf --out="
    assert wanted in str(error.value) and "\n" not in str(error.value)
  (tmp_path / "empty").mkdir()
  with pytest.raises(WeightsError, match="no model"):
    open_layers(tmp_path / "empty")
  (tmp_path / "text.txt").write_text("no weights at all, but some bytes")
  with pytest.raises(WeightsError, match="text.txt"):
    open_layers(tmp_path / "text.txt")
  with pytest.raises(WeightsError, match="neither a file nor a folder"):
    open_layers("nonsense")


@pytest.mark.parametrize("turned", [False, True])
def test_rows_are_those_of_the_whole(turned, tmp_path, monkeypatch):
  """Quantised rows in any order, repeated, over several tiles."""
  kinds = (Type.Q4_1, Type.Q6_K, Type.IQ4_NL, Type.F16)
  tensors = [
    files.tensor(f"{kind.name}.weight", kind, (90, 512), seed)
    for seed, kind in enumerate(kinds)
  ]
  path = tmp_path / "m.gguf"
  path.write_bytes(files.build_gguf(tensors))
  file = gguf.open_gguf(path)
  monkeypatch.setattr(tiles, "TILE", 20 * 512)
  rows = np.concatenate([np.arange(3, 40), [89, 0, 0, 1, 5, 4], np.arange(90)])
  for kind in kinds:
    name = f"{kind.name}.weight"
    out = np.empty((512, len(rows)), np.float32).T if turned else None
    got = gguf.read_rows(file, name, rows, out)
    same(got, gguf.read_tensor(file, name)[rows])
    for bad in ([-1], [90]):
      with pytest.raises(WeightsError, match="has 90 rows"):
        gguf.read_rows(file, name, bad)
    with pytest.raises(WeightsError, match="out must be"):
      gguf.read_rows(file, name, [0], np.empty((2, 512), np.float32))


def test_peak_estimate():
  cfg = sinkjax.TINY
  assert peak_estimate(cfg) > 0
  opened = open_layers("smollm2-135m")
  layer = sum(x.nbytes for x in jax.tree.leaves(opened.layer(29)))
  piece = 4 * 576 * 40
  assert peak_estimate(opened.cfg) == max(2 * layer, layer + 2 * piece)
  assert isinstance(opened, Offloaded)
