"""The numbers, tables and arrays of the experiment `attack`."""

from typing import Any

import numpy as np

from sinkjax.experiments.applications.attack.config import (
  NORMS,
  Config,
  Kind,
  Way,
)
from sinkjax.experiments.harness.api import Result
from sinkjax.experiments.harness.stats import ends_of, logs, mean_of
from sinkjax.experiments.shared.attack_sites import SITES
from sinkjax.experiments.shared.perturb import MEASURES, header, places


def contrast(kl: np.ndarray) -> dict[str, np.ndarray]:
  """[P] the sink's log KL less each other position's, from [P, C]."""
  log = logs(kl)
  others = list(places(12))[1:]
  return {name: log[:, 0] - log[:, i] for i, name in enumerate(others, 1)}


def contrasts_of(
  gradient: np.ndarray, swaps: np.ndarray
) -> dict[str, dict[str, np.ndarray]]:
  """`contrast` of every site and norm, and of every way to replace a token.

  Args:
    gradient: [P, S, 2, C, 3, M].
    swaps: [P, 2, C, candidates, M].
  """
  kl = MEASURES.index("kl")
  best = gradient[..., list(Kind).index(Kind.SEVERAL_STEPS), kl]
  # Divergences spread over decades, so means are of logarithms.
  mean, worst = (np.exp(logs(swaps[..., kl]).mean(axis=-1)), worst_of(swaps))
  found = {
    f"{site}, {norm}": contrast(best[:, s, n])
    for s, site in enumerate(SITES)
    for n, norm in enumerate(NORMS)
  }
  for w, way in enumerate(Way):
    found[f"{way}, mean"] = contrast(mean[:, w])
    found[f"{way}, worst"] = contrast(worst[:, w, :, kl])
  return found


def worst_of(swaps: np.ndarray) -> np.ndarray:
  """The candidate that raises the loss most, from [..., candidates, M]."""
  # As an attacker would choose, who knows the loss; KL is only reported.
  worst = swaps[..., MEASURES.index("loss")].argmax(axis=-1)
  picked = np.take_along_axis(swaps, worst[..., None, None], axis=-2)
  return picked[..., 0, :]


def result_of(
  config: Config,
  about: dict[str, Any],
  gradient: np.ndarray,
  swaps: np.ndarray,
  norms: np.ndarray,
) -> Result:
  """Contrasts, tables and arrays.

  Args:
    config: what was run.
    about: numbers that say on what.
    gradient: [P, S, 2, C, 3, M].
    swaps: [P, 2, C, candidates, M].
    norms: [P, S, C].
  """
  kl, at = MEASURES.index("kl"), about["positions"]
  one, best = (
    gradient[..., list(Kind).index(kind), kl]
    for kind in (Kind.ONE_STEP, Kind.SEVERAL_STEPS)
  )
  return Result(
    numbers=about
    | {
      "tokens": config.tokens,
      "measured_from": config.tokens // 2,
      "share": config.share,
      "steps": config.steps,
      "eps": config.eps,
      "sink_over_others": {
        name: {place: mean_of(x) for place, x in one.items()}
        for name, one in contrasts_of(gradient, swaps).items()
      },
      "several_steps_over_one": float(np.exp((logs(best) - logs(one)).mean())),
      "norm_over_median": {
        site: dict(zip(at, norms[:, s].mean(axis=0).tolist(), strict=True))
        for s, site in enumerate(SITES)
      },
    },
    tables={
      "gradient.csv": _gradient_table(gradient, list(at)),
      "swaps.csv": _swap_table(swaps, list(at)),
    },
    arrays={"gradient": gradient, "swaps": swaps, "norms": norms},
  )


def _gradient_table(
  gradient: np.ndarray, positions: list[str]
) -> tuple[list[str], list[list[Any]]]:
  axes = [list(x) for x in (SITES, NORMS, Kind, positions)]
  # The table has kinds before positions, the array after them.
  values = np.moveaxis(gradient, 4, 3)
  return header(["site", "norm", "kind", "position"]), _rows(values, axes)


def _swap_table(
  swaps: np.ndarray, positions: list[str]
) -> tuple[list[str], list[list[Any]]]:
  """Mean over candidates, and the candidate that raises the loss most."""
  rows = []
  for name, values in (
    ("mean", swaps.mean(axis=-2)),
    ("worst", worst_of(swaps)),
  ):
    rows += [
      [way, name, place, *numbers]
      for way, place, *numbers in _rows(values, [list(Way), positions])
    ]
  return header(["way", "candidates", "position"]), rows


def _rows(values: np.ndarray, axes: list[list[str]]) -> list[list[Any]]:
  """Names along the axes, then mean, low and high of every measure."""
  rows = []
  for at in np.ndindex(values.shape[1:-1]):
    names = [axis[i] for axis, i in zip(axes, at, strict=True)]
    each = values[(slice(None), *at)].T  # [M, P]
    rows.append([*names, *(x for one in each for x in ends_of(one))])
  return rows
