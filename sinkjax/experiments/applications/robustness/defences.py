"""Attacks of a token against a model that is guarded.

A guard is edits that come after the attack: the keys and values of position 0
pinned to those computed before, or norms clipped. The attack climbs the loss
of the guarded model itself, so that it knows of the defence.

Sharp edges:
  Position 0 sees only itself. Its keys and values are a function of its token
  alone, the same in every text that begins with it; and they are all that
  later tokens see of it. Pinned, they undo any attack at position 0.
"""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from sinkjax.experiments.harness.api import Subject
from sinkjax.experiments.shared.perturb import (
  Clip,
  Seen,
  Shift,
  ascend,
  effect,
  layers_of,
  look,
  nats,
  sizes,
)
from sinkjax.models.transformer import forward
from sinkjax.transforms.capture import capture
from sinkjax.transforms.edits import chain, patch
from sinkjax.transforms.intervene import intervene

NONE, SAME, OTHER, FRONT = PINNED = (
  "no defence",
  "its own token's, pinned",
  "another token's, pinned",
  "a fixed token in front, pinned",
)
CLIPPED = {
  "embeddings clipped at the median": ("embed", 0.5),
  "embeddings clipped at the greatest": ("embed", 1.0),
  "residual clipped at the median": ("resid_post", 0.5),
  "residual clipped at the greatest": ("resid_post", 1.0),
}
"""The site, and the quantile of the norms in other texts."""

DEFENCES = (*PINNED, *CLIPPED)


SITES = ("embed", "k", "v")
"""Where the first token is attacked."""


def pins_of(cfg) -> Callable:
  """`g(params, token)`: a guard, position 0's keys and values of that token.

  They are computed from the token alone.
  """
  f = capture(forward(cfg), {x: (x, lambda value: value) for x in ("k", "v")})

  @jax.jit
  def pins(params, token):
    trace = f(params, jnp.reshape(token, (1, 1))).trace
    layers = jnp.arange(cfg.n_layers)
    return {
      name: patch(value, positions=0, layers=layers)
      for name, value in trace.items()
    }

  return pins


def unguarded(cfg, length: int) -> dict[str, Any]:
  """A guard that does nothing, of the structure of all others together.

  So one compiled attack serves every guard.

  Args:
    cfg: the model.
    length: T.
  """
  none = jnp.full(cfg.n_layers, -1)
  zero = jnp.zeros((cfg.n_layers, 1, 1, cfg.n_kv_heads, cfg.head_dim))
  far = np.finfo(np.float32).max ** 0.5 / 2  # its square is finite
  return {
    **{x: patch(zero, positions=0, layers=none) for x in ("k", "v")},
    "embed": Clip(jnp.full((1, length), far)),
    "resid_post": Clip(jnp.full((cfg.n_layers, length), far)),
  }


def clip_at(norms: Sequence[np.ndarray], own: int, share: float) -> Clip:
  """A clip at a quantile of the norms in other texts.

  First tokens and later ones have limits of their own: a sink's residual
  stream is a hundred times longer than another token's.

  Args:
    norms: of each text, [L or 1, T].
    own: number of the text that is guarded, left out.
    share: the quantile.
  """
  others = np.stack([x for i, x in enumerate(norms) if i != own])
  first = np.quantile(others[:, :, 0], share, axis=0)
  later = np.quantile(others[:, :, 1:], share, axis=(0, 2))
  limit = np.repeat(later[:, None], others.shape[2], axis=1)
  limit[:, 0] = first
  return Clip(jnp.asarray(limit, jnp.float32))


def attacked(f: Callable, site: str, shift, at, guard) -> Callable:
  """The model with a shift of one token, and the guard after it.

  Args:
    f: the model.
    site: where the shift is added.
    shift: [L, ...], of `perturbing.Shift`.
    at: its position.
    guard: {site: edit}.
  """
  edits = dict(guard)
  mine = Shift(shift, at)
  edits[site] = chain(mine, edits[site]) if site in edits else mine
  return intervene(f, edits)


def watcher(cfg, start: int) -> Callable:
  """`g(params, ids [T], guard) -> Seen` without an attack, jitted."""
  f = forward(cfg)

  @jax.jit
  def watch(params, ids, guard):
    return look(intervene(f, guard), params, ids[None], start)

  return watch


def hitter(cfg, site: str, start: int, eps: float) -> Callable:
  """`g(params, ids [T], at, shift, guard, plain, own) -> [2, M]`, jitted.

  What an attack does, beside the model without a guard and beside the guarded
  one, `Seen` without attack; M as `perturbing.MEASURES`.
  """
  f = forward(cfg)

  @jax.jit
  def hit(params, ids, at, shift, guard, plain: Seen, own: Seen) -> Array:
    g = attacked(f, site, shift, at, guard)
    seen = look(g, params, ids[None], start)
    after = ids[None, start + 1 :]
    both = (effect(base, seen, after, eps=eps) for base in (plain, own))
    return jnp.stack([jnp.stack([x[0] for x in one]) for one in both])

  return hit


