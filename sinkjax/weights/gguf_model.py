"""GGUF metadata to `ModelConfig`, and GGUF tensor names to our parameters."""

import dataclasses
import math
import os
from typing import Any

import numpy as np

from sinkjax.config import MAX_LAYERS, ModelConfig, RopeScaling
from sinkjax.models.transformer import Params
from sinkjax.weights.assemble import Unread, assemble
from sinkjax.weights.formats.gguf import (
  GGUFFile,
  open_gguf,
  read_rows,
  read_tensor,
)
from sinkjax.weights.layout import FusedThirds, Layout, Leaf, Linear, Vector
from sinkjax.weights.tokenizer import Tokenizer
from sinkjax.weights.tokenizer_gguf import tokenizer_from_gguf
from sinkjax.weights.validate import WeightsError, check_tokenizer

ARCHITECTURES = ("llama", "gpt2", "qwen2", "qwen3", "gemma", "gemma2", "gemma3")


class _Metadata:
  """Typed access to `{arch}.key`, with errors that name the key."""

  def __init__(self, file: GGUFFile, arch: str):
    self.values, self.arch, self.where = file.metadata, arch, str(file.path)

  def get(self, key: str, kind, default: Any = None) -> Any:
    name = f"{self.arch}.{key}"
    value = self.values.get(name, default)
    if value is None:
      return None
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
      value = float(value)
    if not isinstance(value, kind) or isinstance(value, bool):
      raise WeightsError(
        f"{self.where}: {name} must be {kind.__name__}, got {value!r}"
      )
    return value

  def need(self, key: str, kind) -> Any:
    value = self.get(key, kind)
    if value is None:
      raise WeightsError(f"{self.where}: {self.arch}.{key} is missing")
    return value


def config_from_gguf(file: GGUFFile) -> ModelConfig:
  """The config that a GGUF header describes.

  Raises:
    WeightsError: for an unknown architecture or RoPE scaling, or a key that
      is missing or of the wrong type or size.
  """
  arch = file.metadata.get("general.architecture")
  if arch not in ARCHITECTURES:
    raise WeightsError(
      f"{file.path}: unknown architecture {arch!r}; known: "
      f"{list(ARCHITECTURES)}"
    )
  read = _Metadata(file, arch)
  if read.get("expert_count", int, 0):
    raise WeightsError(f"{file.path}: mixture-of-experts models: unknown")
  fields = _common(read, file)
  extra = {
    "gpt2": _gpt2,
    "qwen2": _qwen2,
    "qwen3": _qwen3,
    "gemma": _gemma,
    "gemma2": _gemma2,
    "gemma3": _gemma3,
  }.get(arch)
  fields |= extra(read, fields) if extra else {"model_type": "llama"}
  try:
    return ModelConfig(**fields)
  except ValueError as error:
    raise WeightsError(f"{file.path}: {error}") from None


