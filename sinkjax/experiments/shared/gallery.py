"""What the gallery of models says of each: the same numbers on the same texts.

No claim, and no test: a row by which models can be compared at a glance. Texts
are the twelve of `swap_texts`, each cut to as many tokens.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from sinkjax.analysis.sink_profile import sink_profile
from sinkjax.experiments.harness.api import Subject
from sinkjax.experiments.harness.stats import ends_of
from sinkjax.experiments.shared.jacobian_runs import (
  CONTROL_KEY,
  mixing_of,
  others,
)
from sinkjax.experiments.shared.sink_removal import (
  EPS,
  hide,
  late_layer,
  sweep,
  texts_of,
)
from sinkjax.experiments.shared.steps import Steps
from sinkjax.experiments.shared.swap_texts import SWAP_TEXTS
from sinkjax.metrics.norms import massive_dimensions
from sinkjax.models.transformer import forward
from sinkjax.transforms.capture import capture
from sinkjax.transforms.find_sinks import find_sinks
from sinkjax.transforms.jacobian import jacobian_norms

TOKENS = 40
"""T of every text, the prefix counted: the shortest has about fifty tokens."""

THRESHOLDS = (0.3, 0.5, 0.8)
"""Of the sink rate: that of Gu et al., one half, and that of the paper."""

MAP_TOKENS, MAP_TEXTS = 8, 5
"""Of the exact Jacobians, whose cost grows with the square of the tokens."""


def measure(
  subject: Subject,
  *,
  progress: Callable[[int, int], Any] = lambda done, total: None,
) -> dict[str, Any]:
  """The row of a model.

  Args:
    subject: the model, its weights in memory; the prefix is that of its file.
    progress: called with (steps done, in all).

  Raises:
    ValueError: for texts that are too short in its tokens.

  Cost: L + 6 forward passes of the texts, and ten exact Jacobians.
  """
  cfg, bos = subject.cfg, subject.tokenizer.bos_id
  step = Steps(progress, 5 + cfg.n_layers + 1 + 2 * MAP_TEXTS)
  ids = texts_of(subject, SWAP_TEXTS, TOKENS)
  f, tokens = forward(cfg), jnp.asarray(ids)
  profile = sink_profile(subject.params, cfg, ids.tolist())
  step()
  watch = {"massive": ("resid_post", massive_dimensions)}
  massive = jax.jit(capture(f, watch))(subject.params, tokens).trace["massive"]
  step()
  found = find_sinks(f, subject.params, tokens)
  step()
  habit = {}
  for name, prefix in (("with", [bos]), ("without", [])):
    if bos is not None:
      of = texts_of(subject._replace(prefix=prefix), SWAP_TEXTS, TOKENS)
      one = sink_profile(subject.params, cfg, of.tolist())
      habit[name] = _rate(one.alpha, EPS)
    step()
  scores, _, loss = sweep(subject, ids, progress=lambda done: step())
  layer = late_layer(scores, EPS)
  beside = [sink.position > 0 for sink in found.sinks]
  return {
    "texts": len(ids),
    "tokens": TOKENS,
    "first_token": {
      "id": int(ids[0, 0]) if subject.prefix else None,
      "is_bos": subject.has_bos(),
    },
    "sink_rate": {f"{eps:g}": _rate(profile.alpha, eps) for eps in THRESHOLDS},
    "attention_on_first": ends_of(profile.alpha.mean(axis=(1, 2))),
    "bos": habit or None,
    "massive_dimensions": np.flatnonzero(
      np.asarray(massive).any(axis=(0, 1))
    ).tolist(),
    "sinks_at_first": len(beside) - sum(beside),
    "sinks_elsewhere": sum(beside),
    "loss": ends_of(profile.nll),
    "hidden_from_layer": layer,
    "loss_without_sink": ends_of(loss[layer] - loss[-1]),
    "mixing": _mixing(subject, layer, step),
  }


def _rate(alpha: np.ndarray, eps: float) -> list[float]:
  """[mean, low, high] over texts of the share of heads above a threshold."""
  return ends_of((alpha > eps).mean(axis=(1, 2)))


def _mixing(subject: Subject, layer: int, step: Steps) -> dict[str, Any]:
  """Exact mixing of the other tokens without the sink, over that with it."""
  control = CONTROL_KEY + len(subject.prefix)
  ids = texts_of(subject, SWAP_TEXTS, MAP_TOKENS)[:MAP_TEXTS]
  f, logs = forward(subject.cfg), []
  for row in ids:
    both = []
    for fn in (f, hide(f, layer)):
      norms = jacobian_norms(fn, subject.params, jnp.asarray(row))
      both.append(mixing_of(others(np.asarray(norms), control)))
      step()
    logs.append(np.log(both[1] / both[0]))
  return {
    "tokens": MAP_TOKENS,
    "texts": len(ids),
    "ratio": np.exp(ends_of(logs)).tolist(),
  }
