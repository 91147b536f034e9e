"""GPT-Neo: GPT-2 whose scores are not scaled, with local layers in turn."""

from typing import Any

from sinkjax.config import ModelConfig
from sinkjax.field_checks import MAX_LAYERS
from sinkjax.weights.families import gpt2
from sinkjax.weights.families._config import head_dim
from sinkjax.weights.families._family import Family, register
from sinkjax.weights.families._reader import ACTIVATION_NAMES, Reader
from sinkjax.weights.families._tensors import linear
from sinkjax.weights.layout import Leaf
from sinkjax.weights.validate import WeightsError

# Of transformers' GPTNeoConfig.
_DEFAULTS = {
  "vocab_size": 50257,
  "hidden_size": 2048,
  "num_layers": 24,
  "num_heads": 16,
  "max_position_embeddings": 2048,
  "attention_types": [[["global", "local"], 12]],
}
_KINDS = {"global": False, "local": True}


def _local_layers(read: Reader, n_layers: int) -> tuple[bool, ...]:
  """Which layers are local: kinds, and how often each list of them comes."""
  local: list[bool] = []
  types = read.need("attention_types", list)
  try:
    for kinds, times in types:
      if not 0 <= times <= MAX_LAYERS:
        raise ValueError(f"{times} times")
      local += [_KINDS[kind] for kind in kinds] * times
  except (TypeError, ValueError, KeyError):
    raise WeightsError(
      f"{read.where}: attention_types={types!r:.80} must have entries as "
      '[["global", "local"], 12]'
    ) from None
  if len(local) != n_layers:
    raise WeightsError(
      f"{read.where}: attention_types={types!r:.80} are {len(local)} layers, "
      f"not num_layers={n_layers}"
    )
  return tuple(local) if any(local) else ()


def read_config(read: Reader) -> dict[str, Any]:
  """See `Family`."""
  width, heads = read.need("hidden_size", int), read.need("num_heads", int)
  layers = read.need("num_layers", int)
  return {
    "vocab_size": read.need("vocab_size", int),
    "d_model": width,
    "n_layers": layers,
    "n_heads": heads,
    "n_kv_heads": heads,
    "head_dim": head_dim(read, width, heads),
    "d_ff": read.get("intermediate_size", int, 4 * width),
    "max_len": read.need("max_position_embeddings", int),
    "norm": "layer",
    "norm_eps": read.get("layer_norm_epsilon", float, 1e-5),
    "out_bias": True,
    "gated_mlp": False,
    "mlp_bias": True,
    "activation": read.activation("activation_function", default="gelu_new"),
    "positions": "learned",
    "attn_scale": 1.0,
    "window": read.get("window_size", int, 256),
    "local_layers": _local_layers(read, layers),
    "tie_embeddings": read.get("tie_word_embeddings", bool, True),
  }


def write_config(cfg: ModelConfig) -> dict[str, Any]:
  """See `Family`."""
  local = cfg.local_layers or (False,) * cfg.n_layers
  return {
    "vocab_size": cfg.vocab_size,
    "hidden_size": cfg.d_model,
    "num_layers": cfg.n_layers,
    "num_heads": cfg.n_heads,
    "intermediate_size": cfg.d_ff,
    "max_position_embeddings": cfg.max_len,
    "layer_norm_epsilon": cfg.norm_eps,
    "activation_function": ACTIVATION_NAMES[cfg.activation],
    "window_size": cfg.window,
    "attention_types": [[["local" if x else "global" for x in local], 1]],
  }


def tensors(cfg: ModelConfig) -> list[Leaf]:
  """See `Family`."""
  inner, attention = f"{gpt2.AT}attn.attention.", []
  for part in "qkv":
    attention += linear(f"attn/{part}", f"{inner}{part}_proj", cfg.qkv_bias)
  attention += linear("attn/o", f"{inner}out_proj", True)
  return gpt2.tensors_around(attention, cfg)


register(
  Family(
    name="gpt_neo",
    transformers_class="GPTNeoForCausalLM",
    tokenizer="GPT2Tokenizer",
    read_config=read_config,
    write_config=write_config,
    defaults=_DEFAULTS,
    aliases={
      "num_attention_heads": "num_heads",
      "num_hidden_layers": "num_layers",
    },
    optional_prefix="transformer.",
    # Old checkpoints carry their masks under this module's name.
    ignored_tensors=(r"\.attn\.attention\.(masked_)?bias$",),
    tensors=tensors,
  )
)
