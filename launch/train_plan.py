"""What a training run costs, before it starts."""

import pathlib
from typing import TYPE_CHECKING

from launch import accelerators
from launch.estimate import FILLED, SHARE
from sinkjax.models.attention_form import needs_no_pattern
from sinkjax.models.online import KEPT_BYTES

if TYPE_CHECKING:
  from sinkjax.config import ModelConfig
  from sinkjax.train.run_config import Stage, TrainConfig

LIBRARIES = 400_000_000
"""Bytes that checkpoints, the log and compiled programs take on a CPU: 0.38 GB
beside a model of 0.8M parameters and 0.45 GB beside one of 11M, measured."""

REACHED = 0.38
"""Share of the rate of a large product that a training run on a CPU reaches,
data and log included, by `launch.bench --suite=train`."""

START = 20.0
"""Seconds to start, to compile steps, evaluation and probe, and to draw the
report of a training run, on the CPU cores of 2020."""


def parameters(cfg: "ModelConfig") -> int:
  """The number of parameters of a model."""
  import jax

  from sinkjax.models.transformer import param_shapes

  return sum(x.size for x in jax.tree.leaves(param_shapes(cfg)))


def step_flops(config: "TrainConfig", stage: "Stage") -> float:
  """Operations of a step, with the backward pass, without rematerialisation.

      6 (parameters in products) + 12 L H K T / 2  a token

  The causal half of the attention counts; the embedding's lookup does not.
  """
  cfg = config.model
  used = parameters(cfg)
  # A tied table is multiplied for the logits too; any other is looked up only.
  if not cfg.tie_embeddings:
    used -= cfg.vocab_size * cfg.d_model
  if cfg.positions == "learned":
    used -= cfg.max_len * cfg.d_model
  attention = 6 * cfg.n_layers * cfg.n_heads * cfg.head_dim * stage.length
  tokens = config.batch * config.packing.length
  return tokens * (6.0 * used + attention)


