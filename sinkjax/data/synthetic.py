"""Synthetic tasks of known best loss, in which sinks must emerge.

Bigram-Backcopy (Guo et al., arXiv 2410.13835): the text of a bigram model, in
which the token after a trigger repeats the token before it. A head that copies
is a no-op at all other tokens, and attends to BOS.

The trigger mean (arXiv 2603.11487): at a trigger the output is the mean of
the tokens before it, elsewhere 0.
"""

import functools
from collections import Counter
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int


class Backcopy(NamedTuple):
  """The Bigram-Backcopy task; ids are 0 for BOS, i + 1 for `characters[i]`.

  Attributes:
    characters: of the text, most frequent first.
    unigram: [V] the distribution of x_1, which is neither BOS nor a trigger.
    bigram: [V, V] the distribution of the token after each id; a trigger's row
      is not used.
    triggers: [V] whether an id is a trigger.
  """

  characters: str
  unigram: np.ndarray
  bigram: np.ndarray
  triggers: np.ndarray

  @property
  def vocab_size(self) -> int:
    """V: the characters and BOS."""
    return len(self.characters) + 1


def backcopy_task(
  text: str, *, characters: int = 65, triggers: int = 3
) -> Backcopy:
  """The task of a text's own bigrams.

  Args:
    text: whose characters are counted.
    characters: how many are kept, the most frequent ones; others are left out
      of the text.
    triggers: how many of the most frequent characters are triggers.

  Raises:
    ValueError: if the triggers leave fewer than two characters, or a
      character has no successor.

  >>> backcopy_task("abcabdabc", triggers=1).characters
  'abcd'
  """
  common = Counter(text).most_common(characters)
  kept = "".join(char for char, _ in common)
  if not 0 < triggers <= len(kept) - 2:
    raise ValueError(
      f"triggers must be 1 to {len(kept) - 2} of {len(kept)} characters, got "
      f"{triggers}"
    )
  ids = {char: i + 1 for i, char in enumerate(kept)}
  path = np.array([ids[char] for char in text if char in ids])
  size = len(kept) + 1
  counts = np.zeros((size, size))
  np.add.at(counts, (path[:-1], path[1:]), 1)
  is_trigger = np.zeros(size, bool)
  is_trigger[1 : triggers + 1] = True
  unigram = np.bincount(path, minlength=size).astype(float)
  unigram[is_trigger] = 0
  rows = counts.sum(axis=1)
  lonely = np.flatnonzero((rows == 0) & ~is_trigger)[1:]
  if lonely.size:
    raise ValueError(f"nothing follows {kept[lonely[0] - 1]!r} in the text")
  bigram = counts / np.maximum(rows, 1)[:, None]
  bigram[0] = unigram / unigram.sum()
  return Backcopy(kept, unigram / unigram.sum(), bigram, is_trigger)


def sample_backcopy(
  task: Backcopy, key: Array, batch: int, length: int
) -> Int[Array, "B T"]:
  """Rows of BOS and `length - 1` tokens of the task.

  Two triggers never follow each other: x_1 is none, and the token after a
  trigger repeats the token before it.
  """
  table = jnp.log(jnp.asarray(task.bigram, jnp.float32))
  return _sample(table, jnp.asarray(task.triggers), key, batch, length)


@functools.partial(jax.jit, static_argnums=(3, 4))
def _sample(
  table: Array, triggers: Array, key: Array, batch: int, length: int
) -> Array:
  def step(pair: tuple[Array, Array], key: Array):
    before, now = pair
    drawn = jax.random.categorical(key, table[now], axis=-1)
    following = jnp.where(triggers[now], before, drawn).astype(jnp.int32)
    return (now, following), following

  start = jnp.zeros((batch,), jnp.int32)
  keys = jax.random.split(key, length - 1)
  _, rows = jax.lax.scan(step, (start, start), keys)
  return jnp.concatenate([start[:, None], rows.T], axis=1)


def backcopy_optimum(task: Backcopy, length: int) -> np.ndarray:
  """The least mean loss in nats at each position's prediction, [length - 1].

      loss_t = sum over non-triggers x of p(x_t = x) H(bigram[x])

  The token after a trigger is certain. Entry t is for predicting token t + 1.
  """
  with np.errstate(divide="ignore", invalid="ignore"):
    entropy = -np.nansum(task.bigram * np.log(task.bigram), axis=1)
  plain = np.zeros(task.vocab_size)  # p(x_t = x), x no trigger
  plain[0] = 1.0
  before = np.zeros(task.vocab_size)  # p(x_t a trigger, x_(t-1) = x)
  losses = []
  for _ in range(length - 1):
    losses.append(plain @ entropy)
    following = plain[:, None] * task.bigram
    plain = np.where(task.triggers, 0, following.sum(axis=0)) + before
    before = following[:, task.triggers].sum(axis=1)
  return np.array(losses)


class TriggerMean(NamedTuple):
  """A batch of the trigger-mean task.

  Attributes:
    inputs: [B, T, D] channel 0 marks the first token, channel 1 the trigger;
      channel 2 holds, at the trigger, one over the number of tokens between the
      first and the trigger, so that attention without normalisation can form a
      mean, too. The other channels have a random direction, and are 0 at the
      first token. Every token but the first has a mean square of 1: an RMS norm
      leaves it unchanged.
    targets: [B, T, D] at the trigger, in the channels from 3 on, the mean of
      the inputs between the first token and the trigger; 0 elsewhere. The best
      loss is 0.
    trigger: [B, T] whether a token is the trigger.
  """

  inputs: Float[Array, "B T D"]
  targets: Float[Array, "B T D"]
  trigger: Bool[Array, "B T"]


MARKS = 3
"""Channels of the trigger-mean task that mark the kind of a token."""


def sample_trigger_mean(
  key: Array, batch: int, length: int, width: int
) -> TriggerMean:
  """One trigger a row, at a uniform place from position 2 on.

  Raises:
    ValueError: for a length below 3 or a width below 4.
  """
  if length < 3 or width <= MARKS:
    raise ValueError(
      f"length must be at least 3 and width {MARKS + 1}, got {length} and "
      f"{width}"
    )
  directions, place = jax.random.split(key)
  at = jax.random.randint(place, (batch, 1), 2, length)
  token = jnp.arange(length)[None]
  trigger = token == at
  # Content tokens start at position 1: there are t - 1 of them before t.
  count = jnp.maximum(token - 1, 1)
  marks = jnp.stack(
    [jnp.broadcast_to(token == 0, trigger.shape), trigger, trigger / count],
    axis=-1,
  ).astype(jnp.float32)
  x = jax.random.normal(directions, (batch, length, width - MARKS))
  square = width - jnp.sum(marks * marks, axis=-1, keepdims=True)
  x *= jnp.sqrt(square / jnp.sum(x * x, axis=-1, keepdims=True))
  x = x.at[:, 0].set(0.0)
  before = jnp.cumsum(x, axis=1) - x
  mean = jnp.where(trigger[:, :, None], before / count[..., None], 0.0)
  return TriggerMean(
    jnp.concatenate([marks, x], axis=-1),
    jnp.pad(mean, [(0, 0), (0, 0), (MARKS, 0)]),
    trigger,
  )
