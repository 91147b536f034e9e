"""`intervene`: a function like the model's, with edits inside."""

import functools
from collections.abc import Callable, Mapping
from typing import Any

from sinkjax.taps import Taps


def intervene(fn: Callable, edits: Mapping[str, Any]) -> Callable:
  """The same function with some sites edited.

  Args:
    fn: a function with a keyword argument `taps`, as `forward` gives it, or
      the result of another `intervene` or `capture`.
    edits: `{site: edit}`, see `sinkjax.taps` and `sinkjax.transforms.edits`.

  Returns:
    A function with the signature of `fn`. It composes with `jit`, `vmap`,
    `grad`, `jacfwd` and with itself.

  Raises:
    ValueError: for an unknown site, or a site edited twice; by the function,
      where the edit leaves a row of scores -inf at every key, which under a
      transformation of JAX gives NaN instead.

  >>> import jax, sinkjax
  >>> cfg = sinkjax.TINY
  >>> params = sinkjax.init_params(cfg, jax.random.key(0))
  >>> f = sinkjax.forward(cfg)
  >>> g = intervene(f, {"attn_out": sinkjax.scale(0.0)})
  >>> tokens = jax.numpy.array([[1, 2, 3]])
  >>> bool((g(params, tokens).logits == f(params, tokens).logits).all())
  False
  """
  return with_taps(fn, Taps(edits=dict(edits)))


def with_taps(fn: Callable, mine: Taps) -> Callable:
  @functools.wraps(fn)
  def wrapped(*args, taps: Taps | None = None, **kwargs):
    return fn(*args, taps=mine.merge(taps), **kwargs)

  if hasattr(fn, "cfg"):
    mine.check_sites(fn.cfg)
  if hasattr(fn, "taps"):
    wrapped.taps = fn.taps.merge(mine)
  return wrapped
