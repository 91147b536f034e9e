"""The loss of every token of a long text, given what a cache keeps of it."""

import contextlib
import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from sinkjax import finite, sharding
from sinkjax.config import ModelConfig
from sinkjax.inference import kv_policy
from sinkjax.inference.kv_by_position import more_room
from sinkjax.models.cache import CHUNK, Cache, Policy, advance, init_cache
from sinkjax.models.transformer import (
  check_ids,
  check_tokens,
  forward,
  logits_of,
)
from sinkjax.transforms.capture import capture

Progress = Callable[[int], Any]


def nats_of(
  logits: Float[Array, "... V"], targets: Int[Array, "..."]
) -> Float[Array, "..."]:
  """`log sum exp logits - logits[target]`, in float32."""
  logits = logits.astype(jnp.float32)
  # The exponential of a logit above 88 is not finite in float32.
  logits = logits - jnp.max(logits, axis=-1, keepdims=True)
  taken = jnp.take_along_axis(logits, targets[..., None], axis=-1)[..., 0]
  return jnp.log(jnp.sum(jnp.exp(logits), axis=-1)) - taken


@functools.lru_cache(maxsize=8)
def _scorer(cfg: ModelConfig, policy: Policy) -> Callable:
  """`score(params, tokens, targets, count, cache) -> (nats [1, T], cache)`."""
  walk = advance(cfg, policy)

  def score(
    params: dict[str, Any],
    tokens: Int[Array, "B T"],
    targets: Int[Array, "B T"],
    count: Int[Array, "B"],
    cache: Cache,
  ) -> tuple[Array, Cache]:
    logits, cache = walk(params, tokens, cache, count=count)
    return nats_of(logits, targets), cache

  return jax.jit(score, donate_argnums=4)


@functools.lru_cache(maxsize=8)
def last_logits(cfg: ModelConfig) -> Callable:
  """`f(params, tokens [B, T]) -> [B, V]`: a forward pass, its last row.

  Where the model allows it by a device's own kernel: the fastest pass there is.
  The ids are checked as `forward` does, but not by what `lower` compiles.
  """
  with contextlib.suppress(ValueError):  # of a model that cannot have it
    cfg = cfg.replace(attention="fused")
  walk = capture(forward(cfg), {"last": ("final", lambda x: x[:, -1:])})

  def f(
    params: dict[str, Any], tokens: Int[Array, "B T"]
  ) -> Float[Array, "B V"]:
    x = walk(params, tokens).trace["last"]
    with jax.default_matmul_precision(cfg.precision):
      return logits_of(cfg, x, params)[:, 0]

  compiled = jax.jit(f)

  def checked(
    params: dict[str, Any], tokens: Int[Array, "B T"]
  ) -> Float[Array, "B V"]:
    # Under jit the ids are traced, and could no longer be checked.
    return compiled(params, check_tokens(cfg, tokens))

  checked.lower = compiled.lower
  return checked


def _chunks(ids: np.ndarray, chunk: int) -> Iterator[tuple]:
  """(tokens [1, chunk], targets, how many are real), each token once."""
  for at in range(0, len(ids) - 1, chunk):
    part = ids[at : at + chunk + 1]
    # The last part is padded: all parts then have one shape and one compiled
    # program.
    padded = np.zeros(chunk + 1, np.int32)
    padded[: len(part)] = part
    yield padded[None, :-1], padded[None, 1:], len(part) - 1


def _whole(losses: list[np.ndarray]) -> np.ndarray:
  """The losses in one array, which must be finite.

  Raises:
    NotFiniteError: naming the first that is not.
  """
  whole = np.concatenate(losses)
  finite.require(whole, "the loss", ["place"])
  return whole


def _checked(cfg: ModelConfig, ids: Sequence[int]) -> np.ndarray:
  ids = np.asarray(ids, np.int32)
  if ids.ndim != 1 or len(ids) < 2:
    raise ValueError(
      f"the text must be a row of 2 tokens at least, got shape {ids.shape}"
    )
  check_ids("token id", ids, cfg.vocab_size, "the vocabulary")
  return ids


