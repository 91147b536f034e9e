"""What a model tells the compiler of the mesh that its work is traced under.

The mesh is the one in context, of `jax.set_mesh`. A kernel made for one device,
which the compiler cannot split, is called by each device on its own rows and
heads (`per_device`); a value that the compiler would split by its columns is
kept split by rows (`constrain`). Without a mesh in context nothing is done.
Where every process of a run reads what the model returns, each device gets a
copy of it (`copied_outputs`, `returned`).
"""

import contextlib
import contextvars
import functools
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
from jax.sharding import AxisType, PartitionSpec

SPLIT = {
  "rows": ("data", "fsdp"),
  "heads": ("tensor",),
  "vocabulary": ("tensor",),
  "experts": ("expert",),
}
"""Axes of the mesh that split a dimension while it is worked on."""


def in_context(shardings: Any, fn: Callable) -> Callable:
  """`fn`, which `jax.jit` then traces with these shardings' mesh in context.

  For a program that cannot ask its caller for `jax.set_mesh`.

  Args:
    shardings: a pytree of `NamedSharding`s of one mesh; `None` for no mesh.
    fn: what is traced.
  """
  places = jax.tree.leaves(shardings)
  if not places:
    return fn
  mesh = places[0].mesh.abstract_mesh

  @functools.wraps(fn)
  def traced(*args, **kwargs):
    with jax.sharding.use_abstract_mesh(mesh):
      return fn(*args, **kwargs)

  return traced


def per_device(
  kernel: Callable,
  inputs: Sequence[Sequence[str | None]],
  output: Sequence[str | None],
) -> Callable:
  """`kernel`, called by each device on its own rows and heads.

  A device kernel (Pallas, cuDNN) is opaque to the compiler, which can split
  only what is plain JAX. The mesh is the one in context, of `jax.set_mesh`, and
  its axes of type Auto; without one, with one device, or inside a
  `jax.shard_map` over all of its axes, the result is the kernel itself.

  Axes of the mesh that do not divide a dimension, or that are not ours, leave
  it whole: each device along them does the same work. So does a dimension of
  size 1, which is broadcast.

  Args:
    kernel: of arrays or `None`s; every row and every head for itself.
    inputs: for each argument, what its dimensions are: a key of `SPLIT`, or
      `None` for one that stays whole.
    output: likewise.

  Sharp edges:
    Gradients inside a caller's `jax.shard_map` over some axes only need its
    `check_vma=False`: kernels do not say along which axes results differ.
  """

  def call(*args):
    free = _free_axes()
    if not free:
      return kernel(*args)
    shapes = [() if x is None else x.shape for x in args]
    axes = _dividing_axes(free, inputs, shapes)
    specs = tuple(map(functools.partial(_spec, axes), inputs, shapes))
    return jax.shard_map(
      kernel,
      in_specs=specs,
      out_specs=PartitionSpec(*map(axes.get, output)),
      axis_names=set(free),
      check_vma=False,
    )(*args)

  return call


@functools.cache  # so that a compiled program knows the same reducer again
def by_rows(reducer: Callable) -> Callable:
  """A reducer of residual states that each device runs on its own texts.

  The compiler cannot split singular values by rows: every device would gather
  all texts and work on each. Values of other sites go to the reducer as they
  are.

  Args:
    reducer: of values [B, T, D], every text for itself, to [B, ...].
  """

  @functools.wraps(reducer)
  def reduced(*values):
    if any(x.ndim != 3 for x in values):
      return reducer(*values)
    inputs = (("rows", None, None),) * len(values)
    return per_device(reducer, inputs, output=("rows",))(*values)

  return reduced


def constrain(x: jax.Array, kinds: Sequence[str | None]) -> jax.Array:
  """`x`, which the compiler is told to split as `per_device` would.

  The compiler splits a value by the parameters that it meets unless it is told:
  by columns, where it should gather a parameter for the value's own rows.
  Where nothing is split, or without a mesh in context, this is `x` itself.

  Args:
    x: an array.
    kinds: what its dimensions are: a key of `SPLIT`, or `None` for one that
      stays whole.
  """
  axes = _dividing_axes(_free_axes(), [kinds], [x.shape])
  if not any(axes.values()):
    return x
  return _constrained(x, _spec(axes, kinds, x.shape))


# In a `jit` of its own: outside of any JAX wants a concrete mesh for this.
@functools.partial(jax.jit, static_argnames="spec", inline=True)
def _constrained(x, spec):
  return jax.lax.with_sharding_constraint(x, spec)


_copied = contextvars.ContextVar("copied", default=False)


@contextlib.contextmanager
def copied_outputs() -> Iterator[None]:
  """While it lasts, each device gets a copy of what the model returns.

  A process can then read it although other processes hold the rest of the
  model. JAX does not compile a function anew for it: it has to begin before the
  first call.
  """
  before = _copied.set(True)
  try:
    yield
  finally:
    _copied.reset(before)


def returned(tree: Any) -> Any:
  """What the model returns, with a copy on each device if that is wanted.

  Args:
    tree: of arrays.
  """
  if not _copied.get() or not _free_axes():
    return tree
  return jax.tree.map(lambda x: _constrained(x, PartitionSpec()), tree)


def ways(kind: str) -> int:
  """Over how many devices the mesh in context splits a dimension of a kind.

  Args:
    kind: a key of `SPLIT`.
  """
  free = _free_axes()
  return math.prod(free.get(axis, 1) for axis in SPLIT[kind])


def _free_axes() -> dict[str, int]:
  """Sizes of the axes in context that the compiler splits by."""
  mesh = jax.sharding.get_abstract_mesh()
  if mesh.size == 1:
    return {}
  kinds = zip(mesh.axis_names, mesh.axis_types, strict=True)
  return {
    name: mesh.shape[name] for name, kind in kinds if kind == AxisType.Auto
  }


def _spec(axes, kinds, shape) -> PartitionSpec:
  sized = zip(kinds, shape, strict=False)
  return PartitionSpec(
    *(axes.get(kind) if size > 1 else None for kind, size in sized)
  )


def _dividing_axes(sizes, inputs, shapes) -> dict[str, tuple[str, ...]]:
  """Of each kind in `SPLIT`, the axes that divide all of its dimensions."""
  dividing = {}
  for kind, axes in SPLIT.items():
    dimensions = {
      size
      for kinds, shape in zip(inputs, shapes, strict=True)
      for name, size in zip(kinds, shape, strict=False)
      if name == kind and size > 1
    }
    used, parts = [], 1
    for axis in axes:
      more = parts * sizes.get(axis, 1)
      if axis in sizes and all(size % more == 0 for size in dimensions):
        used, parts = [*used, axis], more
    dividing[kind] = tuple(used) if dimensions else None
  return dividing
