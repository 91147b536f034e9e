"""How much each token's residual stream depends on each other token's.

`sensitivity_map` gives the map of Jacobian norms of one function, with what
can be read off it; `launch/jacobian.py` shows one or, with an edit, two.
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from sinkjax.analysis.loss_sensitivity import loss_gradient
from sinkjax.analysis.sensitivity_config import SensitivityConfig
from sinkjax.metrics import spread
from sinkjax.transforms.jacobian import jacobian_norms

AS_IT_IS = "as it is"
"""What the map of the model without an edit is called in figures."""


@dataclasses.dataclass
class Columns:
  """The columns of a map that are known so far, so that it can be continued.

  Attributes:
    values: [T, T], or [L, T, T] after every layer.
    known: [T] bool, which source tokens are complete.
    wanted: [T] bool, which are to be computed; all of them if `None`.
  """

  values: np.ndarray
  known: np.ndarray
  wanted: np.ndarray | None = None

  @classmethod
  def none(cls, length: int, layers: int | None = None) -> "Columns":
    """No column yet; `layers` maps, or one."""
    shape = (length, length) if layers is None else (layers, length, length)
    return cls(np.zeros(shape), np.zeros(length, bool))

  def add(self, columns: Sequence[int], values: np.ndarray) -> None:
    """Takes complete columns, [T, n] or [L, T, n]."""
    columns = [int(column) for column in columns]
    self.values[..., columns] = values
    self.known[columns] = True

  def take(self, other: "Columns") -> None:
    """Takes the columns that another run knows of the same map."""
    which = np.flatnonzero(other.known).tolist()
    self.add(which, other.values[..., which])

  def missing(self) -> list[int]:
    """The source tokens that are wanted and not complete."""
    missing = ~self.known
    if self.wanted is not None:
      missing &= self.wanted
    return np.flatnonzero(missing).tolist()


@dataclasses.dataclass(frozen=True)
class SensitivityMap:
  """The map of one function on one text of T tokens, L layers crossed.

  Attributes:
    norms: [T, T] float64, rows t by columns s, zero for s > t.
    stderr: [T, T] standard error where estimated, else `None`.
    layers: [L, T, T] after every layer where asked for, else `None`.
    crossed: [L] the layers' numbers.
    loss: mean next-token loss, nats.
    loss_norms: [T] sensitivity of that loss to each token at the source.
    check: relative error of the engine's check, `None` where there is none.
    checked: how many columns that is about; the others were computed, and
      passed their check, in an earlier run.
    bounds: an `OverSquashing` of the same text where asked for, else `None`.
  """

  norms: np.ndarray
  stderr: np.ndarray | None
  layers: np.ndarray | None
  crossed: list[int]
  loss: float
  loss_norms: np.ndarray
  check: float | None
  checked: int
  bounds: Any = None

  def mixing(self) -> float:
    """Share of the squared norms that is off the diagonal."""
    return float(jax.jit(spread.total_mixing)(_float(self.norms)))

  def mixing_by_layer(self) -> np.ndarray | None:
    """[L] the same after every layer."""
    if self.layers is None:
      return None
    return np.asarray(jax.jit(spread.total_mixing)(_float(self.layers)))

  def reach(self) -> np.ndarray:
    """[T] how far back each token's sensitivity lies, tokens."""
    return np.asarray(jax.jit(spread.effective_reach)(_float(self.norms)))

  def last_by_distance(self) -> np.ndarray:
    """[T] the last token's norms, 0 to T - 1 tokens back."""
    return np.asarray(jax.jit(spread.by_distance)(_float(self.norms)))

  def stderr_relative(self) -> float | None:
    """The largest standard error of an entry, over that entry."""
    if self.stderr is None:
      return None
    # Entries of zero, such as those above the diagonal, have no relative error.
    seen = self.norms > 0
    return float(np.max(self.stderr[seen] / self.norms[seen], initial=0))

  def last_stderr(self) -> np.ndarray | None:
    """[T] their standard errors."""
    if self.stderr is None:
      return None
    return np.asarray(jax.jit(spread.by_distance)(_float(self.stderr)))

  def mean_by_distance(self) -> np.ndarray:
    """[T] the mean over tokens at each distance."""
    return np.asarray(jax.jit(spread.distance_profile)(_float(self.norms)))


