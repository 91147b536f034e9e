"""The sink profile of a model on some text: what `launch/analyze.py` reports.

One forward pass a prompt; every statistic is reduced inside the layer scan,
so no [L, H, T, T] array exists unless T is small enough to draw.
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from sinkjax.config import ModelConfig
from sinkjax.metrics.norms import (
  first_and_rest,
  massive_activation,
  token_norms,
)
from sinkjax.metrics.sinks import attention_entropy, sink_rate, sink_score
from sinkjax.models.transformer import Params, forward
from sinkjax.transforms.capture import capture

DRAWN = 128
"""Attention maps are drawn with at most this many rows and columns."""

BATCH_TOKENS = 1024
"""Tokens of one forward pass, unless a single prompt is longer."""


@dataclasses.dataclass(frozen=True)
class SinkProfile:
  """Statistics of every prompt. P prompts, L layers, H heads, N KV heads.

  Attributes:
    prompts: token ids of each prompt.
    alpha: [P, L, H] sink score of the first token.
    entropy: [P, L, H] mean row entropy, nats.
    entropy_share: [P, L, H] the same over its maximum log(i + 1).
    value_norm_first: [P, L, N] norm of the first token's value.
    value_norm_rest: [P, L, N] mean norm of the others.
    key_norm_first: [P, L, N] likewise for keys.
    key_norm_rest: [P, L, N] likewise for keys.
    hidden_norm_first: [P, L] norm of the first token after the layer.
    hidden_norm_median: [P, L] median norm over all tokens.
    massive: [P, L] arrays value, position, dimension, ratio, is_massive.
    nll: [P] nats a token, the first token not predicted.
    maps: [L, H, t, t] attention of the first prompt between blocks of
      tokens; t = T where T is small.
  """

  prompts: list[list[int]]
  alpha: np.ndarray
  entropy: np.ndarray
  entropy_share: np.ndarray
  value_norm_first: np.ndarray
  value_norm_rest: np.ndarray
  key_norm_first: np.ndarray
  key_norm_rest: np.ndarray
  hidden_norm_first: np.ndarray
  hidden_norm_median: np.ndarray
  massive: dict[str, np.ndarray]
  nll: np.ndarray
  maps: np.ndarray

  def sink_rate(self, eps: float, order: str = "threshold_first") -> float:
    """Share of heads whose score exceeds `eps`; see `metrics.sinks`."""
    return float(sink_rate(self.alpha, eps=eps, order=order))

  def sink_rate_stderr(self, eps: float) -> float | None:
    """Standard error of the rate over prompts; `None` for one prompt."""
    if len(self.alpha) < 2:
      return None
    rates = (self.alpha > eps).mean(axis=(1, 2))
    return float(rates.std(ddof=1) / np.sqrt(len(rates)))

  def first_token(self) -> int | None:
    """The token at position 0 of every prompt, `None` if they differ."""
    firsts = {prompt[0] for prompt in self.prompts}
    return firsts.pop() if len(firsts) == 1 else None

  def largest_activation(self) -> dict[str, Any]:
    """Where the largest activation of all prompts and layers stands."""
    size = np.abs(self.massive["value"])
    prompt, layer = np.unravel_index(int(np.argmax(size)), size.shape)
    found = {k: v[prompt, layer].item() for k, v in self.massive.items()}
    return {"prompt": int(prompt), "layer": int(layer), **found}

  def ranked_heads(self) -> list[tuple[int, int]]:
    """(layer, head) by mean sink score, strongest first."""
    mean = self.alpha.mean(axis=0)
    order = np.argsort(-mean, axis=None, kind="stable")
    return [tuple(map(int, np.unravel_index(i, mean.shape))) for i in order]


def coarsen(pattern: jax.Array, size: int = DRAWN) -> jax.Array:
  """[..., T, T] attention between blocks of tokens, at most [..., size, size].

  Averaged over the queries of a block and summed over its keys, so that rows
  still sum to one and a sink looks as strong as it is.
  """
  length = pattern.shape[-1]
  cell = -(-length // size)
  if cell == 1:
    return pattern
  cells = -(-length // cell)
  member = jnp.arange(length)[None] // cell == jnp.arange(cells)[:, None]
  keys = member.astype(pattern.dtype)
  queries = keys / keys.sum(axis=1, keepdims=True)
  return jnp.einsum("ct,...ts,ds->...cd", queries, pattern, keys)


def _observers() -> dict[str, tuple[str, Callable]]:
  return {
    "alpha": ("pattern", sink_score),
    "entropy": ("pattern", attention_entropy),
    "entropy_share": (
      "pattern",
      lambda p: attention_entropy(p, normalize=True),
    ),
    "value": ("v", lambda v: first_and_rest(token_norms(v))),
    "key": ("k", lambda k: first_and_rest(token_norms(k))),
    "hidden": ("resid_post", _hidden),
    "massive": ("resid_post", lambda x: massive_activation(x)._asdict()),
    "maps": ("pattern", lambda p: coarsen(p[0])),
  }


def _hidden(x):
  norms = token_norms(x)
  return norms[:, 0], jnp.median(norms, axis=1)


def token_nll(logits: jax.Array, tokens: jax.Array) -> jax.Array:
  """Mean negative log-likelihood of tokens 1..T-1, [B], nats; NaN for T = 1."""
  logits = logits[:, :-1].astype(jnp.promote_types(logits.dtype, jnp.float32))
  picked = jnp.take_along_axis(logits, tokens[:, 1:, None], axis=-1)[..., 0]
  return jnp.mean(jax.nn.logsumexp(logits, axis=-1) - picked, axis=-1)


def measure(cfg: ModelConfig) -> Callable:
  """`f(params, tokens [B, T]) -> dict` of every statistic, jitted."""
  watched = capture(forward(cfg), _observers())

  def statistics(params, tokens):
    out = watched(params, tokens)
    return {**out.trace, "nll": token_nll(out.logits, tokens)}

  return jax.jit(statistics)


def batches(prompts: Sequence[Sequence[int]]) -> list[list[int]]:
  """Indices of prompts of equal length, at most `BATCH_TOKENS` together."""
  by_length: dict[int, list[int]] = {}
  for i, prompt in enumerate(prompts):
    by_length.setdefault(len(prompt), []).append(i)
  found = []
  for length, members in by_length.items():
    size = max(1, BATCH_TOKENS // length)
    found += [members[i : i + size] for i in range(0, len(members), size)]
  return sorted(found, key=lambda batch: batch[0])


def sink_profile(
  params: Params,
  cfg: ModelConfig,
  prompts: Sequence[Sequence[int]],
  *,
  progress: Callable[[int], Any] = lambda done: None,
) -> SinkProfile:
  """Measures every prompt, each at its own length.

  Args:
    params: the model's parameters.
    cfg: its config.
    prompts: token ids; nothing is added to them.
    progress: called with the number of prompts just done.

  Raises:
    ValueError: for no prompts, or one of fewer than two tokens or with a
      token outside the vocabulary.

  Cost: one forward pass a prompt; the memory of one batch's attention.
  """
  if not prompts:
    raise ValueError("no prompts to measure")
  for i, prompt in enumerate(prompts):
    if len(prompt) < 2:
      raise ValueError(
        f"prompt {i} has {len(prompt)} tokens; at least 2 are needed"
      )
    if min(prompt) < 0 or max(prompt) >= cfg.vocab_size:
      raise ValueError(
        f"prompt {i} has a token outside the vocabulary of {cfg.vocab_size}"
      )
  run, rows, maps = measure(cfg), [None] * len(prompts), None
  for batch in batches(prompts):
    tokens = jnp.asarray([prompts[i] for i in batch], jnp.int32)
    out = jax.tree.map(np.asarray, run(params, tokens))
    first_maps, nll = out.pop("maps"), out.pop("nll")
    maps = first_maps if batch[0] == 0 else maps
    for row, i in enumerate(batch):
      rows[i] = jax.tree.map(lambda x, row=row: x[:, row], out)
      rows[i]["nll"] = nll[row]
    progress(len(batch))
  stacked = jax.tree.map(lambda *xs: np.stack(xs), *rows)
  pairs = {"value": "value_norm", "key": "key_norm", "hidden": "hidden_norm"}
  fields = {}
  for name, stem in pairs.items():
    first, other = stacked.pop(name)
    fields[f"{stem}_first"] = first
    fields[f"{stem}_{'median' if name == 'hidden' else 'rest'}"] = other
  return SinkProfile([list(p) for p in prompts], **stacked, **fields, maps=maps)
