"""How robust a trained model is, in one number for each kind of change.

Every model meets the same changes: noise of equal norm on the embeddings, a
random token in another's place, and an attack along the gradient on the first
token and on one in the middle. The tokens after them are measured.

Sharp edges:
  A model that predicts badly predicts nearly the same whatever it reads, and
  seems robust: compare models of equal loss, or the relative change of the
  residual stream beside the divergence.
"""

import functools
from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from sinkjax.config import ModelConfig
from sinkjax.experiments.shared.perturb import (
  Effect,
  Shift,
  ascend,
  effect,
  look,
  nats,
  noise,
  places,
)
from sinkjax.metrics.sinks import attention_share, sink_score
from sinkjax.models.transformer import Params, forward
from sinkjax.transforms.capture import capture
from sinkjax.transforms.edits import add
from sinkjax.transforms.intervene import intervene

KINDS = ("noise", "swap", "attack_first", "attack")
"""Noise on every token but the first, swaps in the middle, attacks."""


class Force(NamedTuple):
  """How large the changes are, and how many.

  Attributes:
    share: norm of noise and attacks over that of a token's embedding.
    draws: of noise and of swaps, for each text.
    steps: gradients of an attack.
    seed: of noise and swaps.
  """

  share: float
  draws: int
  steps: int
  seed: int


def robustness_score(
  cfg: ModelConfig, params: Params, rows: np.ndarray, force: Force
) -> dict[str, float]:
  """Means over texts [P, T], whose first half is changed.

  Args:
    cfg: the model.
    params: its parameters.
    rows: the texts; their second half is measured.
    force: of the changes.

  Returns:
    `first_mass`, attention on the first token, see `metrics.sinks.sink_score`;
    `loss` of the measured tokens; and KIND_kl, a geometric mean, KIND_loss and
    KIND_spread for each of `KINDS`, see `perturb.Effect`.

  Cost: 2 (draws + steps) + 6 forward passes of all texts, a gradient counted
    as two.
  """
  half, rng = rows.shape[1] // 2, np.random.default_rng(force.seed)
  run, climb = _runner(cfg, half), _climber(cfg, half, force.steps)
  tokens, at = jnp.asarray(rows), places(rows.shape[1])
  still = np.zeros((*rows.shape, cfg.d_model), np.float32)
  mass, embeds = _observer(cfg)(params, tokens)
  clean, after = run(params, tokens, still), tokens[:, half + 1 :]
  loss = -jnp.mean(jnp.take_along_axis(clean.logs, after[..., None], -1))
  embeds, found = np.asarray(embeds), {name: [] for name in KINDS}

  def measure(name, ids, shift):
    changed = run(params, ids, shift)
    found[name].append(effect(clean, changed, after, eps=0.0))

  for _ in range(force.draws):
    spots = range(1, half)
    ways = [noise(x, spots, force.share, rng) for x in embeds]
    measure("noise", tokens, np.stack(ways).astype(np.float32))
    swapped = rows.copy()
    swapped[:, at["middle"]] = rng.integers(cfg.vocab_size, size=len(rows))
    measure("swap", jnp.asarray(swapped), still)
  for name, place in (("attack_first", "sink"), ("attack", "middle")):
    where = jnp.asarray(at[place])
    size = np.linalg.norm(embeds[:, at[place]], axis=-1)
    one = climb(params, tokens, where, force.share * size)
    measure(name, tokens, still + _at_place(one, at[place], rows.shape[1]))
  return {"first_mass": float(mass), "loss": float(loss), **_means(found)}


def _at_place(shift: np.ndarray, place: int, length: int) -> np.ndarray:
  """[P, T, D] zeros, with [P, D] at one token."""
  wide = np.zeros((len(shift), length, shift.shape[-1]), np.float32)
  wide[:, place] = shift
  return wide


def _means(found: dict[str, Sequence[Effect]]) -> dict[str, float]:
  numbers = {}
  for name, effects in found.items():
    # Rounding makes some divergences 0 or less.
    kl = np.maximum(np.stack([x.kl for x in effects]), 1e-9)
    numbers[f"{name}_kl"] = float(np.exp(np.log(kl).mean()))
    numbers[f"{name}_loss"] = float(np.mean([x.loss for x in effects]))
    numbers[f"{name}_spread"] = float(np.mean([x.spread for x in effects]))
  return numbers


@functools.lru_cache(maxsize=8)
def _observer(cfg: ModelConfig) -> Callable:
  """`g(params, ids) -> (attention on the first token, embeddings)`, jitted."""
  watch = {
    "x": ("embed", lambda x: x),
    "alpha": ("pattern", lambda p: sink_score(attention_share(p))),
  }

  @jax.jit
  def observe(params, ids):
    trace = capture(forward(cfg), watch)(params, ids).trace
    return jnp.mean(trace["alpha"]), trace["x"]

  return observe


@functools.lru_cache(maxsize=8)
def _runner(cfg: ModelConfig, half: int) -> Callable:
  """`g(params, ids, shift) -> Seen`, jitted."""
  f = forward(cfg)

  @jax.jit
  def run(params, ids, shift):
    return look(intervene(f, {"embed": add(shift)}), params, ids, half)

  return run


@functools.lru_cache(maxsize=8)
def _climber(cfg: ModelConfig, half: int, steps: int) -> Callable:
  """`g(params, tokens [P, T], at, radius [P]) -> shift [P, D]`, jitted."""
  f = forward(cfg)

  @jax.jit
  def climb(params, tokens, at, radius):
    def one(row, radius):
      def objective(shift):
        g = intervene(f, {"embed": Shift(shift, at)})
        return nats(g, params, row[None], half)[0]

      shifts, values = ascend(
        objective, radius[None], (cfg.d_model,), steps=steps
      )
      return shifts[jnp.argmax(values)][0]

    return jax.vmap(one)(tokens, radius)

  return climb
