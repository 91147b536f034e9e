"""Measures attacks, swaps and insertions at the sink and at other tokens."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from sinkjax.config import ModelConfig
from sinkjax.experiments.applications.attack.config import NORMS, Config, Way
from sinkjax.experiments.applications.attack.results import result_of
from sinkjax.experiments.harness.api import Result, Subject
from sinkjax.experiments.shared.attack_sites import (
  SITES,
  attacked_layers,
  norms_of_texts,
  shift_shape,
)
from sinkjax.experiments.shared.perturb import (
  Effect,
  Seen,
  Shift,
  ascend,
  effect,
  look,
  nats,
  onto,
  places,
  text_rows,
)
from sinkjax.experiments.shared.prompt_corpus import Text
from sinkjax.experiments.shared.steps import Steps
from sinkjax.experiments.shared.text_batches import templates_of
from sinkjax.models.transformer import forward
from sinkjax.transforms.intervene import intervene


def radii(
  size: np.ndarray, at: Sequence[int], chosen: np.ndarray, share: float
) -> np.ndarray:
  """[2, C, L] norms of the shifts: relative and absolute, by position.

  Args:
    size: [L, T] norms of the site.
    at: the C positions.
    chosen: [L] layers that are attacked.
    share: see `Config`.
  """
  own = size[:, list(at)].T
  same = np.broadcast_to(np.median(size, axis=1), own.shape)
  # Layers that are not attacked get a radius of zero, so shapes stay.
  return share * np.stack([own, same]) * chosen


def attacker(cfg: ModelConfig, site: str, config: Config) -> Callable:
  """`g(params, ids [T], at [C], radius [C, L], keys [C])`, jitted.

  Returns `Effect` with [C, 3] by `Kind`, and the shifts [C, 3, L, ...].

  Cost: `steps` gradients and five forward passes for each position.
  """
  f, start, shape = forward(cfg), config.tokens // 2, shift_shape(cfg, site)

  def one(
    params: Any,
    tokens: Array,
    clean: Seen,
    at: Array,
    radius: Array,
    key: Array,
  ) -> tuple[Effect, Array]:
    def edited(shift: Array) -> Callable:
      return intervene(f, {site: Shift(shift, at)})

    def objective(shift: Array) -> Array:
      return nats(edited(shift), params, tokens, start)[0]

    shifts, values = ascend(objective, radius, shape, steps=config.steps)
    # The control: what a shift of this norm does without knowing the loss.
    noise = jax.random.normal(key, shifts.shape[1:], shifts.dtype)
    # The best step, not the last: the loss is not convex, and may fall.
    tried = jnp.stack(
      [onto(noise, radius), shifts[0], shifts[jnp.argmax(values)]]
    )

    def measure(shift: Array) -> Effect:
      seen = look(edited(shift), params, tokens, start)
      after = tokens[:, start + 1 :]
      found = effect(clean, seen, after, eps=config.eps)
      return jax.tree.map(lambda x: x[0], found)

    # A map, not vmap: the logits of one run at a time are enough memory.
    return jax.lax.map(measure, tried), tried

  @jax.jit
  def attack(
    params: Any, ids: Array, at: Array, radius: Array, keys: Array
  ) -> tuple[Effect, Array]:
    tokens = ids[None]
    # Once for all positions, which are compared with the same clean run.
    clean = look(f, params, tokens, start)
    each = jax.vmap(one, in_axes=(None, None, None, 0, 0, 0))
    return each(params, tokens, clean, at, radius, keys)

  return attack


def replacer(cfg: ModelConfig, config: Config) -> Callable:
  """`g(params, ids [T], rows [C, T + n])`: `Effect` with [C], jitted.

  The rows are the same text with one token swapped (n = 0) or n inserted.
  """
  f, start = forward(cfg), config.tokens // 2

  @jax.jit
  def replace(params: Any, ids: Array, rows: Array) -> Effect:
    # Inserted tokens move the measured ones, which must stay the same ones.
    more = rows.shape[1] - len(ids)
    clean = look(f, params, ids[None], start)
    seen = look(f, params, rows, start + more)
    return effect(clean, seen, ids[None, start + 1 :], eps=config.eps)

  return replace


def changed_rows(
  ids: np.ndarray, at: int, candidates: Sequence[int] | np.ndarray, way: Way
) -> np.ndarray:
  """[C, T] with each candidate in the place of a token, or before it.

  >>> changed_rows(np.array([5, 6]), 1, [8, 9], Way.INSERTED).tolist()
  [[5, 8, 6], [5, 9, 6]]
  """
  candidates = np.asarray(candidates)[:, None]
  rows = np.repeat(ids[None], len(candidates), axis=0)
  rest = rows[:, at + (way == Way.SWAPPED) :]
  return np.concatenate([rows[:, :at], candidates, rest], axis=1)


def measure(
  subject: Subject,
  config: Config,
  *,
  texts: list[Text] | None = None,
  progress: Callable[[int, int], Any] = lambda done, total: None,
) -> Result:
  """Every attack on every text.

  Args:
    subject: the model; its weights in memory.
    config: what is run.
    texts: other texts than those of `prompt_corpus.gather`.
    progress: called with (parts done, parts in all), ten parts a text.

  Raises:
    ValueError: for too few or too short texts.

  Cost: a text takes 32 times (2 steps + 4) and 8 times `candidates` forward
  passes of T tokens, a gradient counted as two.
  """
  at = places(config.tokens)
  ids, origins = text_rows(
    subject, texts, config.texts, config.tokens, config.seed
  )
  # The same tokens in every text and place, so that places are comparable.
  candidates = np.random.default_rng(config.seed).choice(
    subject.cfg.vocab_size, config.candidates, replace=False
  )
  # One compilation for each site; texts and radii are its arguments.
  attackers = {site: attacker(subject.cfg, site, config) for site in SITES}
  replace = replacer(subject.cfg, config)
  sizes, step = norms_of_texts(subject, ids), Steps(progress, 10 * len(ids))
  gradient, swaps = [], []
  for number, (row, size) in enumerate(zip(ids, sizes, strict=True)):
    gradient.append(
      subject.kept(
        "gradients",
        _stacked,
        _gradients(subject, config, attackers, row, at, size, number),
      )
    )
    step(len(gradient[-1]))
    swaps.append(
      subject.kept(
        "swaps",
        _stacked,
        _replaced(subject.params, replace, row, at, candidates),
      )
    )
    step(len(swaps[-1]))
  gradient = np.stack(gradient)
  shape = (len(ids), len(SITES), len(NORMS), *gradient.shape[2:])
  return result_of(
    config,
    {
      "texts": len(origins),
      "origins": origins,
      "templates": templates_of(ids),
      "positions": at,
      "middle_layer": subject.cfg.n_layers // 2,
      "candidates": candidates.tolist(),
    },
    gradient.reshape(shape),
    np.stack(swaps),
    np.stack([_norms(subject.cfg, size, at) for size in sizes]),
  )


def _stacked(parts: Iterator[np.ndarray]) -> np.ndarray:
  return np.stack(list(parts))


def _norms(
  cfg: ModelConfig, size: dict[str, np.ndarray], at: dict[str, int]
) -> np.ndarray:
  """[S, C] norm of each position over the text's median, mean of layers."""
  found = []
  for site in SITES:
    # Layers differ in scale by orders of magnitude: ratios first, then means.
    ratio = size[site] / np.median(size[site], axis=1, keepdims=True)
    ratio = ratio[attacked_layers(cfg, site)][:, list(at.values())]
    found.append(ratio.mean(axis=0))
  return np.stack(found)


