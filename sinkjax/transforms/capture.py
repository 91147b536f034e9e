"""`capture`: a function like the model's that also says what it saw."""

from collections.abc import Callable, Mapping
from typing import Any

from sinkjax.taps import Taps
from sinkjax.transforms.intervene import with_taps


def capture(fn: Callable, observers: Mapping[str, tuple[Any, Any]]) -> Callable:
  """The same function with observers in its trace.

  Args:
    fn: a function with a keyword argument `taps`, as `forward` gives it, or
      the result of another `capture` or `intervene`.
    observers: `{name: (site, reducer)}`. The reducer runs inside the layer;
      for a tuple of sites it gets one argument for each.

  Returns:
    A function with the signature of `fn`; `output.trace[name]` is what the
    reducer returned, stacked to [L, ...] for sites inside the layers.

  Raises:
    ValueError: for an unknown site, or a name used twice.

  >>> import jax, sinkjax
  >>> cfg = sinkjax.TINY
  >>> params = sinkjax.init_params(cfg, jax.random.key(0))
  >>> f = sinkjax.forward(cfg)
  >>> h = capture(f, {"sink": ("pattern", sinkjax.sink_score)})
  >>> h(params, jax.numpy.array([[1, 2, 3]])).trace["sink"].shape
  (3, 1, 4)
  """
  return with_taps(fn, Taps(observers=dict(observers)))
