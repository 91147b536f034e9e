"""Needles in a haystack: single sentences to be found again in a long text.

The haystack is made of the sentences of `swap_texts.SWAP_TEXTS`, repeated in
another order each time. Between them stand sentences such as "The password of
Lisbon is copper." Each is asked for at the end, in a branch of its own: the
answer is the most probable of all the passwords in the text.
"""

import random
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from sinkjax.experiments.harness.api import Subject
from sinkjax.experiments.shared.swap_texts import SWAP_TEXTS, parse_swaps
from sinkjax.inference.scoring import nats_of
from sinkjax.metrics.row_statistic import RowStatistic
from sinkjax.metrics.rows import first_token_mass
from sinkjax.models.layerwise import as_layers
from sinkjax.models.transformer import forward, logits_of_columns
from sinkjax.transforms.branches import (
  Row,
  branch_row,
  check_window,
  separate,
  split_endings,
)
from sinkjax.transforms.capture import capture
from sinkjax.transforms.edits import chain
from sinkjax.transforms.intervene import intervene
from sinkjax.transforms.streaming import stream_statistics

PLACES = (
  "Lisbon",
  "Cairo",
  "Oslo",
  "Lima",
  "Delhi",
  "Rome",
  "Paris",
  "Tokyo",
  "Berlin",
  "Madrid",
  "Vienna",
  "Dublin",
  "Athens",
  "Moscow",
  "Boston",
  "Seattle",
  "Chicago",
  "Denver",
  "Sydney",
  "Toronto",
  "Havana",
  "Prague",
  "Warsaw",
  "Geneva",
  "Kyoto",
  "Milan",
  "Dallas",
  "Houston",
  "Manila",
  "Nairobi",
  "Tehran",
  "Baghdad",
)
WORDS = (
  "copper",
  "river",
  "candle",
  "garden",
  "winter",
  "silver",
  "orange",
  "pepper",
  "bridge",
  "mirror",
  "window",
  "button",
  "castle",
  "forest",
  "guitar",
  "hammer",
  "island",
  "jacket",
  "kitchen",
  "ladder",
  "market",
  "needle",
  "ocean",
  "pencil",
  "rabbit",
  "shadow",
  "table",
  "umbrella",
  "valley",
  "wagon",
  "yellow",
  "zebra",
  "apple",
  "bread",
  "cloud",
  "dragon",
  "engine",
  "feather",
  "glass",
  "honey",
  "iron",
  "jungle",
  "king",
  "lemon",
  "mountain",
  "night",
  "oil",
  "paper",
  "queen",
  "rain",
  "stone",
  "tiger",
  "village",
  "water",
)

FILLER = tuple(
  line.strip(".") + "."
  # All swaps of a text have the same original; the dictionary keeps one.
  for text in {x.text: x.before for x in parse_swaps(SWAP_TEXTS)}.values()
  for line in text.split(". ")
)
BEFORE = 4
"""Sentences before the first needle: the text is cut to its length in these,
so that no needle is lost."""

LONGEST = 40
"""Tokens of a sentence, at most: a text that lacks so many needs one more."""


class Haystack(NamedTuple):
  """A long text with its questions.

  Attributes:
    row: the text and, as branches, the questions; T tokens in all.
    asked: [Q] index of each question's last token.
    choices: [Q] id of the first token of each password; question i asks for
      password i.
    depth: [Q] where its sentence starts, as a share of the text.
    unknown: [U] index of the last token of questions about places that are not
      in the text.
  """

  row: Row
  asked: np.ndarray
  choices: np.ndarray
  depth: np.ndarray
  unknown: np.ndarray


def sentence(place: str, word: str) -> str:
  """The needle.

  >>> sentence("Oslo", "river")
  'The password of Oslo is river.'
  """
  return f"The password of {place} is {word}."


def _question(place: str) -> str:
  return f"\n{sentence(place, '').split(' .')[0]}"


