"""Device kernels on 8 fake devices; a script of test_fused.

python kernels_on_devices.py [PART ...]    prints {case: [error, shapes]}

A part is a function of this file; without one all are run.

An error is the largest difference from one device's einsum path, relative to
the array's largest entry; shapes are those of q and k that a kernel is given.
"""

import functools
import json
import sys
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import AxisType, PartitionSpec

import sinkjax
from sinkjax import mesh_context, sharding
from sinkjax.metrics.collapse import effective_rank
from sinkjax.models import fused
from sinkjax.models.normalizers import softmax
from sinkjax.train.step import init_state, make_evaluate, make_step

MESHES = [
  "data:8",
  "fsdp:8",
  "tensor:8",
  "data:4,fsdp:2",
  "data:2,tensor:4",
  "fsdp:4,tensor:2",
  "data:2,fsdp:2,tensor:2",
]


def mesh_of(text):
  return sharding.make_mesh(sharding.MeshConfig.parse(text))


def plain(q, k, v, mask=None, sinks=None):
  """Causal attention by einsum."""
  k, v = (jnp.repeat(x, q.shape[2] // x.shape[2], axis=2) for x in (k, v))
  scores = jnp.einsum("bthk,bshk->bhts", q, k) / q.shape[-1] ** 0.5
  t = jnp.arange(q.shape[1])
  seen = (t[None, :] <= t[:, None])[None, None]
  seen = seen if mask is None else seen & mask
  sinks = None if sinks is None else sinks[None, :, None, None]
  return jnp.einsum("bhts,bshk->bthk", softmax(scores, seen, sinks), v)


def inputs(rows, heads, groups, *, length=12, masks=0, sunk=True):
  """(q, k, v, mask, sinks); with as many masks."""
  keys = jax.random.split(jax.random.key(0), 5)
  q = 2 * jax.random.normal(keys[0], (rows, length, heads, 16))
  k = jax.random.normal(keys[1], (rows, length, groups, 16))
  v = jax.random.normal(keys[2], (rows, length, groups, 16))
  mask = jax.random.bernoulli(keys[4], 0.5, (masks, 1, length, length))
  mask |= jnp.eye(length, dtype=bool)[None, None]
  sinks = jax.random.normal(keys[3], (heads,))
  return q, k, v, mask if masks else None, sinks if sunk else None


@functools.partial(jax.jit, static_argnums=0)
def differentiated(attend, q, k, v, mask, sinks):
  """(gradients, output)."""

  def loss(arrays):
    q, k, v, sinks = arrays
    z = attend(q, k, v, mask, sinks)
    way = jnp.arange(z.shape[-1]).reshape(1, 1, 1, -1)
    return jnp.sum(jnp.sin(z + way)), z

  return jax.grad(loss, has_aux=True)((q, k, v, sinks))


def error(got, want):
  worst = jax.tree.map(  # some biases stay zero
    lambda a, b: float(np.abs(a - b).max() / max(np.abs(b).max(), 1e-3)),
    got,
    want,
  )
  return max(jax.tree.leaves(worst))


def on(mesh, attend, arrays):
  """[error, shapes] under a mesh."""
  shapes = set()

  def kernel(q, k, *rest):
    shapes.add((q.shape, k.shape))
    return attend(q, k, *rest)

  tokens = "rows", None, "heads", None
  kinds = (tokens, tokens, tokens, ("rows", None, None, None), ("heads",))
  wrapped = mesh_context.per_device(kernel, kinds, tokens)
  with jax.set_mesh(mesh):
    got = differentiated(wrapped, *arrays)
  return [error(got, differentiated(plain, *arrays)), *shapes]


def splash_everywhere():
  """{mesh: [error, ()]} of the interpreted TPU kernel."""
  arrays = inputs(8, 8, 8, length=128)
  want = differentiated(plain, *arrays)

  def splash(q, k, v, mask, sinks):
    return fused.fused_attention(
      q, k, v, scale=0.25, sinks=sinks, implementation="splash"
    )

  found = {}
  for text in MESHES:
    with jax.set_mesh(mesh_of(text)):
      got = differentiated(splash, *arrays)
    found[f"splash {text}"] = [error(got, want)]
  return found


def wrapper():
  """{case: [error, shapes]} of a plain function in place of a kernel."""
  full = inputs(8, 8, 8, masks=8)
  found = {f"full {text}": on(mesh_of(text), plain, full) for text in MESHES}
  cube = mesh_of("data:2,fsdp:2,tensor:2")
  for masks, sunk in (0, True), (8, False), (1, False):
    arrays = inputs(8, 8, 8, masks=masks, sunk=sunk)
    found[f"masks={masks} sunk={sunk}"] = on(cube, plain, arrays)
  for rows, heads, groups in (1, 4, 4), (2, 4, 2), (4, 4, 1), (4, 9, 3):
    arrays = inputs(rows, heads, groups, masks=rows)
    found[f"rows={rows} heads={heads},{groups}"] = on(cube, plain, arrays)
  other = jax.make_mesh((2, 4), ("x", "data"), (AxisType.Auto,) * 2)
  found["other names"] = on(other, plain, full)
  return found


def cudnn():
  """{case: [error, shapes]} of cuDNN's path, with XLA's attention in it."""
  attention, shapes, found = jax.nn.dot_product_attention, set(), {}

  def on_cpu(q, k, v, *, implementation, **options):
    assert implementation == "cudnn"
    shapes.add((q.shape, k.shape))
    return attention(q, k, v, implementation="xla", **options)

  def attend(q, k, v, mask, sinks):
    return fused.fused_attention(
      q, k, v, scale=0.25, mask=mask, sinks=sinks, implementation="cudnn"
    )

  for sunk in True, False:
    arrays = inputs(8, 8, 4, masks=8, sunk=sunk)
    with (
      jax.set_mesh(mesh_of("data:2,fsdp:2,tensor:2")),
      mock.patch.object(jax.nn, "dot_product_attention", on_cpu),
    ):
      got = differentiated(attend, *arrays)
    want = differentiated(plain, *arrays)
    found[f"cudnn sunk={sunk}"] = [error(got, want), *shapes]
  return found


def online():
  """{mesh: [error]} of a model whose layers write no pattern."""
  from sinkjax.models import attention_form

  cfg = sinkjax.TINY.replace(sink_logit=True, scan_layers=False)
  tokens = jax.random.randint(jax.random.key(1), (8, 12), 0, 64)

  def gradient(cfg):
    def loss(params):
      return jnp.sum(sinkjax.forward(cfg)(params, tokens).logits ** 2)

    params = sinkjax.init_params(cfg, jax.random.key(0))
    return jax.jit(jax.grad(loss))(params)

  # Three layers' gradients add up the rounding of float32.
  with jax.enable_x64(True), mock.patch.object(attention_form, "LONG", 1):
    cfg = cfg.replace(dtype="float64")
    found, want = {}, gradient(cfg.replace(attention="einsum"))
    for text in MESHES:
      with jax.set_mesh(mesh_of(text)):
        found[f"online {text}"] = [error(gradient(cfg), want)]
  return found


def reducers():
  """{case: [error]} of a metric by singular values, on each mesh."""
  found, states = {}, jax.random.normal(jax.random.key(0), (8, 12, 16))
  want = effective_rank(states)
  for axes in MESHES:
    with jax.set_mesh(mesh_of(axes)):
      got = jax.jit(mesh_context.by_rows(effective_rank))(states)
    found[f"effective rank {axes}"] = [error([got], [want])]
  return found


def inside():
  """{case: [error, shapes]} where the caller has a shard_map of its own."""
  found, arrays = {}, inputs(8, 8, 8, masks=8)
  want = differentiated(plain, *arrays)
  for axes in ("data",), sharding.AXES:
    shapes, rows = set(), PartitionSpec("data")

    def kernel(q, k, *rest, shapes=shapes):
      shapes.add((q.shape, k.shape))
      return plain(q, k, *rest)

    tokens = "rows", None, "heads", None
    kinds = (tokens, tokens, tokens, ("rows", None, None, None), ("heads",))
    outer = jax.shard_map(
      mesh_context.per_device(kernel, kinds, tokens),
      in_specs=(rows, rows, rows, rows, PartitionSpec()),
      out_specs=rows,
      axis_names=set(axes),
      check_vma=False,
    )
    with jax.set_mesh(mesh_of("data:2,fsdp:2,tensor:2")):
      got = differentiated(outer, *arrays)
    name = f"inside {','.join(axes)}"
    found[name] = [error(got, want), *shapes]
  return found


def training():
  """{mesh: [error]} of parameters and loss after a step, with splash."""
  cfg = sinkjax.TINY.replace(
    n_layers=2,
    n_heads=4,
    n_kv_heads=4,
    head_dim=8,
    max_len=128,
    sink_logit=True,
    remat="dots",
  )
  optimizer = optax.sgd(0.01)
  shape = 16, 128
  tokens = jax.random.randint(jax.random.key(1), shape, 0, cfg.vocab_size)
  places = jnp.broadcast_to(jnp.arange(128), shape)
  batch = {
    "tokens": tokens,
    "weights": jnp.ones(shape, bool),
    "positions": places,
  }

  def after(mesh, cfg):
    state = init_state(cfg, optimizer, jax.random.key(0))
    shardings = sharding.state_shardings(mesh, state)
    state = sharding.place(shardings, state)
    rows = sharding.place(sharding.batch_sharding(mesh, 16), batch)
    step = make_step(
      cfg, optimizer, separated=False, accumulate=2, shardings=shardings
    )
    for _ in range(2):
      state, metrics = step(state, rows)
    evaluate = make_evaluate(cfg, separated=False)
    with jax.set_mesh(mesh):
      held = [evaluate(state.params, x) for x in (rows, _first(rows))]
    found = metrics.loss, metrics.grad_norm, held, state.params
    return jax.tree.map(sharding.to_host, found)

  def _first(rows):
    return jax.tree.map(lambda x: np.asarray(x)[:1], rows)

  one = sharding.make_mesh(sharding.MeshConfig(), jax.devices()[:1])
  want = after(one, cfg)

  def chosen(q, mask):  # parameters are made with one token
    return "splash" if q.shape[1] == 128 and mask is None else None

  with mock.patch.object(fused, "_chosen", chosen):
    text = "data:2,fsdp:2,tensor:2"
    got = after(mesh_of(text), cfg.replace(attention="fused"))
  return {f"training {text}": [error(got, want)]}


def main():
  with jax.default_matmul_precision("highest"):
    parts = (
      splash_everywhere,
      cudnn,
      online,
      reducers,
      wrapper,
      inside,
      training,
    )
    wanted = sys.argv[1:] or [part.__name__ for part in parts]
    cases = [part() for part in parts if part.__name__ in wanted]
  print(json.dumps({k: v for part in cases for k, v in part.items()}))


if __name__ == "__main__":
  main()
