"""The over-squashing bounds of a real model beside what they must dominate.

`over_squashing` measures the gains of every layer on one text, multiplies
them along all causal paths in three valid ways and one that is not, and puts
each beside the exact spectral norms of the Jacobian that it is about: that of
the model, or that of the same model with its attention pattern held.
"""

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from sinkjax import sharding
from sinkjax.analysis.sensitivity import Columns
from sinkjax.config import ModelConfig
from sinkjax.metrics import bounds
from sinkjax.models.transformer import forward
from sinkjax.transforms.edits import chain, hold
from sinkjax.transforms.intervene import intervene
from sinkjax.transforms.jacobian import jacobian_norms
from sinkjax.transforms.layer_gains import Gains, layer_gains
from sinkjax.transforms.residual import taken_apart


class Form(NamedTuple):
  """One way to bound.

  Attributes:
    label: in words.
    frozen: whether it is about the model with its pattern held.
    valid: whether it must hold.
  """

  label: str
  frozen: bool
  valid: bool


FORMS = {
  "paper": Form("the paper's, one constant for all layers", True, True),
  "frozen": Form("pattern held, every gain measured", True, True),
  "full": Form("full, with the softmax's derivative", False, True),
  "naive": Form("the paper's with the residual left out", True, False),
}


@dataclasses.dataclass(frozen=True)
class OverSquashing:
  """Bounds on the map from embed to the last layer's resid_post.

  Attributes:
    log_bounds: [T, T] natural logs by the names of `FORMS`, -inf for s > t.
    norms: [T, T] exact spectral norms of the model's Jacobian.
    frozen_norms: [T, T] the same with the attention pattern held.
    constants: C of the forms "paper" and "naive".
    copy_gain: [L] the greatest of every layer.
    mlp_gain: [L] the greatest of every layer.
  """

  log_bounds: dict[str, np.ndarray]
  norms: np.ndarray
  frozen_norms: np.ndarray
  constants: dict[str, float]
  copy_gain: np.ndarray
  mlp_gain: np.ndarray

  def truth(self, form: str) -> np.ndarray:
    """[T, T] the norms that a form bounds."""
    return self.frozen_norms if FORMS[form].frozen else self.norms

  def decades(self, form: str) -> np.ndarray:
    """[T, T] log10 of bound over truth, NaN above the diagonal."""
    truth = self.truth(form)
    # A norm of zero has no logarithm. NaN keeps it out of the least, the median
    # and the most decades.
    log = np.log(np.where(truth > 0, truth, np.nan))
    return (self.log_bounds[form] - log) / math.log(10)

  def violations(self, form: str) -> int:
    """How many pairs exceed a bound by more than rounding, 1e-4 of it."""
    exceeding = bounds.violations(
      jnp.asarray(self.log_bounds[form]), jnp.asarray(self.truth(form))
    )
    return int(exceeding)


def uncovered(cfg: ModelConfig) -> tuple[str, ...]:
  """The forms that bound nothing in a model of this config.

  Where heads have a learned value that belongs to no token, its weight moves
  with the scores even if the pattern, which is the tokens', is held.
  """
  if cfg.attn_bias != "kv":
    return ()
  return tuple(name for name, form in FORMS.items() if form.frozen)


def paths(gains: Gains) -> tuple[dict[str, np.ndarray], dict[str, float]]:
  """The log of every form's bound, [T, T] each, and the constants.

  Args:
    gains: of every layer, from `layer_gains`.
  """
  logs, constants = _paths(gains)
  return (
    {name: sharding.to_host(log, np.float64) for name, log in logs.items()},
    {name: float(constant) for name, constant in constants.items()},
  )


@jax.jit
def _paths(gains: Gains):
  constants = {
    name: bounds.paper_constant(
      gains.copy_gain, gains.mlp_gain, absorb_residual=name == "paper"
    )
    for name in ("paper", "naive")
  }
  steps = {
    name: bounds.paper_steps(gains.pattern, constant=constant)
    for name, constant in constants.items()
  }
  steps["frozen"] = bounds.frozen_steps(
    gains.pattern, gains.copy_gain, mlp_gain=gains.mlp_gain
  )
  steps["full"] = bounds.full_steps(
    gains.pattern,
    gains.copy_gain,
    mlp_gain=gains.mlp_gain,
    key_gain=gains.key_gain,
    query_gain=gains.query_gain,
  )
  return {name: bounds.log_path_sum(steps[name]) for name in FORMS}, constants


def hold_pattern(fn: Callable) -> Callable:
  """`fn` with attention that is a constant to derivatives, edits kept."""
  cfg, edits = taken_apart(fn)
  # An edit of the pattern comes first, because the pattern to hold is the one
  # that the edited model uses.
  held = chain(edits["pattern"], hold()) if "pattern" in edits else hold()
  return intervene(forward(cfg), {**edits, "pattern": held})


def over_squashing(
  fn: Callable,
  params: Any,
  tokens: Sequence[int],
  *,
  norms: np.ndarray | None = None,
  frozen: Columns | None = None,
  budget_bytes: int | None = None,
  finished: Callable[[], Any] = lambda: None,
  progress: Callable[[int, int], Any] = lambda done, total: None,
) -> OverSquashing:
  """Bounds, exact Jacobians and looseness of one model on one text.

  Args:
    fn: `forward(cfg)`, or an `intervene` of it.
    params: its parameters, or weights read layer by layer.
    tokens: one text [T].
    norms: [T, T] spectral norms from embed to resid_post where they are known.
    frozen: columns of the map with the pattern held that an earlier run
      found; filled as columns are completed.
    budget_bytes: as for `jacobian_norms`.
    finished: called when `frozen` has more.
    progress: called with (steps done, steps in all), once for each map.

  Raises:
    ValueError, TypeError, SelfCheckError: as `layer_gains` and
      `jacobian_norms`; ValueError also for a model that a form does not cover.

  Cost: one exact map, two if `norms` is not given, and `layer_gains`.
  """
  cfg, _ = taken_apart(fn)
  if uncovered(cfg):
    raise ValueError(
      f"the bounds {', '.join(uncovered(cfg))} are about a pattern that is "
      f"held, which leaves the weight of the learned value of attn_bias="
      f"{cfg.attn_bias!r} free: this model has none of them"
    )
  ids = jnp.asarray(tokens, jnp.int32)
  spectral = {
    "norm": "spectral",
    "budget_bytes": budget_bytes,
    "progress": progress,
  }
  gains = layer_gains(fn, params, ids)
  log_bounds, constants = paths(gains)
  if norms is None:
    norms = jacobian_norms(fn, params, ids, **spectral)
  frozen = frozen or Columns.none(len(tokens))

  def add(which: list[int], some: np.ndarray) -> None:
    frozen.add(which, some)
    finished()

  missing = frozen.missing()
  if missing:
    frozen.add(
      missing,
      jacobian_norms(
        hold_pattern(fn), params, ids, cols=missing, finished=add, **spectral
      ),
    )
  return OverSquashing(
    log_bounds=log_bounds,
    norms=sharding.to_host(norms, np.float64),
    frozen_norms=frozen.values,
    constants=constants,
    copy_gain=sharding.to_host(jnp.max(gains.copy_gain, axis=(1, 2))),
    mlp_gain=sharding.to_host(jnp.max(gains.mlp_gain, axis=1)),
  )
