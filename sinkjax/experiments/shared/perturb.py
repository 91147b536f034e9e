"""Perturbations of single tokens: noise, swaps and gradient attacks.

A perturbation is an edit with an array as leaf, so the gradient of the loss
with respect to that leaf is the direction of an attack, and `vmap` over leaves
attacks several positions in one compile. Its effect is measured on the tokens
from `start` on, which come after every perturbed position.

Sharp edges:
  The Kullback-Leibler divergence has gradient zero at no perturbation, so
  attacks maximise the loss; the divergence is only reported.
  A radius is the norm in each layer, not over layers.
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from sinkjax.config import ModelConfig
from sinkjax.experiments.harness.api import Subject
from sinkjax.experiments.shared.prompt_corpus import Text, texts_for
from sinkjax.metrics.spread import spread
from sinkjax.taps import Layer
from sinkjax.transforms.capture import capture
from sinkjax.transforms.edit_indices import check_leading, chosen, place_index

MEASURES = ("kl", "loss", "spread", "kept")
"""Fields of `Effect`, in their order."""


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Shift:
  """Adds a vector to one token, another vector in each layer.

  Attributes:
    shift: [L, ...] for a site [B, T, ...]; [1, ...] at "embed".
    position: the token, or several. Every other token keeps its bits.
  """

  shift: Any
  position: Any

  def placed(self, cfg: ModelConfig, length: int, site: str) -> Any:
    """The same with its position and its layers checked."""
    layers = 1 if site == "embed" else cfg.n_layers
    check_leading("shift", self.shift, layers)
    position = place_index("position", self.position, length)
    return dataclasses.replace(self, position=position)

  def __call__(self, value: Array, layer: Layer) -> Array:
    """The site with that token shifted."""
    shift = jnp.asarray(self.shift, value.dtype)[layer][None, None]
    at = chosen(self.position, jnp.arange(value.shape[1]))
    at = at.reshape(1, -1, *[1] * (value.ndim - 2))
    return jnp.where(at, value + jnp.broadcast_to(shift, value.shape), value)


def unit(x: Array) -> Array:
  """Each layer's vector of [L, ...] over its norm; zeros stay zeros."""
  axes = tuple(range(1, x.ndim))
  most = jnp.max(jnp.abs(x), axis=axes, keepdims=True)
  # The square of a gradient of 1e-30 is 0 in float32.
  x = x / jnp.where(most > 0, most, 1)
  square = jnp.sum(x * x, axis=axes, keepdims=True)
  return x / jnp.sqrt(jnp.where(square > 0, square, 1))


def onto(x: Array, radius: Array) -> Array:
  """Each layer's vector of [L, ...], rescaled to the norm `radius` [L].

  A vector of zeros has no direction; it becomes one of equal entries, so that
  the norm is `radius` whatever the gradient.

  >>> onto(jnp.array([[3.0, 4.0], [0.0, 0.0]]), jnp.full(2, 10.0))[0].tolist()
  [6.0, 8.0]
  """
  axes = tuple(range(1, x.ndim))
  none = jnp.all(x == 0, axis=axes, keepdims=True)
  radius = radius.reshape(-1, *[1] * (x.ndim - 1))
  return unit(jnp.where(none, jnp.ones_like(x), x)) * radius


def ascend(
  objective: Callable, radius: Array, shape: Sequence[int], *, steps: int
) -> tuple[Array, Array]:
  """Gradient ascent on the sphere of each layer, from no perturbation.

      x_1 = r g(0) / |g(0)|;   x_{i+1} = r unit(unit(x_i) + unit(g(x_i)))

  For a convex objective the value never falls: the new point lies at least as
  far along the gradient as the old one.

  Args:
    objective: of a shift [L, ...], the scalar to maximise.
    radius: [L] the norm in each layer.
    shape: of the shift without L.
    steps: how many gradients, 1 for the plain gradient attack.

  Returns:
    The shifts after each step and the objective at each.

  Raises:
    ValueError: for fewer than one step.

  Cost: `steps` gradients and one more value.
  """
  if steps < 1:
    raise ValueError(f"steps must be at least 1, got {steps}")
  slope = jax.value_and_grad(objective)

  def step(shift: Array, _: None) -> tuple[Array, tuple[Array, Array]]:
    value, gradient = slope(shift)
    # Unit vectors: the norm of a gradient says nothing of how far to go.
    new = onto(unit(shift) + unit(gradient), radius)
    return new, (new, value)

  # From no shift, so that the first step is the plain gradient attack.
  start = jnp.zeros((len(radius), *shape), radius.dtype)
  last, (shifts, values) = jax.lax.scan(step, start, None, length=steps)
  return shifts, jnp.append(values[1:], objective(last))


