"""How an exact Jacobian is cut into blocks that fit a budget, and its cost."""

import dataclasses
import math
import time
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from sinkjax.config import ModelConfig

WINDOWS = (1, 2, 4, 8, 16)
"""Into how many starting points a sequence may be cut; each is compiled."""

COMPILATION = 5e10
"""Operations that one more compilation is worth.

About two seconds of compilation at the 25 Gflop/s of a CPU core.
"""

EFFICIENCY = 0.6
"""Share of a large matrix product's rate that estimates of time assume.

The products of a push are narrower than the one that is measured.
"""


class Plan(NamedTuple):
  """How an exact Jacobian is going to be computed.

  Attributes:
    directions: columns of one source token in a block; a divisor of M.
    sources: source tokens of a block.
    window: source tokens are grouped by windows of this many.
    folded: whether layers are folded into token-local matrices.
    kept: layers whose folded matrices are kept between blocks.
    bytes: what this needs beside the weights.
    flops: floating-point operations.
  """

  directions: int
  sources: int
  window: int
  folded: bool
  kept: int
  bytes: int
  flops: float

  def seconds(self, rate: float) -> float:
    """About how long it takes at `rate` flop/s of large matrix products."""
    return self.flops / (rate * EFFICIENCY)


def _divisors(number: int) -> list[int]:
  return [d for d in range(1, number + 1) if number % d == 0]


MOST_SAMPLES = 1 << 16
"""Random directions a token: the error is then below 1 %, and the exact map
costs less, as it has no more directions than the model has dimensions."""


def check_samples(samples: int) -> None:
  """Raises ValueError for too few samples, or more than are of any use."""
  if not 2 <= samples <= MOST_SAMPLES:
    raise ValueError(
      f"samples must be at least 2, for a standard error, and at most "
      f"{MOST_SAMPLES}, got {samples:.6g}"
    )


@dataclasses.dataclass(frozen=True)
class Costs:
  """Bytes and operations of the parts, for a model and a length."""

  cfg: ModelConfig
  length: int
  layers: int

  @property
  def _size(self) -> int:
    return jnp.dtype(self.cfg.dtype).itemsize

  @property
  def _heads(self) -> int:
    return self.cfg.n_heads * self.cfg.value_dim

  @property
  def _keys(self) -> int:
    return self.cfg.n_kv_heads * (self.cfg.head_dim + self.cfg.value_dim)

  def column(self, folded: bool) -> int:
    """Bytes of one column of tangents at its widest."""
    cfg, scores = self.cfg, self.cfg.n_heads * self.length
    if folded:  # what `_apply` holds at once
      wide = 2 * cfg.d_model + self._keys + self._heads + scores
    else:  # what the layer's linearisation holds, with its residuals
      wide = 6 * cfg.d_model + 3 * (self._heads + self._keys)
      wide += 4 * scores + 4 * cfg.mlp_width
    return self._size * self.length * wide

  def fold(self) -> int:
    """Bytes of one layer's folded matrices."""
    cfg = self.cfg
    matrices = cfg.d_model * (cfg.d_model + self._heads + self._keys)
    mixing = cfg.n_heads * self.length * (cfg.value_dim + 1)
    return self._size * self.length * (matrices + mixing)

  def forming(self) -> int:
    """Bytes in use while one layer is folded, beside the result."""
    cfg = self.cfg
    rows = 4 * cfg.d_model * (cfg.d_model + self._heads + self._keys)
    return self._size * (self.length * rows + 5 * cfg.d_model * cfg.mlp_width)

  def fold_flops(self) -> float:
    """Operations of folding one layer."""
    cfg, square = self.cfg, self.cfg.d_model**2
    token = square * (cfg.mlp_width + 2 * self._heads + cfg.d_model)
    shared = square * (self._heads + self._keys + 2 * cfg.mlp_width)
    mixing = 4 * self.length**2 * self._heads * cfg.d_model
    return 2.0 * (self.length * token + shared + mixing)

  def push_flops(self, folded: bool, tokens: int) -> float:
    """Operations of one column through one layer, over `tokens` tokens."""
    cfg = self.cfg
    if folded:
      token = cfg.d_model * (cfg.d_model + self._heads + self._keys)
      return 2.0 * tokens * (token + 3 * self._heads * tokens)
    mlp = (3 if cfg.gated_mlp else 2) * cfg.mlp_width
    token = cfg.d_model * (2 * self._heads + self._keys + mlp)
    return 2.0 * self.length * (token + 4 * self._heads * self.length)


