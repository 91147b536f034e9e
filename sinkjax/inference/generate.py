"""Text from a model, one token after the other, at constant memory.

`generate` feeds a prompt in chunks of one size and then token by token: two
compiled programs, whatever the length. What is kept of the past is the
policy's, see `kv_policy`.
"""

import functools
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from sinkjax import mesh_context
from sinkjax.config import ModelConfig
from sinkjax.finite import NotFiniteError
from sinkjax.inference.sampling import GREEDY, Sampling, draw
from sinkjax.models.cache import Cache, Policy, advance, init_cache
from sinkjax.models.transformer import check_ids


@functools.lru_cache(maxsize=8)  # compiled programs, kept between calls
def _step(cfg: ModelConfig, policy: Policy, how: Sampling) -> Callable:
  """`step(params, tokens, count, cache, key) -> (next [B, 1], cache)`.

  The next token is -1 where no logit, or not every one, is a number.
  """
  walk = advance(cfg, policy, logits="last")

  def step(
    params: dict[str, Any],
    tokens: jax.Array,
    count: jax.Array,
    cache: Cache,
    key: jax.Array,
  ) -> tuple[jax.Array, Cache]:
    logits, cache = walk(params, tokens, cache, count=count)
    # By position, so that a draw does not depend on how a prompt was cut.
    now = jax.random.fold_in(key, cache.length[0])
    new = draw(logits[:, 0], now, how)
    # The maximum of logits with a NaN is NaN; -inf alone leaves no choice.
    known = jnp.isfinite(jnp.max(logits[:, 0], axis=-1))
    return mesh_context.returned(jnp.where(known, new, -1)[:, None]), cache

  return jax.jit(step, donate_argnums=3)


@functools.lru_cache(maxsize=8)
def _fill(cfg: ModelConfig, policy: Policy) -> Callable:
  """`fill(params, tokens, cache) -> cache`: a whole chunk of a prompt."""
  walk = advance(cfg, policy, logits="none")
  return jax.jit(lambda *args: walk(*args)[1], donate_argnums=2)


def generate(
  cfg: ModelConfig,
  params: dict[str, Any],
  prompt: Sequence[int],
  *,
  policy: Policy,
  how: Sampling = GREEDY,
  max_tokens: int | None = None,
  seed: int = 0,
  stop: Collection[int] = (),
) -> Iterator[int]:
  """The tokens that follow a prompt, one by one as they come.

  Args:
    cfg: the model.
    params: its parameters, best by `models.cache.split_layers`.
    prompt: token ids, at least one; of any length that the policy takes.
    policy: what is kept of the past.
    how: how tokens are drawn.
    max_tokens: how many tokens at most; `None` for no limit.
    seed: of the draws. The draw of a token depends on the seed and on its
      position alone.
    stop: tokens that end the text; they are not yielded.

  Yields:
    Token ids.

  Raises:
    NotFiniteError: where the model's logits are not finite.
    ValueError: at once, for an empty prompt, an id outside the vocabulary, a
      model that the policy cannot serve, or more tokens than it has room for.

  Cost: of a token, reading the parameters and the cache once.
  """
  prompt = list(prompt)
  if not prompt:
    raise ValueError("the prompt is empty: at least one token is needed")
  check_ids("token id", jnp.asarray(prompt), cfg.vocab_size, "the vocabulary")
  if max_tokens is not None and max_tokens < 1:
    raise ValueError(f"max_tokens must be at least 1, got {max_tokens}")
  if policy.limit is not None and (
    max_tokens is None or len(prompt) + max_tokens > policy.limit
  ):
    raise ValueError(
      f"{len(prompt)} tokens of prompt and {max_tokens or 'endless'} new ones "
      f"do not fit a full cache of {policy.limit}: give it more room, or "
      "another policy"
    )
  cache = init_cache(cfg, policy)
  return _stream(
    cfg, params, prompt, policy, how, max_tokens, seed, frozenset(stop), cache
  )


def _stream(
  cfg: ModelConfig,
  params: dict[str, Any],
  prompt: list[int],
  policy: Policy,
  how: Sampling,
  max_tokens: int | None,
  seed: int,
  stop: frozenset[int],
  cache: Cache,
) -> Iterator[int]:
  step, fill = _step(cfg, policy, how), _fill(cfg, policy)
  key, chunk = jax.random.key(seed), policy.chunk
  at = 0
  # At least one token is left for `step`, which alone computes logits; `fill`
  # does without the product with the vocabulary.
  while len(prompt) - at > chunk:
    part = jnp.asarray([prompt[at : at + chunk]], jnp.int32)
    cache, at = fill(params, part, cache), at + chunk
  rest = prompt[at:]
  # The rest is padded to a chunk, so that prompts of all lengths share a
  # program; `count` says how many tokens are real.
  count = jnp.asarray([len(rest)], jnp.int32)
  rest = jnp.asarray([rest + [0] * (chunk - len(rest))], jnp.int32)
  token, cache = step(params, rest, count, cache, key)
  one, given = jnp.ones(1, jnp.int32), 0
  while True:
    new = int(token[0, 0])
    if new < 0:
      raise NotFiniteError(
        f"the logits after {len(prompt) + given} tokens are not finite: the "
        "activations or weights of this model overflow"
      )
    if new in stop:
      return
    yield new
    given += 1
    if given == max_tokens:
      return
    token, cache = step(params, token, one, cache, key)


def as_text(tokenizer: Any, ids: Iterable[int]) -> Iterator[str]:
  """The text of a stream of tokens, in pieces as soon as they are whole.

  A piece comes when its last character is complete, or four tokens later.

  Args:
    tokenizer: with `decode(ids) -> str`.
    ids: token ids.

  Yields:
    Pieces whose concatenation is `tokenizer.decode` of all ids.
  """
  before, new = [], []  # given out already, and not yet
  for token in ids:
    new.append(token)
    text = tokenizer.decode([*before, *new])[len(tokenizer.decode(before)) :]
    # A character has at most four bytes, and a token at least one of them.
    if text.endswith("\ufffd") and len(new) < 5:
      continue
    yield text
    before, new = new, []
  if new:
    yield tokenizer.decode([*before, *new])[len(tokenizer.decode(before)) :]
