"""Gates learned on haystacks, and other haystacks with heads closed.

Axes: L layers, N KV heads, P haystacks, Q questions.
"""

import dataclasses
import enum
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from sinkjax.config import ModelConfig
from sinkjax.experiments.applications.streaming_heads import memory
from sinkjax.experiments.harness.api import Result, Subject
from sinkjax.experiments.harness.stats import ends_of
from sinkjax.experiments.shared.needles import Haystack, haystack
from sinkjax.experiments.shared.steps import Steps
from sinkjax.inference.streaming_heads import (
  Answers,
  hidden_states,
  learn_gates,
)
from sinkjax.metrics.norms import value_norm_ratio
from sinkjax.metrics.precision import wide
from sinkjax.models.transformer import forward, logits_of
from sinkjax.transforms.branches import check_window, separate
from sinkjax.transforms.capture import capture
from sinkjax.transforms.intervene import intervene
from sinkjax.transforms.streaming_edits import MixStreaming

FEWEST = 9
"""Haystacks that are measured, at least: from 8 signs no test can be certain
enough for one of seven claims."""

FULL, ALL = "all full", "all streaming"
"""Conditions beside the orders; keys of recorded results."""


class Order(enum.StrEnum):
  """By what heads are closed; the values are keys of recorded results."""

  GATE = "lowest gates"
  SINK = "most attention on the sink"
  REACH = "least reach"
  RANDOM = "random"


@dataclasses.dataclass(frozen=True)
class Config:
  """What is run.

  Attributes:
    tokens: T of a haystack with its questions.
    needles: Q.
    training: haystacks on which gates are learned, in turn.
    steps: of the gradient.
    measured: other haystacks.
    sinks: first tokens that streaming heads see.
    window: last tokens that they see.
    shares: of the KV heads that are closed, increasing.
    share: the one of them that claims are about.
    rate: of a step, in the units of a gate.
    cost: of a gate, 0.05 in arXiv 2410.10819.
    seed: of haystacks and random orders.
  """

  tokens: int = 512
  needles: int = 16
  training: int = 8
  # A gate falls from 1 to 0 in 20 steps where the gradient always agrees.
  steps: int = 60
  measured: int = 12
  sinks: int = 4
  window: int = 64
  shares: tuple[float, ...] = (0.25, 0.5, 0.75)
  share: float = 0.5
  rate: float = 0.05
  cost: float = 0.05
  seed: int = 0

  def check(self, max_len: int) -> None:
    """Refuses what cannot be measured.

    Args:
      max_len: of the model.

    Raises:
      ValueError: naming the field.
    """
    if self.tokens > max_len:
      raise ValueError(
        f"tokens must be at most the model's context of {max_len}, got "
        f"{self.tokens}: set tokens, and fewer needles"
      )
    if self.sinks + self.window >= self.tokens:
      raise ValueError(
        f"sinks and window must be fewer than tokens={self.tokens}, got "
        f"{self.sinks} and {self.window}"
      )
    rising = list(self.shares) == sorted(set(self.shares))
    if not rising or not all(0 < x < 1 for x in self.shares):
      raise ValueError(
        f"shares must be between 0 and 1, increasing, got {self.shares}"
      )
    if self.share not in self.shares:
      raise ValueError(
        f"share must be one of shares={self.shares}, got {self.share}"
      )
    if self.measured < FEWEST:
      raise ValueError(
        f"measured must be at least {FEWEST}, got {self.measured}"
      )


