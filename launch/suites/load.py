"""`sinkjax.load` against the gguf package on the same file.

Each process loads twice: the first time, with its peak memory above what the
process held, and a warm time.
"""

from typing import Any

from launch.suites import measure as m

PEERS = {
  "ours": "sinkjax.load",
  "dequantise": "gguf, dequantise only",
  "read_and_dequantise": "gguf, read and dequantise",
}


def cases(quick: bool, tokens: int | None) -> list[dict[str, Any]]:
  return [{"case": "warm"}, {"case": "first"}]


def measure(name: str, case: dict[str, Any]) -> dict[str, Any]:
  import gguf
  import jax

  import sinkjax
  from sinkjax.weights.registry import fetch

  path = str(fetch("smollm2-135m"))

  def ours():
    sizes = jax.tree.leaves(jax.block_until_ready(sinkjax.load(path).params))
    return sum(4 * x.size for x in sizes)

  def dequantise():
    done = [gguf.quants.dequantize(t.data, t.tensor_type) for t in tensors]
    return sum(4 * x.size for x in done)

  def read_and_dequantise():
    nonlocal tensors
    tensors = gguf.GGUFReader(path).tensors
    return dequantise()

  # JAX starts here: its time and memory are no part of loading.
  jax.numpy.zeros(1).block_until_ready()
  tensors = gguf.GGUFReader(path).tensors if name == "dequantise" else None
  work = locals()[name]
  peak = m.Peak()
  first = m.seconds(work)
  found = {"seconds": first, "peak_bytes": peak.bytes()}
  return found if case["case"] == "first" else {"seconds": m.seconds(work)}
