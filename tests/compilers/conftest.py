"""What pytest must not import here, and what compilers must not be read from.

Scripts replace `jax.jit`. Programs for devices that are not there can be
compiled, and not be loaded from a cache again.
"""

import jax
import pytest

collect_ignore = ["analyses.py", "call_recorder.py"]


@pytest.fixture(autouse=True)
def no_cache():
  """Compiles anew."""
  kept = jax.config.jax_enable_compilation_cache
  jax.config.update("jax_enable_compilation_cache", False)
  yield
  jax.config.update("jax_enable_compilation_cache", kept)
