"""Five minutes of the same work: nothing is compiled again, nothing grows."""

import gc
import os
import pathlib
import time

import jax
import jax.numpy as jnp
import pytest

import sinkjax
from sinkjax.analysis.sink_profile import sink_profile
from sinkjax.inference import kv_policy
from sinkjax.inference.generate import generate

SECONDS = 300
pytestmark = [
  pytest.mark.slow,
  pytest.mark.skipif(
    not pathlib.Path("/proc/self/statm").exists(), reason="needs Linux's /proc"
  ),
]


def kilobytes():
  """What this process has in memory now."""
  pages = int(pathlib.Path("/proc/self/statm").read_text().split()[1])
  return pages * os.sysconf("SC_PAGE_SIZE") // 1024


def descriptors():
  return len(os.listdir("/proc/self/fd"))


def cycle(fn, params, cfg, folder, number):
  """A measurement, a model written and read, a derivative, a text."""
  ids = [[1, 2, 3, 4, 5, number % cfg.vocab_size]]
  sink_profile(params, cfg, ids)
  path = folder / str(number)
  sinkjax.save(path, params, cfg)
  sinkjax.load(path)
  for file in path.iterdir():
    file.unlink()
  path.rmdir()
  sinkjax.jacobian_norms(fn, params, jnp.array(ids[0]))
  policy = kv_policy.sinks(2, 6, chunk=4)
  assert len(list(generate(cfg, params, ids[0], policy=policy, max_tokens=4)))


def test_a_soak(tiny, tmp_path):
  params, cfg = tiny
  fn = sinkjax.forward(cfg)
  compiled = []
  jax.monitoring.register_event_duration_secs_listener(
    lambda event, *_, **__: (
      compiled.append(event)
      if event.endswith("backend_compile_duration")
      else None
    )
  )
  for number in range(3):  # programs, caches and pools come to be
    cycle(fn, params, cfg, tmp_path, number)
  gc.collect()
  before, open_before, done = kilobytes(), descriptors(), 0
  compiled.clear()
  begun = time.monotonic()
  while time.monotonic() - begun < SECONDS:
    cycle(fn, params, cfg, tmp_path, done)
    done += 1
  gc.collect()
  grown = kilobytes() - before
  print(f"{done} cycles, {grown} KB, {len(compiled)} compilations")
  assert not compiled, len(compiled) / done
  assert descriptors() <= open_before + 2
  # The allocator keeps some of what it had: 30 MB in all, whatever `done` is.
  assert grown < 30_000
