"""Attacks on the first token of a model that is defended.

A defence is edits that follow the attack: the keys and values of position 0
pinned to precomputed ones, or norms clipped. The attack maximises the loss of
the defended model itself, so it knows of the defence.

Sharp edges:
  Position 0 attends only to itself. Its keys and values are a function of its
  token alone, the same in every text that begins with it, and all that later
  tokens read of it. Pinned, they undo every attack at position 0.
"""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from sinkjax.config import ModelConfig
from sinkjax.experiments.applications.robustness.config import (
  CLIPS,
  SITES,
  Config,
  Defence,
)
from sinkjax.experiments.harness.api import Subject
from sinkjax.experiments.shared.attack_sites import (
  Clip,
  attacked_layers,
  shift_shape,
  token_norms,
)
from sinkjax.experiments.shared.perturb import (
  Seen,
  Shift,
  ascend,
  effect,
  look,
  nats,
)
from sinkjax.models.transformer import forward
from sinkjax.transforms.capture import capture
from sinkjax.transforms.edits import chain, patch
from sinkjax.transforms.intervene import intervene

Guard = dict[str, Any]
"""The edits of a defence, by site."""


def pins_of(cfg: ModelConfig) -> Callable:
  """`g(params, token)`: pins position 0's keys and values to that token's.

  They are computed from the token alone.
  """
  f = capture(forward(cfg), {x: (x, lambda value: value) for x in ("k", "v")})

  @jax.jit
  def pins(params: Any, token: Array) -> Guard:
    # No text is needed: position 0 attends to nothing else.
    trace = f(params, jnp.reshape(token, (1, 1))).trace
    layers = jnp.ones(cfg.n_layers, bool)
    return {
      name: patch(value, positions=0, layers=layers)
      for name, value in trace.items()
    }

  return pins


def no_guard(cfg: ModelConfig, length: int) -> Guard:
  """A guard that changes nothing, of the structure of all others together.

  So one compiled attack serves every guard.

  Args:
    cfg: the model.
    length: T.
  """
  none = jnp.zeros(cfg.n_layers, bool)
  rows = (cfg.n_layers, 1, 1)
  far = np.finfo(np.float32).max ** 0.5 / 2  # its square is finite
  return {
    **{
      site: patch(
        jnp.zeros((*rows, *shift_shape(cfg, site))), positions=0, layers=none
      )
      for site in ("k", "v")
    },
    "embed": Clip(jnp.full((1, length), far)),
    "resid_post": Clip(jnp.full((cfg.n_layers, length), far)),
  }


def clip_at(norms: Sequence[np.ndarray], own: int, share: float) -> Clip:
  """A clip at a quantile of the norms in other texts.

  First tokens and later ones have limits of their own: a sink's residual
  stream is a hundred times longer than another token's.

  Args:
    norms: of each text, [L or 1, T].
    own: number of the text that is defended, left out.
    share: the quantile.
  """
  # A defender does not know the norms of the text under attack.
  others = np.stack([x for i, x in enumerate(norms) if i != own])
  first = np.quantile(others[:, :, 0], share, axis=0)
  later = np.quantile(others[:, :, 1:], share, axis=(0, 2))
  limit = np.repeat(later[:, None], others.shape[2], axis=1)
  limit[:, 0] = first
  return Clip(jnp.asarray(limit, jnp.float32))


def attacked(
  f: Callable, site: str, shift: Array, at: Any, guard: Guard
) -> Callable:
  """The model with a shift of one token, and the guard after it.

  Args:
    f: the model.
    site: where the shift is added.
    shift: [L, ...], of `perturb.Shift`.
    at: its position.
    guard: of the defence.
  """
  edits = dict(guard)
  mine = Shift(shift, at)
  # The shift first: a defence acts on what it is given.
  edits[site] = chain(mine, edits[site]) if site in edits else mine
  return intervene(f, edits)


def clean_run(cfg: ModelConfig, start: int) -> Callable:
  """`g(params, ids [T], guard) -> Seen` without an attack, jitted."""
  f = forward(cfg)

  @jax.jit
  def run(params: Any, ids: Array, guard: Guard) -> Seen:
    return look(intervene(f, guard), params, ids[None], start)

  return run


def attack_effect(
  cfg: ModelConfig, site: str, start: int, eps: float
) -> Callable:
  """`g(params, ids [T], at, shift, guard, plain, own) -> [2, M]`, jitted.

  The effect of an attack against the model without a guard and against the
  guarded one, both `Seen` without an attack; M as `perturb.MEASURES`.
  """
  f = forward(cfg)

  @jax.jit
  def attack(
    params: Any,
    ids: Array,
    at: Array,
    shift: Array,
    guard: Guard,
    plain: Seen,
    own: Seen,
  ) -> Array:
    g = attacked(f, site, shift, at, guard)
    seen = look(g, params, ids[None], start)
    after = ids[None, start + 1 :]
    both = (effect(base, seen, after, eps=eps) for base in (plain, own))
    return jnp.stack([jnp.stack([x[0] for x in one]) for one in both])

  return attack


def pgd(cfg: ModelConfig, site: str, start: int, steps: int) -> Callable:
  """`g(params, ids [T], at, radius [L], guard) -> shift [L, ...]`, jitted.

  Projected gradient ascent, `perturb.ascend`, on the guarded model's loss; the
  best of its steps.
  """
  f, shape = forward(cfg), shift_shape(cfg, site)

  @jax.jit
  def climb(
    params: Any, ids: Array, at: Array, radius: Array, guard: Guard
  ) -> Array:
    def objective(shift: Array) -> Array:
      g = attacked(f, site, shift, at, guard)
      return nats(g, params, ids[None], start)[0]

    shifts, values = ascend(objective, radius, shape, steps=steps)
    return shifts[jnp.argmax(values)]

  return climb


