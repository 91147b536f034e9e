"""The sink removed in three ways: what is run and measured."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from sinkjax.experiments.harness.api import Result, Subject
from sinkjax.experiments.harness.stats import mean_over
from sinkjax.experiments.shared.jacobian_runs import CONTROL_KEY, mixing_of
from sinkjax.experiments.shared.sink_removal import (
  KEYS,
  hide,
  late_layer,
  loss_from,
  observe,
  rates,
  sweep,
  texts_of,
)
from sinkjax.experiments.shared.swap_texts import SWAP_TEXTS
from sinkjax.models.transformer import forward
from sinkjax.transforms.capture import capture
from sinkjax.transforms.jacobian import jacobian_norms


@dataclasses.dataclass(frozen=True)
class Config:
  """What is run.

  Attributes:
    texts: as `swap_texts.parse_swaps` takes them; the swaps are not used.
    tokens: T, tokens of each text; texts with fewer are left out.
    eps: a head has a sink where its score exceeds this.
    late: the layer from which on "late" hides the sink; `None` for the one
      that leaves the fewest sinks anywhere.
    jacobian_tokens: tokens of the texts whose Jacobian is taken.
    jacobian_texts: how many.
  """

  texts: str = SWAP_TEXTS
  tokens: int = 46
  eps: float = 0.3
  late: int | None = None
  jacobian_tokens: int = 12
  jacobian_texts: int = 3


def measure(
  subject: Subject,
  config: Config,
  *,
  progress: Callable[[int, int], Any] = lambda done, total: None,
) -> Result:
  """Every text under every condition.

  Args:
    subject: the model; its weights in memory.
    config: what is run.
    progress: called with (steps done, steps in all).

  Raises:
    ValueError: for texts that are too short, or a `late` that is no layer.

  Cost: L + 2 forward passes a text, and three exact Jacobians of a few.
  """
  cfg, ids = subject.cfg, texts_of(subject, config.texts, config.tokens)
  if config.late is not None and not 0 <= config.late < cfg.n_layers:
    raise ValueError(f"late must be in [0, {cfg.n_layers}), got {config.late}")
  f, tokens = forward(cfg), jnp.asarray(ids)
  total = cfg.n_layers + 2 + 3 * config.jacobian_texts

  @jax.jit
  def shortened(params: Any, tokens: jax.Array) -> tuple[jax.Array, ...]:
    out = capture(f, {"seen": ("pattern", observe)})(params, tokens)
    # One position earlier than in the whole text: the same tokens.
    return (*out.trace["seen"], loss_from(out.logits, tokens, KEYS - 1))

  swept = sweep(subject, ids, progress=lambda done: progress(done, total))
  removed = jax.tree.map(np.asarray, shortened(subject.params, tokens[:, 1:]))
  progress(cfg.n_layers + 2, total)
  late = config.late
  if late is None:
    late = late_layer(swept[0], config.eps)
  norms = _norms(subject, config, ids, late, total, progress)
  return _result(subject, config, swept, removed, late, norms)


def _norms(
  subject: Subject,
  config: Config,
  ids: np.ndarray,
  late: int,
  total: int,
  progress: Callable[[int, int], Any],
) -> np.ndarray:
  """[texts, 3, T, T] norms of the Jacobian's blocks.

  Unchanged, with the sink hidden late, and with the next token hidden.
  """
  f = forward(subject.cfg)
  layer, control = jnp.asarray(late), CONTROL_KEY + len(subject.prefix)
  functions = (f, hide(f, layer), hide(f, layer, control))
  maps = []
  for row in ids[: config.jacobian_texts]:
    short = jnp.asarray(row[: config.jacobian_tokens])
    for fn in functions:
      maps.append(
        subject.kept("map", jacobian_norms, fn, subject.params, short)
      )
      progress(subject.cfg.n_layers + 2 + len(maps), total)
  size = config.jacobian_tokens
  return np.array(maps).reshape(-1, len(functions), size, size)


def _result(
  subject: Subject,
  config: Config,
  swept: tuple[np.ndarray, np.ndarray, np.ndarray],
  removed: tuple[np.ndarray, np.ndarray, np.ndarray],
  late: int,
  norms: np.ndarray,
) -> Result:
  """Of `sweep`'s arrays, of those without the first token, and of `_norms`."""
  # The control counts in a claim alone.
  mixing = mixing_of(norms[:, :2])
  scores, entropy, loss = swept
  new_scores, new_entropy, new_loss = removed
  by_key = rates(scores, config.eps)  # [L + 1, P, K]
  new_rates = rates(new_scores, config.eps)  # [P, K]
  evenness = entropy.mean(axis=(1, 3))  # [L + 1, P]
  new_evenness = new_entropy.mean(axis=(0, 2))  # [P]
  plain, never = by_key[-1, :, 0], len(scores) - 1
  by_text = {
    "sink_rate": plain,
    "sink_rate_new_first": new_rates[:, 0],
    "sink_rate_next_hidden_everywhere": by_key[0, :, 1],
    "sink_rate_anywhere_late": by_key[late].max(axis=-1),
    "evenness_removed": new_evenness - evenness[-1],
    "evenness_late": evenness[late] - evenness[-1],
    "loss_removed": new_loss - loss[-1],
    "loss_late": loss[late] - loss[-1],
    # Above zero where more than half of the heads with a sink have it there.
    "moved_removed": new_rates[:, 0] - plain / 2,
    "moved_hidden": by_key[0, :, 1] - plain / 2,
  }
  if len(mixing) > 1:
    by_text["log_mixing_late"] = np.log(mixing[:, 1] / mixing[:, 0])
  by_layer = np.column_stack(
    [by_key.mean(axis=1), evenness.mean(axis=1), loss.mean(axis=1)]
  )
  header = ["hidden_from_layer", *(f"sink_rate_key_{k}" for k in range(KEYS))]
  rows = [
    [layer if layer < never else "never", *map(float, row)]
    for layer, row in enumerate(by_layer)
  ]
  return Result(
    numbers={
      "texts": len(plain),
      "tokens": config.tokens,
      "eps": config.eps,
      "late": late,
      "first_position_is_bos": subject.has_bos(),
      "control_position": CONTROL_KEY + len(subject.prefix),
      "total_mixing": mixing,
      **{n: mean_over(x, range(len(x))) for n, x in by_text.items()},
    },
    tables={"layers.csv": ([*header, "evenness", "loss"], rows)},
    arrays={
      "rates": by_key,
      "evenness": evenness,
      "loss": loss,
      "norms": norms,
      "rates_removed": new_rates,
      "evenness_by_layer": entropy.mean(axis=(2, 3)),
      "evenness_removed_by_layer": new_entropy.mean(axis=(1, 2)),
    },
  )
