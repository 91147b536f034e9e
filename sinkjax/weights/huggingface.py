"""Hugging Face model folders: `config.json` and safetensors, in and out."""

import json
import os
import pathlib

import numpy as np

from sinkjax.config import ModelConfig
from sinkjax.models.transformer import Params
from sinkjax.weights.assemble import Unread, assemble, disassemble
from sinkjax.weights.folders import check_new, new_folder, read_json
from sinkjax.weights.formats import safetensors_io
from sinkjax.weights.hf_config import config_from_hf
from sinkjax.weights.hf_export import config_to_hf
from sinkjax.weights.layout import (
  FusedHeads,
  FusedThirds,
  Kernel,
  Layout,
  Leaf,
  Linear,
  Vector,
)
from sinkjax.weights.validate import WeightsError

# Buffers that old checkpoints carry and that hold no weight.
_IGNORED = (
  r"\.attn\.(masked_)?bias$",
  r"\.attention\.(masked_)?bias$",
  r"rotary_emb\.inv_freq$",
)
_COMPARED = 1 << 20  # elements
_MULTIMODAL = (r"^(model\.)?vision_tower\.", r"multi_modal_projector\.")


def leaves(cfg: ModelConfig) -> list[Leaf]:
  """Where each parameter of `cfg` lies in a Hugging Face folder."""
  if cfg.model_type == "gpt2":
    return _gpt2_leaves(cfg)
  if cfg.model_type == "gpt_neox":
    return _gpt_neox_leaves(cfg)
  return _llama_leaves(cfg)


def _llama_leaves(cfg: ModelConfig) -> list[Leaf]:
  at = "model.layers.{i}."
  names = {
    "attn_norm/scale": "input_layernorm.weight",
    "mlp_norm/scale": "post_attention_layernorm.weight",
  }
  if cfg.post_norms:
    names |= {
      "attn_post_norm/scale": "post_attention_layernorm.weight",
      "mlp_norm/scale": "pre_feedforward_layernorm.weight",
      "mlp_post_norm/scale": "post_feedforward_layernorm.weight",
    }
  if cfg.qk_norm:
    names["attn/q_norm/scale"] = "self_attn.q_norm.weight"
    names["attn/k_norm/scale"] = "self_attn.k_norm.weight"
  found = [Leaf(f"blocks/{path}", at + name) for path, name in names.items()]
  for part in "qkvo":
    found += _linear(
      f"attn/{part}",
      at + f"self_attn.{part}_proj",
      cfg.out_bias if part == "o" else cfg.qkv_bias,
    )
  for part in ("gate", "up", "down") if cfg.gated_mlp else ("up", "down"):
    found += _linear(f"mlp/{part}", at + f"mlp.{part}_proj", cfg.mlp_bias)
  found.append(Leaf("embed", "model.embed_tokens.weight", Layout()))
  found.append(Leaf("final_norm/scale", "model.norm.weight"))
  if not cfg.tie_embeddings:
    found.append(Leaf("unembed", "lm_head.weight", Linear()))
  return found


def _linear(path: str, name: str, bias: bool) -> list[Leaf]:
  found = [
    Leaf(
      f"blocks/{path}/kernel",
      name + ".weight",
      Linear(2 if path == "attn/o" else 1),
    )
  ]
  if bias:
    found.append(Leaf(f"blocks/{path}/bias", name + ".bias"))
  return found


def _norms(pairs: dict[str, str]) -> list[Leaf]:
  return [
    Leaf(f"{path}/{ours}", f"{name}.{theirs}")
    for path, name in pairs.items()
    for ours, theirs in (("scale", "weight"), ("bias", "bias"))
  ]


def _gpt2_leaves(cfg: ModelConfig) -> list[Leaf]:
  at = "transformer.h.{i}."
  found = _norms(
    {
      "blocks/attn_norm": at + "ln_1",
      "blocks/mlp_norm": at + "ln_2",
      "final_norm": "transformer.ln_f",
    }
  )
  for part, letter in enumerate("qkv"):
    path = f"blocks/attn/{letter}/"
    name = at + "attn.c_attn."
    found.append(
      Leaf(path + "kernel", name + "weight", FusedThirds(Kernel(), part))
    )
    found.append(
      Leaf(path + "bias", name + "bias", FusedThirds(Vector(), part))
    )
  for path, name in (
    ("attn/o", "attn.c_proj"),
    ("mlp/up", "mlp.c_fc"),
    ("mlp/down", "mlp.c_proj"),
  ):
    found.append(
      Leaf(
        f"blocks/{path}/kernel",
        f"{at}{name}.weight",
        Kernel(2 if path == "attn/o" else 1),
      )
    )
    found.append(Leaf(f"blocks/{path}/bias", f"{at}{name}.bias"))
  found.append(Leaf("embed", "transformer.wte.weight", Layout()))
  found.append(Leaf("positions", "transformer.wpe.weight", Layout()))
  if not cfg.tie_embeddings:
    found.append(Leaf("unembed", "lm_head.weight", Linear()))
  return found