def _common(read: _Metadata, file: GGUFFile) -> dict[str, Any]:
  width = read.need("embedding_length", int)
  heads = read.need("attention.head_count", int)
  layers = read.need("block_count", int)
  if heads <= 0 or not 0 < layers <= MAX_LAYERS:
    raise WeightsError(
      f"{read.where}: {heads} heads and {layers} layers are no model"
    )
  head_dim = read.get("attention.key_length", int, width // heads)
  if read.get("attention.value_length", int, head_dim) != head_dim:
    raise WeightsError(f"{read.where}: keys and values of different sizes")
  embed = file.tensors.get("token_embd.weight")
  if embed is None or len(embed.shape) != 2:
    raise WeightsError(f"{read.where}: tensor 'token_embd.weight' is missing")
  rope_dim = read.get("rope.dimension_count", int, head_dim)

  def has(name):
    return f"blk.0.{name}" in file.tensors

  return {
    "vocab_size": int(embed.shape[0]),
    "d_model": width,
    "n_layers": layers,
    "n_heads": heads,
    "n_kv_heads": read.get("attention.head_count_kv", int, heads),
    "head_dim": head_dim,
    "d_ff": read.need("feed_forward_length", int),
    "max_len": read.need("context_length", int),
    "norm_eps": read.get("attention.layer_norm_rms_epsilon", float, 1e-5),
    "rope_base": read.get("rope.freq_base", float, 10000.0),
    "rope_dim": None if rope_dim == head_dim else rope_dim,
    "rope_scaling": _scaling(read, file, rope_dim),
    "tie_embeddings": "output.weight" not in file.tensors,
    "qkv_bias": has("attn_q.bias") or has("attn_qkv.bias"),
    "out_bias": has("attn_output.bias"),
    "mlp_bias": has("ffn_up.bias"),
    "bos_id": file.metadata.get("tokenizer.ggml.bos_token_id"),
    "eos_id": file.metadata.get("tokenizer.ggml.eos_token_id"),
  }


def _scaling(read: _Metadata, file: GGUFFile, dim: int) -> RopeScaling | None:
  kind = read.get("rope.scaling.type", str, "none")
  if "rope_freqs.weight" in file.tensors:
    if file.tensors["rope_freqs.weight"].shape != (dim // 2,):
      raise WeightsError(
        f"{read.where}: tensor 'rope_freqs.weight' must have {dim // 2} entries"
      )
    factors = read_tensor(file, "rope_freqs.weight")
    if not np.all(factors > 0):
      raise WeightsError(f"{read.where}: 'rope_freqs.weight' not positive")
    return RopeScaling("factors", factors=tuple(float(f) for f in factors))
  if kind == "none":
    return None
  if kind != "linear":
    raise WeightsError(
      f"{read.where}: unknown RoPE scaling {kind!r}; known: none, linear"
    )
  factor = read.need("rope.scaling.factor", float)
  if not (math.isfinite(factor) and factor > 0):
    raise WeightsError(f"{read.where}: RoPE scaling factor {factor}")
  return RopeScaling("linear", factor=factor)


def _gpt2(read: _Metadata, fields) -> dict[str, Any]:
  return {
    "model_type": "gpt2",
    "norm": "layer",
    "norm_eps": read.get("attention.layer_norm_epsilon", float, 1e-5),
    "gated_mlp": False,
    "activation": "gelu_tanh",
    "positions": "learned",
  }


def _qwen2(read: _Metadata, fields) -> dict[str, Any]:
  return {"model_type": "qwen2"}


def _qwen3(read: _Metadata, fields) -> dict[str, Any]:
  return {"model_type": "qwen3", "qk_norm": True}


def _gemma(read: _Metadata, fields) -> dict[str, Any]:
  return {
    "model_type": "gemma",
    "norm_offset": 1.0,
    "activation": "gelu_tanh",
    "embed_scale": math.sqrt(fields["d_model"]),
  }


def _gemma2(read: _Metadata, fields, pattern=2) -> dict[str, Any]:
  window = read.get("attention.sliding_window", int)
  pattern = read.get("attention.sliding_window_pattern", int, pattern)
  local = ()
  if window:
    local = tuple((i + 1) % pattern != 0 for i in range(fields["n_layers"]))
  return _gemma(read, fields) | {
    "model_type": "gemma2",
    "post_norms": True,
    "window": window,
    "local_layers": local,
    "attn_scale": _gemma_scale(fields, layers_27b=46),
    "attn_softcap": read.get("attn_logit_softcapping", float, 50.0),
    "logit_softcap": read.get("final_logit_softcapping", float, 30.0),
  }


def _gemma3(read: _Metadata, fields) -> dict[str, Any]:
  return _gemma2(read, fields, pattern=6) | {
    "model_type": "gemma3_text",
    "qk_norm": True,
    "rope_base": read.get("rope.freq_base", float, 1e6),
    "rope_local_base": read.get("rope.freq_base_swa", float, 10000.0),
    "attn_scale": _gemma_scale(fields, layers_27b=62),
    "attn_softcap": read.get("attn_logit_softcapping", float),
    "logit_softcap": read.get("final_logit_softcapping", float),
  }


def _gemma_scale(fields, layers_27b: int) -> float:
  """GGUF does not store it: only the 27B models scale by D / H."""
  if fields["n_layers"] == layers_27b:
    return (fields["d_model"] / fields["n_heads"]) ** -0.5
  return fields["head_dim"] ** -0.5


def leaves(cfg: ModelConfig) -> list[Leaf]:
  """Where each parameter of `cfg` lies in a GGUF file."""
  at = "blk.{i}."
  names = {"attn_norm": "attn_norm", "mlp_norm": "ffn_norm"}
  if cfg.post_norms:
    names["attn_post_norm"] = "post_attention_norm"
    names["mlp_post_norm"] = "post_ffw_norm"
  norms = {f"blocks/{path}": at + name for path, name in names.items()}
  norms["final_norm"] = "output_norm"
  if cfg.qk_norm:
    norms["blocks/attn/q_norm"] = at + "attn_q_norm"
    norms["blocks/attn/k_norm"] = at + "attn_k_norm"
  found = [
    Leaf(f"{path}/scale", f"{name}.weight", norm_offset=cfg.norm_offset)
    for path, name in norms.items()
  ]
  if cfg.norm == "layer":
    found += [
      Leaf(f"{path}/bias", f"{name}.bias") for path, name in norms.items()
    ]
  found += _attention(cfg, at)
  up = {"gate": "ffn_gate"} if cfg.gated_mlp else {}
  for path, name in (up | {"up": "ffn_up", "down": "ffn_down"}).items():
    found += _linear(f"mlp/{path}", at + name, cfg.mlp_bias)
  found.append(Leaf("embed", "token_embd.weight", Layout()))
  if cfg.positions == "learned":
    found.append(Leaf("positions", "position_embd.weight", Layout()))
  if not cfg.tie_embeddings:
    found.append(Leaf("unembed", "output.weight", Linear()))
  return found


def _linear(
  path: str, name: str, bias: bool, wrap=lambda layout: layout, paired=False
) -> list[Leaf]:
  matrix = Linear(2 if path == "attn/o" else 1, paired)
  found = [Leaf(f"blocks/{path}/kernel", f"{name}.weight", wrap(matrix))]
  if bias:
    found.append(
      Leaf(f"blocks/{path}/bias", f"{name}.bias", wrap(Vector(paired)))
    )
  return found


def _attention(cfg: ModelConfig, at: str) -> list[Leaf]:
  found = _linear("attn/o", at + "attn_output", cfg.out_bias)
  for part, letter in enumerate("qkv"):
    path = f"attn/{letter}"
    if cfg.model_type == "gpt2":
      found += _linear(
        path,
        at + "attn_qkv",
        cfg.qkv_bias,
        wrap=lambda layout, part=part: FusedThirds(layout, part),
      )
    else:
      # Files of this architecture store rotary pairs next to each other.
      paired = cfg.model_type == "llama" and letter in "qk"
      found += _linear(path, f"{at}attn_{letter}", cfg.qkv_bias, paired=paired)
  return found


class _GGUFSource:
  def __init__(self, file: GGUFFile):
    self.file, self.where = file, str(file.path)

  def shapes(self):
    return {name: t.shape for name, t in self.file.tensors.items()}

  def read(self, name, out=None):
    return read_tensor(self.file, name, out=out)

  def read_rows(self, name, rows, out=None):
    return read_rows(self.file, name, rows, out=out)


def load_header(path: str | os.PathLike) -> tuple[ModelConfig, Tokenizer]:
  """Config and tokenizer of a GGUF file; no weights are read."""
  return _header(open_gguf(path))


def _header(file: GGUFFile) -> tuple[ModelConfig, Tokenizer]:
  cfg = config_from_gguf(file)
  tokenizer = tokenizer_from_gguf(file.metadata)
  check_tokenizer(cfg, tokenizer, str(file.path))
  return cfg, tokenizer


def load_gguf(path: str | os.PathLike) -> tuple[Params, ModelConfig, Tokenizer]:
  """Parameters in float32, config and tokenizer of a GGUF file.

  Raises:
    WeightsError: one line about what is damaged, missing, extra or unknown.
  """
  unread, tokenizer = open_model(path)
  cfg, leaves_, source, ignored = unread
  return assemble(cfg, leaves_, source, ignored=ignored), cfg, tokenizer


def open_model(path: str | os.PathLike) -> tuple[Unread, Tokenizer]:
  """What `load_gguf` loads, before its weights are read."""
  file = open_gguf(path)
  cfg, tokenizer = _header(file)
  ignored = (r"^rope_freqs\.weight$", r"\.attn_rot_embd$")
  # Without the metadata: the tokens alone can be more than a layer.
  source = _GGUFSource(dataclasses.replace(file, metadata={}))
  return Unread(cfg, leaves(cfg), source, ignored), tokenizer
