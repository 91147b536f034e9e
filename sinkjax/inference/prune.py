"""Models with fewer heads.

`remove_heads` gives the parameters and the config of a smaller model that
computes what the whole one computes with these heads' output set to zero (or
to their mean). `remove_by_layer` makes every layer as small as it can be by
itself.

Sharp edges:
  A `ModelConfig` has the same number of KV groups in every layer, and of query
  heads in every group. Where fewer are left, heads whose output weights are
  zero take their place: correct, but not faster. `structured` chooses heads so
  that nothing has to be filled.
"""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from sinkjax.config import ModelConfig
from sinkjax.models.context import make_context
from sinkjax.models.layerwise import (
  InMemory,
  Params,
  apply_block,
  apply_final_norm,
  embed,
  final_norm_of,
)
from sinkjax.models.transformer import check_tokens, logits_of
from sinkjax.taps import NO_TAPS


def _checked(cfg: ModelConfig, removed: Any) -> np.ndarray:
  removed = np.asarray(removed)
  if cfg.apart()[1]:
    raise ValueError(
      "edits of the config would name other heads once some are removed: give "
      "the config without edits"
    )
  want = (cfg.n_layers, cfg.n_heads)
  if removed.shape != want or removed.dtype != bool:
    raise ValueError(
      f"removed must be bool of shape [L, H] = {want}, got {removed.dtype} "
      f"{removed.shape}"
    )
  if cfg.qk_norm and cfg.qk_norm_over == "all":
    raise ValueError(
      "heads whose queries and keys are normalised together cannot be removed "
      "one by one: use ablate_heads"
    )
  if cfg.kv_rank:
    raise ValueError(
      "heads of latent attention share what their keys and values are made of "
      "(kv_rank), so that none can be removed: use ablate_heads"
    )
  if cfg.positions == "alibi":
    raise ValueError(
      "ALiBi's slopes go by a head's place among all heads, so that none can "
      "be removed: use ablate_heads"
    )
  if cfg.control_heads:
    raise ValueError(
      "heads have their roles by their places (control_heads), so that none "
      "can be removed: use ablate_heads"
    )
  return removed


def remove_heads(
  params: Params,
  cfg: ModelConfig,
  removed: Bool[np.ndarray, "L H"],
  *,
  mean: Float[Array, "L H K"] | None = None,
) -> tuple[Params, ModelConfig]:
  """The smallest model of one config that lacks these heads.

      N' = most KV groups with a head left in a layer
      G' = most query heads left in a group

  Args:
    params: of the whole model.
    cfg: its config.
    removed: True for a head to remove.
    mean: its mean output, which then stays as a bias of the output
      projection; `None` for zero.

  Returns:
    (params, cfg) with N' KV heads and N' G' query heads a layer. Logits are
    those of the whole model with `ablate_heads(removed, mean=mean)`.

  Raises:
    ValueError: for `removed` that is not [L, H] bool, a mean where outputs are
      gated, which no bias can express, or heads that are normalised together.

  Cost: a copy of the attention's parameters.

  >>> import jax, sinkjax
  >>> cfg = sinkjax.TINY
  >>> params = sinkjax.init_params(cfg, jax.random.key(0))
  >>> first = np.zeros((3, 4), bool)
  >>> first[:, ::2] = True
  >>> remove_heads(params, cfg, first)[1].n_heads
  2
  """
  removed = _checked(cfg, removed)
  if mean is not None and cfg.gates_heads:
    raise ValueError(
      f"gate={cfg.gate!r} depends on the token, so the mean of a removed "
      "head is no bias; use mean=None"
    )
  groups, heads, live = _places(cfg, removed)
  blocks = {**params["blocks"]}
  old, attn = blocks["attn"], {}
  for name, value in old.items():
    attn[name] = jax.tree.map(
      lambda x, name=name: _part(cfg, name, x, groups, heads), value
    )
  o = {**attn["o"]}
  mask = jnp.asarray(live, o["kernel"].dtype)
  # Heads that only fill a group must write nothing.
  o["kernel"] = o["kernel"] * mask[..., None, None]
  out_bias = cfg.out_bias
  if mean is not None:
    gone = jnp.asarray(mean) * jnp.asarray(removed)[..., None]
    shift = jnp.einsum("lhk,lhkd->ld", gone, old["o"]["kernel"])
    o["bias"] = o.get("bias", 0) + shift
    out_bias = True
  attn["o"] = o
  blocks["attn"] = attn
  small = cfg.replace(
    n_kv_heads=groups.shape[1], n_heads=heads.shape[1], out_bias=out_bias
  )
  return {**params, "blocks": blocks}, small


