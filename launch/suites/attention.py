"""One layer's attention by itself, of SmolLM2's shape, and its derivatives.

Ours writes no pattern (`sinkjax.models.online`); the einsum path, its
reference, does; PyTorch's is what transformers calls. Of operations those are
counted that are needed, over the causal half of the square: two products
forward, and four more in either derivative.
"""

from collections.abc import Callable
from typing import Any

from launch.suites import measure as m

PEERS = {
  "ours": "sinkjax.models.online",
  "einsum": "the pattern written, as taps see it",
  "torch": "PyTorch, scaled_dot_product_attention",
}

PRODUCTS = {"forward": 2, "jvp": 6, "gradient": 6}
HEADS, KV_HEADS, WIDTH = 9, 3, 64
"""Of SmolLM2-135M."""


def cases(quick: bool, tokens: int | None) -> list[dict[str, Any]]:
  sizes = [tokens] if tokens else [512] if quick else [64, 512, 2048, 8192]
  return [
    {"case": f"{what}, T={t}", "what": what, "tokens": t}
    for t in sizes
    for what in PRODUCTS
  ]


def measure(name: str, case: dict[str, Any]) -> dict[str, Any]:
  if name == "torch" and case["what"] == "jvp":
    return {"note": "its fused kernel has no forward mode"}
  work, rate = (_torch if name == "torch" else _jax)(name, case)
  peak = m.Peak()
  work()
  work()
  # Of short work many runs: the least time is what the machine can do.
  best = min(m.seconds(work) for _ in range(3 if case["tokens"] > 2048 else 10))
  pairs = HEADS * case["tokens"] ** 2 / 2
  done = 2 * WIDTH * pairs * PRODUCTS[case["what"]] / best
  return {
    "seconds": best,
    "peak_bytes": peak.bytes(),
    "rate": done,
    "share": done / rate(),
  }


def _jax(name: str, case: dict[str, Any]) -> tuple[Callable, Callable]:
  import jax
  import jax.numpy as jnp

  import sinkjax
  from sinkjax.models.attention import Attention
  from sinkjax.models.context import causal_mask
  from sinkjax.models.online import online_attention
  from sinkjax.taps import NO_TAPS, Tapper
  from sinkjax.transforms.jacobian_plan import matmul_rate

  cfg = sinkjax.TINY.replace(
    n_heads=HEADS, n_kv_heads=KV_HEADS, head_dim=WIDTH, d_model=HEADS * WIDTH
  )
  length = case["tokens"]
  keys = jax.random.split(jax.random.key(0), 3)
  shape = (HEADS, KV_HEADS, KV_HEADS)
  x = tuple(
    jax.random.normal(key, (1, length, n, WIDTH))
    for key, n in zip(keys, shape, strict=True)
  )

  def einsum(q, k, v):
    attention, tap = Attention(cfg, parent=None), Tapper(NO_TAPS, 0)
    empty = {"params": {}}
    scores = attention.apply(empty, q, k, method="score")
    mask = causal_mask(length, None)
    return attention.apply(empty, scores, v, mask, tap, method="attend")

  def online(q, k, v):
    return online_attention(q, k, v, scale=cfg.score_scale)[0]

  f = online if name == "ours" else einsum
  moved = jax.tree.map(jnp.sin, x)
  made = {
    "forward": lambda x: f(*x),
    "jvp": lambda x: jax.jvp(f, x, moved),
    "gradient": jax.grad(lambda x: jnp.sum(f(*x) ** 2)),
  }
  run = jax.jit(made[case["what"]])
  return lambda: jax.block_until_ready(run(x)), matmul_rate


def _torch(name: str, case: dict[str, Any]) -> tuple[Callable, Callable]:
  import torch

  grad = case["what"] == "gradient"
  shapes = [(1, n, case["tokens"], WIDTH) for n in (HEADS, KV_HEADS, KV_HEADS)]
  q, k, v = (torch.randn(s, requires_grad=grad) for s in shapes)

  def attend():
    many = [x.repeat_interleave(HEADS // KV_HEADS, dim=1) for x in (k, v)]
    return torch.nn.functional.scaled_dot_product_attention(
      q, *many, is_causal=True
    )

  def work():
    if not grad:
      with torch.no_grad():
        return attend()
    return torch.autograd.grad((attend() ** 2).sum(), (q, k, v))

  return work, m.torch_rate
