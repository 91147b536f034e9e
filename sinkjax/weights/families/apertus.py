"""Apertus: norms on each query and key, and xIELU without a gate.

Without keys about RoPE it has Llama 3's scaling of a context of 8192.
"""

from typing import Any

import numpy as np

from sinkjax.config import ModelConfig
from sinkjax.weights.families import llama
from sinkjax.weights.families._config import decoder_values
from sinkjax.weights.families._family import Family, Fields, Gguf, register
from sinkjax.weights.families._gguf import Metadata, gguf_tensors
from sinkjax.weights.families._reader import Reader
from sinkjax.weights.families._tensors import decoder_tensors, renamed
from sinkjax.weights.layout import Leaf
from sinkjax.weights.validate import WeightsError

# Of transformers' ApertusConfig.
_DEFAULTS = {
  "vocab_size": 131072,
  "hidden_size": 4096,
  "intermediate_size": 14336,
  "num_hidden_layers": 32,
  "num_attention_heads": 32,
  "max_position_embeddings": 65536,
}
_ROPE_BASE = 1.2e7
_ROPE = {
  "rope_type": "llama3",
  "rope_theta": _ROPE_BASE,
  "factor": 8.0,
  "original_max_position_embeddings": 8192,
  "low_freq_factor": 1.0,
  "high_freq_factor": 4.0,
}
# Of xIELU, here and in transformers.
_FIXED = {"beta": 0.5, "eps": -1e-6}
_NORMS = {
  ".input_layernorm.": ".attention_layernorm.",
  ".post_attention_layernorm.": ".feedforward_layernorm.",
}


def read_config(read: Reader) -> dict[str, Any]:
  """See `Family`."""
  keys = ("rope_parameters", "rope_scaling")
  if all(read.values.get(key) is None for key in keys):
    read = Reader({**read.values, "rope_parameters": _ROPE}, read.where)
  fields = llama.read_config(
    read, eps_default=1e-5, rope_base=_ROPE_BASE, activation="xielu"
  )
  if fields["activation"] != "xielu":
    raise WeightsError(
      f"{read.where}: hidden_act={read.values['hidden_act']!r:.40}, other than "
      "xielu, is not supported"
    )
  return fields | {"gated_mlp": False, "mlp_bias": False, "qk_norm": True}


def write_config(cfg: ModelConfig) -> dict[str, Any]:
  """See `Family`."""
  values = decoder_values(cfg)
  if cfg.rope_scaling is None:
    # Nothing at all would mean the family's own.
    plain = {"rope_type": "default", "rope_theta": cfg.rope_base}
    values["rope_parameters"] = plain
    del values["rope_theta"], values["rope_scaling"]
  # The class's own may lie outside the vocabulary.
  return values | {"pad_token_id": None}


def tensors(cfg: ModelConfig) -> list[Leaf]:
  """See `Family`."""
  found = renamed(decoder_tensors(cfg), _NORMS)
  for name in ("alpha_p", "alpha_n"):
    theirs = f"model.layers.{{i}}.mlp.act_fn.{name}"
    found.append(Leaf(f"blocks/mlp/{name}", theirs))
  return found


def tensors_gguf(cfg: ModelConfig) -> list[Leaf]:
  """See `Gguf`; the parameters of xIELU are keys of the metadata."""
  return gguf_tensors(cfg) + [
    Leaf(f"blocks/mlp/{name}", f"xielu.{name}.{{i}}")
    for name in ("alpha_p", "alpha_n")
  ]


def read_gguf(read: Metadata, fields: Fields) -> Fields:
  """See `Gguf`; beta and epsilon are not parameters here."""
  for key, ours in _FIXED.items():
    values = np.atleast_1d(read.values.get(f"xielu.{key}", ours))
    if values.dtype.kind != "f" or not np.allclose(
      values, ours, rtol=1e-3, atol=0
    ):
      raise WeightsError(
        f"{read.where}: xielu.{key}={values!r:.80} is not supported, only "
        f"{ours}"
      )
  return {"gated_mlp": False, "activation": "xielu", "qk_norm": True}


register(
  Family(
    name="apertus",
    transformers_class="ApertusForCausalLM",
    not_read=(
      "another activation than xIELU, and in GGUF files xIELU of other "
      "constants"
    ),
    read_config=read_config,
    write_config=write_config,
    defaults=_DEFAULTS,
    ignored_tensors=(r"\.mlp\.act_fn\.(beta|eps)$",),
    constants={
      f"model.layers.{{i}}.mlp.act_fn.{name}": value
      for name, value in _FIXED.items()
    },
    tensors=tensors,
    gguf=Gguf(
      architecture="apertus",
      tensors=tensors_gguf,
      read_config=read_gguf,
      numbers=("xielu.alpha_p", "xielu.alpha_n"),
    ),
  )
)
