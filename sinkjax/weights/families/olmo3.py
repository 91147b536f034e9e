"""OLMo 3: OLMo 2 with a window in three of four layers.

RoPE is scaled in the layers that see the whole context alone.
"""

from typing import Any

from sinkjax.config import ModelConfig
from sinkjax.weights.families import olmo2
from sinkjax.weights.families._config import (
  decoder_values,
  window_fields,
  window_values,
)
from sinkjax.weights.families._family import Family, Fields, Gguf, register
from sinkjax.weights.families._gguf import Metadata, gguf_tensors, window_gguf
from sinkjax.weights.families._gguf_rope import YARN_KEYS, yarn_scaling
from sinkjax.weights.families._reader import Reader
from sinkjax.weights.families._tensors import decoder_tensors
from sinkjax.weights.validate import WeightsError

# Of transformers' Olmo3Config.
_DEFAULTS = olmo2.DEFAULTS | {"sliding_window": 4096}


def read_config(read: Reader) -> dict[str, Any]:
  """See `Family`."""
  fields = olmo2.read_config(read, rope_base=5e5)
  both = Reader(read.get("rope_parameters", dict, {}), read.where)
  sliding = Reader(both.get("sliding_attention", dict, {}), read.where)
  if sliding.get("rope_type", str, "default") != "default":
    raise WeightsError(f"{read.where}: scaled RoPE in local layers")
  return (
    fields
    | {"rope_local_base": sliding.get("rope_theta", float, fields["rope_base"])}
    | window_fields(read, fields["n_layers"], lambda i: (i + 1) % 4 != 0)
  )


def write_config(cfg: ModelConfig) -> dict[str, Any]:
  """See `Family`."""
  values = decoder_values(cfg) | window_values(cfg)
  base = values.pop("rope_theta")
  scaling = values.pop("rope_scaling") or {"rope_type": "default"}
  # Where the older keys are used, transformers gives local layers a base of
  # 5e5, whatever `rope_theta` says.
  values["rope_parameters"] = {
    "full_attention": scaling | {"rope_theta": base},
    "sliding_attention": {
      "rope_type": "default",
      "rope_theta": cfg.rope_local_base,
    },
  }
  return values


def read_gguf(read: Metadata, fields: Fields) -> Fields:
  """See `Gguf`; local layers rotate unscaled."""
  base = fields["rope_base"]
  return (
    olmo2.read_gguf(read, fields)
    | {"rope_local_base": read.get("rope.freq_base_swa", float, base)}
    | window_gguf(read, fields["n_layers"], 4)
  )


register(
  Family(
    name="olmo3",
    transformers_class="Olmo3ForCausalLM",
    not_read="RoPE that is scaled in local layers",
    read_config=read_config,
    write_config=write_config,
    defaults=_DEFAULTS,
    tensors=decoder_tensors,
    gguf=Gguf(
      architecture="olmo2",
      tensors=gguf_tensors,
      read_config=read_gguf,
      marked_by="attention.sliding_window",
      rope_keys=(*YARN_KEYS, "scaling.yarn_attn_factor", "freq_base_swa"),
      rope_scaling=yarn_scaling,
    ),
  )
)