class Seen(NamedTuple):
  """A run, measured on M tokens of which M - 1 are predicted.

  Attributes:
    logs: [B, M - 1, V] log probabilities of the next token.
    last: [B, M, D] residual stream after the last layer.
    mass: [L, B, H] mean attention on position 0.
  """

  logs: Array
  last: Array
  mass: Array


class Effect(NamedTuple):
  """The effect of a perturbation, one number a row.

  Attributes:
    kl: KL(clean || perturbed), nats a token.
    loss: change of the mean loss, nats.
    spread: relative change of the residual stream after the last layer.
    kept: share of the heads with a sink at position 0 that keep it.
  """

  kl: Array
  loss: Array
  spread: Array
  kept: Array


def look(f: Callable, params: Any, tokens: Array, start: int) -> Seen:
  """One run, measured from position `start` on."""
  watch = {
    "last": ("resid_post", lambda x: x[:, start:]),
    "mass": ("pattern", lambda p: jnp.mean(p[:, :, start:, 0], axis=-1)),
  }
  out = capture(f, watch)(params, tokens)
  # Divergences of 1e-6 are lost in half precision.
  wide = jnp.promote_types(out.logits.dtype, jnp.float32)
  logs = jax.nn.log_softmax(out.logits[:, start:-1].astype(wide))
  return Seen(logs, out.trace["last"][-1], out.trace["mass"])


def nats(f: Callable, params: Any, tokens: Array, start: int) -> Array:
  """[B] mean loss of the tokens after `start`, which attacks maximise."""
  logits = f(params, tokens).logits[:, start:-1]
  logs = jax.nn.log_softmax(logits)
  taken = jnp.take_along_axis(logs, tokens[:, start + 1 :, None], -1)
  return -jnp.mean(taken[..., 0], axis=-1)


def effect(clean: Seen, changed: Seen, after: Array, *, eps: float) -> Effect:
  """The effect of a perturbation, from two runs.

      kl = mean_t sum_v p_t(v) (log p_t(v) - log q_t(v))

  Args:
    clean: the run of one row, or of as many as `changed`.
    changed: the perturbed run.
    after: the tokens that are predicted.
    eps: a head has a sink where its attention on position 0 exceeds this.

  Returns:
    One number a row; `kept` is 1 where no head had a sink.
  """
  p, q = clean.logs, changed.logs
  kl = jnp.mean(jnp.sum(jnp.exp(p) * (p - q), axis=-1), axis=-1)
  index = jnp.broadcast_to(after, q.shape[:2])[..., None]
  lost = jnp.take_along_axis(p - q, index, -1)[..., 0]
  base = jnp.broadcast_to(clean.last, changed.last.shape)
  far = jnp.mean(spread(base, changed.last, relative=True), axis=-1)
  had = clean.mass > eps
  both = jnp.sum(had & (changed.mass > eps), axis=(0, 2))
  had = jnp.sum(had, axis=(0, 2))
  kept = jnp.where(had > 0, both / jnp.maximum(had, 1), 1.0)
  return Effect(kl, jnp.mean(lost, axis=-1), far, kept)


def header(first: Sequence[str]) -> list[str]:
  """Columns of a table: `first`, then each measure with its interval.

  >>> header(["site"])[:4]
  ['site', 'kl', 'kl, low', 'kl, high']
  """
  ends = ("", ", low", ", high")
  return [*first, *(name + end for name in MEASURES for end in ends)]


