"""Which heads need all of a text: gates found by gradient.

Each KV head gets a gate a in [0, 1] between full attention and a sink with a
window (`MixStreaming`). With h the last hidden states of the tokens that answer
a question,

    sum ||h(a) - h||^2 / sum ||h||^2 + c mean(a)

is minimised by gradient steps, from a = 1 on. Source: arXiv 2410.10819, with
c = 0.05. That the difference is relative, so that c means the same for every
model, is our reading; and so are fewer, longer steps.
"""

import csv
import functools
import pathlib
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, Int

from sinkjax import artifacts, finite, limits, sharding
from sinkjax.config import ModelConfig
from sinkjax.models.transformer import forward
from sinkjax.transforms.branches import separate
from sinkjax.transforms.capture import capture
from sinkjax.transforms.intervene import intervene
from sinkjax.transforms.streaming_edits import MixStreaming


class Answers(NamedTuple):
  """Questions about a text, in rows of branches.

  Attributes:
    tokens: [B, T].
    positions: [B, T] as if each branch stood alone behind the text.
    branch: [B, T] of `branch_row`.
    asked: [B, Q] the tokens behind which the answers stand.
  """

  tokens: Int[Array, "B T"]
  positions: Int[Array, "B T"]
  branch: Int[Array, "B T"]
  asked: Int[Array, "B Q"]


@functools.lru_cache(maxsize=4)
def hidden_states(cfg: ModelConfig) -> Callable:
  """`f(params, answers, gate [L, N], sinks, window) -> [B, Q, D]`.

  The states behind the final norm at the tokens that are asked. With a gate of
  ones it is the unchanged model.

  Args:
    cfg: the model.
  """
  f = forward(cfg)

  def run(
    params: Any, answers: Answers, gate: Array, sinks: Any, window: Any
  ) -> Float[Array, "B Q D"]:
    edits = {
      "scores": separate(answers.branch),
      "pattern": MixStreaming(gate, sinks, window, answers.positions),
    }

    def at_questions(x: Array) -> Array:
      return jnp.take_along_axis(x, answers.asked[:, :, None], axis=1)

    g = capture(intervene(f, edits), {"asked": ("final", at_questions)})
    out = g(params, answers.tokens, positions=answers.positions)
    return out.trace["asked"].astype(jnp.float32)

  return jax.jit(run)


def objective(
  states: Float[Array, "B Q D"],
  whole: Float[Array, "B Q D"],
  gate: Float[Array, "L N"],
  cost: float = 0.05,
) -> Float[Array, ""]:
  """The module's formula.

  Args:
    states: under the gates.
    whole: of the unchanged model.
    gate: a of every KV head.
    cost: c.

  >>> x = jnp.ones((1, 1, 4))
  >>> objective(1.5 * x, x, jnp.array([[1.0, 0.0]])).item()
  0.2750000059604645
  """
  gap = jnp.sum(jnp.square(states - whole)) / jnp.sum(jnp.square(whole))
  return gap + cost * jnp.mean(gate)


class Learned(NamedTuple):
  """What `learn_gates` returns.

  Attributes:
    gate: [L, N].
    objective: [steps] before each step.
  """

  gate: Float[np.ndarray, "L N"]
  objective: Float[np.ndarray, "steps"]


def learn_gates(
  cfg: ModelConfig,
  params: Any,
  texts: Iterable[Answers],
  *,
  sinks: int,
  window: int,
  rate: float = 0.05,
  cost: float = 0.05,
  progress: Callable[[], Any] = lambda: None,
) -> Learned:
  """Gates of every KV head, by a step of Adam, clipped to [0, 1], a text.

  Args:
    cfg: the model.
    params: its parameters, in memory.
    texts: one for each step; all of one shape.
    sinks: S, first tokens that streaming heads see.
    window: W, last tokens that they see, the query itself included.
    rate: of a step.
    cost: c.
    progress: called after each step.

  Raises:
    ValueError: for a model whose rows are no softmax over tokens alone.
    NotFiniteError: where a slope is not finite.

  Cost: each step two forward passes and a backward pass, whose layers are
    computed once more in place of being kept.
  """
  states = hidden_states(cfg.replace(remat="full"))
  plain = hidden_states(cfg)

  @jax.jit
  def slope(
    params: Any, text: Answers, whole: Array, gate: Array
  ) -> tuple[Array, Array]:
    def value(gate: Array) -> Array:
      return objective(
        states(params, text, gate, sinks, window), whole, gate, cost
      )

    return jax.value_and_grad(value)(gate)

  one = jnp.ones((cfg.n_layers, cfg.n_kv_heads))
  adam = optax.adam(rate)
  gate, state, values = one, adam.init(one), []
  for text in texts:
    whole = plain(params, text, one, sinks, window)
    value, g = slope(params, text, whole, gate)
    finite.require(
      sharding.to_host(g), "the slope of a gate", ["layer", "KV head"]
    )
    step, state = adam.update(g, state)
    gate = jnp.clip(optax.apply_updates(gate, step), 0, 1)
    values.append(float(value))
    progress()
  return Learned(sharding.to_host(gate, np.float64), np.array(values))


COLUMNS = ("layer", "kv_head", "gate")
"""Of a table of gates; others may stand beside them."""


def read_gates(
  path: str | pathlib.Path, cfg: ModelConfig
) -> Float[np.ndarray, "L N"]:
  """The gates of a CSV file such as the experiment `streaming_heads` writes.

  Args:
    path: of the file, with a row for each KV head and the columns `COLUMNS`.
    cfg: the model that they are for.

  Raises:
    ValueError: for a file that cannot be read, lacks a column, or has not one
      gate from 0 to 1 for each KV head of the model.
  """
  try:
    limits.read_bytes(path, limits.CONFIG)  # before more of it is read
    header, rows = artifacts.read_csv(path)
  except (OSError, ValueError, csv.Error) as error:
    raise ValueError(f"{path} cannot be read as a table: {error}") from error
  if missing := [name for name in COLUMNS if name not in header]:
    raise ValueError(
      f"{path} has no column {missing[0]!r}: a table of gates has a row for "
      "each KV head with layer, kv_head and gate, as the experiment "
      "streaming_heads writes its gates.csv"
    )
  places = list(np.ndindex(cfg.n_layers, cfg.n_kv_heads))
  of_model = f"the model has {cfg.n_layers} layers of {cfg.n_kv_heads} KV heads"
  found: dict[tuple[int, int], float] = {}
  for line, row in enumerate(rows, 2):
    cells = dict(zip(header, row, strict=False))
    layer, head, gate = (cells.get(name) for name in COLUMNS)
    here = f"{path}, line {line}: layer {layer}, kv_head {head}"
    if (layer, head) not in places:
      raise ValueError(f"{here} is none of the model: {of_model}, from 0 on")
    if (layer, head) in found:
      raise ValueError(f"{here} stands there twice: give it one gate")
    if not isinstance(gate, int | float) or not 0 <= gate <= 1:
      raise ValueError(f"{here}: gate must be from 0 to 1, got {gate!r}")
    found[layer, head] = gate
  if lost := [place for place in places if place not in found]:
    layer, head = lost[0]
    raise ValueError(
      f"{path} has no gate for layer {layer}, kv_head {head}: {of_model}"
    )
  gates = [found[place] for place in places]
  return np.array(gates, float).reshape(cfg.n_layers, cfg.n_kv_heads)
