"""The decoder, and `forward`, the pure function that everything else uses."""

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import ArrayLike
from jaxtyping import Array, Bool, Float, Int

from sinkjax import mesh_context
from sinkjax.config import ModelConfig
from sinkjax.model_edits import OwnEdit
from sinkjax.models.blocks import Block, Norm
from sinkjax.models.context import make_context
from sinkjax.models.depth import without_share
from sinkjax.models.projection import align, random_kernel, softcapped
from sinkjax.taps import NO_TAPS, Tapper, Taps, Trace

Params = dict[str, Any]


class Output(NamedTuple):
  """What a forward pass returns.

  Attributes:
    logits: [B, T, V].
    trace: the observers' results: [L, ...] for sites inside the layers.
  """

  logits: Float[Array, "B T V"]
  trace: Trace


class Transformer(nn.Module):
  """A decoder-only transformer; `cfg.scan_layers` scans or unrolls."""

  cfg: ModelConfig

  @nn.compact
  def __call__(
    self,
    tokens: Int[Array, "B T"],
    taps: Taps = NO_TAPS,
    positions: Int[Array, "B T"] | None = None,
    valid: Bool[Array, "B T"] | None = None,
  ) -> Output:
    cfg = self.cfg
    if positions is None:
      positions = _default_positions(tokens, valid)
    small = nn.initializers.normal(cfg.init_std or 0.02)
    table = self.param("embed", small, (cfg.vocab_size, cfg.d_model))
    # Of a table that is split by columns the lookup would be, too.
    rows = mesh_context.constrain(table, ("vocabulary", None))
    x = rows[tokens].astype(cfg.dtype)
    # In the compute dtype, as the weights were trained: Gemma rounds its scale.
    x = x * jnp.asarray(cfg.embed_scale, x.dtype)
    if cfg.positions == "learned":
      shape = (cfg.max_len, cfg.d_model)
      x = x + self.param("positions", small, shape)[positions].astype(x.dtype)
    if cfg.embed_norm:
      x = Norm(cfg, name="embed_norm")(x)
    tap = Tapper(taps, 0)
    x = tap("embed", without_share(cfg, x))
    ctx = make_context(cfg, positions, valid)
    block = Block
    if cfg.remat != "none":
      kept = jax.checkpoint_policies.dots_with_no_batch_dims_saveable
      policy = kept if cfg.remat == "dots" else None
      # Within a scan no common subexpression can undo it, see jax.checkpoint.
      block = nn.remat(Block, policy=policy, prevent_cse=not cfg.scan_layers)
    scan = nn.scan(
      block,
      variable_axes={"params": 0},
      split_rngs={"params": True},
      in_axes=(0, nn.broadcast, nn.broadcast),
      length=cfg.n_layers,
      unroll=1 if cfg.scan_layers else cfg.n_layers,
    )
    x, trace = scan(cfg, name="blocks")(x, jnp.arange(cfg.n_layers), ctx, taps)
    last = Tapper(taps, cfg.n_layers - 1)
    if not cfg.stream_norms:  # else the last layer has normed it
      x = Norm(cfg, name="final_norm")(x)
    x = last("final", x)
    trace = {**tap.trace(), **trace, **last.trace()}
    head = {"embed": table}
    if not cfg.tie_embeddings:
      init = random_kernel(cfg.d_model, cfg.init_std)
      shape = (cfg.d_model, cfg.vocab_size)
      head["unembed"] = self.param("unembed", init, shape)
    if cfg.unembed_bias:
      init = nn.initializers.zeros
      head["unembed_bias"] = self.param("unembed_bias", init, cfg.vocab_size)
    return Output(logits_of(cfg, x, head), trace)


class Columns(NamedTuple):
  """Some columns of the unembedding.

  Attributes:
    kernel: [D, V].
    bias: [V], or `None`.
  """

  kernel: Float[Array, "D V"]
  bias: Float[Array, "V"] | None


