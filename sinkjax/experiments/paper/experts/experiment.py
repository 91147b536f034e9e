"""What every expert writes, and the model without some of them.

Axes: L layers, P texts, B texts of a pass, T tokens, E experts, D dimensions, K
experts that are ablated, R draws of others.
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from sinkjax.config import ModelConfig
from sinkjax.experiments.harness.api import Result, Subject
from sinkjax.experiments.harness.stats import ends_columns, ends_of
from sinkjax.experiments.shared.edited_loss import EditedLoss
from sinkjax.experiments.shared.prompt_corpus import Text
from sinkjax.experiments.shared.steps import Steps
from sinkjax.experiments.shared.text_batches import (
  by_template,
  templates_of,
  texts_of_length,
)
from sinkjax.experiments.shared.watched import watched
from sinkjax.metrics.experts import expert_first_norm, expert_first_share
from sinkjax.metrics.norms import token_norms
from sinkjax.metrics.precision import wide
from sinkjax.metrics.sinks import sink_score
from sinkjax.models.mlp import router_scores, weights_of
from sinkjax.transforms.expert_edits import AblateExperts

TOP_PERCENT = 99.5
"""A super expert's largest output is above this percentile of all experts'."""

OF_LARGEST = 0.1
"""And above this share of the largest; both are the source's, in our memory."""

NEAR = 4
"""An expert's control is drawn from so many of its layer whose numbers of
tokens are nearest to its own: from one or two every draw would be the same."""


@dataclasses.dataclass(frozen=True)
class Config:
  """What is run.

  Attributes:
    count: texts of each domain, as in the experiment `prompts`.
    tokens: T of each; shorter texts are left out.
    most: experts that are ablated, at most: K.
    draws: of as many other experts: R.
    eps: a head has a sink where its score exceeds this.
    seed: of the choice of texts and of the other experts.
  """

  count: int = 3
  tokens: int = 64
  most: int = 4
  draws: int = 3
  eps: float = 0.3
  seed: int = 0


def unfit(cfg: ModelConfig) -> str:
  """Why a model cannot be measured, "" where it can."""
  if cfg.n_experts - cfg.experts_per_token < 1:
    return (
      "it needs a model with experts among which tokens choose, such as "
      "hf:Qwen/Qwen1.5-MoE-A2.7B, and this one has "
      f"{f'{cfg.n_experts}, all in use' if cfg.n_experts else 'none'}"
    )
  return ""


def measure(
  subject: Subject,
  config: Config,
  *,
  texts: Sequence[Text] | None = None,
  progress: Callable[[int, int], Any] = lambda done, total: None,
) -> Result:
  """What experts write, and sinks, norms and losses without some.

  Args:
    subject: the model; its weights in memory.
    config: what is run.
    texts: other texts than those of `gather`.
    progress: called with (texts done, in all).

  Raises:
    ValueError: for a model without experts, or fewer than two texts that are
      long enough.

  Cost: 2 + K (1 + R) forward passes of the texts.
  """
  cfg = subject.cfg
  if why := unfit(cfg):
    raise ValueError(f"experiment experts: {why}")
  ids = texts_of_length(
    subject, texts, config.count, config.tokens, config.seed, fewest=2
  )
  passes = 2 + config.most * (1 + config.draws)
  step = Steps(progress, len(ids) * passes)
  seen = look(subject, ids, step)
  peak = seen["peak"].max(axis=1)
  order = ranked(peak)[: config.most]
  found = min(len(order), super_experts(peak))
  load = seen["elsewhere"].mean(axis=1)
  others = controls(order, load, config.draws, config.seed)
  after = _ablated(subject, config, ids, order, others, step)
  templates = templates_of(ids, subject.template)
  numbers = {
    "texts": len(ids),
    "templates": templates,
    "first_tokens": len(set(ids[:, 0].tolist())),
    "experts": int(np.isfinite(peak).sum()),
    "super": super_experts(peak),
    "found": found,
    "order": [list(one) for one in order],
    "controls": [[list(one) for one in draw] for draw in others],
    "layer": int(np.argmax(seen["norm"].mean(axis=1))),
  }
  arrays = {k: x.astype(np.float32) for k, x in seen.items()} | after
  return Result(
    numbers=numbers,
    tables={
      "experts.csv": _expert_table(order, seen),
      "ablated.csv": _ablation_table(numbers, arrays),
    },
    arrays=arrays,
  )


def look(
  subject: Subject, ids: np.ndarray, step: Callable[[int], Any]
) -> dict[str, np.ndarray]:
  """What every expert does in every text.

  Returns:
    [L, P, E] of experts that tokens choose: "peak", the largest magnitude of
    what its last map gives; "at_first", whether that is at the first token;
    "added" and "share", the norm of what it adds there and its share of what
    all add; "first" and "elsewhere", the share of first and of other tokens
    that use it. -inf, and 0 for the rest, in layers without experts. And "norm"
    [L, P], the first token's norm after each layer.
  """
  cfg = subject.cfg

  def outputs(logits: jax.Array, out: jax.Array) -> dict[str, jax.Array]:
    routed = out[:, :, : cfg.n_experts]
    used = jnp.any(routed != 0, axis=-1)
    scores = router_scores(cfg, wide(logits))
    weights = weights_of(cfg, scores, used.astype(scores.dtype))
    weights = jnp.where(used, weights, 1)
    size = jnp.max(jnp.abs(wide(routed)), axis=-1) / weights  # [B, T, E]
    return {
      "peak": jnp.max(size, axis=1),
      "at_first": (jnp.argmax(size, axis=1) == 0) & jnp.any(used, axis=1),
      "added": expert_first_norm(routed),
      "share": expert_first_share(out)[:, : cfg.n_experts],
      "first": used[:, 0],
      "elsewhere": used[:, 1:].mean(axis=1),
    }

  watch = {
    "experts": (("router_logits", "expert_out"), outputs),
    "norm": ("resid_post", lambda x: token_norms(x[:, 0])),
  }
  out = watched(subject, ids, watch, step)
  seen = out["experts"]
  # Their one MLP lies where experts do, and every token uses all of it.
  for name, value in seen.items():
    value[: cfg.dense_layers] = -np.inf if name == "peak" else 0
  return seen | {"norm": out["norm"]}


