"""The sink and what comes with it in each checkpoint: what is measured.

Axes: K checkpoints, P texts, L layers, H heads.
"""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from sinkjax.experiments.harness.api import Result, Subject
from sinkjax.experiments.harness.stats import ends_columns, ends_of
from sinkjax.experiments.paper.sink_birth.checkpoints import (
  Config,
  read_history,
  steps_of,
)
from sinkjax.experiments.shared.prompt_corpus import Text
from sinkjax.experiments.shared.steps import Steps
from sinkjax.experiments.shared.text_batches import (
  batches,
  by_template,
  templates_of,
  texts_of_length,
)
from sinkjax.inference.scoring import nats_of
from sinkjax.metrics.norms import massive_activation, median, value_norm_ratio
from sinkjax.metrics.sinks import attention_entropy, sink_score
from sinkjax.models.transformer import forward
from sinkjax.transforms.capture import capture
from sinkjax.weights import registry

QUANTITIES = ("rate", "value", "massive", "entropy", "loss")
"""Of a text: share of heads with a sink; median over layers and heads of the
norm of the first token's values over the others'; the largest activation over
the median one, where it is the greatest; mean entropy of rows over its maximum;
and loss."""


def measure(
  subject: Subject,
  config: Config,
  *,
  texts: Sequence[Text] | None = None,
  progress: Callable[[int, int], Any] = lambda done, total: None,
) -> Result:
  """Every quantity of every text, by checkpoint.

  Args:
    subject: the given model, the last checkpoint.
    config: which others come before it.
    texts: other texts than those of `gather`.
    progress: called with (checkpoints done, in all).

  Raises:
    ValueError: for checkpoints whose names have no steps that increase, of
      another vocabulary, a history that cannot be read, or fewer than two
      texts that are long enough.

  Cost: a forward pass of the texts and checkpoint; one checkpoint in memory
    beside the given model.
  """
  # What can be wrong with the request is said before anything is read.
  names = [*config.checkpoints, subject.name]
  steps = steps_of(names) if config.checkpoints else []
  history = read_history(config.history, config.eps) if config.history else {}
  ids = texts_of_length(
    subject, texts, config.count, config.tokens, config.seed, fewest=2
  )
  step = Steps(progress, len(names))
  found = []
  for name in config.checkpoints:
    found.append(
      subject.kept("checkpoint", _of_named, name, subject.cfg, ids, config.eps)
    )
    step()
  found.append(
    subject.kept(
      "checkpoint", _of_model, subject.params, subject.cfg, ids, config.eps
    )
  )
  step()
  templates = templates_of(ids, subject.template)
  arrays = {
    name: np.stack([one[name] for one in found]).astype(np.float64)
    for name in QUANTITIES
  }
  return Result(
    numbers={
      "texts": len(ids),
      "templates": templates,
      "names": names,
      "steps": steps,
    },
    tables={
      "checkpoints.csv": _table(names, steps, arrays, {"templates": templates})
    },
    arrays=arrays | {f"history, {k}": x for k, x in history.items()},
  )


def _of_named(
  name: str, given: Any, ids: np.ndarray, eps: float
) -> dict[str, np.ndarray]:
  """The quantities of a checkpoint by its name.

  Raises:
    ValueError: for one of another vocabulary than the given model's.
  """
  params, cfg, _ = registry.load(name)
  if cfg.vocab_size != given.vocab_size:
    raise ValueError(
      f"{name} has a vocabulary of {cfg.vocab_size} tokens and the given model "
      f"one of {given.vocab_size}: they are no checkpoints of one run"
    )
  return _of_model(params, cfg, ids, eps)


def _of_model(
  params: Any, cfg: Any, ids: np.ndarray, eps: float
) -> dict[str, np.ndarray]:
  """{quantity: [P]} of a model in memory."""
  watch = {
    "alpha": ("pattern", sink_score),
    "entropy": (
      "pattern",
      lambda x: attention_entropy(x, normalize=True).mean(axis=1),
    ),
    "value": ("v", value_norm_ratio),
    "massive": ("resid_post", lambda x: massive_activation(x).ratio),
  }
  f = capture(forward(cfg), watch)

  @jax.jit
  def run(params: Any, ids: jax.Array) -> dict[str, jax.Array]:
    out = f(params, ids)
    of_heads = jnp.moveaxis(out.trace["value"], 1, 0).reshape(len(ids), -1)
    return {
      "rate": (out.trace["alpha"] > eps).mean(axis=(0, 2)),
      "value": median(of_heads),
      "massive": out.trace["massive"].max(axis=0),
      "entropy": out.trace["entropy"].mean(axis=0),
      "loss": nats_of(out.logits[:, :-1], ids[:, 1:]).mean(axis=1),
    }

  parts = []
  for _, count, rows in batches(ids, min(8, len(ids))):
    out = run(params, jnp.asarray(rows))
    parts.append({k: np.asarray(x, np.float64)[:count] for k, x in out.items()})
  return {k: np.concatenate([x[k] for x in parts]) for k in QUANTITIES}


def _table(
  names: list[str],
  steps: list[int],
  arrays: dict[str, np.ndarray],
  units: dict[str, Any],
) -> tuple[list[str], list[list[Any]]]:
  header, rows = ["model", "step"], []
  header += ends_columns(*QUANTITIES)
  for k, model in enumerate(names):
    row: list[Any] = [model, steps[k] if steps else None]
    for name in QUANTITIES:
      row += ends_of(by_template(arrays[name][k], units))
    rows.append(row)
  return header, rows
