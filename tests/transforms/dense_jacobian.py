"""Small models, and all their Jacobians by `jax.jacfwd` of the model itself.

`Dense` shares nothing with `sinkjax.transforms.residual` or the engine: shifts
are added by edits of `forward`, and observers see what comes of them.
`engine` is the engine's answer in the same form.
"""

import contextlib
import functools

import jax
import jax.numpy as jnp
import numpy as np

import sinkjax
from sinkjax.models.layerwise import InMemory
from sinkjax.transforms import jacobian_engine
from sinkjax.transforms.jacobian import token_jacobian

BASE = sinkjax.ModelConfig(
  vocab_size=32,
  d_model=8,
  n_layers=3,
  n_heads=4,
  n_kv_heads=2,
  head_dim=6,
  d_ff=14,
  max_len=32,
)
"""No two axes of the same length but for L, which no array has beside T."""

RESIDUAL = ("embed", "resid_pre", "resid_mid", "resid_post", "final")


@contextlib.contextmanager
def quickly_compiled():
  """Most of the time of these tests is compilation."""
  jax.config.update("jax_disable_most_optimizations", True)
  try:
    yield
  finally:
    jax.config.update("jax_disable_most_optimizations", False)


def widths_pushed_directly(monkeypatch):
  """How many columns at a time the engine will push through layers as they
  are: one where it checks itself, more where a layer could not be folded.
  """
  push, widths = jacobian_engine.push_directly, []

  def counted(*args, **kw):
    widths.append(args[-1].shape[-1])
    return push(*args, **kw)

  monkeypatch.setattr(jacobian_engine, "push_directly", counted)
  return widths


def model(cfg, seed=0):
  """(f, params) of random weights in which nothing is zero or one."""
  leaves, tree = jax.tree.flatten(sinkjax.param_shapes(cfg))
  rng = np.random.default_rng(seed)

  def leaf(spec):
    scale = 0.7 * (spec.shape[-1] ** -0.5 if len(spec.shape) > 2 else 1)
    return jnp.asarray(rng.normal(size=spec.shape) * scale, cfg.dtype)

  params = jax.tree.unflatten(tree, [leaf(spec) for spec in leaves])
  for norm in _norms(params):
    norm["scale"] = 1 + 0.3 * norm["scale"]
  return sinkjax.forward(cfg), params


def _norms(params):
  for name, value in params.items():
    if isinstance(value, dict):
      yield from _norms(value)
    elif name == "scale":
      yield params


def text(length, seed=1):
  """Random tokens [T]."""
  return jnp.asarray(np.random.default_rng(seed).integers(32, size=length))


def points(cfg, sites=RESIDUAL):
  """Every (site, layer), in the order of a forward pass."""
  layers = range(cfg.n_layers)
  inside = [(s, at) for at in layers for s in RESIDUAL[1:4] if s in sites]
  first = [("embed", 0)] if "embed" in sites else []
  return first + inside + ([("final", 0)] if "final" in sites else [])


def shifted(cfg, edits, shifts):
  """The edits, and after each of them the shift of its site, [L, T, D]."""

  def edit(site, shift):
    own = edits.get(site)

    def moved(value, layer):
      value = value if own is None else own(value, layer)
      return value + shift[0 if site in ("embed", "final") else layer][None]

    return moved

  return {**edits, **{site: edit(site, s) for site, s in shifts.items()}}


def outputs(f, params, tokens, edits, shifts, sites=RESIDUAL, **kw):
  """{site: [L, T, D]} of the shifted model."""
  watch = {site: (site, lambda value: value) for site in sites}
  g = sinkjax.intervene(f, shifted(f.cfg, edits, shifts))
  trace = sinkjax.capture(g, watch)(params, tokens[None], **kw).trace
  shape = (-1, len(tokens), f.cfg.d_model)
  return {site: trace[site].reshape(shape) for site in sites}


@functools.partial(jax.jit, static_argnames=("cfg", "sources", "targets"))
def _dense(cfg, params, tokens, taps, positions, sources, targets):
  f, shape = sinkjax.forward(cfg), (cfg.n_layers, len(tokens), cfg.d_model)
  kw = {} if positions is None else {"positions": positions[None]}

  def run(shifts):
    return outputs(f, params, tokens, taps.edits, shifts, targets, **kw)

  return jax.jacfwd(run)({s: jnp.zeros(shape, cfg.dtype) for s in sources})


class Dense:
  """Every block of every Jacobian between the residual points of a model.

  Args:
    f: `forward(cfg)`, not edited.
    params: its parameters.
    tokens: [T].
    edits: `{site: edit}`.
    positions: [T] or `None`.
    sources: the sites that are shifted.
    targets: the sites that are watched.
  """

  def __init__(
    self,
    f,
    params,
    tokens,
    edits=None,
    *,
    positions=None,
    sources=RESIDUAL,
    targets=RESIDUAL,
  ):
    blocks = _dense(
      f.cfg,
      params,
      tokens,
      sinkjax.Taps(edits or {}),
      positions,
      tuple(sources),
      tuple(targets),
    )
    self._blocks = jax.tree.map(np.asarray, blocks)
    self._last = f.cfg.n_layers - 1

  def __call__(self, source=("embed", 0), target=("resid_post", -1)):
    """[T, T, D, D]: entry [t, s, i, j] is d y_t,i / d x_s,j."""
    (site, layer), (to, at) = source, target
    jac_LxTxDxLxTxD = self._blocks[to][site]
    return np.swapaxes(jac_LxTxDxLxTxD[at][:, :, layer], 1, 2)


def norms_of(blocks, norm):
  """[T, T] of [T, T, D, D], by numpy."""
  if norm == "fro":
    return np.sqrt((blocks**2).sum((-1, -2)))
  if norm == "max":
    return np.abs(blocks).max((-1, -2))
  return np.linalg.svd(blocks, compute_uv=False)[..., 0]


def every_pair(length):
  """All (t, s), in the order of a [T, T] matrix."""
  return [(t, s) for t in range(length) for s in range(length)]


def error(got, want):
  """The largest error, relative to the largest entry of what is wanted."""
  assert got.shape == want.shape
  return np.abs(got - want).max() / (np.abs(want).max() or 1)


LENGTH = 5
"""Tokens of a text whose every pair is looked at."""
START, END = ("embed", 0), ("resid_post", -1)


def engine(f, params, tokens, source=START, target=END, **kw):
  """[T, T, D, D] of every pair of tokens."""
  params = InMemory(f.cfg, params) if isinstance(params, dict) else params
  length, width = len(tokens), f.cfg.d_model
  blocks = token_jacobian(
    f, params, tokens, every_pair(length), source=source, target=target, **kw
  )
  assert blocks.dtype == np.float64
  return blocks.reshape(length, length, width, width)


def product(after, before):
  """The chain rule, over every token between."""
  return np.einsum("tuij,usjk->tsik", after, before)
