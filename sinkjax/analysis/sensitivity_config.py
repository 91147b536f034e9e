"""What a map of sensitivities is asked to show, and what it will cost."""

import dataclasses
from collections.abc import Sequence
from typing import Any, NamedTuple

from sinkjax.config import ModelConfig
from sinkjax.transforms.block_norms import NORMS
from sinkjax.transforms.jacobian_plan import (
  EFFICIENCY,
  Costs,
  check_samples,
  default_budget,
  make_plan,
)
from sinkjax.transforms.residual import parse_pair

METHODS = ("exact", "reference", "hutchinson")


@dataclasses.dataclass(frozen=True)
class SensitivityConfig:
  """What to compute. See `sinkjax.transforms.jacobian.jacobian_norms`.

  Attributes:
    source: where a token is changed; a residual site or (site, layer).
    target: where the change is seen.
    norm: "fro", "spectral" or "max".
    method: "exact", "reference" or "hutchinson".
    per_layer: also the map after every layer.
    samples: random directions a token, for "hutchinson".
    seed: of these directions.
    budget_bytes: memory beside the weights; `None` for a quarter of what is
      free. The result does not depend on it.
  """

  source: Any = "embed"
  target: Any = "resid_post"
  norm: str = "fro"
  method: str = "exact"
  per_layer: bool = False
  samples: int = 64
  seed: int = 0
  budget_bytes: int | None = None

  def __post_init__(self):
    for name, valid in (("norm", NORMS), ("method", METHODS)):
      value = getattr(self, name)
      if value not in valid:
        raise ValueError(f"{name} must be one of {list(valid)}, got {value!r}")
    check_samples(self.samples)
    if self.budget_bytes is not None and self.budget_bytes <= 0:
      raise ValueError(
        f"the memory budget must be positive, got {self.budget_bytes} bytes"
      )
    # The mean square of J v over random v is the squared Frobenius norm; other
    # norms are no such mean.
    if self.method == "hutchinson" and self.norm != "fro":
      raise ValueError(
        f"hutchinson estimates the norm fro only, got {self.norm!r}; "
        "the methods exact and reference know all norms"
      )
    if self.per_layer and self.method != "exact":
      raise ValueError(
        f"maps after every layer need the method exact, got {self.method!r}"
      )

  def crossed(self, cfg: ModelConfig) -> list[int]:
    """The layers between source and target.

    Raises:
      ValueError: for a site or layer that the model does not have, a target
        before the source, or `per_layer` with nothing to show.
    """
    n = cfg.n_layers
    a, b = parse_pair(cfg, self.source, self.target)
    # The site resid_post comes after its layer, which is then not crossed.
    first = {"resid_post": a.layer + 1, "final": n, "embed": 0}
    last = {"final": n - 1, "embed": -1}.get(b.site, b.layer)
    layers = list(range(first.get(a.site, a.layer), last + 1))
    layers = [] if a == b else layers
    if self.per_layer and (b.site != "resid_post" or not layers):
      raise ValueError(
        "maps after every layer need a target at resid_post and a layer "
        f"before it, got {a.site}@{a.layer} to {b.site}@{b.layer}"
      )
    return layers


class Work(NamedTuple):
  """What a map costs.

  Attributes:
    bytes: memory beside the weights.
    flops: floating-point operations.
  """

  bytes: int
  flops: float

  def seconds(self, rate: float) -> float:
    """How long it takes at `rate` flop/s of large matrix products."""
    return self.flops / (rate * EFFICIENCY)


def work(
  cfg: ModelConfig,
  config: SensitivityConfig,
  length: int,
  columns: Sequence[int] | None = None,
  devices: int = 1,
) -> Work:
  """What a map, or some columns of it, will cost; without computing it.

  Args:
    cfg: the model.
    config: what is computed.
    length: T.
    columns: source tokens, all by default.
    devices: over which they are spread; the cost is then of each.

  Raises:
    ValueError: as `SensitivityConfig.crossed`, or for a budget too small.
  """
  layers = len(config.crossed(cfg))
  columns = list(range(length)) if columns is None else list(columns)
  budget = config.budget_bytes or default_budget()
  if config.method != "reference":
    many = cfg.d_model if config.method == "exact" else config.samples
    plan = make_plan(
      cfg,
      length,
      columns=columns,
      many=many,
      layers=layers,
      budget=budget,
      devices=devices,
    )
    return Work(plan.bytes, plan.flops)
  costs = Costs(cfg, length, layers)
  held = min(budget, cfg.d_model * costs.column(False))
  flops = len(columns) * cfg.d_model * layers
  return Work(held, flops * costs.push_flops(False, length) / devices)