def text_rows(
  subject: Subject, texts: list[Text] | None, count: int, tokens: int, seed: int
) -> tuple[np.ndarray, list[str]]:
  """([P, T] ids, origins) of texts of as many domains as there are.

  Args:
    subject: whose tokenizer and prefix.
    texts: to choose from; `None` for the user's, or `prompt_corpus.gather`.
    count: P, at most.
    tokens: T, the prefix counted.
    seed: of the choice.

  Raises:
    ValueError: if fewer than two are long enough.
  """
  texts = texts_for(subject, texts, max(2, -(-count // 4)), seed)
  found: list[tuple[int, list[int], str]] = []
  seen: dict[str, int] = {}
  rows = subject.encode([text.text for text in texts])
  for text, ids in zip(texts, rows, strict=True):
    if len(ids) >= tokens:
      seen[text.domain] = seen.get(text.domain, 0) + 1
      found.append((seen[text.domain], ids[:tokens], text.origin))
  # The first of every domain, then the second: few texts are of many domains.
  found = sorted(found, key=lambda x: x[0])[:count]
  if len(found) < 2:
    raise ValueError(
      f"{len(found)} texts have {tokens} tokens; at least 2 are needed"
    )
  return np.array([ids for _, ids, _ in found]), [x[2] for x in found]


def places(tokens: int) -> dict[str, int]:
  """The positions that are perturbed, by name; later ones are measured.

  Raises:
    ValueError: for fewer than 12 tokens.

  >>> places(64)
  {'sink': 0, 'next': 1, 'middle': 16, 'last': 31}
  """
  if tokens < 12:
    raise ValueError(f"tokens must be at least 12, got {tokens}")
  # All perturbed positions come before all measured ones.
  half = tokens // 2
  return {"sink": 0, "next": 1, "middle": half // 2, "last": half - 1}


NOISE, SWAP = "noise", "swap"


class PerturbedRows(NamedTuple):
  """A text and R perturbed copies of it; row 0 is the text itself.

  Attributes:
    ids: [1 + R, T] tokens.
    shift: [1 + R, T, D] what is added to their embeddings.
    names: (kind, place) of each of the R.
  """

  ids: np.ndarray
  shift: np.ndarray
  names: list[tuple[str, str]]


def noise(
  embed: np.ndarray,
  spots: Sequence[int],
  share: float,
  rng: np.random.Generator,
) -> np.ndarray:
  """[T, D] a random direction at some tokens, zeros at the others.

      |noise_t| = share |embed_t|

  Args:
    embed: [T, D] embeddings.
    spots: the tokens.
    share: of their norms.
    rng: of the directions.
  """
  direction = rng.normal(size=embed.shape)
  direction /= np.linalg.norm(direction, axis=1, keepdims=True)
  # Relative to each token's own embedding, whose norms differ.
  size = np.zeros((len(embed), 1))
  size[list(spots), 0] = share * np.linalg.norm(embed[list(spots)], axis=1)
  return direction * size


def perturbed_rows(
  ids: np.ndarray,
  embed: np.ndarray,
  spots: Mapping[str, Sequence[int]],
  swapped: Mapping[str, int],
  *,
  share: float,
  draws: int,
  candidates: Sequence[int],
  rng: np.random.Generator,
) -> PerturbedRows:
  """Every perturbation of one text.

  Args:
    ids: [T].
    embed: [T, D] its embeddings.
    spots: tokens by name of the place that get noise, all at once.
    swapped: the token that is swapped, by name of the place.
    share: see `noise`.
    draws: of noise, for each place.
    candidates: that replace a swapped token.
    rng: of the noise.
  """
  rows, shifts = [ids], [np.zeros(embed.shape)]
  names = []
  for name, some in spots.items():
    for _ in range(draws):
      rows.append(ids)
      shifts.append(noise(embed, some, share, rng))
      names.append((NOISE, name))
  for name, at in swapped.items():
    for candidate in candidates:
      # Noise and swaps are rows of one batch: a swap adds nothing, noise swaps
      # nothing.
      row = ids.copy()
      row[at] = candidate
      rows.append(row)
      shifts.append(np.zeros(embed.shape))
      names.append((SWAP, name))
  return PerturbedRows(np.stack(rows), np.stack(shifts), names)


def by_name(
  values: np.ndarray, names: Sequence[tuple[str, str]]
) -> dict[tuple[str, str], np.ndarray]:
  """{(kind, place): [..., draws, M]} from values [..., R, M]."""
  return {
    name: values[..., [i for i, x in enumerate(names) if x == name], :]
    for name in dict.fromkeys(names)
  }
