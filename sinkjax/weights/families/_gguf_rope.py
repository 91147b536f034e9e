"""RoPE in the metadata of GGUF files, as llama.cpp reads it."""

import math

import numpy as np

from sinkjax.config import RopeScaling
from sinkjax.weights.families._metadata import Metadata
from sinkjax.weights.families._rope import mscale
from sinkjax.weights.formats.gguf import GGUFFile, read_tensor
from sinkjax.weights.validate import WeightsError

# Under `{architecture}.rope.`. The last two only have a say in YaRN, which
# `scaling` refuses unless the family has it.
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


def scaling(read: Metadata, file: GGUFFile, dim: int) -> RopeScaling | None:
  """Linear scaling and Llama 3's, which every architecture may have."""
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


YARN_KEYS = ("scaling.yarn_beta_fast", "scaling.yarn_beta_slow")
"""Under `{architecture}.rope.`: those of `yarn_scaling` alone."""


def yarn_scaling(
  read: Metadata, file: GGUFFile, dim: int, *, truncate: bool = True
) -> RopeScaling | None:
  """YaRN or what `scaling` reads.

  Args:
    read: the metadata.
    file: the tensors beside it.
    dim: rotated dimensions of a head.
    truncate: see `RopeScaling`; no key says it.
  """
  if read.get("rope.scaling.type", str) != "yarn":
    return scaling(read, file, dim)
  factor = read.need("rope.scaling.factor", float)
  larger = mscale(factor)
  said = read.get("rope.scaling.yarn_attn_factor", float, larger)
  # llama.cpp does not look at it; files have it rounded to 32 bits.
  if not math.isclose(said, larger, rel_tol=1e-5):
    raise WeightsError(
      f"{read.where}: rope.scaling.yarn_attn_factor={said} is not supported, "
      f"only {larger}"
    )
  length = read.need("context_length", int)
  return RopeScaling(
    "yarn",
    factor=factor,
    original_max_len=read.get(
      "rope.scaling.original_context_length", int, length
    ),
    beta_fast=read.get("rope.scaling.yarn_beta_fast", float, 32.0),
    beta_slow=read.get("rope.scaling.yarn_beta_slow", float, 1.0),
    truncate=truncate,
    attention=larger,
  )


LONGROPE_KEYS = ("scaling.attn_factor",)
LONGROPE_TENSORS = ("rope_factors_long.weight", "rope_factors_short.weight")
"""What `longrope_scaling` alone reads."""


def longrope_scaling(
  read: Metadata, file: GGUFFile, dim: int
) -> RopeScaling | None:
  """LongRoPE, by tensors of factors, or what `scaling` reads."""
  plain = scaling(read, file, dim)
  attention = read.get("rope.scaling.attn_factor", float, 1.0)
  shapes = [
    file.tensors[name].shape
    for name in LONGROPE_TENSORS
    if name in file.tensors
  ]
  if not shapes:
    if attention != 1:
      raise WeightsError(
        f"{read.where}: rope.scaling.attn_factor={attention} without "
        f"{LONGROPE_TENSORS[0]!r} is not supported"
      )
    return plain
  if plain is not None or shapes != [(dim // 2,)] * 2:
    raise WeightsError(
      f"{read.where}: {' and '.join(map(repr, LONGROPE_TENSORS))} must have "
      f"{dim // 2} entries each, without another RoPE scaling"
    )
  long, short = (
    tuple(float(x) for x in read_tensor(file, name))
    for name in LONGROPE_TENSORS
  )
  length = read.need("context_length", int)
  original = read.get("rope.scaling.original_context_length", int, length)
  if original < 2:
    raise WeightsError(
      f"{read.where}: rope.scaling.original_context_length={original}"
    )
  return RopeScaling(
    "longrope",
    factor=length / original,
    original_max_len=original,
    attention=attention,
    factors=long,
    short_factors=short,
  )