def measure(
  subject: Subject,
  config: Config,
  *,
  progress: Callable[[int, int], Any] = lambda done, total: None,
) -> Result:
  """Learns gates, and closes heads on other haystacks.

  Args:
    subject: the model; its weights in memory.
    config: what is run.
    progress: called with (steps and haystacks done, in all).

  Raises:
    ValueError: for a config or haystacks that do not fit the model, or a model
      whose rows are no softmax over tokens alone.

  Cost: `steps` of `learn_gates`, and a forward pass of the measured haystacks
    for each order and share, and three more; then their texts and questions
    in pieces, once for each of `memory.Cached`.
  """
  config.check(subject.cfg.max_len)
  check_window(subject.cfg, config.tokens)
  cfg = subject.cfg
  MixStreaming(np.ones((cfg.n_layers, cfg.n_kv_heads)), 1, 1).placed(
    cfg, config.tokens, "pattern"
  )
  count = config.training + config.measured
  piles = [
    haystack(
      subject, subject.prefix, config.tokens, config.needles, config.seed + i
    )
    for i in range(count)
  ]
  training, held = piles[: config.training], piles[config.training :]
  conditions = len(Order) * len(config.shares) + 2
  ends = {"sinks": config.sinks, "window": config.window}
  refused = memory.refusal(cfg, held, **ends)
  caches = 0 if refused else len(memory.Cached)
  passes = (1 + conditions + caches) * len(held)
  step = Steps(progress, config.steps + passes)
  gate, values = _learn(subject, config, training, step)
  seen = _look(subject, config, held, step)
  orders = orders_of(gate, seen, config.seed)
  closed = {FULL: np.ones(gate.shape), ALL: np.zeros(gate.shape)}
  for order, ranks in orders.items():
    for share in config.shares:
      closed[f"{order}, {share:g}"] = opened(ranks, share)
  told = {}
  for name, gates in closed.items():
    parts = [_ask(subject, config, pile, gates, step) for pile in held]
    told[name] = np.stack(parts)
  tables = {"closed.csv": _table(told), "gates.csv": _gate_table(gate, seen)}
  memory_of: dict[str, Any] = {"refused": refused}
  if not refused:
    control = opened(orders[Order.RANDOM], 1 - (gate > 0.5).mean())
    found = memory.compare(subject, held, gate, control, **ends, step=step)
    memory_of |= found.sizes._asdict()
    tables["memory.csv"] = memory.table_of(found, told[FULL][:, 0])
    told |= found.told
  numbers = {
    "memory": memory_of,
    "heads": int(gate.size),
    "full": float((gate > 0.5).mean()),
    "mean_gate": float(gate.mean()),
    "objective": [float(values[0]), float(values[-1])],
  }
  return Result(
    numbers=numbers,
    tables=tables,
    arrays={
      "gate": gate,
      "objective": values,
      **seen,
      **{f"nats, {name}": x[:, 0] for name, x in told.items()},
      **{f"found, {name}": x[:, 1] for name, x in told.items()},
    },
  )


def answers_of(pile: Haystack) -> Answers:
  """A haystack as a batch of one."""
  row = pile.row
  parts = row.tokens, row.positions, row.branch, pile.asked
  return Answers(*(jnp.asarray(x)[None] for x in parts))


def _learn(
  subject: Subject, config: Config, piles: Sequence[Haystack], step: Steps
) -> tuple[np.ndarray, np.ndarray]:
  texts = [answers_of(pile) for pile in piles]
  with step.of(config.steps):
    return subject.kept(
      "gates",
      learn_gates,
      subject.cfg,
      subject.params,
      [texts[i % len(texts)] for i in range(config.steps)],
      sinks=config.sinks,
      window=config.window,
      rate=config.rate,
      cost=config.cost,
      progress=step,
    )


def _looker(cfg: ModelConfig, config: Config) -> Callable:
  """`f(params, answers)`: of every KV head, [L, N] each.

  "sink" is the attention on position 0, "reach" that beyond a window and the
  sinks, "value" the norm of the sink's value over others'.
  """

  @jax.jit
  def run(params: Any, text: Answers) -> dict[str, jax.Array]:
    gate = jnp.ones((cfg.n_layers, cfg.n_kv_heads))
    mix = MixStreaming(gate, config.sinks, config.window, text.positions)
    near = mix.kept(config.tokens)

    def of_heads(pattern: jax.Array) -> tuple[jax.Array, jax.Array]:
      p = wide(pattern)
      sink = p[:, :, 1:, 0].mean(axis=(0, 2))
      beyond = jnp.where(near, 0, p).sum(axis=-1).mean(axis=(0, 2))
      # Query heads of one KV head share its gate.
      return tuple(
        x.reshape(cfg.n_kv_heads, -1).mean(-1) for x in (sink, beyond)
      )

    f = capture(
      intervene(forward(cfg), {"scores": separate(text.branch)}),
      {
        "heads": ("pattern", of_heads),
        "value": ("v", lambda v: value_norm_ratio(v)[0]),
      },
    )
    trace = f(params, text.tokens, positions=text.positions).trace
    sink, reach = trace["heads"]
    return {"sink": sink, "reach": reach, "value": trace["value"]}

  return run