def make_plan(
  cfg: ModelConfig,
  length: int,
  *,
  columns: Sequence[int],
  many: int,
  layers: int,
  budget: int,
  devices: int = 1,
) -> Plan:
  """The fastest way, by count of operations, that fits the budget.

  Args:
    cfg: the model.
    length: T.
    columns: source tokens.
    many: directions of each source token.
    layers: how many layers are crossed.
    budget: bytes, on each device.
    devices: over which sources are spread.

  Raises:
    ValueError: if not even one direction at a time fits.
  """
  costs = Costs(cfg, length, layers)
  best, least = None, math.inf
  # A smaller window wastes fewer pushes on tokens before the source, and has
  # one more starting point to compile.
  for window in sorted({-(-length // n) for n in WINDOWS}):
    for plan in _candidates(costs, columns, many, window, budget, devices):
      starts = len({column // window for column in columns})
      price = plan.flops + COMPILATION * starts
      if price < least:
        best, least = plan, price
  if best is None:
    raise ValueError(
      f"a budget of {budget / 1e9:.3g} GB is too small: one direction at "
      f"{length} tokens needs {costs.column(False) / 1e9:.3g} GB"
    )
  return best


def _candidates(
  costs: Costs,
  columns: Sequence[int],
  many: int,
  window: int,
  budget: int,
  devices: int,
) -> Iterator[Plan]:
  for folded in (True, False):
    fixed = costs.fold() + costs.forming() if folded else 0
    for kept in range(costs.layers + 1) if folded else (0,):
      room = budget - fixed - kept * costs.fold()
      most = max(0, room) // costs.column(folded)
      if not most:
        break
      for sources, directions in _shapes(window, many, devices, most):
        plan = Plan(directions, sources, window, folded, kept, 0, 0.0)
        yield _cost(costs, columns, many, plan, devices)


def _shapes(
  window: int, many: int, devices: int, most: int
) -> Iterator[tuple[int, int]]:
  """(sources, directions) of blocks that fit, the largest of each kind."""
  whole = [n * devices for n in _divisors(window) if n * many <= most]
  if whole:
    yield max(whole), many
  parts = [n for n in _divisors(many) if n <= most]
  if parts:
    yield devices, max(parts)


def _cost(
  costs: Costs, columns: Sequence[int], many: int, plan: Plan, devices: int
) -> Plan:
  blocks = list(blocks_of(columns, many, plan))
  flops = 0.0
  for block in blocks:
    tokens = costs.length - block.first
    width = len(block.sources) * plan.directions
    flops += costs.layers * width * costs.push_flops(plan.folded, tokens)
  if plan.folded:
    formed = plan.kept + (costs.layers - plan.kept) * len(blocks)
    flops += formed * costs.fold_flops()
  width = plan.sources * plan.directions // devices
  held = width * costs.column(plan.folded)
  if plan.folded:
    held += (plan.kept + 1) * costs.fold() + costs.forming()
  return plan._replace(bytes=held, flops=flops / devices)


class Block(NamedTuple):
  """Columns that go through the layers together.

  Attributes:
    first: the first token with tangents.
    sources: source tokens, the last ones repeated to fill the block.
    real: how many of them count.
    start: the first direction.
  """

  first: int
  sources: tuple[int, ...]
  real: int
  start: int


def blocks_of(columns: Sequence[int], many: int, plan: Plan) -> Iterator[Block]:
  """The blocks of a plan, by their first token."""
  groups: dict[int, list[int]] = {}
  for source in sorted(columns):
    first = source // plan.window * plan.window
    groups.setdefault(first, []).append(source)
  for first, members in groups.items():
    for at in range(0, len(members), plan.sources):
      part = members[at : at + plan.sources]
      # Blocks of one shape compile once: the last is filled with copies.
      full = part + [part[-1]] * (plan.sources - len(part))
      for start in range(0, many, plan.directions):
        yield Block(first, tuple(full), len(part), start)


def default_budget() -> int:
  """A quarter of the memory that the device has free, in bytes."""
  stats = jax.local_devices()[0].memory_stats() or {}
  if "bytes_limit" in stats:
    free = stats["bytes_limit"] - stats.get("bytes_in_use", 0)
    return int(free // 4)
  try:
    with open("/proc/meminfo") as stream:
      fields = dict(line.split(":", 1) for line in stream)
    return int(fields["MemAvailable"].split()[0]) * 1024 // 4
  except (OSError, KeyError, ValueError):
    return 1 << 30  # no Linux: 1 GiB is there on any machine that runs this


def matmul_rate(dtype: str = "float32") -> float:
  """Flop/s of a large matrix product on one device, the best of three."""
  # Large enough to reach the full rate, small enough to take under a second.
  size = 2048 if jax.default_backend() == "cpu" else 8192
  a = jnp.ones((size, size), dtype)
  product = jax.jit(jnp.dot)
  jax.block_until_ready(product(a, a))
  seconds = []
  for _ in range(3):
    start = time.perf_counter()
    jax.block_until_ready(product(a, a))
    seconds.append(time.perf_counter() - start)
  return 2 * size**3 / min(seconds)


def source_columns(length: int, columns: Sequence[int] | None) -> list[int]:
  """Source tokens, all by default; negative ones count from the end.

  Raises:
    ValueError: for none, one outside the text, or one named twice.
  """
  if columns is None:
    return list(range(length))
  chosen = [int(c) for c in np.atleast_1d(np.asarray(columns))]
  if not chosen:
    raise ValueError("no tokens were chosen")
  for column in chosen:
    if not -length <= column < length:
      raise ValueError(f"token {column} is outside a text of {length} tokens")
  chosen = [column % length for column in chosen]
  if len(set(chosen)) != len(chosen):
    raise ValueError(f"a token is named twice: {list(columns)}")
  return chosen


def block_count(columns: Sequence[int], many: int, plan: Plan) -> int:
  """How many blocks a plan has."""
  return math.ceil(len(list(blocks_of(columns, many, plan))))
