"""What the experiment `robustness` runs, and the names in its files."""

import dataclasses
import enum

from sinkjax.experiments.shared.perturb import NOISE, SWAP
from sinkjax.experiments.shared.swap_texts import SWAP_TEXTS

SITES = ("embed", "k", "v")
"""Where the first token is attacked."""

ALL = "all but the first"
"""The place of noise on every token of the first half but the sink."""

SWAPPED = ("middle", "last")
"""The places where a token is swapped."""


class Condition(enum.StrEnum):
  """What perturbations are compared under, as the recorded files name it."""

  SINK = "with the sink"
  HIDDEN = "sink hidden"
  CONTROL = "next token hidden"
  EMPTY = "sink's value zero"


class Change(enum.StrEnum):
  """The perturbations that decide, as the recorded files name them."""

  NOISE_ONE = "noise on one token"
  NOISE_ALL = "noise on all other tokens"
  SWAP = "a swapped token"


CHANGES = {
  Change.NOISE_ONE: (NOISE, ("middle", "last")),
  Change.NOISE_ALL: (NOISE, (ALL,)),
  Change.SWAP: (SWAP, SWAPPED),
}
"""The kind and the places of each; the sink's own place is not among them."""


class Defence(enum.StrEnum):
  """Defences of the first token, as the recorded files name them."""

  NONE = "no defence"
  OWN = "its own token's, pinned"
  OTHER = "another token's, pinned"
  FRONT = "a fixed token in front, pinned"
  CLIP_EMBED_MEDIAN = "embeddings clipped at the median"
  CLIP_EMBED_MAX = "embeddings clipped at the greatest"
  CLIP_RESID_MEDIAN = "residual clipped at the median"
  CLIP_RESID_MAX = "residual clipped at the greatest"


CLIPS = {
  Defence.CLIP_EMBED_MEDIAN: ("embed", 0.5),
  Defence.CLIP_EMBED_MAX: ("embed", 1.0),
  Defence.CLIP_RESID_MEDIAN: ("resid_post", 0.5),
  Defence.CLIP_RESID_MAX: ("resid_post", 1.0),
}
"""The site, and the quantile of the norms in other texts."""


@dataclasses.dataclass(frozen=True)
class Config:
  """What is run.

  Attributes:
    count: texts, of as many domains as there are.
    tokens: T of each; tokens of the first half are perturbed, the second half
      is measured.
    noise: norm of the noise over that of a token's embedding.
    draws: of noise, for each place.
    candidates: tokens of the vocabulary that are swapped in.
    share: norm of an attack over that of the vector it is added to, in each
      layer.
    steps: gradients of an attack.
    front: id of the token that is put in front as a defence; `None` for BOS,
      or for a line end where the tokenizer has none.
    eps: a head has a sink where its attention on position 0 exceeds this.
    texts: on which the layer is found, see `swap_texts.parse_swaps`.
    from_layer: the first layer at which a token is hidden; `None` for the
      one that leaves the fewest sinks, see `sink_removal`.
    seed: of texts, noise and candidates.
  """

  # About two of every domain: effects of noise are small, and need more texts.
  count: int = 24
  tokens: int = 64
  noise: float = 0.5
  # Their mean is the number of a text: draws are no units of an interval.
  draws: int = 3
  candidates: int = 3
  # As in `attack`, so that the attacks are the same.
  share: float = 0.2
  steps: int = 4
  front: int | None = None
  eps: float = 0.3
  texts: str = SWAP_TEXTS
  from_layer: int | None = None
  seed: int = 0