def _look(
  subject: Subject, config: Config, piles: Sequence[Haystack], step: Steps
) -> dict[str, np.ndarray]:
  """[P, L, N] of `_looker`."""
  run, looks = _looker(subject.cfg, config), []
  for pile in piles:
    looks.append(subject.kept("look", run, subject.params, answers_of(pile)))
    step()
  return {k: np.stack([x[k] for x in looks]).astype(float) for k in looks[0]}


def _ask(
  subject: Subject,
  config: Config,
  pile: Haystack,
  gates: np.ndarray,
  step: Steps,
) -> np.ndarray:
  """[2]: nats of the right password among all, and the share that is found."""
  cfg, states = subject.cfg, hidden_states(subject.cfg)

  def ask() -> np.ndarray:
    given = jnp.asarray(gates, jnp.float32)
    x = states(
      subject.params, answers_of(pile), given, config.sinks, config.window
    )
    with jax.default_matmul_precision(cfg.precision):
      logits = logits_of(cfg, x.astype(cfg.dtype), subject.params)
    return memory.told_by(np.asarray(logits, np.float64)[0][:, pile.choices])

  told = subject.kept("answers", ask)
  step()
  return told


def orders_of(
  gate: np.ndarray, seen: Mapping[str, np.ndarray], seed: int
) -> dict[Order, np.ndarray]:
  """[L, N] ranks, by which heads are closed; ties are broken at random.

  Args:
    gate: [L, N].
    seen: [P, L, N] "sink" and "reach".
    seed: of the random order.
  """
  random = np.random.default_rng(seed).random(gate.shape)
  scores = {
    Order.GATE: gate,
    Order.SINK: -seen["sink"].mean(axis=0),
    Order.REACH: seen["reach"].mean(axis=0),
    Order.RANDOM: random,
  }
  ranks = {}
  for order, score in scores.items():
    # The last key is the first that is looked at.
    at = np.lexsort((random.ravel(), score.ravel()))
    rank = np.empty(gate.size, int)
    rank[at] = np.arange(gate.size)
    ranks[order] = rank.reshape(gate.shape)
  return ranks


def opened(ranks: np.ndarray, share: float) -> np.ndarray:
  """[L, N] gates with the first heads closed, a share of all.

  >>> opened(np.array([[2, 0], [1, 3]]), 0.5).tolist()
  [[1.0, 0.0], [0.0, 1.0]]
  """
  return (ranks >= round(share * ranks.size)).astype(float)


def _table(told: Mapping[str, np.ndarray]) -> tuple[list[str], list[list[Any]]]:
  rows = [
    [name, *ends_of(x[:, 1]), *ends_of(x[:, 0] - told[FULL][:, 0])]
    for name, x in told.items()
  ]
  header = ["closed", "found", "found_low", "found_high"]
  return [*header, "nats", "nats_low", "nats_high"], rows


def _gate_table(
  gate: np.ndarray, seen: Mapping[str, np.ndarray]
) -> tuple[list[str], list[list[Any]]]:
  means = {name: x.mean(axis=0) for name, x in seen.items()}
  rows = [
    [layer, head, float(gate[layer, head])]
    + [float(x[layer, head]) for x in means.values()]
    for layer in range(gate.shape[0])
    for head in range(gate.shape[1])
  ]
  return ["layer", "kv_head", "gate", *means], rows
