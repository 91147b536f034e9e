"""Kernels of attention and its sums, by the compilers of TPUs and GPUs."""

import described
import jax
import jax.numpy as jnp
import pytest
from jax.sharding import NamedSharding, PartitionSpec

import sinkjax
from sinkjax import mesh_context
from sinkjax.models.attention import Attention
from sinkjax.models.context import Context
from sinkjax.models.layerwise import methods_of

pytestmark = pytest.mark.compilers

KERNELS = {"tpu": "tpu_custom_call", "gpu": "__gpu$xla.gpu.triton"}
WANTED = frozenset(("columns", "diagonals", "entropy", "rows", "written"))

TINY = {"batch": 4, "length": 256, "heads": 4, "groups": 2, "width": 64}
MIXED = {"window": 100, "local_layers": (True, False, True)}
SIZES = {
  "tiny": TINY,
  "tiny, half precision": {**TINY, "dtype": "bfloat16"},
  "everything": {
    **TINY, **MIXED, "length": 1000, "width": 48, "padded": True,
    "sink_logit": True, "attn_softcap": 20.0,
  },
  "log-sigmoids": {**TINY, "normalizer": "normalized_sigmoid"},
  "SmolLM2": {
    "batch": 1, "length": 8192, "heads": 9, "groups": 3, "width": 64,
  },
  "SmolLM2, longest": {
    "batch": 1, "length": 131_072, "heads": 9, "groups": 3, "width": 64,
  },
  "8B": {
    "batch": 1, "length": 32_768, "heads": 32, "groups": 8, "width": 128,
    "dtype": "bfloat16", "sink_logit": True,
  },
  "wide": {
    "batch": 1, "length": 8192, "heads": 8, "groups": 4, "width": 128,
    "sink_logit": True, "padded": True,
  },
  "wider, half precision": {
    "batch": 1, "length": 8192, "heads": 8, "groups": 4, "width": 256,
    "dtype": "bfloat16", "attn_softcap": 50.0,
  },
}  # fmt: skip


def compiled(
  place, axes, *, batch, length, heads, groups, width, padded=False, **changes
):
  """What the compiler makes of both walks, each device on its own part."""
  mesh = described.mesh(place, axes)
  cfg = sinkjax.TINY.replace(
    n_heads=heads, n_kv_heads=groups, head_dim=width, max_len=length, **changes
  )

  def there(shape, kinds, dtype=cfg.dtype):
    split = [mesh_context.SPLIT.get(kind) if axes else None for kind in kinds]
    at = NamedSharding(mesh, PartitionSpec(*split))
    return jax.ShapeDtypeStruct(shape, jnp.dtype(dtype), sharding=at)

  tokens = ("rows", None, "heads", None)
  q = there((batch, length, heads, width), tokens)
  k = there((batch, length, groups, width), tokens)
  sinks = there((heads,), ("heads",)) if cfg.sink_logit else None
  valid = there((batch, length), ("rows", None), "bool") if padded else None

  @jax.jit
  def statistics(q, k, v, layer, sinks, valid):
    attend = methods_of(
      Attention(cfg), {} if sinks is None else {"sinks": sinks}
    )
    ctx = Context(None, None, None, None, valid=valid)
    z, found = attend(Attention.with_sums, q, k, v, ctx, layer, WANTED)
    return z, found.sums

  layer = there((), (), "int32")
  with described.backend(place), jax.set_mesh(mesh):
    return described.program(mesh, statistics, q, k, k, layer, sinks, valid)


def cases():
  for kind, place in described.PLACES.items():
    for size in SIZES:
      quick = kind == "tpu" and size == "everything"
      marks = () if quick else pytest.mark.slow
      yield pytest.param(place, size, marks=marks)


@pytest.mark.parametrize(("place", "size"), list(cases()))
def test_one_device(place, size):
  """One kernel for rows, one for columns, one for diagonals."""
  program = compiled(place, "", **SIZES[size])
  described.check(program)
  assert program.kernels[KERNELS[described.kind(place)]] == 3, program


def on_meshes():
  for kind, place in described.PLACES.items():
    for axes in described.MESHES:
      quick = kind == "tpu" and axes == "data:2,tensor:2"
      marks = () if quick else pytest.mark.slow
      yield pytest.param(place, axes, marks=marks)


@pytest.mark.parametrize(("place", "axes"), list(on_meshes()))
def test_devices_exchange_nothing(place, axes):
  """Each has the kernels of its own rows and heads."""
  size = {**TINY, "groups": 4, "sink_logit": True}
  program = compiled(place, axes, **size)
  assert not program.collectives, program
  assert program.kernels[KERNELS[described.kind(place)]] == 3, program


@pytest.mark.slow
@pytest.mark.parametrize("place", described.PLACES.values())
def test_a_gradient_keeps_its_forward_kernel(place):
  """Backward it is plain JAX, of the kernel's log-sum-exp."""
  cfg = sinkjax.TINY.replace(head_dim=64, max_len=128, sink_logit=True)
  mesh = described.mesh(place, "")
  here = NamedSharding(mesh, PartitionSpec())
  q = jax.ShapeDtypeStruct((2, 128, 4, 64), jnp.float32, sharding=here)
  k = jax.ShapeDtypeStruct((2, 128, 2, 64), jnp.float32, sharding=here)
  sinks = jax.ShapeDtypeStruct((4,), jnp.float32, sharding=here)

  def loss(q, k, v, sinks):
    attend = methods_of(Attention(cfg), {"sinks": sinks})
    ctx = Context(None, None, None, None)
    z, _ = attend(Attention.with_sums, q, k, v, ctx, 0, frozenset())
    return jnp.sum(jnp.sin(z))

  with described.backend(place), jax.set_mesh(mesh):
    gradient = jax.jit(jax.grad(loss, argnums=(0, 1, 2, 3)))
    program = described.program(mesh, gradient, q, k, k, sinks)
  assert program.kernels[KERNELS[described.kind(place)]] == 1, program