def stream_nats(
  cfg: ModelConfig,
  params: dict[str, Any],
  ids: Sequence[int],
  *,
  policy: Policy,
  progress: Progress = lambda tokens: None,
) -> np.ndarray:
  """The loss of every token after the first, the text fed through a cache.

  Args:
    cfg: the model.
    params: its parameters, best by `models.cache.split_layers`.
    ids: [N] the text, all of it: nothing is put before it.
    policy: what is kept of the past; `policy.chunk` tokens go at a time.
    progress: called with the tokens fed since the last call.

  Returns:
    [N - 1] float32, nats: `-log p(ids[t] | what is kept of ids[:t])`, t from
    1 on. It does not depend on the chunk.

  Raises:
    ValueError: for fewer than two tokens, an id outside the vocabulary, more
      tokens than the policy has room for, or a model that it cannot serve.
    NotFiniteError: where a loss is not finite.

  Cost: that of the model on N tokens; with chunk c a query meets c - 1 keys
    more than the policy keeps.
  """
  ids = _checked(cfg, ids)
  if policy.limit is not None and len(ids) - 1 > policy.limit:
    raise ValueError(
      f"{len(ids) - 1} tokens do not fit a full cache of {policy.limit}"
    )
  score, cache, losses = _scorer(cfg, policy), init_cache(cfg, policy), []
  for tokens, targets, count in _chunks(ids, policy.chunk):
    nats, cache = score(params, tokens, targets, np.array([count]), cache)
    losses.append(sharding.to_host(nats)[0, :count])
    progress(count)
  return _whole(losses)


def dense_nats(
  cfg: ModelConfig,
  params: dict[str, Any],
  ids: Sequence[int],
  *,
  room: int,
  chunk: int = CHUNK,
  progress: Progress = lambda tokens: None,
) -> np.ndarray:
  """`stream_nats` with everything kept; the cache grows by `room` slots.

  Positions beyond the model's context are used as they come.

  Args:
    cfg: the model.
    params: its parameters, best by `models.cache.split_layers`.
    ids: [N] the text.
    room: slots that are added where no more tokens fit: a compile each time.
    chunk: tokens at a time; `room` must be a multiple of it.
    progress: called with the tokens fed since the last call.

  Raises:
    ValueError: as `stream_nats`, or for such a room.

  Cost: N^2 / 2 pairs of tokens, and N room / 2 in empty slots.
  """
  ids = _checked(cfg, ids)
  if room < 1 or room % chunk:
    raise ValueError(
      f"room must be a multiple of the chunk {chunk}, got {room}"
    )
  policy, fed, losses = kv_policy.full(room, chunk=chunk), 0, []
  cache = init_cache(cfg, policy)
  for tokens, targets, count in _chunks(ids, chunk):
    if fed + count > policy.capacity:
      policy = kv_policy.full(policy.capacity + room, chunk=chunk)
      policy.check(cfg)
      cache = more_room(cache, policy.capacity)
    score = _scorer(cfg, policy)
    nats, cache = score(params, tokens, targets, np.array([count]), cache)
    losses.append(sharding.to_host(nats)[0, :count])
    fed += count
    progress(count)
  return _whole(losses)


def recompute_nats(
  cfg: ModelConfig,
  params: dict[str, Any],
  ids: Sequence[int],
  *,
  at: Sequence[int],
  total: int,
  prefix: Sequence[int] = (),
  batch: int = 8,
  progress: Progress = lambda tokens: None,
) -> np.ndarray:
  """Sliding window with recompute: a forward pass for every token.

  With P tokens of prefix and W = total,

      -log p(ids[t] | prefix, ids[t - W + P], ..., ids[t - 1])

  the model run on these W tokens alone, at positions 0 to W - 1.

  Args:
    cfg: the model.
    params: its parameters.
    ids: [N] the text.
    at: [n] the t, each at least W - P.
    total: W.
    prefix: tokens before every window.
    batch: windows in one pass.
    progress: called with the tokens fed since the last call.

  Returns:
    [n] float32, nats.

  Raises:
    ValueError: for a t without W - P tokens before it, or none at all.

  Cost: that of the model on W tokens for each t.
  """
  ids, at = _checked(cfg, ids), np.asarray(at, int)
  span = total - len(prefix)
  if span < 1 or not at.size or at.min() < span or at.max() >= len(ids):
    raise ValueError(
      f"at must be positions in [{max(span, 1)}, {len(ids)}), and total "
      f"greater than the prefix of {len(prefix)}; got {at.tolist()[:4]} ... "
      f"and {total}"
    )
  f, losses = last_logits(cfg), []
  rows = np.array([[*prefix, *ids[t - span : t]] for t in at], np.int32)
  for start in range(0, len(at), batch):
    here = at[start : start + batch]
    # The last batch is filled by repetition: one shape, one compilation.
    part = np.resize(rows[start : start + batch], (batch, total))
    targets = np.resize(ids[here], batch)
    nats = nats_of(f(params, part), jnp.asarray(targets))
    losses.append(sharding.to_host(nats)[: len(here)])
    progress(len(here) * total)
  return _whole(losses)
