"""What a page to explore shows of one text: every head, as it is and edited."""

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from sinkjax import finite
from sinkjax.analysis.sensitivity import AS_IT_IS, Columns, sensitivity_map
from sinkjax.analysis.sensitivity_config import SensitivityConfig
from sinkjax.analysis.sink_profile import token_nll
from sinkjax.config import ModelConfig
from sinkjax.metrics.norms import token_norms
from sinkjax.metrics.precision import wide
from sinkjax.metrics.sinks import sink_score
from sinkjax.models.blocks import Block
from sinkjax.models.layerwise import Params, as_layers, methods_of
from sinkjax.models.transformer import check_tokens, forward
from sinkjax.taps import Tapper, Taps
from sinkjax.transforms.attention_edits import knockout
from sinkjax.transforms.capture import capture
from sinkjax.transforms.edits import Chain
from sinkjax.transforms.find_sinks import Sink, find_sinks
from sinkjax.transforms.intervene import intervene
from sinkjax.transforms.residual import taken_apart

EDIT = "knockout key=0"
"""What the edit without a name is called: token 0 hidden in every layer."""

JACOBIAN = SensitivityConfig(per_layer=True)
"""From the embedding to the residual stream after every layer."""


@dataclasses.dataclass(frozen=True)
class Condition:
  """One function on one text of T tokens.

  Attributes:
    name: "as it is", or the edit's.
    pattern: [L, H, T, T] attention, queries by keys.
    value_norms: [L, N, T] of every key's value.
    output_norms: [L, H, T] of what a head writes for a query, over the norm of
      the residual stream after the attention. Where a norm follows on the
      attention's output, of what enters that.
    loss: mean next-token loss, nats.
    sinks: the sinks that are found; `None` where the edit cannot act on rows
      of attention a block at a time, as `find_sinks` asks.
    jacobian: [L, T, T] norms of the Jacobian's blocks from the embedding to
      the residual stream after each layer, `None` if not asked for.
  """

  name: str
  pattern: np.ndarray
  value_norms: np.ndarray
  output_norms: np.ndarray
  loss: float
  sinks: list[Sink] | None
  jacobian: np.ndarray | None = None

  def sink_scores(self) -> np.ndarray:
    """[L, H] mean attention on the first token."""
    return np.asarray(_sink_scores(self.pattern))

  def output_shares(self) -> np.ndarray:
    """[L, H] mean of `output_norms` over the queries that have a choice."""
    return self.output_norms[..., 1:].mean(axis=-1)


@dataclasses.dataclass(frozen=True)
class Exploration:
  """One text, as it is and, if there is an edit, edited.

  Attributes:
    ids: the tokens.
    conditions: one or two.
  """

  ids: list[int]
  conditions: list[Condition]


def conditions(
  fn: Callable, edits: Mapping[str, Any] | None, name: str = EDIT
) -> dict[str, Callable]:
  """{name: function} of what is compared.

  Args:
    fn: `forward(cfg)`, or an `intervene` of it.
    edits: of `intervene`; `None` hides token 0 in every layer, and with none
      in it nothing is compared.
    name: of the edit.
  """
  if edits is None:
    edits = {"scores": knockout(0)}
  edited = {name: intervene(fn, edits)} if edits else {}
  return {AS_IT_IS: fn, **edited}


def measure(
  functions: Mapping[str, Callable],
  params: Params,
  tokens: Sequence[int],
  *,
  jacobians: Mapping[str, np.ndarray] | None = None,
  sinks: bool = True,
  progress: Callable[[int], Any] = lambda done: None,
) -> Exploration:
  """Everything that the page shows.

  Args:
    functions: of `conditions`.
    params: the model's parameters.
    tokens: one text [T], of at least two tokens.
    jacobians: of `jacobian`, by name, if wanted.
    sinks: whether they are looked for, which takes most of the time where the
      rest is compiled.
    progress: called with 1 after each step, `STEPS` times a function.

  Raises:
    ValueError: for a text of another shape, or an edit that does not fit.
    NotFiniteError: for activations that overflow; it names the layer.

  Cost: three forward passes of each function, and L H T^2 numbers of memory.
  """
  ids = np.asarray(tokens)
  if ids.ndim != 1 or len(ids) < 2:
    raise ValueError(
      f"tokens must be one text of at least 2 tokens, got shape {ids.shape}"
    )
  found = []
  for name, fn in functions.items():
    seen = _seen(fn, params, ids)
    progress(1)
    written = _written(fn, params, ids, seen)
    progress(1)
    at = None
    if sinks and _by_rows(fn):
      at = find_sinks(fn, params, ids).sinks
    progress(1)
    found.append(
      Condition(
        name,
        seen["pattern"],
        seen["value"],
        written,
        float(seen["nll"]),
        at,
        None if jacobians is None else np.asarray(jacobians[name]),
      )
    )
  return Exploration(ids.tolist(), found)


