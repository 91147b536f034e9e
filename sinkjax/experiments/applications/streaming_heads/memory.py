"""Answers from caches of one size: full in some heads, or alike in all.

The text of a haystack goes through a cache, and each question is asked behind
it, from the same state of the cache. Axes: P haystacks, Q questions.
"""

import enum
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from sinkjax.config import ModelConfig
from sinkjax.experiments.harness.api import Subject
from sinkjax.experiments.harness.stats import ends_columns, ends_of
from sinkjax.experiments.shared.needles import Haystack
from sinkjax.inference import kv_policy
from sinkjax.models.cache import (
  Cache,
  Policy,
  advance,
  init_cache,
  split_layers,
)

CHUNK = 8
"""Tokens at a time, or as many as the longest question has: a sliding cache has
a slot more for each but one, and 8 of 512 tokens are few."""


class Cached(enum.StrEnum):
  """What a cache keeps; the values are keys of recorded results."""

  HEADS = "by head"
  RANDOM = "by head, at random"
  SINKS = "sinks and window"
  WINDOW = "window"
  HEAVY = "heavy hitters"


class Sizes(NamedTuple):
  """Of the caches that are compared.

  Attributes:
    full: KV heads that keep everything, where heads differ.
    capacity: tokens that these have room for: the text and a question.
    each: tokens that every KV head keeps where all are alike.
    chunk: tokens at a time.
  """

  full: int
  capacity: int
  each: int
  chunk: int


def sizes_of(
  piles: Sequence[Haystack], full: int, heads: int, ends: int
) -> Sizes:
  """Sizes at which no rival has less memory than the policy by head.

  Every slot of the policy by head is counted, those that a chunk needs too. Of
  its rivals only the tokens that they keep are: neither their slots for a chunk
  nor the scores of heavy hitters.

  Args:
    piles: all haystacks, which have one size.
    full: KV heads that keep everything.
    heads: KV heads in all.
    ends: S + W, what the others keep.
  """
  lengths = [np.bincount(pile.row.branch) for pile in piles]
  chunk = max(CHUNK, *(int(x[1:].max()) for x in lengths))
  capacity = max(int(x[0] + x[1:].max()) for x in lengths)
  slots = full * capacity + (heads - full) * (ends + chunk - 1)
  return Sizes(full, capacity, math.ceil(slots / heads), chunk)


def policies_of(
  sizes: Sizes, gates: np.ndarray, control: np.ndarray, sinks: int, window: int
) -> dict[Cached, Policy]:
  """The policies of `Cached`.

  Args:
    sizes: of `sizes_of`.
    gates: [L, N], of which those above 1/2 are full.
    control: [L, N] 0 or 1, as many of them full.
    sinks: S.
    window: W.
  """
  chunk = sizes.chunk
  by_head = {"sinks": sinks, "window": window, "capacity": sizes.capacity}
  return {
    Cached.HEADS: kv_policy.by_head(gates, **by_head, chunk=chunk),
    Cached.RANDOM: kv_policy.by_head(control, **by_head, chunk=chunk),
    Cached.SINKS: kv_policy.sinks(sinks, sizes.each - sinks, chunk=chunk),
    Cached.WINDOW: kv_policy.window(sizes.each, chunk=chunk),
    Cached.HEAVY: kv_policy.heavy_hitters(sizes.each, chunk=chunk),
  }


def refusal(
  cfg: ModelConfig, piles: Sequence[Haystack], sinks: int, window: int
) -> str:
  """Why a model cannot have one of the caches; empty if it can have all.

  Asked before gates are known: with all heads full caches are largest.
  """
  gates = np.ones((cfg.n_layers, cfg.n_kv_heads))
  sizes = sizes_of(piles, gates.size, gates.size, sinks + window)
  try:
    for policy in policies_of(sizes, gates, gates, sinks, window).values():
      advance(cfg, policy)
  except ValueError as error:
    return str(error)
  return ""


class Compared(NamedTuple):
  """What `compare` returns.

  Attributes:
    sizes: of the caches.
    size: of the cache of one text, in bytes.
    told: [P, 2] of `ask_cached`.
  """

  sizes: Sizes
  size: dict[Cached, int]
  told: dict[Cached, np.ndarray]


