"""Records what is jitted: import this before what uses `jax.jit`.

A jitted function then leaves itself and the places of its arguments in `CALLS`
when it is called.
"""

import functools
from typing import Any, NamedTuple

import jax
from jax.sharding import NamedSharding


class Call(NamedTuple):
  """A jitted function and what it was called with, arrays as their shapes."""

  jitted: Any
  args: tuple
  kwargs: dict


CALLS: dict[Any, Call] = {}


class Recorder:
  """A jitted function that remembers each kind of call."""

  def __init__(self, jitted):
    self._jitted = jitted
    functools.update_wrapper(self, jitted)

  def __call__(self, *args, **kwargs):
    leaves, tree = jax.tree.flatten((args, kwargs))
    if not any(isinstance(x, jax.core.Tracer) for x in leaves):
      key = id(self._jitted), tree, tuple(map(_kind, leaves))
      shapes = jax.tree.unflatten(tree, list(map(_shape, leaves)))
      CALLS.setdefault(key, Call(self._jitted, *shapes))
    return self._jitted(*args, **kwargs)

  def __getattr__(self, name):
    return getattr(self._jitted, name)


def _shape(x):
  if not isinstance(x, jax.Array):
    return x
  place = x.sharding if isinstance(x.sharding, NamedSharding) else None
  return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=place)


def _kind(x):
  """What makes another program; sizes, as of each block of tokens, do not."""
  if isinstance(x, jax.Array):
    return x.ndim, str(x.dtype), str(_shape(x).sharding)
  return "number" if isinstance(x, int) else str(x)


def _recording(jit):
  def wrapped(function=None, **options):
    if function is None:
      return lambda f: Recorder(jit(f, **options))
    return Recorder(jit(function, **options))

  return wrapped


jax.jit = _recording(jax.jit)
