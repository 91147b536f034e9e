"""AdamW or Muon with a schedule, by configuration; everything is optax's."""

import dataclasses
import math

import jax
import optax

from sinkjax.models.transformer import Params

NAMES = ("adamw", "muon")
SCHEDULES = ("constant", "cosine", "wsd")

MUON_RMS = 0.2
"""Root mean square of Muon's updates over the learning rate, as AdamW's come to
(Liu et al., arXiv 2502.16982): both have the same learning rate and decay."""


@dataclasses.dataclass(frozen=True)
class OptimizerConfig:
  """What is built by `make_optimizer`.

  Attributes:
    name: "adamw"; or "muon", which makes the momentum of every matrix inside
      the layers orthogonal (arXiv 2502.16982), AdamW for all other arrays.
    peak: the learning rate after the warm-up.
    schedule: "constant"; "cosine" down to `final * peak` at the last step;
      "wsd" (warm-up, stable, decay) linearly down in the last `decay` steps.
    warmup: steps from 0 to the peak, linearly.
    final: the last learning rate as a share of the peak.
    decay: steps of the last phase of "wsd".
    b1: of Adam, and the momentum of Muon.
    b2: of Adam.
    eps: of Adam.
    weight_decay: decoupled; on arrays that multiply, not on norms' scales and
      biases.
    decay_embeddings: whether it holds for the token embedding too.
    clip: greatest global norm of a gradient, `None` for none.
    spike: leave out steps whose loss is so many standard deviations above its
      running mean, `None` for none.
  """

  name: str = "adamw"
  peak: float = 1e-3
  schedule: str = "cosine"
  warmup: int = 100
  final: float = 0.1
  decay: int = 0
  b1: float = 0.9
  b2: float = 0.95
  eps: float = 1e-8
  weight_decay: float = 0.1
  decay_embeddings: bool = True
  clip: float | None = 1.0
  spike: float | None = None

  def __post_init__(self):
    if self.name not in NAMES:
      raise ValueError(
        f"optimizer.name must be one of {list(NAMES)}, got {self.name!r}"
      )
    if self.schedule not in SCHEDULES:
      raise ValueError(
        f"optimizer.schedule must be one of {list(SCHEDULES)}, got "
        f"{self.schedule!r}"
      )
    # Asked as what must hold, because a comparison with NaN is false.
    for name in ("peak", "eps", "clip", "spike"):
      value = getattr(self, name)
      if value is not None and not value > 0:
        raise ValueError(f"optimizer.{name} must be positive, got {value}")
    for name in ("warmup", "decay", "weight_decay", "final"):
      if not getattr(self, name) >= 0:
        raise ValueError(
          f"optimizer.{name} must not be negative, got {getattr(self, name)}"
        )
    for name in ("b1", "b2"):
      if not 0 <= getattr(self, name) < 1:
        raise ValueError(
          f"optimizer.{name} must be in [0, 1), got {getattr(self, name)}"
        )


def learning_rate(config: OptimizerConfig, steps: int) -> optax.Schedule:
  """The learning rate by step.

  Args:
    config: what it follows.
    steps: of the whole run.

  Raises:
    ValueError: if the warm-up and the decay do not fit the run.

  >>> rate = learning_rate(OptimizerConfig(warmup=10, peak=1.0), 110)
  >>> [round(float(rate(i)), 2) for i in (0, 5, 10, 110)]
  [0.0, 0.5, 1.0, 0.1]
  """
  rest = steps - config.warmup
  if rest <= 0 or (config.schedule == "wsd" and config.decay > rest):
    raise ValueError(
      f"{steps} steps have no room for a warm-up of {config.warmup}"
      + (f" and a decay of {config.decay}" if config.decay else "")
    )
  after = {
    "constant": lambda: optax.constant_schedule(config.peak),
    "cosine": lambda: optax.cosine_decay_schedule(
      config.peak, rest, config.final
    ),
    "wsd": lambda: optax.linear_schedule(
      config.peak,
      config.final * config.peak,
      config.decay,
      # `join_schedules` counts this schedule's steps from the end of the
      # warm-up.
      transition_begin=rest - config.decay,
    ),
  }[config.schedule]()
  if not config.warmup:
    return after
  before = optax.linear_schedule(0.0, config.peak, config.warmup)
  return optax.join_schedules([before, after], [config.warmup])


def decayed(params: Params, *, embeddings: bool = True) -> Params:
  """Which arrays weight decay is for: True or False by leaf.

  Scales, biases and learned positions are not; layers are stacked, so a norm's
  scale is told by its name.
  """

  def one(path, leaf):
    names = [str(key.key) for key in path]
    if names[0] == "embed":
      return embeddings
    return names[-1] == "kernel" or names[0] == "unembed"

  return jax.tree_util.tree_map_with_path(one, params)


def matrices(params: Params) -> Params:
  """The axes of every matrix inside the layers, `None` for other arrays.

  Axes that are neither an input nor an output are of layers and experts, each
  of which has matrices of its own. A projection of all heads is one matrix.
  """

  def one(path, leaf):
    names = [str(key.key) for key in path]
    if names[0] != "blocks" or names[-1] != "kernel":
      return None
    first = 2 if names[-2].startswith("expert_") else 1
    last = 3 if names[-2] == "o" else first + 1  # heads come in, not out
    return optax.contrib.MuonDimensionNumbers(
      tuple(range(first, last)), tuple(range(last, leaf.ndim))
    )

  return jax.tree_util.tree_map_with_path(one, params)


def _names_of(params: Params) -> Params:
  """The optimiser of every array."""
  return jax.tree.map(
    lambda leaf, axes: "adamw" if axes is None else "muon",
    params,
    matrices(params),
  )


def _evened(updates: Params) -> Params:
  """Orthogonal matrices of any shape, as large as AdamW's updates."""

  def one(update, axes):
    sizes = [
      math.prod(update.shape[i] for i in some)
      for some in (axes.reduction_axis, axes.output_axis)
    ]
    return update * (MUON_RMS * math.sqrt(max(sizes)))

  return jax.tree.map(one, updates, matrices(updates))


def make_optimizer(
  config: OptimizerConfig, steps: int
) -> optax.GradientTransformation:
  """Clipping, and AdamW or Muon.

  Raises:
    ValueError: as `learning_rate`.
  """

  def mask(params):
    return decayed(params, embeddings=config.decay_embeddings)

  rate = learning_rate(config, steps)
  update = optax.adamw(
    rate,
    b1=config.b1,
    b2=config.b2,
    eps=config.eps,
    weight_decay=config.weight_decay,
    mask=mask,
  )
  if config.name == "muon":
    muon = optax.chain(
      optax.contrib.scale_by_muon(
        beta=config.b1, eps=config.eps, weight_dimension_numbers=matrices
      ),
      optax.stateless(lambda updates, params: _evened(updates)),
      optax.add_decayed_weights(config.weight_decay),
      optax.scale_by_learning_rate(rate),
    )
    update = optax.partition({"muon": muon, "adamw": update}, _names_of)
  if config.clip is None:
    return update
  # Clipped before Adam's moments are updated, as these would keep a large
  # gradient for many steps.
  return optax.chain(optax.clip_by_global_norm(config.clip), update)
