"""Is the sink the soft spot? Attacks of equal norm on it and on other tokens.

Gradient attacks on a token's embedding, its keys and values, and its
residual stream in the middle layer; swaps of a token for random others; and
random tokens put in. Barbero et al. (2025, arXiv 2504.02732) hold that the
sink makes a model sturdier; Mirage in the Eyes (2501.15269) and Forgetting to
Forget (2510.17021) attack models through it.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from sinkjax.experiments.applications.attack.claims import (
  NORMS,
  claims,
  contrast,
)
from sinkjax.experiments.harness.api import Result, Subject
from sinkjax.experiments.harness.stats import ends_of, logs
from sinkjax.experiments.shared.perturb import (
  MEASURES,
  SITES,
  Shift,
  ascend,
  effect,
  header,
  layers_of,
  look,
  nats,
  onto,
  places,
  rows_of,
  sizes,
)
from sinkjax.experiments.shared.prompt_corpus import Text
from sinkjax.models.transformer import forward
from sinkjax.transforms.intervene import intervene

NAME, TITLE = "attack", "Attacks on the sink and on other tokens"
KINDS = ("random direction", "one step", "several steps")
WAYS = ("swapped", "put in")


@dataclasses.dataclass(frozen=True)
class Config:
  """What is run.

  Attributes:
    texts: how many, of as many domains as there are.
    tokens: T of each; those of the first half are attacked, the second half
      is measured.
    share: the norm of a shift over that of what it is added to. Equal
      relative norm: the attacked token's own, in each layer; equal absolute
      norm: the median over the text's tokens, in each layer.
    steps: gradients of the attack of several steps.
    candidates: tokens of the vocabulary that are swapped and put in.
    eps: a head has a sink where its attention on position 0 exceeds this.
    seed: of texts, candidates and random directions.
  """

  texts: int = 11
  tokens: int = 64
  share: float = 0.2
  steps: int = 4
  candidates: int = 16
  eps: float = 0.3
  seed: int = 0


def radii(size: np.ndarray, at, chosen: np.ndarray, share: float) -> np.ndarray:
  """[2, C, L] norms of the shifts: relative and absolute, by position.

  Args:
    size: [L, T] norms of the site.
    at: the C positions.
    chosen: [L] layers that are attacked.
    share: see `Config`.
  """
  own = size[:, list(at)].T
  same = np.broadcast_to(np.median(size, axis=1), own.shape)
  return share * np.stack([own, same]) * chosen


def attacker(cfg, site: str, config: Config) -> Callable:
  """`g(params, ids [T], at [C], radius [C, L], keys [C])`, jitted.

  Returns `Effect` with [C, 3] by kind of attack, and the shifts
  [C, 3, L, ...].

  Cost: `steps` gradients and five forward passes for each position.
  """
  f = forward(cfg)
  start = config.tokens // 2
  width = (cfg.d_model,)
  if site in ("k", "v"):
    width = (cfg.n_kv_heads, cfg.head_dim)

  def one(params, tokens, clean, at, radius, key):
    def edited(shift):
      return intervene(f, {site: Shift(shift, at)})

    def objective(shift):
      return nats(edited(shift), params, tokens, start)[0]

    shifts, values = ascend(objective, radius, width, steps=config.steps)
    noise = jax.random.normal(key, shifts.shape[1:], shifts.dtype)
    tried = jnp.stack(
      [onto(noise, radius), shifts[0], shifts[jnp.argmax(values)]]
    )

    def measure(shift):
      seen = look(edited(shift), params, tokens, start)
      after = tokens[:, start + 1 :]
      found = effect(clean, seen, after, eps=config.eps)
      return jax.tree.map(lambda x: x[0], found)

    return jax.lax.map(measure, tried), tried

  @jax.jit
  def attack(params, ids, at, radius, keys):
    tokens = ids[None]
    clean = look(f, params, tokens, start)
    each = jax.vmap(one, in_axes=(None, None, None, 0, 0, 0))
    return each(params, tokens, clean, at, radius, keys)

  return attack


def replacer(cfg, config: Config) -> Callable:
  """`g(params, ids [T], rows [C, T + n])`: `Effect` with [C], jitted.

  The rows are the same text with one token swapped (n = 0) or n put in.
  """
  f, start = forward(cfg), config.tokens // 2

  @jax.jit
  def replace(params, ids, rows):
    more = rows.shape[1] - len(ids)
    clean = look(f, params, ids[None], start)
    seen = look(f, params, rows, start + more)
    return effect(clean, seen, ids[None, start + 1 :], eps=config.eps)

  return replace


def changed_rows(ids: np.ndarray, at: int, candidates, way: str) -> np.ndarray:
  """[C, T] with each candidate in the place of a token, or before it.

  >>> changed_rows(np.array([5, 6]), 1, [8, 9], "put in").tolist()
  [[5, 8, 6], [5, 9, 6]]
  """
  candidates = np.asarray(candidates)[:, None]
  rows = np.repeat(ids[None], len(candidates), axis=0)
  rest = rows[:, at + (way == "swapped") :]
  return np.concatenate([rows[:, :at], candidates, rest], axis=1)


def run(
  subject: Subject,
  config: Config,
  *,
  texts: list[Text] | None = None,
  progress: Callable[[int, int], Any] = lambda done, total: None,
) -> Result:
  """Every attack on every text.

  Args:
    subject: the model; its weights in memory.
    config: what is run.
    texts: other texts than those of `prompt_sources.gather`.
    progress: called with (parts done, parts in all), ten parts a text.

  Raises:
    ValueError: for too few or too short texts.

  Cost: a text takes 32 times (2 steps + 4) and 8 times `candidates` forward
  passes of T tokens, a gradient counted as two.
  """
  at = places(config.tokens)
  ids, origins = rows_of(
    subject, texts, config.texts, config.tokens, config.seed
  )
  candidates = np.random.default_rng(config.seed).choice(
    subject.cfg.vocab_size, config.candidates, replace=False
  )
  attackers = {site: attacker(subject.cfg, site, config) for site in SITES}
  replace = replacer(subject.cfg, config)
  measure = jax.jit(
    lambda params, tokens: sizes(forward(subject.cfg), params, tokens)
  )
  done, total, gradient, swaps, norms = 0, 10 * len(ids), [], [], []

  def advance():
    nonlocal done
    done += 1
    progress(done, total)

  for number, row in enumerate(ids):
    size = {
      site: np.asarray(x)
      for site, x in measure(subject.params, row[None]).items()
    }
    norms.append(_norms(subject.cfg, size, at))
    gradient.append(
      _gradients(subject, config, attackers, row, at, size, number, advance)
    )
    swaps.append(
      _replaced(subject.params, replace, row, at, candidates, advance)
    )
  return _result(
    subject,
    config,
    origins,
    at,
    np.stack(gradient),
    np.stack(swaps),
    np.stack(norms),
    candidates,
  )


def _norms(cfg, size, at) -> np.ndarray:
  """[S, C] norm of each position over the text's median, mean of layers."""
  return np.stack(
    [
      (size[site] / np.median(size[site], axis=1, keepdims=True))[
        layers_of(cfg, site)
      ][:, list(at.values())].mean(axis=0)
      for site in SITES
    ]
  )