@dataclasses.dataclass(frozen=True)
class Sensitivity:
  """What `launch/jacobian.py` reports: one text, with and without an edit.

  Attributes:
    ids: the T tokens.
    config: what was computed.
    plain: the map of the model as it is.
    edited: the map of the edited model, `None` without an edit.
    edit: the edit in words.
    columns: the C source tokens whose columns are there, all if `None`; the
      others are NaN.
  """

  ids: list[int]
  config: SensitivityConfig
  plain: SensitivityMap
  edited: SensitivityMap | None = None
  edit: str = "none"
  columns: list[int] | None = None

  def maps(self) -> dict[str, SensitivityMap]:
    """One or two maps, by what they are of."""
    plain = {AS_IT_IS: self.plain}
    return plain if self.edited is None else {**plain, self.edit: self.edited}

  def bounds(self) -> dict[str, Any]:
    """The bounds of each map that has them, by what they are of."""
    maps = self.maps().items()
    return {name: one.bounds for name, one in maps if one.bounds is not None}

  def ratio(self) -> np.ndarray | None:
    """[T, T] edited over plain norms, NaN where plain is 0."""
    if self.edited is None:
      return None
    plain, edited = self.plain.norms, self.edited.norms
    return np.where(plain > 0, edited / np.where(plain > 0, plain, 1), np.nan)


def _float(norms: np.ndarray) -> jax.Array:
  """As float32: norms are kept in float64, which JAX has only on request."""
  return jnp.asarray(norms, jnp.float32)


def sensitivity_map(
  fn: Callable,
  params: Any,
  tokens: Sequence[int],
  config: SensitivityConfig,
  *,
  columns: Columns | None = None,
  finished: Callable[[], Any] = lambda: None,
  progress: Callable[[int, int], Any] = lambda done, total: None,
) -> SensitivityMap:
  """The map of Jacobian norms, and the loss's sensitivity.

  Args:
    fn: `forward(cfg)`, or an `intervene` of it.
    params: its parameters, or weights read layer by layer.
    tokens: one text [T], of at least two tokens.
    config: what to compute.
    columns: what an earlier run computed. Filled as columns are completed;
      those it has are not computed again. Not used by "hutchinson".
    finished: called when `columns` has more.
    progress: called with (steps done, steps in all).

  Raises:
    ValueError, TypeError, SelfCheckError: as `jacobian_norms`; ValueError
      for weights read layer by layer with the method "reference".

  Cost: `work`, and three forward passes.
  """
  crossed = config.crossed(fn.cfg)
  if config.method == "reference" and not isinstance(params, dict):
    raise ValueError(
      "the method reference needs the weights in memory; exact and hutchinson "
      "can read them layer by layer"
    )
  ids = jnp.asarray(tokens, jnp.int32)
  # A continued run computes this again: its three passes are little beside the
  # columns of a map.
  loss, gradient = loss_gradient(fn, params, ids, source=config.source)
  stderr, checked, seen = None, 0, {}
  if config.method == "hutchinson":
    values, stderr = _estimated(fn, params, ids, config, progress)
  else:
    layers = len(crossed) if config.per_layer else None
    columns = columns or Columns.none(len(tokens), layers)
    missing = columns.missing()
    seen = _fill(fn, params, ids, config, columns, finished, progress)
    values, checked = columns.values, len(missing) if "check" in seen else 0
  return SensitivityMap(
    norms=values[-1] if config.per_layer else values,
    stderr=stderr,
    layers=values if config.per_layer else None,
    crossed=crossed,
    loss=loss,
    loss_norms=np.sqrt(np.sum(gradient.astype(np.float64) ** 2, axis=-1)),
    check=seen.get("check"),
    checked=checked,
  )


def _estimated(
  fn: Callable,
  params: Any,
  ids: jax.Array,
  config: SensitivityConfig,
  progress: Callable[[int, int], Any],
) -> tuple[np.ndarray, np.ndarray]:
  """[T, T] estimated norms and their standard errors."""
  from sinkjax.transforms.estimators import estimate_norms

  estimate = estimate_norms(
    fn,
    params,
    ids,
    source=config.source,
    target=config.target,
    samples=config.samples,
    key=jax.random.key(config.seed),
    budget_bytes=config.budget_bytes,
    progress=progress,
  )
  return np.asarray(estimate.norms), np.asarray(estimate.stderr)


def _fill(
  fn: Callable,
  params: Any,
  ids: jax.Array,
  config: SensitivityConfig,
  columns: Columns,
  finished: Callable[[], Any],
  progress: Callable[[int, int], Any],
) -> dict[str, Any]:
  """Computes the missing columns; what `jacobian_norms` reports of them."""
  missing, seen = columns.missing(), {}
  if not missing:
    return seen

  def add(which: list[int], some: np.ndarray) -> None:
    columns.add(which, some)
    finished()

  # Columns handed to `add` are there already; the result has them all.
  values = jacobian_norms(
    fn,
    params,
    ids,
    source=config.source,
    target=config.target,
    norm=config.norm,
    method=config.method,
    cols=missing,
    per_layer=config.per_layer,
    budget_bytes=config.budget_bytes,
    finished=add,
    progress=progress,
    report=seen.update,
  )
  columns.add(missing, values)
  return seen