def _answers(
  subject: Subject, rng: random.Random, count: int
) -> tuple[list[int], list[str]]:
  """The different first tokens of `count` words, and the words."""
  by_token: dict[int, str] = {}
  encode, stem = subject.tokenizer.encode, _question(PLACES[0])
  for word in rng.sample(WORDS, len(WORDS)):
    # A word is encoded after a question: its first token depends on the space.
    _, (ending,) = split_endings(encode, stem, [f" {word}"])
    # Only the first token of an answer is scored, so a second password with the
    # same one could not be told from the first.
    by_token.setdefault(ending[0], word)
  if len(by_token) < count:
    raise ValueError(
      f"this tokenizer distinguishes {len(by_token)} of the {len(WORDS)} "
      "passwords by their first token; needles must be at most that, got "
      f"{count}"
    )
  return list(by_token)[:count], list(by_token.values())[:count]


def haystack(
  subject: Subject,
  prefix: Sequence[int],
  tokens: int,
  needles: int,
  seed: int,
  unknown: int = 0,
) -> Haystack:
  """A text with needles at even depths, `tokens` long with its questions.

  Args:
    subject: whose tokenizer.
    prefix: ids put first; they count.
    tokens: T.
    needles: Q, at most the number of `PLACES`.
    seed: of the order, the places and the passwords.
    unknown: U, questions about other places, which the text cannot answer.

  Raises:
    ValueError: for more needles and questions than places, or than fit.
  """
  if not 2 <= needles <= len(PLACES):
    raise ValueError(f"needles must be 2 to {len(PLACES)}, got {needles}")
  if not 0 <= unknown <= len(PLACES) - needles:
    raise ValueError(
      f"with {needles} needles, questions without an answer must be at most "
      f"{len(PLACES) - needles}, got {unknown}"
    )
  rng, encode = random.Random(seed), subject.tokenizer.encode
  choices, words = _answers(subject, rng, needles)
  places = rng.sample(PLACES, needles)
  hidden = [sentence(*pair) for pair in zip(places, words, strict=True)]
  others = [place for place in PLACES if place not in places]
  asked_for = [*places, *rng.sample(others, unknown)]
  questions = [_question(place) for place in asked_for]
  _, endings = split_endings(encode, hidden[-1], questions)
  # An estimate: a tokenizer may join the start of a question with the end of
  # the text, and the text is not there yet. `cut` below is exact.
  wanted = tokens - len(prefix) - sum(map(len, endings))
  count, text = BEFORE, _lines(hidden, BEFORE, seed)
  while len(encode(text)) < wanted:
    # No more sentences than are surely missing: what is too much is cut off at
    # the start, and must not reach the first needle.
    count += max(1, (wanted - len(encode(text))) // LONGEST)
    text = _lines(hidden, count, seed)
  context, endings = split_endings(encode, text, questions)
  cut = tokens - len(prefix) - sum(map(len, endings))
  starts = [len(encode(text[: text.index(x)])) for x in hidden]
  lost = len(context) - cut
  if not 0 <= lost <= starts[0]:
    raise ValueError(
      f"{needles} needles and their questions do not fit {tokens} tokens"
    )
  row = branch_row([*prefix, *context[lost:]], endings)
  ends = [
    np.flatnonzero(row.branch == i + 1)[-1] for i in range(len(questions))
  ]
  asked, without = np.split(np.array(ends), [needles])
  depth = (np.array(starts) - lost) / cut
  return Haystack(row, asked, np.array(choices), depth, without)


def _lines(hidden: Sequence[str], count: int, seed: int) -> str:
  """`count` sentences of filler with the needles between them."""
  # The seed starts again at every call, so that a longer text begins with the
  # same sentences as a shorter one.
  rng, lines = random.Random(seed), []
  while len(lines) < count:
    lines += rng.sample(FILLER, len(FILLER))
  lines = lines[:count]
  # From the back: an insertion then moves no place that is still to come.
  for i in reversed(range(len(hidden))):
    lines.insert(BEFORE + i * (count - BEFORE) // len(hidden), hidden[i])
  return " ".join(lines)


def find_needles(
  subject: Subject, haystacks: Sequence[Haystack], edits: Sequence[Any] = ()
) -> np.ndarray:
  """Whether each needle was found, [haystacks, Q]; all of one length.

  Args:
    subject: the model, or weights read layer by layer.
    haystacks: of `haystack`.
    edits: of the scores, each with a method `rows`.

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
    (),
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
    subject, haystacks, asked[:, :1], (), {"mass": first_token_mass()}
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
  edits: Sequence[Any],
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
  fn = intervene(forward(cfg), {"scores": chain(separate(branch), *edits)})

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
