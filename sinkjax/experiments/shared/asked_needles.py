"""Questions about haystacks: what is answered, and what attends to the sink."""

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from sinkjax.experiments.harness.api import Subject
from sinkjax.experiments.shared.needles import Haystack
from sinkjax.inference.scoring import nats_of
from sinkjax.metrics.row_statistic import RowStatistic
from sinkjax.metrics.rows import first_token_mass
from sinkjax.models.layerwise import as_layers
from sinkjax.models.transformer import forward, logits_of_columns
from sinkjax.transforms.branches import NO_EDITS, beside, check_window
from sinkjax.transforms.capture import capture
from sinkjax.transforms.intervene import intervene
from sinkjax.transforms.streaming import stream_statistics


def find_needles(
  subject: Subject,
  haystacks: Sequence[Haystack],
  edits: Mapping[str, Any] = NO_EDITS,
) -> np.ndarray:
  """Whether each needle was found, [haystacks, Q]; all of one length.

  Args:
    subject: the model, or weights read layer by layer.
    haystacks: of `haystack`.
    edits: `{site: edit}`; one of the scores must have a method `rows`.

  Raises:
    ValueError: for a row longer than the model's window or context.

  Cost: one pass over each text without a [T, T] array.
  """
  asked = np.stack([h.asked for h in haystacks])
  logits, _ = _read(subject, haystacks, asked, edits)
  return _found(haystacks, logits)


class Asked(NamedTuple):
  """What is seen of every question, [haystacks, Q].

  Attributes:
    right: whether its needle was found.
    mass: attention on position 0, mean over layers, heads and the question's
      tokens.
    nats: mean surprisal of the question's tokens.
  """

  right: np.ndarray
  mass: np.ndarray
  nats: np.ndarray


def ask_needles(subject: Subject, haystacks: Sequence[Haystack]) -> Asked:
  """`find_needles`, with the attention and surprisal of the questions.

  Args:
    subject: the model, or weights read layer by layer.
    haystacks: of `haystack`, of one length.

  Raises:
    ValueError: as `find_needles`.

  Cost: as `find_needles`, and L H T numbers for each text.
  """
  rows = [h.row for h in haystacks]
  # Questions differ in their number of tokens: the rest reads position 0, which
  # belongs to no question.
  count = max(np.count_nonzero(row.branch) for row in rows)
  own = np.zeros((len(rows), count), int)
  for i, row in enumerate(rows):
    tokens = np.flatnonzero(row.branch)
    own[i, : len(tokens)] = tokens
  before = np.stack([row.parent[at] for row, at in zip(rows, own, strict=True)])
  asked = np.stack([h.asked for h in haystacks])
  logits, mass = _read(
    subject,
    haystacks,
    np.concatenate([asked, before], axis=1),
    NO_EDITS,
    {"mass": first_token_mass()},
  )
  questions = asked.shape[1]
  right = _found(haystacks, logits[:, :questions])
  masses, nats = np.zeros(asked.shape), np.zeros(asked.shape)
  for i, row in enumerate(rows):
    target = row.tokens[own[i]]
    surprisal = np.asarray(
      nats_of(jnp.asarray(logits[i, questions:]), jnp.asarray(target))
    )
    for q in range(questions):
      mine = row.branch[own[i]] == q + 1
      nats[i, q] = surprisal[mine].mean()
      masses[i, q] = mass["mass"][:, i][..., own[i][mine]].mean()
  return Asked(right, masses, nats)


def masses_at_ends(
  subject: Subject, haystacks: Sequence[Haystack]
) -> tuple[np.ndarray, np.ndarray]:
  """Attention on position 0 from the last token of each question.

  Args:
    subject: the model, or weights read layer by layer.
    haystacks: of `haystack`, of one length and with as many questions.

  Returns:
    [haystacks, Q] where the text has the answer and [haystacks, U] where it has
    none, means over layers and heads; both over even attention, a share of
    1 / (t + 1) at position t.

  Raises:
    ValueError: as `find_needles`.

  Cost: as `find_needles`, and L H T numbers for each text.
  """
  asked = np.stack([h.asked for h in haystacks])
  without = np.stack([h.unknown for h in haystacks])
  _, mass = _read(
    subject, haystacks, asked[:, :1], NO_EDITS, {"mass": first_token_mass()}
  )
  whole = mass["mass"].mean(axis=(0, 2))  # [haystacks, T]
  seen = np.stack([h.row.positions for h in haystacks]) + 1
  found = [
    np.take_along_axis(whole * seen, at, axis=1) for at in (asked, without)
  ]
  return found[0], found[1]


def _found(haystacks: Sequence[Haystack], logits: np.ndarray) -> np.ndarray:
  """[haystacks, Q] from the logits [haystacks, Q, V] at the questions' ends."""
  return np.stack(
    [
      np.argmax(one[:, h.choices], axis=-1) == np.arange(len(h.choices))
      for h, one in zip(haystacks, logits, strict=True)
    ]
  )


def _read(
  subject: Subject,
  haystacks: Sequence[Haystack],
  at: np.ndarray,
  edits: Mapping[str, Any],
  statistics: Mapping[str, RowStatistic] = MappingProxyType({}),
) -> tuple[np.ndarray, dict[str, np.ndarray]]:
  """(logits [haystacks, n, V] at some positions [haystacks, n], statistics)."""
  cfg = subject.cfg
  stacked = [
    jnp.asarray(np.stack(x))
    for x in zip(*(h.row for h in haystacks), strict=True)
  ]
  tokens, positions, branch, _ = stacked
  check_window(cfg, tokens.shape[1])
  where = jnp.asarray(at)
  fn = intervene(forward(cfg), beside(branch, edits))

  def at_places(x: jax.Array) -> jax.Array:
    return jnp.take_along_axis(x, where[:, :, None], axis=1)

  # Logits of every token of a long text would be the largest array of all, so
  # only a few tokens get theirs.
  run = stream_statistics(
    capture(fn, {"places": ("final", at_places)}), statistics, nll=False
  )
  out = run(subject.params, tokens, positions=positions)
  states, layers = out.trace["places"], as_layers(cfg, subject.params)
  logits = np.concatenate(
    [
      np.asarray(logits_of_columns(cfg, states, columns))
      for columns in layers.unembedding()
    ],
    axis=-1,
  )
  return logits, {k: np.asarray(out.trace[k], np.float64) for k in statistics}