class Defended:
  """Attacks on a text's first token, against every defence.

  Args:
    subject: the model.
    config: what is run.
    ids: [P, T] the texts.
    sizes: of each text, {site: [L or 1, T]} norms, "resid_post" too.

  Raises:
    ValueError: as `front_token` and `donors`.
  """

  def __init__(
    self,
    subject: Subject,
    config: Config,
    ids: np.ndarray,
    sizes: Sequence[dict[str, np.ndarray]],
  ):
    self._params, self._cfg = subject.params, subject.cfg
    self._config, self._ids, self._sizes = config, ids, sizes
    self._front = front_token(subject, config.front)
    self._others = donors(ids, len(subject.prefix))
    self._pins, start = pins_of(subject.cfg), config.tokens // 2
    # With a token in front, what is measured begins one position later.
    self._start, starts = start, (start, start + 1)
    self._run = {n: clean_run(subject.cfg, n) for n in starts}
    self._pgd, self._attack = {}, {}
    for site in SITES:
      for n in starts:
        self._pgd[site, n] = pgd(subject.cfg, site, n, config.steps)
        self._attack[site, n] = attack_effect(subject.cfg, site, n, config.eps)
    f = forward(subject.cfg)
    self._norms = jax.jit(
      lambda params, row: token_norms(f, params, row, SITES)
    )

  def evaluate(self, number: int) -> np.ndarray:
    """[S, D, 3, M] of one text.

    What the defence alone changes, what attack and defence together change,
    both against the plain model, and what the attack changes in the defended
    model.
    """
    row, norms = jnp.asarray(self._ids[number]), self._sizes[number]
    # The token that is put in front, whose keys and values are known.
    front = jnp.array([self._front], row.dtype)
    ahead = jnp.concatenate([front, row])
    guards = self._guards(number, row, ahead)
    plain = self._run[self._start](self._params, row, guards[Defence.NONE])
    found, shifts = [], {}
    for defence in Defence:
      of = (row, norms, shifts)
      if defence == Defence.FRONT:
        of = (ahead, self._norms(self._params, ahead[None]), {})
      found.append(self.evaluate_defence(defence, guards[defence], *of, plain))
    return np.stack(found, axis=1)

  def _guards(
    self, number: int, row: Array, ahead: Array
  ) -> dict[Defence, Guard]:
    free, longer = (no_guard(self._cfg, len(x)) for x in (row, ahead))
    donor = jnp.asarray(self._others[number])
    # Limits are made of the other texts, so every text has its own.
    clips = {
      name: free | {site: clip_at([x[site] for x in self._sizes], number, at)}
      for name, (site, at) in CLIPS.items()
    }
    return clips | {
      Defence.NONE: free,
      Defence.OWN: free | self._pins(self._params, row[0]),
      Defence.OTHER: free | self._pins(self._params, donor),
      Defence.FRONT: longer
      | self._pins(self._params, jnp.asarray(self._front)),
    }

  def evaluate_defence(
    self,
    defence: Defence,
    guard: Guard,
    row: Array,
    norms: dict[str, Any],
    shifts: dict[str, Array],
    plain: Seen,
  ) -> np.ndarray:
    """[S, 3, M] of one defence.

    Args:
      defence: which.
      guard: its edits.
      row: the text, with the token in front where that is the defence.
      norms: of its tokens.
      shifts: the attacks by site, replaced here where a new one can be found.
      plain: the run without attack and defence.
    """
    at = int(defence == Defence.FRONT)
    start = self._start + at
    after = row[None, start + 1 :]
    own, found = self._run[start](self._params, row, guard), []
    alone = effect(plain, own, after, eps=self._config.eps)
    alone = np.array([float(x[0]) for x in alone])
    for site in SITES:
      # Pinning cuts every gradient, so the attack on the plain model is tried.
      if defence not in (Defence.OWN, Defence.OTHER):
        # Relative to the attacked token's own norm, as for the plain model.
        radius = self._config.share * jnp.asarray(norms[site])[:, at]
        radius = radius * attacked_layers(self._cfg, site)
        shifts[site] = self._pgd[site, start](
          self._params, row, jnp.asarray(at), radius, guard
        )
      both = self._attack[site, start](
        self._params, row, jnp.asarray(at), shifts[site], guard, plain, own
      )
      found.append(np.concatenate([alone[None], np.asarray(both)]))
    return np.stack(found)


def front_token(subject: Subject, front: int | None) -> int:
  """The token that is put in front: BOS or a line end for `None`.

  Raises:
    ValueError: for an id outside the vocabulary.
  """
  token = front
  if token is None:
    token = subject.tokenizer.bos_id
  if token is None:
    token = subject.tokenizer.encode("\n")[0]
  if not 0 <= token < subject.cfg.vocab_size:
    raise ValueError(
      f"front must be an id below {subject.cfg.vocab_size}, got {token}"
    )
  return int(token)


def donors(ids: np.ndarray, skipped: int = 0) -> list[int]:
  """For each text the first token of another text that begins differently.

  Args:
    ids: [P, T].
    skipped: tokens that stand in front of every text.

  Raises:
    ValueError: if there is none.

  >>> donors(np.array([[5, 1], [5, 2], [6, 3]]))
  [6, 6, 5]
  """
  found = []
  for i, own in enumerate(ids[:, 0]):
    others = np.roll(ids[:, skipped], -i - 1)
    others = others[others != own]
    if not others.size:
      raise ValueError(f"every text begins with token {own}: no other to pin")
    found.append(int(others[0]))
  return found
