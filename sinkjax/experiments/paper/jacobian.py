"""How much do tokens mix, exactly, with and without the sink? (theorem 3.2)

Exact Jacobians of several texts, after every layer, as the model is and with
position 0 hidden from a layer on; and estimates at a greater length, whose
intervals are checked against exact maps where both are known.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from sinkjax.experiments.harness.api import Claim, Result, Subject, direction
from sinkjax.experiments.harness.stats import format_ratio, mean_over
from sinkjax.experiments.shared.sink_removal import (
  CONDITIONS,
  texts_of,
  with_layer,
)
from sinkjax.experiments.shared.swap_texts import TEXTS
from sinkjax.metrics import spread
from sinkjax.models.transformer import forward
from sinkjax.report import html
from sinkjax.report.figures import FIRST, REST, drawing, legend_above, png
from sinkjax.report.jacobian_figures import norm_maps
from sinkjax.transforms.edits import knockout
from sinkjax.transforms.estimators import estimate_norms
from sinkjax.transforms.intervene import intervene
from sinkjax.transforms.jacobian import jacobian_norms

NAME, TITLE = "jacobian", "How much tokens depend on each other"


@dataclasses.dataclass(frozen=True)
class Config:
  """What is computed.

  Attributes:
    texts: as `swaps.parse_swaps` takes them; the swaps are not used.
    count: how many of them.
    tokens: T of the exact maps.
    long_tokens: T of the estimated ones.
    samples: random directions a token of an estimate.
    from_layer: the first layer at which position 0 is hidden; `None` for the
      one that leaves the fewest sinks, see `sink_removal`.
    budget_bytes: of the exact engine, see `jacobian_norms`.
  """

  texts: str = TEXTS
  count: int = 4
  tokens: int = 16
  long_tokens: int = 46
  samples: int = 6
  from_layer: int | None = None
  budget_bytes: int | None = None


def run(
  subject: Subject,
  config: Config,
  *,
  progress: Callable[[int, int], Any] = lambda done, total: None,
) -> Result:
  """Exact and estimated maps of every text.

  Args:
    subject: the model.
    config: what is computed.
    progress: called with (maps done, maps in all).

  Raises:
    ValueError: for texts that are too short or too few.

  Cost: two exact maps a text, and two estimates a text.
  """
  if config.count < 2:
    raise ValueError(f"count must be at least 2, got {config.count}")
  config = with_layer(subject, config)
  ids = texts_of(subject, config.texts, config.long_tokens)[: config.count]
  f = forward(subject.cfg)
  edit = {"scores": knockout(0, from_layer=config.from_layer)}
  functions = (f, intervene(f, edit))
  exact, estimated, inside, done = [], [], [], 0
  for text, row in enumerate(ids):
    for fn in functions:
      short = jnp.asarray(row[: config.tokens])
      budget = {"budget_bytes": config.budget_bytes}
      exact.append(
        jacobian_norms(fn, subject.params, short, per_layer=True, **budget)
      )
      key = jax.random.fold_in(jax.random.key(0), text)
      guess = {"samples": config.samples, "key": key, **budget}
      long = jnp.asarray(row)
      estimated.append(estimate_norms(fn, subject.params, long, **guess).norms)
      if not text:
        same = estimate_norms(fn, subject.params, short, **guess)
        low, high = same.interval(0.95)
        inside.append(_inside(exact[-1][-1], low, high))
      done += 1
      progress(done, 2 * len(ids))
  shape = (len(ids), 2)
  exact = np.stack(exact).reshape(*shape, *exact[0].shape)
  estimated = np.stack(estimated).reshape(*shape, *estimated[0].shape)
  return _result(subject, config, exact, estimated, float(np.mean(inside)))


def _inside(norms, low, high) -> float:
  """Share of the causal entries within their interval."""
  seen = np.tri(len(norms), dtype=bool)
  held = (np.asarray(low) <= norms) & (norms <= np.asarray(high))
  return float(held[seen].mean())


def _mixing(norms: np.ndarray) -> np.ndarray:
  return np.asarray(spread.total_mixing(jnp.asarray(norms, jnp.float32)))


def _reach(norms: np.ndarray) -> np.ndarray:
  """Mean effective reach over tokens."""
  found = spread.effective_reach(jnp.asarray(norms, jnp.float32))
  return np.asarray(found).mean(axis=-1)


def _distance(norms: np.ndarray) -> np.ndarray:
  """The last token's sensitivity by distance, over that to itself."""
  found = np.asarray(spread.by_distance(jnp.asarray(norms, jnp.float32)))
  return found / found[..., :1]


