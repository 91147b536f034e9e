"""Which programs JAX compiles meanwhile."""

import contextlib
from collections.abc import Iterator

import jax

# Programs that the cache on disk holds count too: they are lowered and read.
EVENT = "/jax/core/compile/backend_compile_duration"


@contextlib.contextmanager
def compilations() -> Iterator[list[str]]:
  """A list that grows by the name of each program that is compiled."""
  names = []

  def listen(event: str, duration: float, **about: str) -> None:
    if event == EVENT:
      names.append(about.get("fun_name", ""))

  jax.monitoring.register_event_duration_secs_listener(listen)
  try:
    yield names
  finally:
    jax.monitoring.unregister_event_duration_listener(listen)
