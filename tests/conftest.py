"""Fixtures: a tiny model, and the real ones, fetched once into the cache."""

import gc
import os
import pathlib

import hypothesis
import jax
import pytest
from variants import scaled

import sinkjax

# A silent broadcast between ranks is a wrong number in the making.
jax.config.update("jax_numpy_rank_promotion", "raise")

# JAX keeps over a million objects for programs that it may run again. To look
# through all of them as often as Python does is 4 % of the time of a whole run.
gc.set_threshold(50_000, 20, 20)

# The first example compiles or imports: its time says nothing.
hypothesis.settings.register_profile("here", deadline=None)
hypothesis.settings.load_profile("here")

# Most of the time here is compilation: of the same programs, and by LLVM, whose
# optimisations change no result that a test looks at. Launchers inherit this.
_FLAGS = [
  "--xla_backend_optimization_level=0",
  # A program is else cut into pieces for as many threads, and two processes
  # share two cores: 26.8 against 30.9 s of compilation for two files of tests.
  "--xla_cpu_parallel_codegen_split_count=1",
]
# Of the two code generators in jax 0.10, the last version for Python 3.11, the
# preferred one takes 1.7 times as long (75 against 45 s of CPU for one file of
# training tests). Later versions have one only, and end the process at a flag
# that they do not know.
if jax.__version_info__ < (0, 11):
  _FLAGS.append("--xla_cpu_use_fusion_emitters=false")
os.environ["XLA_FLAGS"] = " ".join([os.environ.get("XLA_FLAGS", ""), *_FLAGS])
_COMPILED = pathlib.Path(__file__).parents[1] / ".pytest_cache" / "compiled"
# No error of a compiled program points at a line of ours.
jax.config.update("jax_traceback_in_locations_limit", 0)
jax.config.update("jax_compilation_cache_dir", str(_COMPILED))
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)


class _Compiled:
  """How many programs were compiled since the mappings were counted."""

  new = 0

  @classmethod
  def listen(cls, event: str, duration: float, **about: str) -> None:
    cls.new += event == "/jax/core/compile/backend_compile_duration"


jax.monitoring.register_event_duration_secs_listener(_Compiled.listen)


@pytest.fixture(autouse=True)
def few_mappings():
  """Drops compiled programs before their memory mappings run out.

  Each program holds several mappings and Linux allows a process 65,530: past
  that, the next compilation ends the process.
  """
  yield
  # Counting them takes 10 ms or more, longer than most tests. A program has 6,
  # as far as was seen; a thousand would need 40 each to get from here to there.
  if _Compiled.new < 1000:
    return
  _Compiled.new = 0
  maps = pathlib.Path("/proc/self/maps")
  if maps.exists() and maps.read_bytes().count(b"\n") > 25_000:
    jax.clear_caches()


@pytest.fixture(scope="session")
def tiny():
  """(params, cfg) of a random model that attends unevenly."""
  cfg = sinkjax.TINY
  return scaled(sinkjax.init_params(cfg, jax.random.key(0)), 1.5), cfg


@pytest.fixture(scope="session")
def tokens():
  """[2, 12] ids for the tiny model."""
  return jax.random.randint(jax.random.key(1), (2, 12), 0, 64)


@pytest.fixture(scope="session")
def smollm2_path():
  """The path of SmolLM2's GGUF file."""
  from sinkjax.weights.registry import fetch

  return fetch("smollm2-135m")


@pytest.fixture(scope="session")
def glassllm_path():
  """The folder with both of glassllm's models."""
  from sinkjax.weights.registry import fetch

  fetch("glassllm-pt")
  return fetch("glassllm-en").parent


@pytest.fixture(scope="session")
def smollm2(smollm2_path):
  """SmolLM2 as `Model(params, cfg, tokenizer)`."""
  return sinkjax.load("smollm2-135m")
