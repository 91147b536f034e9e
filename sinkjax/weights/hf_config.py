"""Hugging Face's `config.json` to `ModelConfig` and back, by the family."""

import dataclasses
import math
from typing import Any

from sinkjax.config import ModelConfig
from sinkjax.weights import families, unsupported
from sinkjax.weights.families._reader import Reader
from sinkjax.weights.quantised import refuse_quantised
from sinkjax.weights.validate import WeightsError, warn

# Switches that change the function and that we do not implement: the value
# that they must have, where they are there at all.
_FIXED = {
  "scale_attn_weights": True,
  "scale_attn_by_inverse_layer_idx": False,
  "add_cross_attention": False,
  "is_encoder_decoder": False,
  "use_bidirectional_attention": False,
}
# What a multimodal model may say outside its `text_config`.
_SHARED = ("model_type", "tie_word_embeddings", "bos_token_id", "eos_token_id")
# How a model is run, not what it is: no `config.json` says it.
_RUNTIME = frozenset(
  ["dtype", "precision", "scan_layers", "attention", "remat", "init_std"]
)


def config_from_hf(values: Any, where: str) -> ModelConfig:
  """The config that a `config.json` describes.

  Args:
    values: the parsed JSON object.
    where: the file, for messages.

  Raises:
    WeightsError: for an unknown `model_type`, RoPE scaling or switch, or a
      value of the wrong type or size.
  """
  if not isinstance(values, dict):
    raise WeightsError(f"{where}: expected a JSON object")
  refuse_quantised(values, where)
  unsupported.refuse_wrapper(values, where)
  if isinstance(values.get("text_config"), dict):  # of a multimodal model
    shared = {key: values[key] for key in _SHARED if key in values}
    values = {**shared, **values["text_config"]}
    refuse_quantised(values, where)
  family = families.find(values.get("model_type"))
  if family is None:
    unsupported.refuse(values.get("model_type"), where)
  named = {family.aliases.get(key, key): v for key, v in values.items()}
  values = {**family.defaults, **named}
  read = Reader(values, where)
  for key, value in _FIXED.items():
    if values.get(key) not in (None, value):
      raise WeightsError(f"{where}: {key}={values[key]!r} is not supported")
  try:
    fields = family.read_config(read)
    return ModelConfig(
      **fields,
      model_type=family.name,
      bos_id=_special(read, "bos_token_id", fields["vocab_size"]),
      eos_id=_special(read, "eos_token_id", fields["vocab_size"]),
    )
  except WeightsError:
    raise
  except ArithmeticError as error:  # as of a period of 0 layers
    raise read.refused(error) from None
  except ValueError as error:  # of the config, which names its field
    raise WeightsError(f"{where}: {error}") from None


def _special(read: Reader, key: str, size: int) -> int | None:
  """A special token's id; one outside the vocabulary is none, and a warning.

  Models with a vocabulary of their own often keep the default ids of the class
  (50256 of GPT-2), which then mean nothing.
  """
  token = read.token(key)
  if token is None or 0 <= token < size:
    return token
  warn(
    f"{read.where}: {key} {token!r:.40} is outside the vocabulary of {size}: "
    "ignored"
  )
  return None


def config_to_hf(cfg: ModelConfig) -> dict[str, Any]:
  """A `config.json` that transformers reads as the same function.

  Raises:
    ValueError: where no family of ours can express `cfg`; checked by reading
      the result back.
  """
  family = families.FAMILIES.get(cfg.model_type)
  if family is None:
    raise ValueError(
      f"model_type {cfg.model_type!r} has no Hugging Face form; known: "
      f"{sorted(families.FAMILIES)}"
    )
  values = {
    "model_type": family.name,
    "architectures": [family.transformers_class],
    **family.write_config(cfg),
    "bos_token_id": cfg.bos_id,
    "eos_token_id": cfg.eos_id,
    "tie_word_embeddings": cfg.tie_embeddings,
    "torch_dtype": "float32",
  }
  back = config_from_hf(values, "the exported config")
  mine, theirs = dataclasses.asdict(cfg), dataclasses.asdict(back)
  for name, value in mine.items():
    if name in _RUNTIME or theirs[name] == value:
      continue
    # The file has a power of it, which comes back with an error of rounding.
    if name == "attn_scale" and math.isclose(back.score_scale, cfg.score_scale):
      continue
    if name == "logit_scale" and math.isclose(value, theirs[name]):
      continue
    if name == "rope_dim" and back.rotary_dim == cfg.rotary_dim:
      continue
    raise ValueError(
      f"a {cfg.model_type} config.json cannot express {name}={value!r}"
    )
  return values