def _result(subject, config, exact, estimated, inside) -> Result:
  texts = list(range(len(exact)))
  by_layer = _mixing(exact)  # [P, 2, L]
  mixing, long = by_layer[..., -1], _mixing(estimated)
  reach = _reach(exact[:, :, -1])
  means = {
    "log_mixing": mean_over(np.log(mixing[:, 1] / mixing[:, 0]), texts),
    "log_mixing_long": mean_over(np.log(long[:, 1] / long[:, 0]), texts),
    "reach": mean_over(reach[:, 1] - reach[:, 0], texts),
    **{
      f"mixing, {name}": mean_over(mixing[:, i], texts)
      for i, name in enumerate(CONDITIONS)
    },
  }
  layers = np.stack(
    [
      [
        list(mean_over(by_layer[:, i, layer], texts)[:3])
        for layer in range(by_layer.shape[2])
      ]
      for i in range(2)
    ]
  )
  last = exact[:, :, -1]
  header = ["layer"]
  for name in CONDITIONS:
    header += [name, f"{name}, low", f"{name}, high"]
  numbers = {
    "texts": len(texts),
    "tokens": config.tokens,
    "long_tokens": config.long_tokens,
    "samples": config.samples,
    "from_layer": config.from_layer,
    "inside_interval": inside,
    "total_mixing": mixing,
    "total_mixing_long": long,
    "effective_reach": reach,
    **{name: mean._asdict() for name, mean in means.items()},
  }
  return Result(
    name=NAME,
    title=TITLE,
    claims=_claims(config, means, inside, len(texts)),
    numbers=numbers,
    tables={
      "layers.csv": (
        header,
        [
          [layer, *map(float, layers[:, layer].ravel())]
          for layer in range(layers.shape[1])
        ],
      ),
      "norms.csv": _norm_table(last),
    },
    arrays={
      "norms": exact,
      "estimated": estimated,
      "mixing_by_layer": layers,
      "distance": _distance(last),
      "distance_long": _distance(estimated),
    },
  )


def _norm_table(last: np.ndarray):
  header = ["text", "target", "source", *CONDITIONS]
  rows = [
    [text + 1, int(t), int(s), *map(float, maps[:, t, s])]
    for text, maps in enumerate(last)
    for t, s in zip(*np.tril_indices(maps.shape[-1]), strict=True)
  ]
  return header, rows


def _claims(config, means, inside, texts):
  def percent(name):
    mean = means[f"mixing, {name}"]
    return f"{100 * mean.value:.1f} %"

  hidden = f"position 0 hidden from layer {config.from_layer} on"

  def claim(text, ours, name):
    return Claim(
      text,
      "theorem 3.2, section 3.1",
      "no number; the bound falls with sinks",
      ours,
      direction(means[name].low, means[name].high),
      f"{texts} texts, {hidden}; sign-flip p = {means[name].p:.2g}",
    )

  return [
    claim(
      "Sinks keep tokens from mixing: the exact Jacobian has more between "
      "tokens without them.",
      f"{format_ratio(means['log_mixing'], '.2f')} the total mixing at "
      f"T={config.tokens}: "
      f"{percent(CONDITIONS[0])} with the sink, {percent(CONDITIONS[1])} "
      "without",
      "log_mixing",
    ),
    claim(
      "The same at a greater length.",
      f"{format_ratio(means['log_mixing_long'], '.2f')} the total mixing, "
      "estimated at "
      f"T={config.long_tokens}; {100 * inside:.0f} % of exact norms within "
      "the estimator's 95 % intervals where both were run",
      "log_mixing_long",
    ),
    claim(
      "Without sinks sensitivity reaches further back.",
      f"effective reach {means['reach'].text('+.2f', ' tokens')}",
      "reach",
    ),
  ]


