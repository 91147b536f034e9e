"""Gemma 2: Gemma with norms behind each branch, soft caps and local layers."""

from typing import Any

from sinkjax.config import ModelConfig
from sinkjax.weights.families import gemma
from sinkjax.weights.families._config import window_fields, window_values
from sinkjax.weights.families._family import Family, Fields, Gguf, register
from sinkjax.weights.families._gguf import Metadata, gguf_tensors, window_gguf
from sinkjax.weights.families._reader import Reader
from sinkjax.weights.families._tensors import decoder_tensors
from sinkjax.weights.validate import WeightsError

# Of transformers' Gemma2Config.
_DEFAULTS = {
  "vocab_size": 256000,
  "hidden_size": 2304,
  "intermediate_size": 9216,
  "num_hidden_layers": 26,
  "num_attention_heads": 8,
  "max_position_embeddings": 8192,
  "num_key_value_heads": 4,
  "head_dim": 256,
  "sliding_window": 4096,
  "attn_logit_softcapping": 50.0,
  "final_logit_softcapping": 30.0,
}


def read_config(
  read: Reader, pattern: int = 2, rope_base: float = 1e4
) -> dict[str, Any]:
  """See `Family`; every `pattern`th layer sees the whole context."""
  fields = gemma.read_config(read, rope_base)
  pattern = read.get("sliding_window_pattern", int, pattern)
  scalar = read.get("query_pre_attn_scalar", float, 256.0)
  if not scalar > 0:
    raise WeightsError(
      f"{read.where}: query_pre_attn_scalar must be positive, got {scalar}"
    )
  return (
    fields
    | {
      # Only Gemma 1 reads `hidden_act`, which published configs still have.
      "activation": read.activation(
        "hidden_activation", default="gelu_pytorch_tanh"
      ),
      "post_norms": True,
      "attn_scale": scalar**-0.5,
      "attn_softcap": read.get("attn_logit_softcapping", float),
      "logit_softcap": read.get("final_logit_softcapping", float),
    }
    | window_fields(read, fields["n_layers"], lambda i: (i + 1) % pattern != 0)
  )


def write_config(cfg: ModelConfig) -> dict[str, Any]:
  """See `Family`."""
  # What was a whole number is written as one, as published configs have it:
  # the root and back leave an error of 1e-15 or so.
  scalar = round(cfg.score_scale**-2, 6)
  return (
    gemma.write_config(cfg)
    | window_values(cfg)
    | {
      "query_pre_attn_scalar": int(scalar) if scalar % 1 == 0 else scalar,
      "attn_logit_softcapping": cfg.attn_softcap,
      "final_logit_softcapping": cfg.logit_softcap,
    }
  )


def read_gguf(read: Metadata, fields: Fields, pattern: int = 2) -> Fields:
  """See `Gguf`."""
  return gemma.read_gguf(read, fields) | {
    "post_norms": True,
    **window_gguf(read, fields["n_layers"], pattern),
    "attn_scale": attn_scale(fields, layers_27b=46),
    "attn_softcap": read.get("attn_logit_softcapping", float, 50.0),
    "logit_softcap": read.get("final_logit_softcapping", float, 30.0),
  }


def attn_scale(fields: Fields, layers_27b: int) -> float:
  """GGUF does not store it: of each version only the 27B has D / H."""
  if fields["n_layers"] == layers_27b:
    return (fields["d_model"] / fields["n_heads"]) ** -0.5
  return fields["head_dim"] ** -0.5


register(
  Family(
    name="gemma2",
    transformers_class="Gemma2ForCausalLM",
    read_config=read_config,
    write_config=write_config,
    defaults=_DEFAULTS,
    tensors=decoder_tensors,
    gguf=Gguf(
      architecture="gemma2", tensors=gguf_tensors, read_config=read_gguf
    ),
  )
)