def _watched(config: "TrainConfig") -> float:
  """Operations of all evaluations, which are forward passes."""
  stage = config.all_stages()[-1]
  step = step_flops(config, stage) / 3
  windows = config.eval_windows / (
    config.batch * config.packing.length / stage.length
  )
  return step * windows * (1 + config.steps // config.eval_every)


def memory(
  config: "TrainConfig", data: int = 1, fsdp: int = 1, tensor: int = 1
) -> float:
  """Bytes on a device, roughly: weights, moments, gradient, activations.

  Args:
    config: the run.
    data: devices that share a batch.
    fsdp: devices that share a batch and the parameters.
    tensor: devices that share each layer's work.
  """
  cfg, count = config.model, parameters(config.model)
  item = 2 if cfg.dtype in ("bfloat16", "float16") else 4
  rows = config.batch / config.accumulate / (data * fsdp)
  worst = 0.0
  for stage in config.all_stages():
    share = rows * config.packing.length / stage.length
    tokens = share * stage.length
    inside = item * tokens * (8 * cfg.d_model + 3 * cfg.mlp_width / tensor)
    scores = item * share * cfg.n_heads / tensor * stage.length**2
    if not needs_no_pattern(cfg, stage.length):
      scores *= 3
    elif scores > KEPT_BYTES:
      scores = 0.0  # computed again in the backward pass
    layers = cfg.n_layers
    # Of all layers only the inputs are kept then, and the inside of the one
    # layer that is being computed again.
    if cfg.remat != "none":
      inside += (layers - 1) * item * tokens * cfg.d_model
      layers = 1
    logits = 8 * tokens * cfg.vocab_size / tensor
    worst = max(worst, layers * (inside + scores) + logits)
  # Weights, gradient and both moments, in float32.
  return 16 * count / (fsdp * tensor) + worst


def check(config: "TrainConfig", *, corpus: bool, own_tokenizer: bool) -> None:
  """What a run would find out after it has read its texts.

  Args:
    config: the run.
    corpus: whether the texts must be on this machine.
    own_tokenizer: whether one is trained, which no --start brings.

  Raises:
    ValueError: for a schedule that the steps have no room for, a vocabulary
      that no tokenizer fits, or texts that are not there.
  """
  from sinkjax.data.corpus import NAMED, check_vocab, own_path
  from sinkjax.train.optimizer import learning_rate

  learning_rate(config.optimizer, config.steps)
  own = [name for name in config.corpus if name not in NAMED]
  # All of them, so that each is looked for.
  paths = [own_path(name) for name in own] if corpus else []
  has_ids = any((path / "ids").is_dir() for path in paths)
  # Ids come with a tokenizer of their own, too.
  if own_tokenizer and not has_ids:
    check_vocab(config.text_vocab_size)


def show(
  config: "TrainConfig", workdir: str | None, mesh: str, accelerator: str | None
) -> None:
  """Prints what a run reads, needs and takes; fetches and writes nothing.

  Args:
    config: the run.
    workdir: where it would write to.
    mesh: devices along each axis, as --mesh takes them.
    accelerator: what `accelerators.machine` takes, `None` for this machine.

  Raises:
    ValueError: as `accelerators.machine`, or for a mesh that does not divide
      the model.
  """
  from sinkjax.data import text_files
  from sinkjax.data.corpus import NAMED

  cfg = config.model
  for name in config.corpus:
    about = NAMED[name].about if name in NAMED else "your own"
    if name not in NAMED:
      # The file may lie on the machine that is planned for, but not its name.
      text_files.holds(pathlib.Path(name))
    print(f"corpus      {name}: {about}")
  print(
    f"model       {parameters(cfg):,} parameters, {cfg.n_layers} layers, "
    f"{cfg.n_heads} heads, width {cfg.d_model}, {cfg.dtype}, {cfg.attention} "
    "attention"
  )
  for stage in config.all_stages():
    print(
      f"windows     {config.batch_at(stage)} of {stage.length} tokens a step, "
      f"{stage.steps} steps; {config.packing.mask} mask, BOS "
      f"{config.packing.bos}"
    )
  tokens = config.steps * config.batch * config.packing.length
  flops = sum(step_flops(config, s) * s.steps for s in config.all_stages())
  print(f"tokens      {tokens:,} in {config.steps} steps, {flops:.2g} flop")
  _show_machine(config, flops, mesh, accelerator)
  print(f"writes      nothing (dry run); else to {workdir or '--workdir'}")


def _show_machine(
  config: "TrainConfig", flops: float, mesh: str, accelerator: str | None
) -> None:
  """Prints the mesh, and what memory and time the run needs on it."""
  import jax

  from launch import app, host_rates
  from launch import devices as devices_flags
  from sinkjax import sharding
  from sinkjax.models.transformer import param_shapes

  if accelerator:
    machine = accelerators.machine(accelerator)
    devices, rate = machine.devices, machine.chip.flops
    room = machine.chip.memory
  else:
    host = host_rates.measure(config.model.dtype)
    devices, rate, room = jax.device_count(), host.product, 0
  by_axis = sharding.MeshConfig.parse(mesh).by_axis(devices)
  sharding.check_divides(
    by_axis, param_shapes(config.model), config.batch // config.accumulate
  )
  shown = ", ".join(f"{axis} {size}" for axis, size in by_axis.items())
  print(f"mesh        {devices} devices: {shown}")
  need, fits = memory(config, *by_axis.values()), ""
  if not accelerator and (here := devices_flags.process_bytes()):
    need += here + LIBRARIES
  if room:
    enough = need < FILLED * room
    fits = f" of {room / 1e9:.0f}: " + (
      "fits" if enough else "too much, take more fsdp, parts or remat"
    )
  print(f"memory      about {need / 1e9:.2f} GB a device{fits}")
  seconds = (flops + _watched(config)) / (rate * devices)
  if accelerator:
    print(
      f"time        about {seconds / SHARE / 3600:.1f} h at {SHARE:.0%} of "
      f"the sheet's {rate / 1e12:.0f} Tflop/s a device (estimated, not run)"
    )
  else:
    seconds = host.seconds(START, seconds / REACHED)
    print(
      f"time        about {app.duration(seconds)} at "
      f"{REACHED:.0%} of the measured {rate / 1e9:.0f} Gflop/s a device, "
      "compilation and report included"
    )
