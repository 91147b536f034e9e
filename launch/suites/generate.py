"""Tokens one by one at batch 1, against transformers and llama.cpp.

Timed are the new tokens after a prompt of 64, without compilation and prompt;
each is the most likely one. llama.cpp uses the weights as they are in the file,
in 4 bits; the others use them in float32. What `ModelConfig.depth` saves is
timed on the same weights, with tokens that are made to halt behind half of the
layers: what they would write is another matter.
"""

import os
from typing import Any

from launch.suites import measure as m

PROMPT = 64

PEERS = {
  "ours": "sinkjax generate, full cache, float32",
  "ours_sinks": "the same, 4 sinks and a window of 1020",
  "ours_half": "the same, tokens halt behind half of the layers",
  "torch": "transformers generate, float32",
  "llama": "llama-cpp-python, the file's 4 bits",
}


def cases(quick: bool, tokens: int | None) -> list[dict[str, Any]]:
  new = tokens or (16 if quick else 128)
  return [{"case": f"{new} new tokens", "tokens": new}]


def measure(name: str, case: dict[str, Any]) -> dict[str, Any]:
  new = case["tokens"]
  if name == "torch":
    seconds, peak, machine, cfg = _torch(new)
  elif name == "llama":
    try:
      import llama_cpp  # noqa: F401
    except ImportError:
      return {"note": "not installed: pip install llama-cpp-python"}
    return {"seconds": _llama(new)}
  else:
    seconds, peak, machine, cfg = _ours(name, new)
  rate = new * m.forward_flops(cfg, 1) / seconds
  return {
    "seconds": seconds,
    "peak_bytes": peak,
    "rate": rate,
    "share": rate / machine,
  }


def _ours(name: str, new: int):
  from sinkjax.inference import kv_policy
  from sinkjax.inference.generate import generate
  from sinkjax.models.cache import split_layers
  from sinkjax.transforms.jacobian_plan import matmul_rate

  params, cfg, tokenizer = m.ours()
  if name == "ours_half":
    params, cfg = _halting(params, cfg)
  params = split_layers(params)
  ids = m.text_ids(tokenizer, PROMPT)
  # With room for the two tokens that are made before the clock starts.
  policy = kv_policy.full(PROMPT + new + 2)
  if name == "ours_sinks":
    policy = kv_policy.sinks(4, 1020)
  peak = m.Peak()
  tokens = generate(cfg, params, ids, policy=policy, max_tokens=new + 2)
  next(tokens), next(tokens)  # the prompt, and one compiled step
  seconds = m.seconds(lambda: [next(tokens) for _ in range(new)])
  if name == "ours_half":  # of the other layers keys and values alone
    cfg = cfg.replace(n_layers=cfg.n_layers // 2, depth="none")
  return seconds, peak.bytes(), matmul_rate(), cfg


def _halting(params: dict[str, Any], cfg: Any):
  """The model with a halted share that is one behind half of its layers."""
  import jax.numpy as jnp

  layers = cfg.n_layers
  last = jnp.arange(layers) == layers // 2 - 1
  halt = {
    "kernel": jnp.zeros((layers, cfg.d_model, 1)),
    "bias": jnp.where(last, 30.0, -30.0)[:, None],
  }
  blocks = {**params["blocks"], "depth": {"halt": halt}}
  return {**params, "blocks": blocks}, cfg.replace(depth="halting")


def _torch(new: int):
  import torch

  import sinkjax

  m.limit_memory()
  model = m.torch_model("sdpa")
  opened = sinkjax.open_layers("smollm2-135m")
  ids = torch.tensor([m.text_ids(opened.tokenizer, PROMPT)])

  def work(count: int) -> float:
    return m.seconds(
      lambda: model.generate(
        ids,
        attention_mask=torch.ones_like(ids),
        do_sample=False,
        # An end-of-text token must not shorten the work.
        min_new_tokens=count,
        max_new_tokens=count,
        pad_token_id=0,
      )
    )

  peak = m.Peak()
  work(2)
  # The difference leaves out the prompt, which both runs read.
  return work(new + 1) - work(1), peak.bytes(), m.torch_rate(), opened.cfg


def _llama(new: int) -> float:
  import itertools

  import llama_cpp

  import sinkjax
  from sinkjax.weights.registry import fetch

  model = llama_cpp.Llama(
    str(fetch("smollm2-135m")),
    n_ctx=PROMPT + new + 8,
    verbose=False,
    # Cores that this process may use: a container may have fewer than the
    # machine, and more threads than cores slow llama.cpp down.
    n_threads=len(os.sched_getaffinity(0)),
  )
  tokenizer = sinkjax.open_layers("smollm2-135m").tokenizer
  tokens = model.generate(m.text_ids(tokenizer, PROMPT), top_k=1, temp=0.0)
  next(tokens)
  return m.seconds(lambda: list(itertools.islice(tokens, new)))