STEPS = 3
"""Of `measure`, for each function."""


def jacobian(
  fn: Callable,
  params: Params,
  tokens: Sequence[int],
  *,
  columns: Columns | None = None,
  finished: Callable[[], Any] = lambda: None,
  progress: Callable[[int, int], Any] = lambda done, total: None,
) -> np.ndarray:
  """[L, T, T] exact norms after every layer; arguments as `sensitivity_map`."""
  layers = sensitivity_map(
    fn,
    params,
    tokens,
    JACOBIAN,
    columns=columns,
    finished=finished,
    progress=progress,
  ).layers
  assert layers is not None  # JACOBIAN asks for them
  return layers


def _same(x: Array) -> Array:
  return x


@functools.partial(jax.jit, static_argnames="cfg")
def _run(
  cfg: ModelConfig, edits: Mapping[str, Any], params: Params, tokens: Array
) -> dict[str, Array]:
  """What observers see, and the loss.

  Edits are arguments, so that another value of the same edit, as a slider
  gives it, is not compiled again.
  """
  watched = capture(
    intervene(forward(cfg), edits),
    {
      "pattern": ("pattern", wide),
      "value": ("v", lambda v: jnp.swapaxes(token_norms(v), 1, 2)),
      "z": ("z", _same),
      "pre": ("resid_pre", _same),
      "size": ("resid_mid", token_norms),
    },
  )
  out = watched(params, tokens)
  return {**out.trace, "nll": token_nll(out.logits, tokens)}


def _seen(fn: Callable, params: Params, ids: np.ndarray) -> dict[str, Any]:
  """The same by name, without the axis of texts."""
  # Under jit the ids are traced, and neither they nor edits could be checked.
  cfg, edits = taken_apart(fn, ids)
  out = _run(cfg, edits, params, check_tokens(cfg, ids[None]))
  seen = {
    name: np.asarray(x)[0] if name == "nll" else np.asarray(x)[:, 0]
    for name, x in out.items()
  }
  for name, what in (
    ("size", "norm of the residual stream"),
    ("pattern", "attention"),
  ):
    finite.require(seen[name], f"the {what}", ["layer"])
  return seen


def _by_rows(fn: Callable) -> bool:
  """Whether all edits of attention can act on a block of rows."""
  edits = [fn.taps.edits.get(site) for site in ("scores", "pattern")]
  while edits:
    edit = edits.pop()
    if isinstance(edit, Chain):
      edits += edit.edits
    elif edit is not None and not hasattr(edit, "rows"):
      return False
  return True


def _written(
  fn: Callable, params: Params, ids: np.ndarray, seen: Mapping[str, np.ndarray]
) -> np.ndarray:
  """[L, H, T] `Condition.output_norms`."""
  layers, (_, edits) = as_layers(fn.cfg, params), taken_apart(fn, ids)
  rows = []
  for layer in range(fn.cfg.n_layers):
    norms = _head_outputs(
      fn.cfg,
      layers.layer(layer),
      edits,
      layer,
      seen["pre"][layer],
      seen["z"][layer],
    )
    size = seen["size"][layer]
    rows.append(np.asarray(norms) / np.where(size > 0, size, 1))
  return np.stack(rows)


@functools.partial(jax.jit, static_argnames="cfg")
def _head_outputs(
  cfg: ModelConfig,
  params: Params,
  edits: Mapping[str, Any],
  layer: Any,
  pre: Array,
  z: Array,
) -> Array:
  """[H, T] norms of what each head writes, its gate but no bias included.

  Args:
    cfg: the model.
    params: of the layer's block.
    edits: by site.
    layer: its index.
    pre: [T, D] what the layer reads.
    z: [T, H, W] what each head mixes of its values.
  """
  with jax.default_matmul_precision(cfg.precision):
    block = methods_of(Block(cfg), params)

    def write(z: Array) -> Array:
      tap = Tapper(Taps(dict(edits)), layer)
      return block(Block.project_out, pre[None], z[None], tap)[0]

    # The projection is linear but for its bias, which is no head's.
    nothing = write(jnp.zeros_like(z))

    def of_head(alone: Array) -> Array:
      return token_norms(write(z * alone[None, :, None]) - nothing)

    return jax.vmap(of_head)(jnp.eye(z.shape[1], dtype=z.dtype))


_sink_scores = jax.jit(sink_score)