def climber(cfg, site: str, start: int, steps: int) -> Callable:
  """`g(params, ids [T], at, radius [L], guard) -> shift [L, ...]`, jitted.

  The best of the steps of `perturbing.ascend` on the guarded model's loss.
  """
  f, width = forward(cfg), (cfg.d_model,)
  if site in ("k", "v"):
    width = (cfg.n_kv_heads, cfg.head_dim)

  @jax.jit
  def climb(params, ids, at, radius, guard) -> Array:
    def objective(shift):
      g = attacked(f, site, shift, at, guard)
      return nats(g, params, ids[None], start)[0]

    shifts, values = ascend(objective, radius, width, steps=steps)
    return shifts[jnp.argmax(values)]

  return climb


def difference(plain: Seen, own: Seen, after: Any, eps: float) -> np.ndarray:
  """[M] what a guard itself changes, where nothing attacks."""
  found = effect(plain, own, after, eps=eps)
  return np.array([float(x[0]) for x in found])


def duellist(subject: Subject, config: Any, ids: np.ndarray, size) -> Callable:
  """`duel(number) -> [S, D, 3, M]`: a text's first token, every defence.

  What the guard alone changes, what the attack and it do, both beside the
  plain model, and what the attack does beside the guarded model.

  Args:
    subject: the model.
    config: with `tokens`, `share`, `steps`, `front` and `eps`, see
      `robustness.Config`.
    ids: [P, T] the texts.
    size: of each text, {site: [L or 1, T]}, see `attack.sizes`.

  Raises:
    ValueError: as `front_of` and `donors`.
  """
  cfg, params = subject.cfg, subject.params
  front = front_of(subject, config.front)
  others = donors(ids, len(subject.prefix))
  start, f, pins = config.tokens // 2, forward(cfg), pins_of(cfg)
  watch = {n: watcher(cfg, n) for n in (start, start + 1)}
  climb = {
    (site, n): climber(cfg, site, n, config.steps)
    for site in SITES
    for n in watch
  }
  hit = {
    (site, n): hitter(cfg, site, n, config.eps) for site in SITES for n in watch
  }
  measure = jax.jit(lambda params, row: sizes(f, params, row, SITES))

  def against(name, guard, row, norms, plain, after, shifts):
    """[S, 3, M] of one defence; `shifts` are the attacks, or become them."""
    at = jnp.asarray(int(name == FRONT))
    first = start + int(name == FRONT)
    own, found = watch[first](params, row, guard), []
    alone = difference(plain, own, after, config.eps)
    for site in SITES:
      if name not in (SAME, OTHER):  # no attack gets through these
        radius = config.share * jnp.asarray(norms[site])[:, int(at)]
        radius = radius * layers_of(cfg, site)
        shifts[site] = climb[site, first](params, row, at, radius, guard)
      both = hit[site, first](params, row, at, shifts[site], guard, plain, own)
      found.append(np.concatenate([alone[None], np.asarray(both)]))
    return np.stack(found)

  def duel(number: int) -> np.ndarray:
    row, norms = jnp.asarray(ids[number]), size[number]
    ahead = jnp.concatenate([jnp.array([front], row.dtype), row])
    free, longer = (unguarded(cfg, len(x)) for x in (row, ahead))
    guards = {
      NONE: free,
      SAME: free | pins(params, row[0]),
      OTHER: free | pins(params, jnp.asarray(others[number])),
      FRONT: longer | pins(params, jnp.asarray(front)),
      **{
        name: free | {x: clip_at([one[x] for one in size], number, share)}
        for name, (x, share) in CLIPPED.items()
      },
    }
    plain, after = watch[start](params, row, free), row[None, start + 1 :]
    found, shifts = [], {}
    for name in DEFENCES:
      here = (row, norms)
      if name == FRONT:
        here = (ahead, measure(params, ahead[None]))
      mine = {} if name == FRONT else shifts
      guard = guards[name]
      found.append(against(name, guard, *here, plain, after, mine))
    return np.stack(found, axis=1)

  return duel


def front_of(subject: Subject, front: int | None) -> int:
  """The token that is put in front: BOS or a line end for `None`.

  Raises:
    ValueError: for an id that there is not.
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
  """For each text the first token of the next one, if that is another token.

  Args:
    ids: [P, T].
    skipped: tokens that stand in front of every text.

  Raises:
    ValueError: if there is no other.

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
