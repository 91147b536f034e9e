"""`RopeScaling`: how rotary frequencies are stretched."""

import dataclasses

from sinkjax.field_checks import one_of, positive

ROPE_SCALINGS = ("linear", "llama3", "factors", "yarn")

ADDED_TO_SCALING = ("beta_fast", "beta_slow", "truncate", "attention")
"""Fields that configs recorded earlier lack; a new field goes here."""


@dataclasses.dataclass(frozen=True)
class RopeScaling:
  """How rotary frequencies are stretched beyond the trained context.

  Attributes:
    kind: "linear" divides every frequency by `factor`; "llama3" divides only
      the slow ones, with a smooth ramp between the wavelengths
      `original_max_len / high_freq` and `original_max_len / low_freq`;
      "factors" divides frequency i by `factors[i]`, as GGUF files store it;
      "yarn" divides those that turn less than `beta_slow` times within
      `original_max_len`, not those that turn more than `beta_fast` times, and
      ramps over the dimensions between (arXiv 2309.00071).
    factor: the stretch, > 0.
    low_freq: llama3's `low_freq_factor`.
    high_freq: llama3's `high_freq_factor`.
    original_max_len: llama3's and yarn's `original_max_position_embeddings`.
    factors: one divisor a frequency, for kind "factors".
    beta_fast: see "yarn".
    beta_slow: likewise.
    truncate: yarn's ramp begins and ends at whole dimensions.
    attention: cosines and sines are multiplied by it, so that rotated queries
      and keys grow (yarn's `attention_factor`).
  """

  kind: str
  factor: float = 1.0
  low_freq: float = 1.0
  high_freq: float = 4.0
  original_max_len: int = 8192
  factors: tuple[float, ...] = ()
  beta_fast: float = 32.0
  beta_slow: float = 1.0
  truncate: bool = True
  attention: float = 1.0

  def __post_init__(self):
    one_of("rope_scaling.kind", self.kind, ROPE_SCALINGS)
    positive("rope_scaling.factor", self.factor)
    if self.kind == "llama3":
      positive("rope_scaling.low_freq", self.low_freq)
      positive("rope_scaling.original_max_len", self.original_max_len)
      # The ramp divides by their difference.
      if not self.high_freq > self.low_freq:
        raise ValueError(
          "rope_scaling.high_freq must exceed low_freq, got "
          f"{self.high_freq} and {self.low_freq}"
        )
    if self.kind == "yarn":
      for name in ("beta_fast", "beta_slow", "original_max_len", "attention"):
        positive(f"rope_scaling.{name}", getattr(self, name))
    elif self.attention != 1.0:
      raise ValueError("rope_scaling.attention needs the kind 'yarn'")
    if self.kind == "factors":
      if not self.factors:
        raise ValueError("rope_scaling.factors must not be empty")
      for factor in self.factors:
        positive("rope_scaling.factors", factor)
