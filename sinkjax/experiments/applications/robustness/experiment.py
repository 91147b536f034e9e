"""Does the sink make the model sturdier, and can it be defended?

The same noise and the same swapped tokens with the sink, with it taken away
late, and with another token taken away; and attacks on the first token, as
`attack` makes them, against a model that is guarded, with what each guard
costs where nothing attacks. Barbero et al. (2025, arXiv 2504.02732) hold that
sinks slow the spread of changes; Mirage in the Eyes (2501.15269) and
Forgetting to Forget (2510.17021) attack models through them.

Sharp edges:
  A model without its sink is a worse one, and what is worse may be more
  easily disturbed for other reasons; the token hidden instead is a control
  for the hiding, not for the loss.
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from sinkjax.experiments.applications.robustness import claims as told
from sinkjax.experiments.applications.robustness.defences import (
  DEFENCES,
  SITES,
  duellist,
  front_of,
)
from sinkjax.experiments.harness.api import Result, Subject
from sinkjax.experiments.harness.stats import mean_over
from sinkjax.experiments.shared.perturb import (
  Seen,
  by_name,
  effect,
  header,
  look,
  places,
  rows_of,
  rows_with,
  sizes,
)
from sinkjax.experiments.shared.prompt_corpus import Text
from sinkjax.experiments.shared.sink_removal import with_layer
from sinkjax.experiments.shared.swap_texts import TEXTS
from sinkjax.models.transformer import forward
from sinkjax.transforms.capture import capture
from sinkjax.transforms.edits import add, knockout, patch
from sinkjax.transforms.intervene import intervene

NAME, TITLE = "robustness", "Sturdy or soft: noise, and defences"
SIZED = (*SITES, "resid_post")
ALL = "all but the first"
SWAPPED = ("middle", "last")


@dataclasses.dataclass(frozen=True)
class Config:
  """What is run.

  Attributes:
    count: texts, of as many domains as there are.
    tokens: T of each; tokens of the first half are changed, the second half
      is measured.
    noise: norm of the noise over that of a token's embedding.
    draws: of noise, for each place.
    candidates: tokens of the vocabulary that are swapped in.
    share: norm of an attack over that of what it is added to, in each layer.
    steps: gradients of an attack.
    front: id of the token that is put in front as a defence; `None` for BOS,
      or for a line end where the tokenizer has none.
    eps: a head has a sink where its attention on position 0 exceeds this.
    texts: on which the layer is found; see `swaps.parse_swaps`.
    from_layer: the first layer at which a token is hidden; `None` for the
      one that leaves the fewest sinks, see `sink_removal`.
    seed: of texts, noise and candidates.
  """

  count: int = 24
  tokens: int = 64
  noise: float = 0.5
  draws: int = 3
  candidates: int = 3
  share: float = 0.2
  steps: int = 4
  front: int | None = None
  eps: float = 0.3
  texts: str = TEXTS
  from_layer: int | None = None
  seed: int = 0


def ways_of(layers: int, from_layer: int) -> tuple[Any, ...]:
  """(key [C], hidden from [C], value zero from [C]) of `told.CONDITIONS`."""
  never = layers
  return (
    jnp.array([0, 0, 1, 0]),
    jnp.array([never, from_layer, from_layer, never]),
    jnp.array([never, never, never, from_layer]),
  )


def taken_away(layers: int, key, hidden, muted) -> dict[str, Any]:
  """Edits that hide a key, or empty the first token's value, from a layer on.

  Args:
    layers: L.
    key: the position that is hidden.
    hidden: from this layer on; L for never.
    muted: the value of position 0 is zero from this layer on.
  """
  at = jnp.arange(layers)
  zero = jnp.zeros((layers, 1, 1, 1, 1))
  empty = patch(zero, positions=0, layers=jnp.where(at >= muted, at, -1))
  return {"scores": knockout(key, from_layer=hidden), "v": empty}


def disturber(cfg, config: Config) -> Callable:
  """`g(params, ids [1 + R, T], shift [1 + R, T, D], ways)`, jitted.

  Returns [C, R, M] what each change does, beside row 0 under the same
  condition, and [C] the loss of row 0.
  """
  f, start = forward(cfg), config.tokens // 2

  @jax.jit
  def disturb(params, ids, shift, ways):
    after = ids[:1, start + 1 :]

    def under(way):
      edits = taken_away(cfg.n_layers, *way) | {"embed": add(shift)}
      seen = look(intervene(f, edits), params, ids, start)
      clean = Seen(seen.logs[:1], seen.last[:1], seen.mass[:, :1])
      rest = Seen(seen.logs[1:], seen.last[1:], seen.mass[:, 1:])
      found = effect(clean, rest, after, eps=config.eps)
      taken = jnp.take_along_axis(clean.logs, after[..., None], -1)
      return jnp.stack(found, axis=-1), -jnp.mean(taken)

    return jax.lax.map(under, ways)

  return disturb


def run(
  subject: Subject,
  config: Config,
  *,
  texts: list[Text] | None = None,
  progress: Callable[[int, int], Any] = lambda done, total: None,
) -> Result:
  """Disturbances under four conditions, and attacks against eight defences.

  Args:
    subject: the model; its weights in memory.
    config: what is run.
    texts: other texts than those of `prompt_sources.gather`.
    progress: called with (parts done, parts in all), two parts a text.

  Raises:
    ValueError: for too few or too short texts, texts that all have one token,
      or a layer there is not.

  Cost: a text takes 4 (5 `draws` + 2 `candidates` + 1) forward passes of T
  tokens, and 3 (12 `steps` + 16) more, a gradient counted as two.
  """
  at = places(config.tokens)
  ids, origins = rows_of(
    subject, texts, config.count, config.tokens, config.seed
  )
  config = with_layer(subject, config)
  size, embeds = _measured(subject, ids)
  duel = duellist(subject, config, ids, size)
  disturb = disturber(subject.cfg, config)
  ways = ways_of(subject.cfg.n_layers, config.from_layer)
  noisy, base, fought, names = [], [], [], []
  for i, row in enumerate(ids):
    rows = _rows(subject, config, row, embeds[i], at, i)
    found, loss = disturb(
      subject.params,
      jnp.asarray(rows.ids),
      jnp.asarray(rows.shift, embeds[i].dtype),
      ways,
    )
    noisy.append(np.asarray(found))
    base.append(np.asarray(loss))
    names = rows.names
    progress(2 * i + 1, 2 * len(ids))
    fought.append(duel(i))
    progress(2 * i + 2, 2 * len(ids))
  return _result(
    config,
    origins,
    at,
    names,
    front_of(subject, config.front),
    np.stack(noisy),
    np.stack(base),
    np.stack(fought),
  )


def _measured(subject: Subject, ids: np.ndarray):
  """Norms by site, and embeddings, of every text."""
  f = forward(subject.cfg)
  watched = capture(f, {"x": ("embed", lambda x: x[0])})
  norms = jax.jit(lambda params, row: sizes(f, params, row, SIZED))
  embed = jax.jit(lambda params, row: watched(params, row).trace["x"])
  size = [
    jax.tree.map(np.asarray, norms(subject.params, row[None])) for row in ids
  ]
  return size, [np.asarray(embed(subject.params, row[None])) for row in ids]


def _rows(subject, config: Config, row, embed, at, number: int):
  rng = np.random.default_rng([config.seed, number])
  candidates = rng.choice(
    subject.cfg.vocab_size, config.candidates, replace=False
  )
  spots = {name: [where] for name, where in at.items()}
  spots[ALL] = list(range(1, config.tokens // 2))
  return rows_with(
    row,
    embed,
    spots,
    {name: at[name] for name in SWAPPED},
    share=config.noise,
    draws=config.draws,
    candidates=candidates,
    rng=rng,
  )


def _result(config, origins, at, names, front, noisy, base, fought) -> Result:
  levels = told.levels(noisy, names)
  return Result(
    name=NAME,
    title=TITLE,
    claims=told.claims(config, len(origins), levels, base, fought),
    numbers={
      "texts": len(origins),
      "origins": origins,
      "positions": at,
      "tokens": config.tokens,
      "measured_from": config.tokens // 2,
      "noise": config.noise,
      "draws": config.draws,
      "share": config.share,
      "candidates": config.candidates,
      "steps": config.steps,
      "eps": config.eps,
      "front": front,
      "from_layer": config.from_layer,
      "ratios": told.ratios(levels),
      "defences": told.balance(fought),
    },
    tables={
      "disturbed.csv": _disturbed_table(noisy, names, base),
      "defences.csv": _defence_table(fought),
    },
    arrays={"loss": base, "defences": fought}
    | {" ".join(name): x for name, x in by_name(noisy, names).items()},
  )


def _row(values) -> list[float]:
  """Mean, low and high of each measure, from [P, M]."""
  means = (mean_over(x, range(len(x))) for x in values.T)
  return [float(x) for mean in means for x in mean[:3]]


def _disturbed_table(noisy, names: Sequence, base):
  rows = [
    [
      kind,
      place,
      condition,
      float(base[:, c].mean()),
      *_row(values[:, c].mean(axis=1)),
    ]
    for (kind, place), values in by_name(noisy, names).items()
    for c, condition in enumerate(told.CONDITIONS)
  ]
  return header(["change", "place", "condition", "clean_loss"]), rows


def _defence_table(fought):
  kinds = ("not attacked", "attacked", "attacked, beside itself")
  rows = [
    [site, name, kind, *_row(fought[:, s, d, k])]
    for s, site in enumerate(SITES)
    for d, name in enumerate(DEFENCES)
    for k, kind in enumerate(kinds)
  ]
  return header(["site", "defence", "compared"]), rows
