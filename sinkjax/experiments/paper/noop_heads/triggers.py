"""What activates a head: the search behind the experiment `noop_heads`.

A head is dormant at a query that gives more than half of its attention to the
first token, and active at the others. On some texts, each head's mass on the
first token is predicted from the query's token, from the token before it, or
from its position; other texts choose the heads and which of the three it is;
and held-out texts measure how good the prediction is.
"""

import enum
import functools
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from sinkjax.experiments.harness.api import Subject
from sinkjax.metrics.matrices import each_matrix
from sinkjax.metrics.norms import token_norms
from sinkjax.models.transformer import forward
from sinkjax.transforms.capture import capture


class Trigger(enum.StrEnum):
  """What may predict whether a head is active, in the order of ties.

  The values are keys of recorded results and cells of their tables.
  """

  THIS = "this token"
  PREVIOUS = "previous token"
  POSITION = "position"


DORMANT = 0.5
"""A head is dormant at a query whose mass on the first token exceeds this: all
other tokens together get less."""

SHRINK = 4.0
"""A token's mean counts as if this many queries had the head's own mean, so
that a token seen once or twice hardly predicts anything."""

LISTED = 10
"""Values of a trigger that are kept, those of the least mass."""

BATCH = 8
"""Texts in one forward pass, which keeps what all heads read at once: 53 MB
of SmolLM2-135M."""


class Observed(NamedTuple):
  """What every head did at every query. P texts.

  Attributes:
    ids: [P, T].
    mass: [L, P, H, T] attention on position 0.
    target: [L, P, H, T] the key other than 0 that gets the most attention.
    output: [L, P, H, T] norm of what the head writes to the residual stream.
    value: [L, P, N, T] norm of each token's value.
    stable_rank: [L, P, H] of the head's outputs, T x D.
  """

  ids: np.ndarray
  mass: np.ndarray
  target: np.ndarray
  output: np.ndarray
  value: np.ndarray
  stable_rank: np.ndarray


def observe(
  subject: Subject,
  ids: np.ndarray,
  progress: Callable[[int, int], Any] = lambda done, total: None,
) -> Observed:
  """Runs the model on texts [P, T] and keeps what `Observed` names."""
  kernels = subject.params["blocks"]["attn"]["o"]["kernel"]  # [L, H, K, D]
  # z W has the norms and singular values of z R', where W' = Q R.
  small = each_matrix(
    functools.partial(jnp.linalg.qr, mode="r"), jnp.swapaxes(kernels, -1, -2)
  )

  @jax.jit
  def step(
    params: Any, small: jax.Array, tokens: jax.Array
  ) -> dict[str, jax.Array]:
    out = capture(
      forward(subject.cfg),
      {
        "mass": ("pattern", lambda p: p[..., 0]),
        "target": ("pattern", lambda p: jnp.argmax(p[..., 1:], axis=-1) + 1),
        "z": ("z", lambda z: z),
        "value": ("v", lambda v: jnp.swapaxes(token_norms(v), 1, 2)),
      },
    )(params, tokens).trace
    written = jnp.einsum("lbthk,lhjk->lbhtj", out.pop("z"), small)
    norms = token_norms(written)
    energy = jnp.sum(norms**2, axis=-1)
    # Squared singular values are eigenvalues of the K x K products of columns,
    # which are cheaper than a decomposition of T x D.
    gram = jnp.einsum("lbhti,lbhtj->lbhij", written, written)
    top = each_matrix(jnp.linalg.eigvalsh, gram)[..., -1]
    # The lower limit gives a head that writes nothing rank 0 in place of NaN.
    rank = energy / jnp.maximum(top, jnp.finfo(top.dtype).tiny)
    return {**out, "output": norms, "stable_rank": rank}

  batches = []
  for start in range(0, len(ids), BATCH):
    some = jnp.asarray(ids[start : start + BATCH])
    batches.append(subject.kept("batch", step, subject.params, small, some))
    progress(min(start + BATCH, len(ids)), len(ids))
  whole = {
    name: np.concatenate([one[name] for one in batches], axis=1)
    for name in batches[0]
  }
  return Observed(ids=ids, **whole)


