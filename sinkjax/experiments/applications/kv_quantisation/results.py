"""The numbers, tables and arrays of the experiment `kv_quantisation`."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from sinkjax.experiments.applications.kv_quantisation.config import (
  Config,
  Kept,
  Layout,
)
from sinkjax.experiments.applications.kv_quantisation.settings import (
  Kv,
  Layer,
  Linear,
  Site,
)
from sinkjax.experiments.harness.api import Result
from sinkjax.experiments.harness.stats import ends_of, mean_of
from sinkjax.experiments.shared.edited_cost import Cost


class Measured(NamedTuple):
  """Everything that was measured.

  Attributes:
    whole: [P] loss of the whole model.
    kv: keys and values rounded.
    linear: weights and activations rounded.
    layers: keys and values of single layers.
    sites: activations at single sites.
  """

  whole: np.ndarray
  kv: Mapping[Kv, Cost]
  linear: Mapping[Linear, Cost]
  layers: Mapping[Layer, Cost]
  sites: Mapping[Site, Cost]


def share_recovered(nothing: np.ndarray, kept: np.ndarray) -> float | None:
  """The share of the mean loss increase that keeping a token removes.

  Args:
    nothing: [P] loss increase with nothing kept.
    kept: [P] with the token kept.

  Returns:
    (mean nothing - mean kept) / mean nothing, or `None` where the interval of
    the loss increase is not above 0: a share of nothing.

  >>> share_recovered(np.array([1.0, 1.5, 2.0]), np.array([0.5, 0.5, 0.5]))
  0.6666666666666666
  """
  # A ratio whose denominator may be zero has no use.
  lost = mean_of(nothing)
  return None if lost.low <= 0 else float(np.mean(nothing - kept) / lost.value)


def linear_array(ranges: str, weights: int, activations: int, kept: str) -> str:
  """The name of the array of loss increases of a `Linear` setting.

  >>> linear_array("token", 8, 8, "sink")
  'linear, token, W8A8, sink'
  """
  return f"linear, {ranges}, W{weights}A{activations}, {kept}"


def result_of(
  config: Config, counts: dict[str, Any], measured: Measured
) -> Result:
  """Numbers, tables and arrays."""
  return Result(
    numbers=counts
    | {
      "tokens": config.tokens,
      "group": config.group,
      "control": config.control,
      "bits": list(config.bits),
      "layouts": list(Layout),
      "kept": list(Kept),
      "widths": [list(x) for x in config.widths],
      "loss": mean_of(measured.whole),
    },
    tables={
      "keys_and_values.csv": _table(measured.kv, ["layout", "bits"]),
      "layers.csv": _table(measured.layers, ["layer"]),
      "weights_and_activations.csv": _table(
        measured.linear, ["ranges", "weight_bits", "activation_bits"]
      ),
      "sites.csv": _table(measured.sites, ["site"]),
    },
    arrays=_arrays(config, measured),
  )


def _table(
  found: Mapping[Any, Cost], first: Sequence[str]
) -> tuple[list[str], list[list[Any]]]:
  """(header, rows) of costs, with what keeping the token recovers."""
  header = [*first, "kept"]
  for name in ("loss_increase", "kl", "bought_back"):
    stem = {"loss_increase": "loss", "bought_back": "bought"}.get(name, name)
    header += [name, f"{stem}_low", f"{stem}_high"]
  rows = []
  for key, cost in found.items():
    gain, share = [None] * 3, None
    none = found.get(key._replace(kept=Kept.NOTHING))
    if none is not None and key.kept != Kept.NOTHING:
      gain = ends_of(none.loss - cost.loss)
      share = share_recovered(none.loss, cost.loss)
    rows.append([*key, *ends_of(cost.loss), *ends_of(cost.kl), *gain, share])
  return [*header, "share"], rows


def _arrays(config: Config, measured: Measured) -> dict[str, np.ndarray]:
  found = {"whole": measured.whole}
  shape = (len(Layout), len(config.bits), len(Kept), -1)
  for what in Cost._fields:
    # Dicts keep the order of the settings, which is that of the axes.
    kv, layers = (
      [getattr(x, what) for x in some.values()]
      for some in (measured.kv, measured.layers)
    )
    found[f"kv_{what}"] = np.reshape(kv, shape)
    found[f"layer_{what}"] = np.reshape(layers, (len(layers) // 2, 2, -1))
  for key, cost in measured.linear.items():
    found[linear_array(*key)] = cost.loss
  for key, cost in measured.sites.items():
    found[f"site, {key.site}, {key.kept}"] = cost.loss
  return found