def logits_of(
  cfg: ModelConfig, x: Float[Array, "B T D"], params: Params
) -> Float[Array, "B T V"]:
  """The logits of what the final norm returns.

  Args:
    cfg: the model.
    x: [B, T, D].
    params: its parameters, of which the embedding and the unembedding are read.
  """
  rows = x.reshape(-1, cfg.d_model)  # one product of two matrices: fast on CPU
  if cfg.tie_embeddings:
    logits = jnp.einsum("rd,vd->rv", rows, params["embed"].astype(x.dtype))
  else:
    logits = rows @ params["unembed"].astype(x.dtype)
  logits = logits.reshape(*x.shape[:2], cfg.vocab_size)
  return _finish_logits(cfg, logits, params.get("unembed_bias"))


def logits_of_columns(
  cfg: ModelConfig, x: Float[Array, "B T D"], columns: Columns
) -> Float[Array, "B T V"]:
  """The logits of some tokens of the vocabulary; see `logits_of`."""
  logits = jnp.einsum("btd,dv->btv", x, columns.kernel.astype(x.dtype))
  return _finish_logits(cfg, logits, columns.bias)


def _finish_logits(
  cfg: ModelConfig, logits: Float[Array, "B T V"], bias: Array | None
) -> Float[Array, "B T V"]:
  """What follows on the product with the unembedding."""
  if bias is not None:
    logits = logits + align(bias, logits).astype(logits.dtype)
  if cfg.logit_scale != 1.0:
    logits = logits * jnp.asarray(cfg.logit_scale, logits.dtype)
  if cfg.logit_softcap is not None:
    logits = softcapped(logits, cfg.logit_softcap)
  return logits


def _default_positions(
  tokens: Int[Array, "B T"], valid: Bool[Array, "B T"] | None
) -> Int[Array, "B T"]:
  """0, 1, 2, ... over the tokens that are no padding."""
  if valid is None:
    return jnp.broadcast_to(jnp.arange(tokens.shape[1]), tokens.shape)
  return jnp.maximum(jnp.cumsum(valid, axis=1) - 1, 0)


def init_params(cfg: ModelConfig, key: jax.Array) -> Params:
  """Fresh parameters: a nested dict, layers stacked on the first axis.

  Args:
    cfg: the model.
    key: a typed key, `jax.random.key(seed)`.

  Returns:
    `{"embed", "blocks": {...[L, ...]}, "final_norm", ...}` in float32.
  """
  return _init(cfg.apart()[0], key)


# One function, so that a config which comes again is not compiled again.
@functools.partial(jax.jit, static_argnames="cfg")
def _init(cfg: ModelConfig, key: jax.Array) -> Params:
  return Transformer(cfg).init(key, jnp.zeros((1, 1), jnp.int32))["params"]


def param_shapes(cfg: ModelConfig) -> Params:
  """The shape and dtype of every parameter, without allocating any."""
  return jax.eval_shape(lambda: init_params(cfg, jax.random.key(0)))


