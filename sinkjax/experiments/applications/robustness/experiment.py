"""Measures perturbations under four conditions, and attacks on defences."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from sinkjax.config import ModelConfig
from sinkjax.experiments.applications.robustness.config import (
  ALL,
  SITES,
  SWAPPED,
  Config,
)
from sinkjax.experiments.applications.robustness.defences import (
  Defended,
  front_token,
)
from sinkjax.experiments.applications.robustness.results import result_of
from sinkjax.experiments.harness.api import Result, Subject
from sinkjax.experiments.shared.attack_sites import norms_of_texts
from sinkjax.experiments.shared.perturb import (
  PerturbedRows,
  Seen,
  effect,
  look,
  perturbed_rows,
  places,
  text_rows,
)
from sinkjax.experiments.shared.prompt_corpus import Text
from sinkjax.experiments.shared.sink_removal import resolve_from_layer
from sinkjax.experiments.shared.steps import Steps
from sinkjax.experiments.shared.text_batches import templates_of
from sinkjax.models.transformer import forward
from sinkjax.transforms.attention_edits import knockout
from sinkjax.transforms.capture import capture
from sinkjax.transforms.edits import add, patch
from sinkjax.transforms.intervene import intervene


def conditions_of(layers: int, from_layer: int) -> tuple[Array, Array, Array]:
  """(hidden key [C], hidden from [C], value zero from [C]) by `Condition`."""
  # No layer has this number, so nothing is hidden and nothing is zeroed.
  never = layers
  return (
    jnp.array([0, 0, 1, 0]),
    jnp.array([never, from_layer, from_layer, never]),
    jnp.array([never, never, never, from_layer]),
  )


def removal(layers: int, key: Any, hidden: Any, empty: Any) -> dict[str, Any]:
  """Edits that hide a key, or zero the first token's value, from a layer on.

  Args:
    layers: L.
    key: the position that is hidden.
    hidden: from this layer on; L for never.
    empty: the value of position 0 is zero from this layer on.
  """
  at = jnp.arange(layers)
  zero = jnp.zeros((layers, 1, 1, 1, 1))
  # Every condition has both edits, so one compiled function serves all.
  value = patch(zero, positions=0, layers=at >= empty)
  return {"scores": knockout(key, from_layer=hidden), "v": value}


def perturber(cfg: ModelConfig, config: Config) -> Callable:
  """`g(params, ids [1 + R, T], shift [1 + R, T, D], conditions)`, jitted.

  Returns [C, R, M] the effect of each perturbation, against row 0 under the
  same condition, and [C] the loss of row 0.
  """
  f, start = forward(cfg), config.tokens // 2

  @jax.jit
  def perturb(
    params: Any, ids: Array, shift: Array, conditions: tuple[Array, ...]
  ) -> tuple[Array, Array]:
    after = ids[:1, start + 1 :]

    def under(condition: tuple[Array, ...]) -> tuple[Array, Array]:
      edits = removal(cfg.n_layers, *condition) | {"embed": add(shift)}
      seen = look(intervene(f, edits), params, ids, start)
      # Row 0 is the text itself: what a condition costs is no perturbation.
      clean = Seen(seen.logs[:1], seen.last[:1], seen.mass[:, :1])
      rest = Seen(seen.logs[1:], seen.last[1:], seen.mass[:, 1:])
      found = effect(clean, rest, after, eps=config.eps)
      taken = jnp.take_along_axis(clean.logs, after[..., None], -1)
      return jnp.stack(found, axis=-1), -jnp.mean(taken)

    # A map, not vmap: a batch of logits for one condition at a time.
    return jax.lax.map(under, conditions)

  return perturb


def measure(
  subject: Subject,
  config: Config,
  *,
  texts: list[Text] | None = None,
  progress: Callable[[int, int], Any] = lambda done, total: None,
) -> Result:
  """Perturbations under four conditions, and attacks against eight defences.

  Args:
    subject: the model; its weights in memory.
    config: what is run.
    texts: other texts than those of `prompt_corpus.gather`.
    progress: called with (parts done, parts in all), two parts a text.

  Raises:
    ValueError: for too few or too short texts, texts that all have one token,
      or a layer outside the model.

  Cost: a text takes 4 (5 `draws` + 2 `candidates` + 1) forward passes of T
  tokens, and 3 (12 `steps` + 16) more, a gradient counted as two.
  """
  at = places(config.tokens)
  ids, origins = text_rows(
    subject, texts, config.count, config.tokens, config.seed
  )
  config = resolve_from_layer(subject, config)
  sizes = norms_of_texts(subject, ids, (*SITES, "resid_post"))
  defended = Defended(subject, config, ids, sizes)
  perturb, embed = perturber(subject.cfg, config), embedder(subject)
  conditions = conditions_of(subject.cfg.n_layers, config.from_layer)
  step = Steps(progress, 2 * len(ids))
  effects, losses, attacks, names = [], [], [], []
  for i, row in enumerate(ids):
    vectors = embed(row)
    rows = rows_of_text(subject, config, row, vectors, i)
    shift = jnp.asarray(rows.shift, vectors.dtype)
    changed = jnp.asarray(rows.ids)
    out = subject.kept(
      "noise", perturb, subject.params, changed, shift, conditions
    )
    effects.append(out[0])
    losses.append(out[1])
    names = rows.names
    step()
    attacks.append(subject.kept("defences", defended.evaluate, i))
    step()
  about = {
    "texts": len(origins),
    "origins": origins,
    "templates": templates_of(ids),
    "positions": at,
    "front": front_token(subject, config.front),
  }
  parts = (np.stack(x) for x in (effects, losses, attacks))
  return result_of(config, about, names, *parts)


def embedder(subject: Subject) -> Callable[[np.ndarray], np.ndarray]:
  """`g(ids [T]) -> [T, D]` embeddings of a text."""
  f = capture(forward(subject.cfg), {"x": ("embed", lambda x: x[0])})
  run = jax.jit(lambda params, row: f(params, row).trace["x"])
  return lambda row: np.asarray(run(subject.params, row[None]))


def rows_of_text(
  subject: Subject,
  config: Config,
  row: np.ndarray,
  embed: np.ndarray,
  number: int,
) -> PerturbedRows:
  """Every perturbation of one text.

  Args:
    subject: whose vocabulary.
    config: what is run.
    row: [T] the text.
    embed: [T, D] its embeddings.
    number: of the text, for its own noise and candidates.
  """
  # Seeded by text, so that more texts do not change the earlier ones.
  rng, at = np.random.default_rng([config.seed, number]), places(config.tokens)
  candidates = rng.choice(
    subject.cfg.vocab_size, config.candidates, replace=False
  )
  spots = {name: [where] for name, where in at.items()}
  # Not the sink: noise on it has a place of its own.
  spots[ALL] = list(range(1, config.tokens // 2))
  return perturbed_rows(
    row,
    embed,
    spots,
    {name: at[name] for name in SWAPPED},
    share=config.noise,
    draws=config.draws,
    candidates=candidates,
    rng=rng,
  )
