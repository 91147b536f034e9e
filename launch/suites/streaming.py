"""Attention statistics at long context against passes without them.

Ours gathers five statistics of every row, layer and head, by a second walk
over the scores; "rows" gathers the same from the rows of the pattern, a block
of them at a time, which is what an edit of scores or pattern needs. The plain
pass is the same without statistics.
"""

from typing import Any

from launch.suites import measure as m

PEERS = {
  "ours": "stream_statistics, five statistics",
  "rows": "the same of the rows of the pattern",
  "plain": "the same pass, no statistics",
  "dense": "sinkjax.forward, jitted, no statistics",
  "torch": "transformers, sdpa, no statistics",
  "torch_attention": "transformers, output_attentions=True",
}


def cases(quick: bool, tokens: int | None) -> list[dict[str, Any]]:
  sizes = [tokens] if tokens else [768] if quick else [2048, 8192]
  return [{"case": f"T={t}", "tokens": t} for t in sizes]


def measure(name: str, case: dict[str, Any]) -> dict[str, Any]:
  from launch.suites import forward

  if name.startswith("torch") or name == "dense":
    once = {**case, "times": 1}
    return forward.measure("ours" if name == "dense" else name, once)
  import jax
  import jax.numpy as jnp

  import sinkjax
  from sinkjax.metrics import rows
  from sinkjax.transforms.jacobian_plan import matmul_rate

  params, cfg, tokenizer = m.ours()
  tokens = jnp.asarray([m.text_ids(tokenizer, case["tokens"])])
  statistics = {
    "sink": rows.sink_score(),
    "first": rows.first_token_mass(),
    "entropy": rows.attention_entropy(),
    "received": rows.received_mass(),
    "distance": rows.mass_by_distance(),
  }
  if name == "rows":
    cfg = cfg.replace(attention="einsum")
  if name == "plain":
    statistics = {}
  run = sinkjax.stream_statistics(sinkjax.forward(cfg), statistics)
  peak = m.Peak()
  work = lambda: jax.block_until_ready(run(params, tokens))  # noqa: E731
  work()
  seconds = m.seconds(work)
  rate = m.forward_flops(cfg, case["tokens"]) / seconds
  return {
    "seconds": seconds,
    "peak_bytes": peak.bytes(),
    "rate": rate,
    "share": rate / matmul_rate(),
  }