def forward(cfg: ModelConfig) -> Callable:
  """The model as a pure function.

  Args:
    cfg: the model; the result closes over nothing else.

  Returns:
    `f(params, tokens, *, taps=None, positions=None, valid=None) -> Output`
    where tokens is [B, T] int32 (or [T], read as one row), positions
    overrides 0..T-1, and valid is False at padding. The padding of a row
    should come after its text: "the first token" is index 0 everywhere.
    `f.cfg` and `f.taps` say what it is, to transforms that take it apart: the
    edits of a config of `sinkjax.edited` are in `f.taps`, not in `f.cfg`.

  Raises:
    ValueError: (by f, while tracing) for tokens of another rank or length
      beyond `cfg.max_len`; ids are checked against the vocabulary where they
      are concrete, and so are logits for NaN where scores or pattern are
      edited. Under a transformation of JAX a row of scores that an edit makes
      -inf gives NaN.

  Cost: O(L T (D^2 + D F + T D)) time; memory O(T max(D, F, H T)) a layer.

  >>> import jax, sinkjax
  >>> cfg = sinkjax.TINY
  >>> params = sinkjax.init_params(cfg, jax.random.key(0))
  >>> out = sinkjax.forward(cfg)(params, jax.numpy.array([[1, 2, 3]]))
  >>> out.logits.shape
  (1, 3, 64)
  """
  if not isinstance(cfg, ModelConfig):
    raise TypeError(f"cfg must be a ModelConfig, got {type(cfg).__name__}")
  cfg, edits = cfg.apart()
  own = Taps({site: OwnEdit(edit) for site, edit in edits.items()})
  model = Transformer(cfg)

  def f(
    params: Params,
    tokens: ArrayLike,
    *,
    taps: Taps | None = None,
    positions: ArrayLike | None = None,
    valid: ArrayLike | None = None,
  ) -> Output:
    tokens = check_tokens(cfg, tokens)
    positions = like_tokens("positions", positions, tokens)
    check_ids("position", positions, cfg.max_len, "the model's context")
    valid = like_tokens("valid", valid, tokens)
    taps = own.merge(taps).placed(cfg, tokens.shape[1])
    with jax.default_matmul_precision(cfg.precision):
      out = model.apply({"params": params}, tokens, taps, positions, valid)
    out = mesh_context.returned(out)
    taps.require_numbers(out.logits, "the logits")
    return out

  f.cfg, f.taps = cfg, own
  return f


def check_tokens(cfg: ModelConfig, tokens: ArrayLike | Sequence[Any]) -> Array:
  """[B, T] ids from [B, T] or [T].

  Raises:
    ValueError: for another rank or dtype, a length that the model cannot
      have, an id outside the vocabulary, or a float64 model while JAX has
      64-bit types disabled.
  """
  if cfg.dtype == "float64" and jnp.result_type(float) != jnp.float64:
    raise ValueError(
      "a model of dtype float64 would silently be computed in float32: call "
      'jax.config.update("jax_enable_x64", True) first, or use '
      'cfg.replace(dtype="float32")'
    )
  given = jnp.asarray(tokens)
  tokens = jnp.atleast_2d(given)
  if tokens.ndim != 2 or not jnp.issubdtype(tokens.dtype, jnp.integer):
    raise ValueError(
      f"tokens must be integers of shape [T] or [B, T], got {given.dtype} "
      f"{given.shape}"
    )
  if not 0 < tokens.shape[1] <= cfg.max_len:
    raise ValueError(
      f"a row must have 1 to max_len={cfg.max_len} tokens, got "
      f"{tokens.shape[1]}"
    )
  check_ids("token id", tokens, cfg.vocab_size, "the vocabulary")
  return tokens


def check_ids(name: str, ids: Any, size: int, what: str) -> None:
  """Indexing clamps silently: concrete ids must be inside the table.

  Args:
    name: of the ids, for the message.
    ids: or `None`, or traced; neither is checked.
    size: of the table.
    what: the table, for the message.

  Raises:
    ValueError: naming the id.
  """
  if ids is None or isinstance(ids, jax.core.Tracer) or not ids.size:
    return
  # Under jit also what is computed from a constant would be traced.
  with jax.ensure_compile_time_eval():
    low, high = int(ids.min()), int(ids.max())
  if low < 0 or high >= size:
    raise ValueError(
      f"{name} {low if low < 0 else high} is outside {what} of {size}"
    )


def like_tokens(
  name: str, value: ArrayLike | None, tokens: Int[Array, "B T"]
) -> Array | None:
  """An argument that goes with the tokens as [B, T]; `None` stays.

  Raises:
    ValueError: for another shape.
  """
  if value is None:
    return None
  value = jnp.atleast_2d(jnp.asarray(value))
  if value.shape != tokens.shape:
    raise ValueError(
      f"{name} must have the tokens' shape {tokens.shape}, got {value.shape}"
    )
  return value
