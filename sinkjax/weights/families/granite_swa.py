"""Granite SWA: Granite with a learned sink in each head and a window in most
layers, every fourth but the first by default.

Each layer has its own base of RoPE, and rotates nothing where that is 0.
transformers returns weights that sum to one and scales what they mix, which is
the same output; here the sink takes its weight from the row.
"""

import math
from typing import Any

from sinkjax.config import ModelConfig
from sinkjax.weights.families import granite
from sinkjax.weights.families._config import window_fields, window_values
from sinkjax.weights.families._family import Family, register
from sinkjax.weights.families._reader import Reader
from sinkjax.weights.families._rope import rotated_layers
from sinkjax.weights.families._tensors import decoder_tensors
from sinkjax.weights.validate import WeightsError

# Of transformers' GraniteSWAConfig.
_DEFAULTS = {
  "vocab_size": 100352,
  "hidden_size": 2560,
  "intermediate_size": 8192,
  "num_hidden_layers": 24,
  "num_attention_heads": 20,
  "num_key_value_heads": 4,
  "max_position_embeddings": 8192,
  "rms_norm_eps": 1e-5,
  "sliding_window": 128,
}


def read_config(read: Reader) -> dict[str, Any]:
  """See `Family`."""
  fields = granite.read_config(read, tied=True)
  layers = fields["n_layers"]
  return (
    fields
    | {"sink_logit": True}
    | _bases(read, fields["rope_base"], layers)
    | window_fields(read, layers, lambda i: i % 4 != 0)
  )


def _bases(read: Reader, base: float, layers: int) -> dict[str, Any]:
  """Which layers rotate, and by which bases."""
  listed = read.get("layer_rope_theta", list)
  if listed is None:
    return {}
  if len(listed) < layers or not all(map(_is_base, listed)):
    raise WeightsError(
      f"{read.where}: layer_rope_theta must be {layers} numbers from 0 on"
    )
  rotated = tuple(bool(one) for one in listed[:layers])
  bases = tuple(float(one or base) for one in listed[:layers])
  return {
    "rope_layers": rotated_layers(rotated),
    "rope_bases": () if set(bases) == {base} else bases,
  }


def _is_base(value: Any) -> bool:
  number = isinstance(value, (int, float)) and not isinstance(value, bool)
  return number and math.isfinite(value) and value >= 0


def write_config(cfg: ModelConfig) -> dict[str, Any]:
  """See `Family`."""
  rotated = cfg.rope_layers or (True,) * cfg.n_layers
  bases = cfg.rope_bases or (cfg.rope_base,) * cfg.n_layers
  return (
    granite.write_config(cfg)
    | window_values(cfg)
    | {
      "layer_rope_theta": [
        base if turned else 0
        for base, turned in zip(bases, rotated, strict=True)
      ]
    }
  )


register(
  Family(
    name="granite_swa",
    transformers_class="GraniteSWAForCausalLM",
    read_config=read_config,
    write_config=write_config,
    defaults=_DEFAULTS,
    tensors=decoder_tensors,
  )
)