def _gradients(subject, config, attackers, row, at, size, number, advance):
  """[S, 2, C, 3, measures] of one text."""
  where, found = jnp.asarray(list(at.values())), []
  keys = jax.random.split(
    jax.random.fold_in(jax.random.key(config.seed), number), len(at)
  )
  for site, attack in attackers.items():
    radius = radii(
      size[site], at.values(), layers_of(subject.cfg, site), config.share
    )
    for one in radius:
      out, _ = attack(
        subject.params,
        jnp.asarray(row),
        where,
        jnp.asarray(one, size[site].dtype),
        keys,
      )
      found.append(np.stack(jax.tree.map(np.asarray, out), axis=-1))
      advance()
  found = np.stack(found)
  return found.reshape(len(SITES), len(NORMS), *found.shape[1:])


def _replaced(params, replace, row, at, candidates, advance) -> np.ndarray:
  """[2, C, candidates, measures] of one text."""
  found = []
  for way in WAYS:
    mine = []
    for place in at.values():
      rows = changed_rows(row, place, candidates, way)
      out = replace(params, jnp.asarray(row), jnp.asarray(rows))
      mine.append(np.stack(jax.tree.map(np.asarray, out), axis=-1))
    found.append(mine)
    advance()
  return np.array(found)


def _result(subject, config, origins, at, gradient, swaps, norms, candidates):
  best = gradient[..., KINDS.index("several steps"), 0]
  attacks = {
    f"{site}, {norm}": contrast(best[:, s, n])
    for s, site in enumerate(SITES)
    for n, norm in enumerate(NORMS)
  }
  kl = swaps[..., 0]
  # of the worst by loss, its KL; of all, the mean of log KL
  worst = np.take_along_axis(kl, swaps[..., 1].argmax(axis=-1)[..., None], -1)[
    ..., 0
  ]
  mean = np.exp(logs(kl).mean(axis=-1))
  replaced = {
    f"{way}, {name}": contrast(values[:, w])
    for w, way in enumerate(WAYS)
    for name, values in (("mean", mean), ("worst", worst))
  }
  steps = logs(best) - logs(gradient[..., 1, 0])
  numbers = {
    "texts": len(origins),
    "tokens": config.tokens,
    "origins": origins,
    "positions": at,
    "measured_from": config.tokens // 2,
    "share": config.share,
    "steps": config.steps,
    "eps": config.eps,
    "middle_layer": subject.cfg.n_layers // 2,
    "candidates": [int(i) for i in candidates],
    "sink_over_others": {
      name: {place: mean._asdict() for place, mean in one.items()}
      for name, one in (attacks | replaced).items()
    },
    "several_steps_over_one": float(np.exp(steps.mean())),
    "norm_over_median": {
      site: dict(zip(at, map(float, norms[:, s].mean(axis=0)), strict=True))
      for s, site in enumerate(SITES)
    },
  }
  return Result(
    name=NAME,
    title=TITLE,
    claims=claims(
      SITES, attacks, replaced, norms, candidates=config.candidates
    ),
    numbers=numbers,
    tables={
      "gradient.csv": _gradient_table(gradient, at),
      "swaps.csv": _swap_table(swaps, at),
    },
    arrays={"gradient": gradient, "swaps": swaps, "norms": norms},
  )


def _gradient_table(gradient, at):
  rows = []
  for s, site in enumerate(SITES):
    for n, norm in enumerate(NORMS):
      for k, kind in enumerate(KINDS):
        for c, place in enumerate(at):
          numbers = [
            x
            for m in range(len(MEASURES))
            for x in ends_of(gradient[:, s, n, c, k, m])
          ]
          rows.append([site, norm, kind, place, *numbers])
  return header(["site", "norm", "kind", "position"]), rows


def _swap_table(swaps, at):
  """Mean over candidates, and the candidate that raises the loss most."""
  worst = swaps[..., 1].argmax(axis=-1)[..., None, None]
  picked = np.take_along_axis(swaps, worst, axis=-2)[..., 0, :]
  rows = []
  for name, values in (("mean", swaps.mean(axis=-2)), ("worst", picked)):
    for w, way in enumerate(WAYS):
      for c, place in enumerate(at):
        numbers = [
          x for m in range(len(MEASURES)) for x in ends_of(values[:, w, c, m])
        ]
        rows.append([way, name, place, *numbers])
  return header(["way", "candidates", "position"]), rows