def _places(
  cfg: ModelConfig, removed: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
  """(KV heads [L, N'], query heads [L, H'], which of these are kept)."""
  # The same counts in all layers: the layer with the most decides.
  kept = ~removed.reshape(cfg.n_layers, cfg.n_kv_heads, cfg.group_size)
  some = kept.any(axis=-1)
  wide = max(1, int(some.sum(axis=-1).max()))
  each = max(1, int(kept.sum(axis=-1).max()))
  groups = np.sort(np.argsort(~some, axis=1, kind="stable")[:, :wide], axis=1)
  chosen = np.take_along_axis(kept, groups[..., None], 1)
  inside = np.argsort(~chosen, axis=2, kind="stable")[..., :each]
  inside = np.sort(inside, axis=2)
  heads = groups[..., None] * cfg.group_size + inside
  heads = heads.reshape(cfg.n_layers, -1)
  return groups, heads, ~np.take_along_axis(removed, heads, 1)


def _part(
  cfg: ModelConfig, name: str, x: Array, groups: np.ndarray, heads: np.ndarray
) -> Array:
  """The kept heads' part of a leaf of the attention, [L, ...]."""
  kv_gate = name == "gate" and cfg.gate == "value"
  if name in ("q_norm", "k_norm") or (name == "o" and x.ndim == 2):
    return x
  by = groups if name in ("k", "v", "k_bias", "v_bias") or kv_gate else heads
  by_input = name in ("q", "k", "v", "gate") and x.ndim == 4
  by_input |= name == "mix_rate" and x.ndim == 3
  axis = 2 if by_input else 1
  shape = [1] * x.ndim
  shape[0], shape[axis] = by.shape
  return jnp.take_along_axis(x, jnp.asarray(by).reshape(shape), axis)


def remove_by_layer(
  params: Params,
  cfg: ModelConfig,
  removed: Bool[np.ndarray, "L H"],
  *,
  mean: Float[Array, "L H K"] | None = None,
) -> tuple[Params, tuple[ModelConfig, ...]]:
  """Removes heads with every layer as small as it can be by itself.

  Returns:
    (params, cfgs): `params["blocks"]` is a list of each block's parameters
    without a layer axis, and `cfgs` its config, for `ragged_forward`. A layer
    that loses all its heads keeps one of zero output.

  Raises:
    ValueError: as `remove_heads`.
  """
  removed, blocks, cfgs = _checked(cfg, removed), [], []
  for layer in range(cfg.n_layers):
    one = {
      "blocks": jax.tree.map(
        lambda x, at=layer: x[at : at + 1], params["blocks"]
      )
    }
    at = slice(layer, layer + 1)
    its = cfg.replace(
      n_layers=1,
      local_layers=cfg.local_layers[at],
      rope_layers=cfg.rope_layers[at],
      rope_bases=cfg.rope_bases[at],
    )
    small, its = remove_heads(
      one, its, removed[at], mean=None if mean is None else mean[at]
    )
    blocks.append(jax.tree.map(lambda x: x[0], small["blocks"]))
    cfgs.append(its)
  return {**params, "blocks": blocks}, tuple(cfgs)


def ragged_forward(
  cfg: ModelConfig, cfgs: Sequence[ModelConfig]
) -> Callable[[Params, Any], Float[Array, "B T V"]]:
  """`f(params, tokens) -> logits` of a model of `remove_by_layer`, unrolled.

  Args:
    cfg: of the whole model.
    cfgs: of every layer.
  """

  def f(params: Params, tokens: Any) -> Array:
    tokens = check_tokens(cfg, tokens)
    positions = jnp.broadcast_to(jnp.arange(tokens.shape[1]), tokens.shape)
    with jax.default_matmul_precision(cfg.precision):
      x = embed(InMemory(cfg, params), tokens, positions)
      layer = jnp.asarray(0)  # each config has one layer
      for its, block in zip(cfgs, params["blocks"], strict=True):
        ctx = make_context(its, positions, None)
        x, _ = apply_block(its, block, x, layer, ctx, NO_TAPS)
      x = apply_final_norm(cfg, final_norm_of(params), x)
      return logits_of(cfg, x, params)

  return f


def lowest(scores: Float[np.ndarray, "L H"], count: int) -> np.ndarray:
  """[L, H] bool, True at the `count` heads of the lowest score.

  >>> lowest(np.array([[3.0, 1.0], [2.0, 9.0]]), 2).tolist()
  [[False, True], [True, False]]
  """
  scores = np.asarray(scores, float)
  if scores.ndim != 2 or not 0 <= count <= scores.size:
    raise ValueError(
      f"count must be in [0, {scores.size}] and scores [L, H], got {count} "
      f"and shape {scores.shape}"
    )
  chosen = np.zeros(scores.size, bool)
  chosen[np.argsort(scores, axis=None, kind="stable")[:count]] = True
  return chosen.reshape(scores.shape)


def structured(
  cfg: ModelConfig, scores: Float[np.ndarray, "L H"], groups: int, each: int
) -> np.ndarray:
  """Heads to remove so that every layer keeps `groups` KV heads of `each`.

  In each layer the groups whose best `each` heads have the greatest sum of
  scores stay, and in each of these its best heads.

  Args:
    cfg: the model.
    scores: how much each head does; those of the lowest are removed.
    groups: KV heads left in a layer.
    each: query heads left in a group.

  Returns:
    [L, H] bool, True for a head to remove.

  Raises:
    ValueError: for more than there are, or none.
  """
  if not (1 <= groups <= cfg.n_kv_heads and 1 <= each <= cfg.group_size):
    raise ValueError(
      f"groups must be 1 to {cfg.n_kv_heads} and each 1 to {cfg.group_size}, "
      f"got {groups} and {each}"
    )
  by_group = np.asarray(scores, float).reshape(
    cfg.n_layers, cfg.n_kv_heads, cfg.group_size
  )
  # Ranks from two sorts: ties are broken by order, so counts are exact.
  rank = np.argsort(np.argsort(-by_group, axis=2), axis=2)
  best = rank < each
  total = np.where(best, by_group, 0).sum(axis=2)
  stays = np.argsort(np.argsort(-total, axis=1), axis=1) < groups
  return ~(best & stays[..., None]).reshape(cfg.n_layers, cfg.n_heads)
