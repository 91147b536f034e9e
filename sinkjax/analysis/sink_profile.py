"""The sink profile of a model on some text: what `launch/analyze.py` reports.

It measures every metric that `sinkjax.metrics.table` shows in `summary.json`,
in one forward pass a prompt. Each is reduced inside the layers, so no
[L, H, T, T] array exists. Weights on disk are read one layer at a time, and
then no [T, T] array exists either.
"""

import dataclasses
import functools
import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from sinkjax import finite, mesh_context, sharding
from sinkjax.config import ModelConfig
from sinkjax.metrics import registry, rows
from sinkjax.metrics.precision import wide
from sinkjax.metrics.sinks import sink_rate, sink_rate_stderr
from sinkjax.models.layerwise import UNEMBED_COLUMNS, Layers
from sinkjax.models.normalizers import UNNORMALIZED
from sinkjax.models.transformer import Params, check_tokens, forward
from sinkjax.transforms import chunks, streaming
from sinkjax.transforms.capture import capture
from sinkjax.transforms.streaming import stream_statistics

DRAWN = 128
"""Attention maps are drawn with at most this many rows and columns.

That is about the number of pixels that a map has in the figure.
"""

MAPS = "maps"
"""Observer of the attention maps; no metric has this name."""

BATCH_TOKENS = 1024
"""Tokens of one forward pass, unless a single prompt is longer.

Products of that many tokens run at a CPU's full rate, and the attention of a
batch stays small.
"""


@dataclasses.dataclass(frozen=True)
class SinkProfile:
  """What was measured on every prompt.

  Axes: P prompts, L layers, H heads, N KV heads.

  Attributes:
    prompts: token ids of each prompt.
    values: of every metric that `summary.json` shows for it, by its name in
      `sinkjax.metrics.table`: [P, *axes], the axes as the table has them.
    nll: [P] nats a token; the first token is not predicted.
    maps: [L, H, t, t] attention of the first prompt between blocks of
      tokens; t = T where T is small.
  """

  prompts: list[list[int]]
  values: dict[str, Any]
  nll: np.ndarray
  maps: np.ndarray

  @property
  def alpha(self) -> np.ndarray:
    """[P, L, H] the sink score of every head."""
    return self.values["alpha"]

  def mean(self, name: str) -> np.ndarray:
    """A metric's mean over prompts."""
    return self.values[name].mean(axis=0)

  def sink_rate(self, eps: float, order: str = "threshold_first") -> float:
    """Share of heads whose score exceeds `eps`; see `metrics.sinks`."""
    return float(sink_rate(self.alpha, eps=eps, order=order))

  def sink_rate_stderr(self, eps: float) -> float | None:
    """Standard error of the rate over prompts; `None` for one prompt."""
    return sink_rate_stderr(self.alpha, eps=eps)

  def first_token(self) -> int | None:
    """The token at position 0 of every prompt, `None` if they differ."""
    firsts = {prompt[0] for prompt in self.prompts}
    return firsts.pop() if len(firsts) == 1 else None

  def ranked_heads(self) -> list[tuple[int, int]]:
    """(layer, head) by mean sink score, strongest first."""
    mean = self.mean("alpha")
    # A stable sort gives heads of equal score the same order on every machine.
    order = np.argsort(-mean, axis=None, kind="stable")
    return [tuple(map(int, np.unravel_index(i, mean.shape))) for i in order]


