"""What sets a head off: the search behind the experiment `noop_heads`.

A query rests where more than half of its attention is on the first token, and
acts elsewhere. From some texts each head's mass on the first token is
predicted by the query's token, by the token before it, or by its position;
other texts choose the head and which of the three it is; and texts that took
no part in that say how good the prediction is.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from sinkjax.experiments.harness.api import Subject
from sinkjax.metrics.norms import token_norms
from sinkjax.models.transformer import forward
from sinkjax.transforms.capture import capture

TRIGGERS = ("this token", "previous token", "position")
"""What may tell whether a head acts, in the order of ties."""

RESTS = 0.5
"""A query rests where its mass on the first token exceeds this."""

SHRINK = 4.0
"""A token's mean counts as if this many queries had the head's own mean."""

BATCH = 8
"""Texts in one forward pass."""


class Seen(NamedTuple):
  """What every query of every head did. P texts.

  Attributes:
    ids: [P, T].
    mass: [L, P, H, T] attention on position 0.
    goes: [L, P, H, T] the key that gets most of the rest.
    output: [L, P, H, T] norm of what the head writes to the residual.
    value: [L, P, N, T] norm of each token's value.
    stable_rank: [L, P, H] of the head's outputs, T x D.
  """

  ids: np.ndarray
  mass: np.ndarray
  goes: np.ndarray
  output: np.ndarray
  value: np.ndarray
  stable_rank: np.ndarray


def look(
  subject: Subject,
  ids: np.ndarray,
  progress: Callable[[int, int], Any] = lambda done, total: None,
) -> Seen:
  """Runs the model on texts [P, T] and keeps what `Seen` names."""
  kernels = subject.params["blocks"]["attn"]["o"]["kernel"]  # [L, H, K, D]
  # z W has the norms and singular values of z R', where W' = Q R.
  small = jnp.linalg.qr(jnp.swapaxes(kernels, -1, -2), mode="r")

  @jax.jit
  def step(params, small, tokens):
    out = capture(
      forward(subject.cfg),
      {
        "mass": ("pattern", lambda p: p[..., 0]),
        "goes": ("pattern", lambda p: jnp.argmax(p[..., 1:], axis=-1) + 1),
        "z": ("z", lambda z: z),
        "value": ("v", lambda v: jnp.swapaxes(token_norms(v), 1, 2)),
      },
    )(params, tokens).trace
    written = jnp.einsum("lbthk,lhjk->lbhtj", out.pop("z"), small)
    norms = token_norms(written)
    energy = jnp.sum(norms**2, axis=-1)
    gram = jnp.einsum("lbhti,lbhtj->lbhij", written, written)
    top = jnp.linalg.eigvalsh(gram)[..., -1]
    rank = energy / jnp.maximum(top, jnp.finfo(top.dtype).tiny)
    return {**out, "output": norms, "stable_rank": rank}

  found = []
  for start in range(0, len(ids), BATCH):
    some = jnp.asarray(ids[start : start + BATCH])
    out = step(subject.params, small, some)
    found.append({name: np.asarray(x) for name, x in out.items()})
    progress(min(start + BATCH, len(ids)), len(ids))
  whole = {
    name: np.concatenate([one[name] for one in found], axis=1)
    for name in found[0]
  }
  return Seen(ids=ids, **whole)


class Head(NamedTuple):
  """A head that acts on a trigger.

  Attributes:
    layer: its layer.
    head: its number there.
    trigger: of `TRIGGERS`.
    words: what sets it off most: (token or position, predicted mass, times
      seen in the texts that fit).
    chosen_by: AUROC on the texts that choose.
    auroc: the same on the texts kept back.
    explained: share of the mass's variance explained there.
    by_text: AUROC of each text kept back; NaN where all or none rest.
  """

  layer: int
  head: int
  trigger: str
  words: list[tuple[int, float, int]]
  chosen_by: float
  auroc: float
  explained: float
  by_text: np.ndarray


def parts(count: int) -> tuple[slice, slice, slice]:
  """The texts that fit, that choose, and that are kept back: half, a quarter
  and a quarter."""
  return (
    slice(0, count // 2),
    slice(count // 2, 3 * count // 4),
    slice(3 * count // 4, count),
  )


def features(ids: np.ndarray) -> np.ndarray:
  """[3, P, T] the possible triggers of each query, as `TRIGGERS`.

  The token before position 0 is -1; no query from there is used.
  """
  before = np.concatenate([np.full_like(ids[:, :1], -1), ids[:, :-1]], axis=1)
  place = np.broadcast_to(np.arange(ids.shape[1]), ids.shape)
  return np.stack([ids, before, place])


def fit(
  feature: np.ndarray, mass: np.ndarray
) -> tuple[dict[int, tuple[float, int]], float]:
  """({value: (mean mass, times seen)}, mean of all), the means shrunk.

  A value seen n times with mean m counts as (n m + k M) / (n + k), M the mean
  of all and k `SHRINK`: rare values say little.
  """
  overall = float(mass.mean())
  values, inverse, counts = np.unique(
    feature, return_inverse=True, return_counts=True
  )
  sums = np.bincount(inverse.ravel(), weights=mass.ravel())
  means = (sums + SHRINK * overall) / (counts + SHRINK)
  pairs = zip(values, means, counts, strict=True)
  return {int(v): (float(m), int(n)) for v, m, n in pairs}, overall


def predict(table, overall: float, feature: np.ndarray) -> np.ndarray:
  """The mass that a fitted table expects at each query."""
  values, inverse = np.unique(feature, return_inverse=True)
  means = [table.get(int(v), (overall, 0))[0] for v in values]
  return np.array(means)[inverse].reshape(feature.shape)


def auroc(low: np.ndarray, is_low: np.ndarray) -> float:
  """How often an acting query is told from a resting one by `low`.

  The chance that a query with `is_low` has the smaller number than one
  without, ties for half; NaN where there is no such pair.

  >>> auroc(np.array([0.1, 0.9, 0.5]), np.array([True, False, False]))
  1.0
  """
  from scipy import stats

  positive = int(is_low.sum())
  negative = is_low.size - positive
  if not positive or not negative:
    return float("nan")
  ranks = stats.rankdata(-low.ravel())
  total = ranks[is_low.ravel()].sum()
  pairs = positive * negative
  return float((total - positive * (positive + 1) / 2) / pairs)


def find(
  seen: Seen, *, resting: tuple[float, float], output: float, least: float
) -> list[Head]:
  """The heads that meet every condition on the texts that fit and choose.

  Args:
    seen: of `look`.
    resting: least and greatest share of queries that rest.
    output: greatest ratio of the output's norm at rest to that when acting.
    least: least AUROC on the texts that choose.

  Returns:
    Best first, by AUROC on the texts that choose.
  """
  fitting, choosing, kept = parts(len(seen.ids))
  known = features(seen.ids)[:, :, 1:]
  mass, written = seen.mass[..., 1:], seen.output[..., 1:]
  found = []
  for layer in range(mass.shape[0]):
    for head in range(mass.shape[2]):
      m, out = mass[layer, :, head], written[layer, :, head]
      first = slice(0, choosing.stop)
      rests = m[first] > RESTS
      share = rests.mean()
      if not resting[0] <= share <= resting[1]:
        continue
      quiet, loud = out[first][rests].mean(), out[first][~rests].mean()
      if quiet > output * loud:
        continue
      tables = [fit(f[fitting], m[fitting]) for f in known]

      def told(i, part, m=m, tables=tables):
        return predict(*tables[i], known[i][part]), m[part] <= RESTS

      scores = [auroc(*told(i, choosing)) for i in range(len(TRIGGERS))]
      best = int(np.nanargmax([*scores, 0.0]))
      if best == len(scores) or scores[best] < least:
        continue
      expected, acts = told(best, kept)
      table = tables[best][0]
      words = sorted(
        ((v, mean, n) for v, (mean, n) in table.items()), key=lambda x: x[1]
      )[:10]
      spread = ((m[kept] - m[kept].mean()) ** 2).sum()
      found.append(
        Head(
          layer,
          head,
          TRIGGERS[best],
          words,
          scores[best],
          auroc(expected, acts),
          1 - float(((m[kept] - expected) ** 2).sum() / spread),
          np.array([auroc(*pair) for pair in zip(expected, acts, strict=True)]),
        )
      )
  return sorted(found, key=lambda one: -one.chosen_by)
