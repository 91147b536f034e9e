"""Activations themselves: chosen sites, layers and positions of a batch."""

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from sinkjax.config import ModelConfig
from sinkjax.models.transformer import forward
from sinkjax.taps import ALL_SITES
from sinkjax.transforms.capture import capture


def chosen_layers(
  cfg: ModelConfig, points: Sequence[str | tuple[str, int]]
) -> dict[str, list[int]]:
  """The layers of every site that some points name.

  Args:
    cfg: the model.
    points: "resid_post", which means every layer, or ("resid_post", 4);
      negative layers count from the end.

  Raises:
    ValueError: for a site that has no value at each token, or that is not
      there, a layer that is not there, or a point named twice.

  >>> import sinkjax
  >>> chosen_layers(sinkjax.TINY, ["embed", ("resid_post", -1)])
  {'embed': [0], 'resid_post': [2]}
  """
  found: dict[str, list[int]] = {}
  by_token = [
    name for name, site in ALL_SITES.items() if site.axes[:3] in ("B T", "B S")
  ]
  for point in points:
    site, layer = (point, None) if isinstance(point, str) else point
    if site not in by_token:
      raise ValueError(f"{site!r} has no value at each token; {by_token} have")
    count = cfg.n_layers if ALL_SITES[site].stacked else 1
    if layer is not None and not -count <= layer < count:
      raise ValueError(f"layer {layer} of {site!r}: the model has {count}")
    layers = range(count) if layer is None else [layer % count]
    if set(layers) & set(found.get(site, [])):
      raise ValueError(f"a layer of {site!r} is named twice")
    found[site] = sorted([*found.get(site, []), *layers])
  return found


def activations(
  cfg: ModelConfig,
  layers: Mapping[str, Sequence[int]],
  *,
  positions: Sequence[int],
  dtype: str = "float32",
) -> Callable[[Any, Any], dict[str, jax.Array]]:
  """`f(params, tokens [B, T])`, jitted: `{"resid_post.4": [B, P, D], ...}`.

  Args:
    cfg: the model.
    layers: of every site, as `chosen_layers` returns them.
    positions: the tokens that are kept.
    dtype: what is returned.

  Cost: one forward pass; memory of each site's kept positions in all layers.
  """
  at = jnp.asarray(positions)

  def kept(value: jax.Array) -> jax.Array:
    return jnp.take(value, at, axis=1).astype(dtype)

  watched = capture(forward(cfg), {site: (site, kept) for site in layers})

  @functools.wraps(watched)
  def run(params: Any, tokens: Any) -> dict[str, jax.Array]:
    trace = watched(params, tokens).trace
    return {
      f"{site}.{layer}": trace[site][layer]
      if ALL_SITES[site].stacked
      else trace[site]
      for site, some in layers.items()
      for layer in some
    }

  return jax.jit(run)