@functools.cache  # so that a compiled program knows the same reducer again
def coarse_map(size: int) -> rows.RowStatistic:
  """[1, H, t, t] attention between blocks of tokens, of the first text only.

  t is at most `size`. Averaged over the queries of a block and summed over its
  keys, so that rows still sum to one and a sink looks as strong as it is.
  """

  def folded(x: jax.Array, cell: int) -> jax.Array:
    """The last axis summed over blocks."""
    # The last block may be shorter; zeros add nothing to its sum.
    rest = -x.shape[-1] % cell
    x = wide(x)
    x = jnp.pad(x, [(0, 0)] * (x.ndim - 1) + [(0, rest)]) if rest else x
    return x.reshape(*x.shape[:-1], -1, cell).sum(axis=-1)

  def init(batch: int, heads: int, length: int) -> rows.State:
    cells = -(-length // -(-length // size))
    return jnp.zeros((1, heads, cells, cells)), jnp.zeros(length)

  def update(state: rows.State, block: rows.RowBlock) -> rows.State:
    mass, seen = state  # [1, H, t, t] and how often each query came, [T]
    cell = -(-seen.shape[0] // size)
    at = block.queries() // cell
    member = at[None] == jnp.arange(mass.shape[2])[:, None]
    keys = folded(block.rows[:1], cell)
    new = jnp.einsum("ct,bhtd->bhcd", member.astype(keys.dtype), keys)
    ones = jnp.ones(block.rows.shape[2])
    seen = jax.lax.dynamic_update_slice(seen, ones, (block.start,))
    return mass.at[..., : keys.shape[3]].add(new), seen

  def finalize(state: rows.State, length: int) -> jax.Array:
    mass, seen = state
    # Each block is divided by the queries it really has: the last may have
    # fewer.
    return mass / folded(seen, -(-length // size))[None, None, :, None]

  need = ("cells", size)

  def of_sums(sums: rows.PatternSums, length: int) -> jax.Array:
    return finalize((sums.sums["cells"][:1], jnp.ones(length)), length)

  return rows.RowStatistic(init, update, finalize, (need,), of_sums)


def _observers(cfg: ModelConfig, streamed: bool) -> dict[str, Any]:
  """The metrics of `summary.json`, and the map that is drawn."""
  metrics = registry.observers(
    registry.shown_in("summary"),
    share=cfg.normalizer in UNNORMALIZED,
    learned_sink=cfg.learned_sink,
    experts=cfg.n_experts > 0,
    mixing=cfg.mixing != "none",
    streamed=streamed,
  )
  return {**metrics, MAPS: ("pattern", rows.dense(coarse_map(DRAWN)))}


def token_nll(logits: jax.Array, tokens: jax.Array) -> jax.Array:
  """Mean negative log-likelihood of tokens 1..T-1, [B], nats; NaN for T = 1."""
  # A log-sum-exp in bfloat16 would keep fewer than three digits.
  logits = logits[:, :-1].astype(jnp.promote_types(logits.dtype, jnp.float32))
  picked = jnp.take_along_axis(logits, tokens[:, 1:, None], axis=-1)[..., 0]
  return jnp.mean(jax.nn.logsumexp(logits, axis=-1) - picked, axis=-1)


def measure(cfg: ModelConfig, *, streamed: bool = False) -> Callable:
  """`f(params, tokens [B, T]) -> dict` of every statistic.

  Args:
    cfg: the model.
    streamed: layer by layer, each a block of rows at a time, from a parameter
      tree or `Layers`; else in one jitted pass.
  """
  return _measure(cfg, tuple(_observers(cfg, streamed).items()), streamed)


@functools.lru_cache(maxsize=8)  # compiled programs, kept between calls
def _measure(
  cfg: ModelConfig, observers: tuple[tuple[str, Any], ...], streamed: bool
) -> Callable:
  if streamed:
    stream = stream_statistics(capture(forward(cfg), dict(observers)), {})

    def statistics(params: Any, tokens: Any) -> dict[str, Any]:
      out = stream(params, tokens)
      return {**out.trace, "nll": out.nll}

    return statistics

  compiled = _program(cfg, observers)
  # Under jit the ids are traced, and could no longer be checked.
  return lambda params, tokens: compiled(params, check_tokens(cfg, tokens))


def program(cfg: ModelConfig) -> Any:
  """The jitted function of (params, tokens [B, T]) that `measure` runs.

  For who compiles it for devices, or weights, that need not be there.
  """
  return _program(cfg, tuple(_observers(cfg, streamed=False).items()))


def _program(cfg: ModelConfig, observers: tuple[tuple[str, Any], ...]) -> Any:
  watched = capture(forward(cfg), dict(observers))

  def statistics(params: Any, tokens: Any) -> dict[str, Any]:
    out = watched(params, tokens)
    return {**out.trace, "nll": token_nll(out.logits, tokens)}

  return jax.jit(statistics)


def streamed_bytes(cfg: ModelConfig, length: int) -> int:
  """About how much one text needs beside the weights, where it is streamed."""
  # Six arrays like the residual stream and four like q, k, v and z live in a
  # layer; four blocks of rows: scores, pattern, logarithms and a product.
  piece = min(length, chunks.CHUNK)
  widest = max(4 * cfg.mlp_width, 2 * min(cfg.vocab_size, UNEMBED_COLUMNS))
  tokens = length * (6 * cfg.d_model + 4 * cfg.n_heads * cfg.head_dim)
  rows = 4 * streaming.default_block(cfg, 1, length) * cfg.n_heads * length
  drawn = cfg.n_layers * cfg.n_heads * min(length, DRAWN) ** 2
  return 4 * (tokens + rows + drawn + piece * widest)


def batches(prompts: Sequence[Sequence[int]]) -> list[list[int]]:
  """Indices of prompts of equal length, at most `BATCH_TOKENS` together.

  With a mesh in context that is for each of the devices that split texts, and
  all of them have as many; what is left over comes in a batch of its own, of
  which every device does the whole.
  """
  devices = mesh_context.ways("rows")
  by_length: dict[int, list[int]] = {}
  for i, prompt in enumerate(prompts):
    by_length.setdefault(len(prompt), []).append(i)
  parts = []
  for length, members in by_length.items():
    size = devices * max(1, BATCH_TOKENS // length)
    even = len(members) // devices * devices
    parts += [members[i : min(i + size, even)] for i in range(0, even, size)]
    parts += [members[even:]] if even < len(members) else []
  return sorted(parts, key=lambda batch: batch[0])


def sink_profile(
  params: Params | Layers,
  cfg: ModelConfig,
  prompts: Sequence[Sequence[int]],
  *,
  progress: Callable[[int], Any] = lambda done: None,
) -> SinkProfile:
  """Measures every prompt, each at its own length.

  Args:
    params: the model's parameters, or weights read layer by layer
      (`sinkjax.weights.offload`).
    cfg: its config.
    prompts: token ids; nothing is added to them.
    progress: called with the number of prompts just done.

  Raises:
    ValueError: for no prompts, or one of fewer than two tokens or with a
      token outside the vocabulary.
    NotFiniteError: for a model whose activations overflow; it names the layer.

  Cost: one forward pass a prompt; the memory of one batch's attention, or
    where layers are read one by one, of a block of its rows.
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
  run = measure(cfg, streamed=isinstance(params, Layers))
  measured, maps = [{}] * len(prompts), None
  for batch in batches(prompts):
    tokens = jnp.asarray([prompts[i] for i in batch], jnp.int32)
    out = sharding.tree_to_host(run(params, tokens))
    # Only the first text of a batch has a map, and prompt 0 is the first of its
    # own.
    if batch[0] == 0:
      maps = out[MAPS][:, 0]
    for row, i in enumerate(batch):
      measured[i] = _of_row(out, row)
      _require_finite(measured[i])
    progress(len(batch))
  values = jax.tree.map(lambda *xs: np.stack(xs), *measured)
  nll = values.pop("nll")
  return SinkProfile([list(p) for p in prompts], values, nll, maps)


AXES = {"L": "layer", "H": "head", "N": "KV head", "E": "expert"}
"""Words for the axes of the table of metrics, in messages."""


def _require_finite(values: dict[str, Any]) -> None:
  """Raises for what is not finite, in the first layer where anything is not."""
  metrics = {m.measured.name: m.measured for m in registry.shown_in("summary")}
  found = []
  for name, value in values.items():
    label, axes = "loss", []
    if name in metrics:
      label, axes = metrics[name].label, metrics[name].axes.split()
    for leaf in jax.tree.leaves(value):
      if (at := finite.where(leaf)) is not None:
        layer = at[axes.index("L")] if "L" in axes else math.inf
        found.append((layer, leaf, label, axes))
  if found:
    _, leaf, label, axes = min(found, key=lambda one: one[0])
    finite.require(leaf, f"the {label}", [AXES[axis] for axis in axes])


def _of_row(out: dict[str, Any], row: int) -> dict[str, Any]:
  """What was measured on one row of a batch: [*axes] of every metric."""
  values = {"nll": out["nll"][row]}
  for metric in registry.shown_in("summary"):
    name = metric.measured.name
    if name in out:
      pick = functools.partial(np.take, indices=row, axis=metric.text_axis)
      values[name] = jax.tree.map(pick, out[name])
  return values
