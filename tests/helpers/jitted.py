"""Functions compiled as a whole.

Called as they are, they compile a program for each of their operations and for
each shape: a test of ten shapes waits for a hundred programs.
"""

import functools
import inspect
import types
from collections.abc import Callable
from typing import Any

import jax
import numpy as np


def jitted(fn: Callable) -> Callable:
  """`jax.jit` of a function; what it is given and is no array is static."""
  signature = inspect.signature(fn)

  @functools.wraps(fn)
  def call(*args, **kwargs):
    given = signature.bind(*args, **kwargs).arguments
    arrays = {k: v for k, v in given.items() if _has_arrays(v)}
    static = tuple((k, v) for k, v in given.items() if k not in arrays)
    return _compiled(fn, static)(arrays)

  return call


def jitted_module(module: types.ModuleType) -> types.SimpleNamespace:
  """A module's own functions, each `jitted`."""
  found = {}
  for name, value in vars(module).items():
    ours = inspect.isfunction(value) and value.__module__ == module.__name__
    found[name] = jitted(value) if ours else value
  return types.SimpleNamespace(**found)


def _has_arrays(value: Any) -> bool:
  leaves = jax.tree.leaves(value)
  return any(isinstance(x, (jax.Array, np.ndarray)) for x in leaves)


@functools.cache
def _compiled(fn: Callable, static: tuple) -> Callable:
  return jax.jit(lambda arrays: fn(**arrays, **dict(static)))
