"""Made-up tasks whose best loss is known: where sinks must emerge, and why.

Bigram-Backcopy (Guo et al., arXiv 2410.13835): text of a bigram model, but
after a trigger comes the token before the trigger. A head that copies has
nothing to do at all other tokens, and rests on BOS.

The trigger mean (arXiv 2603.11487): at a trigger the output is the mean of
what came before, elsewhere 0.
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
    unigram: [V] of x_1: no BOS, no trigger.
    bigram: [V, V] rows of what follows each id that is no trigger.
    triggers: [V] which ids are.
  """

  characters: str
  unigram: np.ndarray
  bigram: np.ndarray
  triggers: np.ndarray

  @property
  def vocab_size(self) -> int:
    """V, the characters and BOS."""
    return len(self.characters) + 1


def backcopy_task(
  text: str, *, characters: int = 65, triggers: int = 3
) -> Backcopy:
  """The task of a text's own bigrams.

  Args:
    text: whose characters are counted.
    characters: the most frequent ones are kept, others left out of the text.
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

  Triggers never stand side by side: x_1 is none, and after a trigger comes
  what was before it.
  """
  table = jnp.log(jnp.asarray(task.bigram, jnp.float32))
  return _sample(table, jnp.asarray(task.triggers), key, batch, length)


@functools.partial(jax.jit, static_argnums=(3, 4))
def _sample(table, triggers, key, batch, length):
  def step(pair, key):
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

  After a trigger nothing is left to guess. Entry t is of predicting t + 1.
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
      channel 2 has, at the trigger, one over the number of tokens between the
      first and it: weights that are not normalised can make a mean, too. The
      rest point anywhere, and are 0 at the first token. The mean square of
      every token but the first is 1: an RMS norm leaves it as it is.
    targets: [B, T, D] the mean of the inputs between the first token and the
      trigger, at the trigger, in the channels from 3 on; 0 elsewhere. A model
      that solves it has loss 0.
    trigger: [B, T] where it is.
  """

  inputs: Float[Array, "B T D"]
  targets: Float[Array, "B T D"]
  trigger: Bool[Array, "B T"]


MARKS = 3
"""Channels of the trigger-mean task that say what a token is."""


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
  # Content tokens are those from position 1 on: t - 1 of them before t.
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
