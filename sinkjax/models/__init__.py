"""The Flax transformer; `sinkjax.models()` lists the models that it runs."""

import sys
import types
from typing import Any


class _Listing(types.ModuleType):
  """This package, which answers a call as `sinkjax.supported_models` does.

  The name is the package's, and the first that a reader tries for the list.
  """

  def __call__(self) -> list[Any]:
    # `weights` imports this package, which therefore cannot import it.
    return sys.modules["sinkjax"].supported_models()


# A module's calls are looked up in its class (Python's data model, 3.3.2.1).
sys.modules[__name__].__class__ = _Listing
