"""What the experiment `kv_quantisation` runs, and the names in its files."""

import dataclasses
import enum


class Kept(enum.StrEnum):
  """The token in full precision, as the recorded files name it."""

  NOTHING = "nothing"
  SINK = "sink"
  CONTROL = "control"


class Layout(enum.StrEnum):
  """The numbers of keys and values that share a step.

  TOKEN: those of a token's head. CHANNEL: of a channel of the keys in groups of
  tokens, values per token (KIVI). UNROTATED: of a channel of the keys over the
  text, before they are rotated, values per token (KVQuant). TENSOR: all keys,
  and all values, of a text. The values are names in the recorded files.
  """

  TOKEN = "token"
  CHANNEL = "channel"
  UNROTATED = "before rotation"
  TENSOR = "tensor"


CLAIMED = ((8, 8), (4, 4))
"""The (bits of weights, bits of activations) that the claims are about."""


@dataclasses.dataclass(frozen=True)
class Config:
  """What is run.

  Attributes:
    count: texts of each domain, as in the experiment `prompts`.
    tokens: T of each; shorter texts are left out.
    calibrating: other texts, on which static ranges are found.
    bits: of keys and values.
    group: tokens of a channel that share a step, in the layout "channel".
    widths: (bits of weights, bits of activations).
    control: the position kept in place of the first.
    layer_texts: texts on which single layers are rounded, 2 at least.
    claim_bits: of keys and values, in the claims about them.
    batch: texts in one forward pass.
    seed: of the choice of texts.
  """

  count: int = 6
  tokens: int = 128
  # Kept apart: ranges must not be those of the texts that are measured.
  calibrating: int = 8
  bits: tuple[int, ...] = (8, 4, 3, 2)
  # As in KIVI (2402.02750).
  group: int = 32
  widths: tuple[tuple[int, int], ...] = ((8, 8), (4, 8), (4, 4))
  # The neighbour: nearly as early as the first token, but no sink.
  control: int = 1
  layer_texts: int = 16
  # 4 bits cost little whatever is kept, 2 bits cost whole nats.
  claim_bits: int = 3
  batch: int = 8
  seed: int = 0

  def check(self) -> None:
    """Refuses a config that names no token, or not what the claims are about.

    Raises:
      ValueError: naming the field.
    """
    if not 0 < self.control < self.tokens - 2:
      raise ValueError(
        f"control must be in [1, {self.tokens - 2}), got {self.control}"
      )
    if self.layer_texts < 2:
      raise ValueError(
        "an interval needs two texts: layer_texts must be 2 at least, got "
        f"{self.layer_texts}"
      )
    if self.claim_bits not in self.bits:
      raise ValueError(
        f"claim_bits must be one of bits={self.bits}, got {self.claim_bits}"
      )
    if set(CLAIMED) - set(map(tuple, self.widths)):
      raise ValueError(
        "the claims are about widths (8, 8) and (4, 4), got "
        f"{tuple(self.widths)}"
      )
