"""GGUF files: what all architectures have in metadata and tensor names."""

import math
from typing import Any

import numpy as np

from sinkjax.config import ModelConfig, RopeScaling
from sinkjax.field_checks import MAX_LAYERS
from sinkjax.weights.families._reader import typed
from sinkjax.weights.families._tensors import fused_qkv, linear, norms, tables
from sinkjax.weights.formats.gguf import GGUFFile, read_tensor
from sinkjax.weights.fused_layouts import FusedThirds
from sinkjax.weights.layout import Leaf
from sinkjax.weights.validate import WeightsError

_AT = "blk.{i}."


class Metadata:
  """Typed access to `{architecture}.key`, with errors that name the key."""

  def __init__(self, file: GGUFFile, architecture: str):
    self.values, self.where = file.metadata, str(file.path)
    self.architecture, self._last = architecture, ""

  def refused(self, error: Exception) -> WeightsError:
    """What arithmetic on a value says, with the key that was read last."""
    value = str(self.values.get(self._last))[:40]
    return WeightsError(f"{self.where}: {self._last}={value}: {error}")

  def get(self, key: str, kind: type, default: Any = None) -> Any:
    """A value of a kind, or the default.

    Raises:
      WeightsError: for a value of another kind.
    """
    name = self._last = f"{self.architecture}.{key}"
    value = self.values.get(name, default)
    if value is None:
      return None
    return typed(value, kind, f"{self.where}: {name}")

  def token(self, key: str, size: int) -> int | None:
    """The id of a special token, `None` for one outside the vocabulary.

    The tokenizer, which has the same key, warns of it.

    Raises:
      WeightsError: for anything but an integer.
    """
    name = f"tokenizer.ggml.{key}"
    value = self.values.get(name)
    if value is None:
      return None
    if not isinstance(value, int) or isinstance(value, bool):
      raise WeightsError(
        f"{self.where}: {name} must be a token id, got {value!r:.40}"
      )
    return value if 0 <= value < size else None

  def need(self, key: str, kind: type) -> Any:
    """As `get`, of a key that must be there."""
    value = self.get(key, kind)
    if value is None:
      raise WeightsError(f"{self.where}: {self.architecture}.{key} is missing")
    return value


# Under `{architecture}.rope.`. The last two only have a say in YaRN, which
# `_scaling` refuses.
_ROPE_KEYS = (
  "dimension_count",
  "freq_base",
  "scale_linear",
  "scaling.type",
  "scaling.factor",
  "scaling.original_context_length",
  "scaling.finetuned",
)


def check_rope_keys(read: Metadata, more: tuple[str, ...] = ()) -> None:
  """Refuses a key about RoPE that is not read: it would change the function.

  Args:
    read: the metadata.
    more: the keys that the family reads beside the common ones.
  """
  prefix = f"{read.architecture}.rope."
  for name in read.values:
    key = name.removeprefix(prefix)
    if name.startswith(prefix) and key not in (*_ROPE_KEYS, *more):
      raise WeightsError(
        f"{read.where}: {name}={read.values[name]!r:.80} is not supported"
      )


def common_fields(read: Metadata, file: GGUFFile) -> dict[str, Any]:
  """Fields of `ModelConfig` that every architecture's file tells alike."""
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

  def has(name: str) -> bool:
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
    # No key tells whether the embedding is tied, or which maps have biases: the
    # tensors that are there do.
    "tie_embeddings": "output.weight" not in file.tensors,
    "qkv_bias": has("attn_q.bias") or has("attn_qkv.bias"),
    "out_bias": has("attn_output.bias"),
    "mlp_bias": has("ffn_up.bias"),
    "bos_id": read.token("bos_token_id", int(embed.shape[0])),
    "eos_id": read.token("eos_token_id", int(embed.shape[0])),
  }


def _scaling(read: Metadata, file: GGUFFile, dim: int) -> RopeScaling | None:
  factor = _linear_factor(read)
  # llama.cpp's converter stores Llama 3's scaling as a table of factors,
  # without a type.
  if "rope_freqs.weight" in file.tensors:
    if file.tensors["rope_freqs.weight"].shape != (dim // 2,):
      raise WeightsError(
        f"{read.where}: tensor 'rope_freqs.weight' must have {dim // 2} entries"
      )
    factors = read_tensor(file, "rope_freqs.weight")
    if not np.all(factors > 0):
      raise WeightsError(f"{read.where}: 'rope_freqs.weight' not positive")
    both = tuple(float(f) * factor for f in factors)
    return RopeScaling("factors", factors=both)
  return None if factor == 1 else RopeScaling("linear", factor=factor)


def _linear_factor(read: Metadata) -> float:
  """What positions are divided by, as llama.cpp reads it.

  A factor without a type is linear, files of 2023 have it under another key,
  and none, or 0, stands for 1.
  """
  kind = read.get("rope.scaling.type", str, "linear")
  if kind not in ("none", "linear"):
    raise WeightsError(
      f"{read.where}: unknown RoPE scaling {kind!r}; known: none, linear"
    )
  factor = read.get("rope.scaling.factor", float)
  if factor is None:
    factor = read.get("rope.scale_linear", float, 0.0)
  if not (math.isfinite(factor) and factor >= 0):
    raise WeightsError(f"{read.where}: RoPE scaling factor {factor}")
  return 1.0 if kind == "none" or factor == 0 else factor


def gguf_tensors(
  cfg: ModelConfig, *, interleaved_rope: bool = False
) -> list[Leaf]:
  """llama.cpp's names, queries, keys and values each a tensor.

  Args:
    cfg: the model.
    interleaved_rope: whether the converter permutes the rows of queries and
      keys; see `layout.Vector`.
  """
  found = []
  for letter in "qkv":
    found += linear(
      f"attn/{letter}",
      f"{_AT}attn_{letter}",
      cfg.qkv_bias,
      interleaved_rope=interleaved_rope and letter in "qk",
    )
  return found + _all_but_qkv(cfg)


def gguf_tensors_fused(cfg: ModelConfig) -> list[Leaf]:
  """llama.cpp's names, queries, keys and values in one tensor."""
  found = fused_qkv(f"{_AT}attn_qkv", cfg.qkv_bias, FusedThirds)
  return found + _all_but_qkv(cfg)


def _all_but_qkv(cfg: ModelConfig) -> list[Leaf]:
  """llama.cpp's names of all but queries, keys and values."""
  names = {
    "blocks/attn_norm": f"{_AT}attn_norm",
    "blocks/mlp_norm": f"{_AT}ffn_norm",
    "final_norm": "output_norm",
  }
  if cfg.shared_norm:
    del names["blocks/mlp_norm"]
  if cfg.post_norms:
    names["blocks/attn_post_norm"] = f"{_AT}post_attention_norm"
    names["blocks/mlp_post_norm"] = f"{_AT}post_ffw_norm"
  if cfg.qk_norm:
    names["blocks/attn/q_norm"] = f"{_AT}attn_q_norm"
    names["blocks/attn/k_norm"] = f"{_AT}attn_k_norm"
  found = norms(names, bias=cfg.norm == "layer", offset=cfg.norm_offset)
  found += linear("attn/o", f"{_AT}attn_output", cfg.out_bias)
  for part in ("gate", "up", "down") if cfg.gated_mlp else ("up", "down"):
    found += linear(f"mlp/{part}", f"{_AT}ffn_{part}", cfg.mlp_bias)
  return found + tables(cfg, "token_embd", "output", "position_embd")