def _gpt_neox_leaves(cfg: ModelConfig) -> list[Leaf]:
  at = "gpt_neox.layers.{i}."
  found = _norms(
    {
      "blocks/attn_norm": at + "input_layernorm",
      "blocks/mlp_norm": at + "post_attention_layernorm",
      "final_norm": "gpt_neox.final_layer_norm",
    }
  )
  for part, letter in enumerate("qkv"):
    path = f"blocks/attn/{letter}/"
    name = at + "attention.query_key_value."
    found.append(
      Leaf(path + "kernel", name + "weight", FusedHeads(Linear(), part))
    )
    if cfg.qkv_bias:
      found.append(
        Leaf(path + "bias", name + "bias", FusedHeads(Vector(), part))
      )
  found += _linear("attn/o", at + "attention.dense", cfg.out_bias)
  found += _linear("mlp/up", at + "mlp.dense_h_to_4h", True)
  found += _linear("mlp/down", at + "mlp.dense_4h_to_h", True)
  found.append(Leaf("embed", "gpt_neox.embed_in.weight", Layout()))
  if not cfg.tie_embeddings:
    found.append(Leaf("unembed", "embed_out.weight", Linear()))
  return found


class _FolderSource:
  """The folder's tensors under the names that `leaves` uses."""

  def __init__(self, folder: safetensors_io.SafetensorsFolder, cfg, where):
    self.folder, self.where = folder, where
    self._names = {_canonical(name, cfg): name for name in folder.tensors}

  def shapes(self):
    return {n: self.folder.tensors[t].shape for n, t in self._names.items()}

  def read(self, name, out=None):
    return self.folder.read(self._names[name], out=out)

  def read_rows(self, name, rows, out=None):
    return self.folder.read_rows(self._names[name], rows, out=out)


def _canonical(name: str, cfg: ModelConfig) -> str:
  """Undoes the prefixes that some checkpoints drop or add."""
  for prefix in ("model.language_model.", "language_model.model."):
    if name.startswith(prefix):
      return "model." + name[len(prefix) :]
  if name.startswith("language_model.lm_head."):
    return name[len("language_model.") :]
  if cfg.model_type == "gpt2" and name.startswith(
    ("h.", "wte.", "wpe.", "ln_f.")
  ):
    return "transformer." + name
  return name


def load_config(path: str | os.PathLike) -> ModelConfig:
  """The config of a Hugging Face folder."""
  where = pathlib.Path(path) / "config.json"
  return config_from_hf(read_json(where), str(where))


def load(path: str | os.PathLike) -> tuple[Params, ModelConfig]:
  """Parameters in float32 and the config of a Hugging Face folder.

  Raises:
    WeightsError: one line about what is damaged, missing, extra or unknown.
  """
  unread = open_model(path)
  cfg, leaves_, source, ignored = unread
  return assemble(cfg, leaves_, source, ignored=ignored), cfg


def open_model(path: str | os.PathLike) -> Unread:
  """What `load` loads, before its weights are read."""
  cfg = load_config(path)
  source = _FolderSource(safetensors_io.open_folder(path), cfg, str(path))
  ignored = [*_IGNORED]
  if cfg.model_type == "gemma3_text":
    ignored += _MULTIMODAL
  if cfg.tie_embeddings:
    ignored.append(_unembed_name(cfg))
    _check_tied(source, cfg)
  return Unread(cfg, leaves(cfg), source, tuple(ignored))


def _unembed_name(cfg: ModelConfig) -> str:
  neox = cfg.model_type == "gpt_neox"
  return r"^embed_out\.weight$" if neox else r"^lm_head\.weight$"


def _check_tied(source: _FolderSource, cfg: ModelConfig) -> None:
  """A tied model may store its output matrix, if it is the embedding."""
  name = _unembed_name(cfg)[1:-1].replace("\\", "")
  if name not in source.shapes():
    return
  embed = next(leaf.name for leaf in leaves(cfg) if leaf.path == "embed")
  shapes = source.shapes()
  if embed in shapes and not (
    shapes[name] == shapes[embed] and _equal(source, name, embed)
  ):
    raise WeightsError(
      f"{source.where}: tie_word_embeddings is true, but {name!r} differs "
      f"from {embed!r}"
    )


def _equal(source: _FolderSource, a: str, b: str) -> bool:
  """Whether two tensors of one shape are equal; a few rows at a time."""
  shape = source.shapes()[a]
  if len(shape) != 2:
    return np.array_equal(source.read(a), source.read(b))
  step = max(1, _COMPARED // shape[1])
  for start in range(0, shape[0], step):
    rows = range(start, min(start + step, shape[0]))
    if not np.array_equal(source.read_rows(a, rows), source.read_rows(b, rows)):
      return False
  return True


def save(
  path: str | os.PathLike, params: Params, cfg: ModelConfig, tokenizer=None
) -> None:
  """Writes a folder that transformers and `sinkjax.load` read; float32, exact.

  Args:
    path: the folder; it must not exist or be empty.
    params: the parameters.
    cfg: their config.
    tokenizer: saved as `tokenizer.json` where given.

  Raises:
    ValueError: if the folder is not empty or `cfg` has no such form; nothing
      is left behind then.
  """
  from safetensors.numpy import save_file

  check_new(path)
  config = config_to_hf(cfg)
  tensors = disassemble(cfg, leaves(cfg), params)
  with new_folder(path) as folder:
    metadata = {"format": "pt"}  # transformers refuses a file without it
    save_file(tensors, folder / "model.safetensors", metadata=metadata)
    if tokenizer is not None:
      tokenizer.save(folder)
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n")
