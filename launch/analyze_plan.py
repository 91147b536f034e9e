"""What a report of `launch.analyze` costs, before it starts."""

from typing import TYPE_CHECKING, Any

from launch import app, devices, edit_flag, host_rates, prompts

if TYPE_CHECKING:
  from sinkjax.config import ModelConfig

OVERHEAD = 110_000_000
"""Bytes that the tokenizer and the compiler take, measured on a CPU."""


def show(
  model: str,
  texts: list[Any],
  *,
  max_tokens: int,
  prefix: str,
  offload: bool,
  out: str | None,
  accelerator: str | None = None,
  edits: tuple[Any, ...] = (),
) -> None:
  """Prints what would be done, at what cost; fetches and writes nothing.

  Args:
    model: its name or path.
    texts: the texts, as they were read.
    max_tokens: how many tokens of each are used.
    prefix: what is put before each, as the flag says it.
    offload: whether one layer's weights are read at a time.
    out: the folder that would be written to.
    accelerator: devices that need not be here, `None` for those that are.
    edits: of --edit, which are checked.
  """
  from sinkjax.weights import registry

  known = registry.peek(model)
  print(f"model     {model}")
  if known is None:
    print(f"          {registry.would_fetch(model)}")
    return
  cfg, tokenizer, parameters = known
  edit_flag.check(edits, cfg)
  if accelerator:
    _show_elsewhere(known, texts, max_tokens, prefix, accelerator)
    return
  prompts.need_tokenizer(tokenizer, model)
  prompts.need_room("max_tokens", max_tokens, cfg)
  encoded = prompts.encode(texts, tokenizer, prefix, max_tokens)
  ids = encoded.ids
  tokens = sum(map(len, ids))
  length = max(map(len, ids))
  edit_flag.check(edits, cfg, min(map(len, ids)))
  host = host_rates.measure()
  seconds = host.seconds(
    host_rates.START,
    host_rates.forward_seconds(cfg, parameters, list(map(len, ids)), host),
  )
  weights, beside, where = _memory(model, cfg, length, offload)
  print(
    f"          {cfg.n_layers} layers, {cfg.n_heads} heads, {parameters:,} "
    f"parameters\n"
    f"texts     {len(texts)}, {tokens} tokens, the longest {length}\n"
    f"position 0  {prompts.name(tokenizer, ids[0][0])}\n"
    f"{encoded.plan()}{edit_flag.plan(edits)}"
    f"memory    about {(weights + beside) / 1e9:.2f} GB at most, "
    f"{weights / 1e9:.2f} of it weights, on {where}\n"
    f"time      about {app.duration(seconds)} at the measured "
    f"{host.product / 1e9:.0f} GFLOP/s, compilation included\n"
    f"writes    nothing (dry run); else to {out or '--out'}"
  )


def _show_elsewhere(
  known: tuple["ModelConfig", Any, int],
  texts: list[Any],
  max_tokens: int,
  prefix: str,
  accelerator: str,
) -> None:
  """Prints the plan for devices that need not be here.

  A config alone is enough: without a tokenizer texts count as long as they may
  be.
  """
  from launch import accelerator_plan

  cfg, tokenizer, parameters = known
  length = min(max_tokens, cfg.max_len)
  if tokenizer is not None:
    ids = prompts.encode(texts, tokenizer, prefix, length).ids
    length = max(map(len, ids))
  plan = accelerator_plan.make(
    cfg,
    accelerator,
    devices.MESH.value,
    devices.DTYPE.value,
    len(texts),
    length,
  )
  print(
    f"          {cfg.n_layers} layers, {cfg.n_heads} heads, {parameters:,} "
    f"parameters\n"
    f"texts     {len(texts)}, the longest {length} tokens"
    f"{'' if tokenizer else ' (no tokenizer: --max_tokens)'}"
  )
  accelerator_plan.show(plan)


def _memory(
  model: str, cfg: "ModelConfig", length: int, offload: bool
) -> tuple[int, int, str]:
  """Of a device at its peak, for one text.

  Returns:
    (bytes of weights, bytes beside them, what to say of the devices).
  """
  if not offload:
    # About four arrays like the scores live at once in a layer: scores, pattern
    # and what the metrics make of them. On a CPU SmolLM2 took 4.6 of them at
    # 2,048 tokens and 3.0 at 8,192.
    scores = 4 * cfg.n_heads * length**2
    activations = 4 * length * (cfg.vocab_size + 4 * cfg.mlp_width)
    weights, where = devices.planned(cfg)
    beside = 4 * scores + activations + OVERHEAD + devices.process_bytes()
    return weights, beside, where
  from sinkjax.analysis.sink_profile import streamed_bytes
  from sinkjax.weights.offload import open_layers, peak_estimate

  open_layers(model)  # says so where the format has no layers
  beside = streamed_bytes(cfg, length) + OVERHEAD + devices.process_bytes()
  return peak_estimate(cfg), beside, "one device, one layer at a time"
