"""A forward pass with logits, against transformers on the same file."""

from typing import TYPE_CHECKING, Any

from launch.suites import measure as m

if TYPE_CHECKING:
  from sinkjax.config import ModelConfig

PEERS = {
  "ours": "sinkjax.forward, jitted",
  "ours_attention": "the same, returning every attention pattern",
  "torch": "transformers, sdpa attention",
  "torch_attention": "transformers, output_attentions=True",
}


def cases(quick: bool, tokens: int | None) -> list[dict[str, Any]]:
  sizes = [tokens] if tokens else [64] if quick else [64, 512, 2048, 8192]
  return [
    {"case": f"T={t}", "tokens": t, "times": 3 if t <= 2048 else 1}
    for t in sizes
  ]


def measure(name: str, case: dict[str, Any]) -> dict[str, Any]:
  if name.startswith("torch"):
    return _torch(name, case)
  import jax
  import jax.numpy as jnp

  import sinkjax
  from sinkjax.transforms.jacobian_plan import matmul_rate

  params, cfg, tokenizer = m.ours()
  tokens = jnp.asarray([m.text_ids(tokenizer, case["tokens"])])
  f = sinkjax.forward(cfg)
  if name == "ours_attention":
    f = sinkjax.capture(f, {"pattern": ("pattern", lambda x: x)})
  f = jax.jit(f)
  # After loading, because the table gives the memory above the weights.
  peak = m.Peak()
  work = lambda: jax.block_until_ready(f(params, tokens))  # noqa: E731
  work()
  # The least time: whatever else the machine does can only add to it.
  best = min(m.seconds(work) for _ in range(case["times"]))
  return _result(cfg, case, best, peak, matmul_rate())


def _result(
  cfg: "ModelConfig",
  case: dict[str, Any],
  seconds: float,
  peak: m.Peak,
  machine: float,
) -> dict[str, Any]:
  rate = m.forward_flops(cfg, case["tokens"]) / seconds
  return {
    "seconds": seconds,
    "peak_bytes": peak.bytes(),
    "rate": rate,
    "share": rate / machine,
  }


def _torch(name: str, case: dict[str, Any]) -> dict[str, Any]:
  import torch

  import sinkjax

  m.limit_memory()
  attention = name == "torch_attention"
  model = m.torch_model("eager" if attention else "sdpa")
  opened = sinkjax.open_layers("smollm2-135m")
  ids = torch.tensor([m.text_ids(opened.tokenizer, case["tokens"])])

  def work():
    with torch.no_grad():
      model(ids, use_cache=False, output_attentions=attention)

  peak = m.Peak()
  work()
  best = min(m.seconds(work) for _ in range(case["times"]))
  return _result(opened.cfg, case, best, peak, m.torch_rate())