class Head(NamedTuple):
  """A head that acts on a trigger.

  Attributes:
    layer: its layer.
    head: its number there.
    trigger: what predicts best whether it is active.
    words: what activates it most: (token or position, predicted mass, times
      seen in the texts that fit).
    chosen_by: AUROC on the texts that choose.
    auroc: the same on the held-out texts.
    explained: share of the mass's variance explained there.
    by_text: AUROC of each held-out text; NaN where the head is dormant at all
      queries or at none.
  """

  layer: int
  head: int
  trigger: Trigger
  words: list[tuple[int, float, int]]
  chosen_by: float
  auroc: float
  explained: float
  by_text: np.ndarray


def parts(count: int) -> tuple[slice, slice, slice]:
  """The texts that fit, that choose, and that are held out: half, a quarter
  and a quarter."""
  return (
    slice(0, count // 2),
    slice(count // 2, 3 * count // 4),
    slice(3 * count // 4, count),
  )


def features(ids: np.ndarray) -> np.ndarray:
  """[3, P, T] the possible triggers of each query, as `Trigger` has them.

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


def predict(
  table: Mapping[int, tuple[float, int]], overall: float, feature: np.ndarray
) -> np.ndarray:
  """The mass that a fitted table expects at each query."""
  values, inverse = np.unique(feature, return_inverse=True)
  means = [table.get(int(v), (overall, 0))[0] for v in values]
  return np.array(means)[inverse].reshape(feature.shape)


def auroc(low: np.ndarray, is_low: np.ndarray) -> float:
  """How often `low` ranks an active query below a dormant one.

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
  # By the Mann-Whitney statistic: ranks need no array of all pairs.
  ranks = stats.rankdata(-low.ravel())
  total = ranks[is_low.ravel()].sum()
  pairs = positive * negative
  return float((total - positive * (positive + 1) / 2) / pairs)


def find(
  observed: Observed,
  *,
  resting: tuple[float, float],
  output: float,
  least: float,
) -> list[Head]:
  """The heads that meet every condition on the texts that fit and choose.

  Args:
    observed: of `observe`.
    resting: least and greatest share of queries at which a head is dormant.
    output: greatest ratio of the output's norm while dormant to that when
      active.
    least: least AUROC on the texts that choose.

  Returns:
    Best first, by AUROC on the texts that choose.
  """
  _, choosing, _ = parts(len(observed.ids))
  known = features(observed.ids)[:, :, 1:]
  # Held-out texts must not decide which heads count, or what is measured on
  # them would be too good.
  before = slice(0, choosing.stop)
  layers, _, per_layer, _ = observed.mass.shape
  heads = []
  for layer, number in np.ndindex(layers, per_layer):
    mass = observed.mass[layer, :, number, 1:]
    written = observed.output[layer, before, number, 1:]
    dormant = mass[before] > DORMANT
    if not resting[0] <= dormant.mean() <= resting[1]:
      continue
    if written[dormant].mean() > output * written[~dormant].mean():
      continue
    head = _fitted(known, mass, layer, number, least)
    if head is not None:
      heads.append(head)
  return sorted(heads, key=lambda head: -head.chosen_by)


def _fitted(
  known: np.ndarray, mass: np.ndarray, layer: int, number: int, least: float
) -> Head | None:
  """A head with its best trigger; `None` where no trigger is good enough.

  Args:
    known: [3, P, T] of `features`.
    mass: [P, T] of the head.
    layer: its layer.
    number: its number there.
    least: least AUROC on the texts that choose.
  """
  fitting, choosing, held_out = parts(len(mass))
  tables = [fit(feature[fitting], mass[fitting]) for feature in known]

  def predicted(i: int, part: slice) -> tuple[np.ndarray, np.ndarray]:
    return predict(*tables[i], known[i][part]), mass[part] <= DORMANT

  scores = [auroc(*predicted(i, choosing)) for i in range(len(tables))]
  best = int(np.nanargmax([*scores, 0.0]))  # NaN, or 0, is no trigger
  if best == len(scores) or scores[best] < least:
    return None
  expected, active = predicted(best, held_out)
  words = [(value, mean, n) for value, (mean, n) in tables[best][0].items()]
  actual = mass[held_out]
  spread = ((actual - actual.mean()) ** 2).sum()
  by_text = [auroc(*pair) for pair in zip(expected, active, strict=True)]
  return Head(
    layer,
    number,
    tuple(Trigger)[best],
    sorted(words, key=lambda word: word[1])[:LISTED],
    scores[best],
    auroc(expected, active),
    1 - float(((actual - expected) ** 2).sum() / spread),
    np.array(by_text),
  )
