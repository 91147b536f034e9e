"""`RopeScaling`: how rotary frequencies are stretched."""

import dataclasses

from sinkjax.field_checks import one_of, positive

ROPE_SCALINGS = ("linear", "llama3", "factors", "yarn", "dynamic", "longrope")
BY_LENGTH = ("dynamic", "longrope")
"""Kinds whose frequencies depend on how long the text is."""


ADDED_TO_SCALING = (
  "beta_fast",
  "beta_slow",
  "truncate",
  "attention",
  "short_factors",
)
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
      ramps over the dimensions between (arXiv 2309.00071); "dynamic" raises the
      base in texts beyond `original_max_len`, as they grow, see
      `models.positions.grown`; "longrope" (arXiv 2402.13753) divides by
      `short_factors` in texts of up to `original_max_len`, and by `factors` in
      longer ones.
    factor: the stretch, > 0.
    low_freq: llama3's `low_freq_factor`.
    high_freq: llama3's `high_freq_factor`.
    original_max_len: what was trained on, `original_max_position_embeddings`
      of all kinds but "linear" and "factors".
    factors: one divisor a frequency, for the kinds "factors" and "longrope".
    short_factors: see "longrope".
    beta_fast: see "yarn".
    beta_slow: likewise.
    truncate: yarn's ramp begins and ends at whole dimensions.
    attention: cosines and sines are multiplied by it, so that rotated queries
      and keys grow (yarn's and longrope's `attention_factor`).
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
  short_factors: tuple[float, ...] = ()

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
      for name in ("beta_fast", "beta_slow"):
        positive(f"rope_scaling.{name}", getattr(self, name))
    if self.kind in ("yarn", *BY_LENGTH):
      positive("rope_scaling.original_max_len", self.original_max_len)
    if self.kind in ("yarn", "longrope"):
      positive("rope_scaling.attention", self.attention)
    elif self.attention != 1.0:
      raise ValueError(
        "rope_scaling.attention needs the kind 'yarn' or 'longrope'"
      )
    if self.kind == "dynamic" and self.factor < 1:
      raise ValueError(
        f"rope_scaling.factor of kind 'dynamic' must be at least 1, got "
        f"{self.factor}"
      )
    if self.kind in ("factors", "longrope"):
      self._check_factors("factors")
    if self.kind == "longrope":
      self._check_factors("short_factors")
      if len(self.short_factors) != len(self.factors):
        raise ValueError(
          f"rope_scaling.short_factors has {len(self.short_factors)} entries, "
          f"factors has {len(self.factors)}"
        )

  def _check_factors(self, name: str) -> None:
    factors = getattr(self, name)
    if not factors:
      raise ValueError(f"rope_scaling.{name} must not be empty")
    for factor in factors:
      positive(f"rope_scaling.{name}", factor)