def compare(
  subject: Subject,
  piles: Sequence[Haystack],
  gates: np.ndarray,
  control: np.ndarray,
  *,
  sinks: int,
  window: int,
  step: Callable[[int], Any] = lambda count: None,
) -> Compared:
  """Answers from caches of one size.

  Args:
    subject: the model; its weights in memory.
    piles: haystacks.
    gates: [L, N], of which those above 1/2 are full.
    control: [L, N] 0 or 1, as many of them full.
    sinks: S.
    window: W.
    step: called after each cache with the number of haystacks.
  """
  full = int((gates > 0.5).sum())
  sizes = sizes_of(piles, full, gates.size, sinks + window)
  policies = policies_of(sizes, gates, control, sinks, window)
  params, told = split_layers(subject.params), {}
  for name, policy in policies.items():
    told[name] = subject.kept(
      "memory", ask_cached, subject, params, piles, policy
    )
    step(len(piles))
  size = {k: size_in_bytes(subject.cfg, x) for k, x in policies.items()}
  return Compared(sizes, size, told)


def size_in_bytes(cfg: ModelConfig, policy: Policy) -> int:
  """What the cache of one text takes."""
  made = jax.eval_shape(lambda: init_cache(cfg, policy))
  leaves = jax.tree.leaves(made.layers)
  return sum(x.size * x.dtype.itemsize for x in leaves)


def ask_cached(
  subject: Subject, params: Any, piles: Sequence[Haystack], policy: Policy
) -> np.ndarray:
  """[P, 2] of `told_by`, every question asked of the cache after its text.

  Args:
    subject: the model.
    params: its parameters, best by `models.cache.split_layers`.
    piles: haystacks, a row of the cache each.
    policy: what is kept.

  Cost: the texts and questions in pieces of `policy.chunk` tokens.
  """
  run = jax.jit(advance(subject.cfg, policy, logits="last"))
  rows = [pile.row for pile in piles]
  cache = init_cache(subject.cfg, policy, len(piles))
  texts = [row.tokens[row.branch == 0] for row in rows]
  for at in range(0, max(map(len, texts)), policy.chunk):
    parts = [text[at : at + policy.chunk] for text in texts]
    _, cache = _feed(run, params, parts, policy.chunk, cache)
  choices, logits = np.stack([pile.choices for pile in piles]), []
  for question in range(choices.shape[1]):
    parts = [row.tokens[row.branch == question + 1] for row in rows]
    found, _ = _feed(run, params, parts, policy.chunk, cache)
    chosen = np.take_along_axis(np.asarray(found[:, 0]), choices, axis=1)
    logits.append(chosen.astype(np.float64))
  return np.stack([told_by(one) for one in np.stack(logits, axis=1)])


def _feed(
  run: Callable,
  params: Any,
  parts: Sequence[np.ndarray],
  chunk: int,
  cache: Cache,
) -> tuple[jax.Array, Cache]:
  """Rows of different lengths, padded: one shape, and so one program."""
  tokens = np.zeros((len(parts), chunk), np.int32)
  for row, part in zip(tokens, parts, strict=True):
    row[: len(part)] = part
  count = jnp.array([len(part) for part in parts], jnp.int32)
  return run(params, jnp.asarray(tokens), cache, count=count)


def told_by(chosen: np.ndarray) -> np.ndarray:
  """[2]: nats of the right password among all, and the share that is found.

  Args:
    chosen: [Q, Q] logits of all passwords behind each question; that of
      question i is password i.

  >>> told_by(np.array([[2.0, 0.0], [1.0, 1.0 - 1e-9]])).round(3).tolist()
  [0.41, 0.5]
  """
  top = chosen.max(axis=-1, keepdims=True)
  total = np.log(np.exp(chosen - top).sum(axis=-1)) + top[:, 0]
  right = np.argmax(chosen, axis=-1) == np.arange(len(chosen))
  return np.array([np.mean(total - np.diagonal(chosen)), right.mean()])


def table_of(
  found: Compared, unchanged: np.ndarray
) -> tuple[list[str], list[list[Any]]]:
  """A row for each cache.

  Args:
    found: of `compare`.
    unchanged: [P] nats of the unchanged model.
  """
  rows = [
    [name, found.size[name], *ends_of(x[:, 1]), *ends_of(x[:, 0] - unchanged)]
    for name, x in found.told.items()
  ]
  return ["cache", "bytes", *ends_columns("found", "nats")], rows