COLORS = dict(zip(CONDITIONS, (REST, FIRST), strict=True))


def draw(result) -> dict[str, bytes]:
  """Every figure, by file name."""
  norms = result.arrays["norms"][:, :, -1]
  mean = np.exp(np.log(np.where(norms > 0, norms, 1)).mean(axis=0))
  mean = np.where(norms[0] > 0, mean, 0)
  positions = [str(t) for t in range(mean.shape[-1])]
  maps = dict(zip(CONDITIONS, mean, strict=True))
  return {
    "map.png": norm_maps(maps, positions, "Frobenius norm (log scale)"),
    "layers.png": _layers(result.arrays["mixing_by_layer"]),
    "distance.png": _distance_figure(result.arrays),
  }


def _layers(by_layer: np.ndarray) -> bytes:
  with drawing(6.4, 3.4) as figure:
    ax, x = figure.add_subplot(), np.arange(by_layer.shape[1])
    for (name, color), values in zip(COLORS.items(), by_layer, strict=True):
      mean, low, high = 100 * values.T
      ax.plot(x, mean, color=color, label=name, lw=1.8)
      ax.fill_between(x, low, high, color=color, alpha=0.18, lw=0)
    ax.set(xlabel="layer", ylabel="%", ylim=(0, 100), xlim=(0, x[-1]))
    ax.grid(axis="y")
    legend_above(ax, "total mixing after every layer; bands are 95 %")
    return png(figure)


def _distance_figure(arrays) -> bytes:
  panels = (("exact", "distance"), ("estimated", "distance_long"))
  with drawing(8, 3.4) as figure:
    for ax, (title, name) in zip(figure.subplots(1, 2), panels, strict=True):
      for i, (label, color) in enumerate(COLORS.items()):
        values = arrays[name][:, i]
        ax.plot(values.T, color=color, lw=0.6, alpha=0.35)
        with np.errstate(divide="ignore"):  # a zero makes the mean zero
          mean = np.exp(np.log(values).mean(axis=0))
        ax.plot(mean, color=color, lw=2, label=label)
      ax.set_yscale("log")
      ax.yaxis.set_major_formatter("{x:g}")
      ax.yaxis.set_minor_formatter("")
      ax.set_xlabel("tokens back")
      ax.grid(axis="y")
      legend_above(ax, f"{title}: the last token, relative to itself")
    return png(figure)


def sections(result, drawn: dict[str, bytes]) -> list[html.Section]:
  """The experiment's part of the report."""
  numbers = result.numbers
  header, rows = result.tables["layers.csv"]
  return [
    html.Section(
      result.title,
      body=(
        f"Exact Jacobians of {numbers['texts']} texts of {numbers['tokens']} "
        "tokens, from embed to the residual stream after the last layer, with "
        f"position 0 hidden from layer {numbers['from_layer']} on and without."
      ),
      figure=drawn["map.png"],
      caption="Geometric mean of the norms over texts, by position.",
    ),
    html.Section(
      "Mixing by layer",
      figure=drawn["layers.png"],
      caption=(
        "Share of the squared norms that is between different tokens, of the "
        "map from embed to the residual stream after each layer."
      ),
      table=html.Table(header, rows),
    ),
    html.Section(
      "How far back",
      figure=drawn["distance.png"],
      caption=(
        f"Left: exact, T={numbers['tokens']}. Right: estimated from "
        f"{numbers['samples']} directions a token, T={numbers['long_tokens']}. "
        "Thin lines are texts, thick ones their geometric mean."
      ),
    ),
  ]