def _gradients(
  subject: Subject,
  config: Config,
  attackers: dict[str, Callable],
  row: np.ndarray,
  at: dict[str, int],
  size: dict[str, np.ndarray],
  number: int,
) -> Iterator[np.ndarray]:
  """[C, 3, measures] of one text, for every site and norm."""
  where = jnp.asarray(list(at.values()))
  # Noise of its own for each text and place, the same at every site.
  keys = jax.random.split(
    jax.random.fold_in(jax.random.key(config.seed), number), len(at)
  )
  for site, attack in attackers.items():
    chosen = attacked_layers(subject.cfg, site)
    radius = radii(size[site], list(at.values()), chosen, config.share)
    for one in jnp.asarray(radius, size[site].dtype):
      out, _ = attack(subject.params, jnp.asarray(row), where, one, keys)
      yield np.stack(jax.tree.map(np.asarray, out), axis=-1)


def _replaced(
  params: Any,
  replace: Callable,
  row: np.ndarray,
  at: dict[str, int],
  candidates: np.ndarray,
) -> Iterator[np.ndarray]:
  """[C, candidates, measures] of one text, for each `Way`."""
  for way in Way:
    found = []
    for place in at.values():
      rows = changed_rows(row, place, candidates, way)
      out = replace(params, jnp.asarray(row), jnp.asarray(rows))
      found.append(np.stack(jax.tree.map(np.asarray, out), axis=-1))
    yield np.stack(found)
