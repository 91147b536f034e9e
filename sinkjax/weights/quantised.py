"""Hugging Face folders whose weights are quantised, told by `config.json`.

Two forms are read, see `dequantised`; the others are refused by their name.

Their tensors have other names, types and shapes than a model's, so that without
this the first error would be about a tensor and not about the cause.
"""

from typing import Any

from sinkjax.weights.validate import WeightsError

# Where tools say it: transformers, MLX, and compressed-tensors before 2024.
_KEYS = ("quantization_config", "quantization", "compression_config")
_NAMES = {
  "awq": "AWQ",
  "bitsandbytes": "bitsandbytes",
  "compressed-tensors": "compressed-tensors",
  "fp8": "blocks of fp8",
  "gptq": "GPTQ",
  "mlx": "MLX",
  "mxfp4": "MXFP4",
}


READ = ("fp8", "mxfp4")
"""Methods that `sinkjax.weights.dequantised` reads."""


def stated(values: dict[str, Any]) -> dict[str, Any] | None:
  """What a config says of its quantised weights, where these are read."""
  inner = values.get("text_config")
  for place in (values, inner if isinstance(inner, dict) else {}):
    found = place.get(_KEYS[0])
    if isinstance(found, dict) and found.get("quant_method") in READ:
      return found
  return None


def refuse_quantised(values: dict[str, Any], where: str) -> None:
  """Refuses a config that says that its weights are in a form not read.

  Args:
    values: the parsed `config.json`.
    where: the file, for messages.

  Raises:
    WeightsError: naming the kind, and what to use instead.
  """
  for key in _KEYS:
    stated = values.get(key)
    if not stated:  # not there, `null`, or empty as after dequantising
      continue
    if not isinstance(stated, dict):
      raise WeightsError(
        f"{where}: {key} must be an object, got {stated!r:.80}"
      )
    kind = _kind(key, stated)
    if key == _KEYS[0] and kind in READ:
      continue
    raise WeightsError(
      f"{where}: the weights are quantised ({_NAMES.get(kind, kind)}"
      f"{_bits(stated)}), and this form is not read; use the original "
      "checkpoint in 16 or 32 bits, or a GGUF file of the model"
    )


def _kind(key: str, stated: dict[str, Any]) -> str:
  """The method; two tools do not name theirs."""
  method = stated.get("quant_method")
  if isinstance(method, str):
    return method[:80]
  if key == "compression_config":
    return "compressed-tensors"
  if stated.get("load_in_4bit") or stated.get("load_in_8bit"):
    return "bitsandbytes"
  # MLX repeats its group size and bits under the key of transformers.
  if "group_size" in stated and "bits" in stated:
    return "mlx"
  return f"{key} of an unknown kind"


def _bits(stated: dict[str, Any]) -> str:
  for bits in (4, 8):
    if stated.get(f"load_in_{bits}bit") is True:
      return f", {bits} bits"
  bits = stated.get("bits", stated.get("w_bit"))
  return f", {bits} bits" if type(bits) is int else ""