def ranked(peak: np.ndarray) -> list[tuple[int, int]]:
  """(layer, expert) of [L, E], the largest output first.

  >>> ranked(np.array([[1.0, 3.0], [2.0, -np.inf]]))
  [(0, 1), (1, 0), (0, 0)]
  """
  order = np.argsort(-peak, axis=None, kind="stable")
  order = order[np.isfinite(peak.ravel()[order])]
  return [divmod(int(at), peak.shape[1]) for at in order]


def super_experts(peak: np.ndarray) -> int:
  """How many experts of [L, E] are super experts; at least one.

  >>> super_experts(np.array([[1.0] * 499, [90.0] + [1.0] * 498]))
  1
  """
  values = peak[np.isfinite(peak)]
  above = values > np.percentile(values, TOP_PERCENT)
  return max(1, int((above & (values > OF_LARGEST * values.max())).sum()))


def controls(
  order: Sequence[tuple[int, int]], load: np.ndarray, draws: int, seed: int
) -> list[list[tuple[int, int]]]:
  """[R][K] other experts, of the same layer and about as many tokens each.

  None is ablated itself. Where a layer has too few others one stands twice.

  Args:
    order: [K] (layer, expert).
    load: [L, E] share of tokens that use each.
    draws: R.
    seed: of the choice.

  >>> controls([(0, 1)], np.array([[0.2, 0.3, 0.9]]), 1, 0)[0][0] in [
  ...   (0, 0),
  ...   (0, 2),
  ... ]
  True
  """
  rng, found = np.random.default_rng(seed), []
  for _ in range(draws):
    draw: list[tuple[int, int]] = []
    for layer, expert in order:
      others = [e for e in range(load.shape[1]) if (layer, e) not in order]
      # Where all of a layer are among the largest, they are their controls.
      others = others or [e for e in range(load.shape[1]) if e != expert]
      free = [e for e in others if (layer, e) not in draw] or others
      gap = np.abs(load[layer, free] - load[layer, expert])
      near = np.argsort(gap, kind="stable")[:NEAR]
      draw.append((layer, free[int(rng.choice(near))]))
    found.append(draw)
  return found


def _ablated(
  subject: Subject,
  config: Config,
  ids: np.ndarray,
  order: Sequence[tuple[int, int]],
  others: Sequence[Sequence[tuple[int, int]]],
  step: Callable[[int], Any],
) -> dict[str, np.ndarray]:
  """Sink rates, first norms and losses without the first k experts.

  Returns:
    "rate, NAME" and "loss, NAME" [K + 1, P], and "norm, NAME" [K + 1, L, P],
    NAME "largest" or "others", the mean of the draws; the first is the model as
    it is.
  """
  cfg = subject.cfg
  shape = (cfg.n_layers, cfg.n_experts + bool(cfg.shared_d_ff))
  loss = EditedLoss(
    subject,
    ids,
    step,
    {
      "alpha": ("pattern", sink_score),
      "norm": ("resid_post", lambda x: token_norms(x[:, 0])),
    },
  )

  def without(experts: Sequence[tuple[int, int]]) -> tuple[np.ndarray, ...]:
    off = np.zeros(shape, bool)
    for layer, expert in experts:
      off[layer, expert] = True
    nats, _, seen = loss.seen({"expert_out": AblateExperts(jnp.asarray(off))})
    rate = (seen["alpha"] > config.eps).mean(axis=(0, 2))
    return rate, nats.mean(axis=1), seen["norm"]

  plain = without([])
  largest, drawn = [plain], [plain]
  for k in range(1, len(order) + 1):
    largest.append(without(order[:k]))
    draws = [without(draw[:k]) for draw in others]
    drawn.append(tuple(np.mean(x, axis=0) for x in zip(*draws, strict=True)))
  return {
    f"{what}, {name}": np.stack([one[i] for one in series])
    for name, series in (("largest", largest), ("others", drawn))
    for i, what in enumerate(("rate", "loss", "norm"))
  }


def _expert_table(
  order: Sequence[tuple[int, int]], seen: dict[str, np.ndarray]
) -> tuple[list[str], list[list[Any]]]:
  """The experts that are ablated, means over texts."""
  columns = ("at_first", "added", "share", "first", "elsewhere")
  rows = [
    [
      f"{layer}.{expert}",
      float(seen["peak"][layer, :, expert].max()),
      *(float(seen[name][layer, :, expert].mean()) for name in columns),
    ]
    for layer, expert in order
  ]
  return ["expert", "peak", *columns], rows


def _ablation_table(
  numbers: dict[str, Any], arrays: dict[str, np.ndarray]
) -> tuple[list[str], list[list[Any]]]:
  header = ["experts", "ablated", *ends_columns("rate", "norm", "loss")]
  rows = []
  for name in ("largest", "others"):
    values = (
      arrays[f"rate, {name}"],
      arrays[f"norm, {name}"][:, numbers["layer"]],
      arrays[f"loss, {name}"],
    )
    for k in range(len(values[0])):
      row: list[Any] = [name, k]
      for value in values:
        row += ends_of(by_template(value[k], numbers))
      rows.append(row)
  return header, rows
