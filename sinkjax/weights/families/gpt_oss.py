"""gpt-oss: a learned sink in each head, experts, and a window in every other
layer.

Gates and what they open lie in turn in one tensor of all experts. Files are in
16 bits or, as OpenAI publishes them, in MXFP4.
"""

import functools
from typing import Any

from sinkjax.config import ModelConfig
from sinkjax.weights.families import llama
from sinkjax.weights.families._config import (
  decoder_values,
  expert_fields,
  expert_values,
  window_fields,
  window_values,
)
from sinkjax.weights.families._family import Family, Fields, Gguf, register
from sinkjax.weights.families._gguf import (
  Metadata,
  expert_gguf,
  gguf_tensors,
  window_gguf,
)
from sinkjax.weights.families._gguf_rope import YARN_KEYS, yarn_scaling
from sinkjax.weights.families._reader import Reader
from sinkjax.weights.families._tensors import decoder_tensors, linear
from sinkjax.weights.fused_layouts import Alternating
from sinkjax.weights.layout import Layout, Leaf
from sinkjax.weights.validate import WeightsError

# Of transformers' GptOssConfig.
_DEFAULTS = {
  "vocab_size": 201088,
  "hidden_size": 2880,
  "intermediate_size": 2880,
  "num_hidden_layers": 36,
  "num_attention_heads": 64,
  "num_key_value_heads": 8,
  "head_dim": 64,
  "max_position_embeddings": 131072,
  "rms_norm_eps": 1e-5,
  "sliding_window": 128,
  "attention_bias": True,
  "num_local_experts": 128,
  "num_experts_per_tok": 4,
}
_ROPE = {
  "rope_type": "yarn",
  "factor": 32.0,
  "beta_fast": 32.0,
  "beta_slow": 1.0,
  "truncate": False,
  "original_max_position_embeddings": 4096,
}
_COUNT = "num_local_experts"
# The slope of the sigmoid in `quick_gelu`.
_ALPHA = 1.702


def read_config(read: Reader) -> dict[str, Any]:
  """See `Family`."""
  if read.get("swiglu_alpha", float, _ALPHA) != _ALPHA:
    raise WeightsError(
      f"{read.where}: swiglu_alpha={read.values['swiglu_alpha']!r} is not "
      f"supported, only {_ALPHA}"
    )
  if not (
    read.values.get("rope_parameters") or read.values.get("rope_scaling")
  ):
    read = Reader(read.values | {"rope_parameters": _ROPE}, read.where)
  fields = llama.read_config(read, rope_base=150000.0)
  return (
    fields
    | expert_fields(read, _COUNT)
    | {
      "sink_logit": True,
      "norm_topk": True,
      "mlp_bias": True,
      "router_bias": True,
      "activation": "quick_gelu",
      "mlp_clamp": read.get("swiglu_limit", float, 7.0),
      "up_offset": 1.0,
    }
    | window_fields(read, fields["n_layers"], lambda i: i % 2 == 0)
  )


def write_config(cfg: ModelConfig) -> dict[str, Any]:
  """See `Family`."""
  values = decoder_values(cfg) | window_values(cfg) | expert_values(cfg, _COUNT)
  # Without a scaling, transformers takes this family's own.
  scaling = values.pop("rope_scaling") or {"rope_type": "default"}
  base = values.pop("rope_theta")
  return values | {
    "hidden_act": "silu",
    "swiglu_limit": cfg.mlp_clamp,
    "rope_parameters": scaling | {"rope_theta": base},
  }


def tensors(cfg: ModelConfig) -> list[Leaf]:
  """See `Family`."""
  at, ours = "model.layers.{i}.mlp", "blocks/mlp/expert_"
  experts = linear("mlp/router", f"{at}.router", True)
  for end, suffix in (("kernel", ""), ("bias", "_bias")):
    for index, part in enumerate(("gate", "up")):
      name = f"{at}.experts.gate_up_proj{suffix}"
      layout = Alternating(Layout(), index)
      experts.append(Leaf(f"{ours}{part}/{end}", name, layout))
    name = f"{at}.experts.down_proj{suffix}"
    experts.append(Leaf(f"{ours}down/{end}", name, Layout()))
  return decoder_tensors(cfg, experts=experts)


def read_gguf(read: Metadata, fields: Fields) -> Fields:
  """See `Gguf`; the clip and the offset are constants of llama.cpp."""
  return (
    expert_gguf(read, norm_topk=True)
    | {
      "d_ff": read.need("expert_feed_forward_length", int),
      "sink_logit": True,
      "mlp_bias": True,
      "router_bias": True,
      "activation": "quick_gelu",
      "mlp_clamp": 7.0,
      "up_offset": 1.0,
    }
    | window_gguf(read, fields["n_layers"], 2)
  )


register(
  Family(
    name="gpt_oss",
    transformers_class="GptOssForCausalLM",
    not_read="another slope of the gate than 1.702",
    read_config=read_config,
    write_config=write_config,
    defaults=_DEFAULTS,
    aliases={"num_experts": _COUNT},
    tensors=tensors,
    gguf=Gguf(
      architecture="gpt-oss",
      tensors=functools.partial(gguf_tensors, mlp_norm="post_attention_norm"),
      read_config=read_gguf,
      rope_keys=YARN_KEYS,
      # llama.cpp rounds the ramp's ends to whole dimensions, and has the same
      # for every other; this family was trained without.
      rope_scaling=functools.partial(yarn_scaling, truncate=False),
    ),
  )
)
