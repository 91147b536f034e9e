"""A dry run's lines for devices that need not be there: --accelerator."""

import dataclasses
import math
from collections.abc import Callable
from typing import TYPE_CHECKING

from launch import accelerators, app, estimate

if TYPE_CHECKING:
  from launch.jacobian_run import Job
  from sinkjax.config import ModelConfig
  from sinkjax.sharding import MeshConfig


@dataclasses.dataclass(frozen=True)
class Plan:
  """An analysis of some texts on some devices.

  Attributes:
    cfg: the model, in the dtype of the weights.
    machine: the devices.
    mesh: how they are arranged.
    rows: texts of a pass.
    length: tokens of the longest.
    passes: how many there are.
    estimate: of one pass.
    given: whether the mesh was asked for, and not proposed.
  """

  cfg: "ModelConfig"
  machine: accelerators.Machine
  mesh: "MeshConfig"
  rows: int
  length: int
  passes: int
  estimate: estimate.Estimate
  given: bool

  @property
  def fits(self) -> bool:
    """Whether the memory of each device is enough."""
    return estimate.fits(self.estimate, self.machine)


def make(
  cfg: "ModelConfig",
  accelerator: str,
  mesh: str,
  dtype: str | None,
  texts: int,
  length: int,
) -> Plan:
  """The plan for --accelerator, --mesh and --dtype.

  Args:
    cfg: the model.
    accelerator: as `accelerators.machine` takes it.
    mesh: as the flag has it; "auto" for the fastest that fits.
    dtype: of the weights; `None` for float32.
    texts: how many there are.
    length: tokens of the longest.

  Raises:
    ValueError: for unknown devices, or a mesh that cannot be.
  """
  from sinkjax import sharding
  from sinkjax.models.transformer import param_shapes

  cfg = cfg.replace(dtype=dtype or "float32")
  machine = accelerators.machine(accelerator)
  given = mesh != "auto"
  if given:
    chosen = sharding.MeshConfig.parse(mesh)
    sizes = chosen.by_axis(machine.devices)
    chosen = sharding.MeshConfig(**sizes)
    sharding.check_fits(sizes, param_shapes(cfg))
    rows = estimate.batch(chosen, texts, length)
    one = estimate.forward(cfg, machine, chosen, rows, length)
  else:
    chosen, one = estimate.meshes(cfg, machine, texts, length)[0]
    rows = estimate.batch(chosen, texts, length)
  passes = math.ceil(texts / rows)
  return Plan(cfg, machine, chosen, rows, length, passes, one, given)


def lines(plan: Plan) -> list[str]:
  """What is estimated, and at which limit the work ends or waits."""
  one, chip = plan.estimate, plan.machine.chip
  several = "es" if plan.passes > 1 else ""
  return [
    _devices(plan),
    f"memory    about {one.memory / 1e9:.2f} GB of {chip.memory / 1e9:.0f} a "
    f"device, {one.weights / 1e9:.2f} of it weights: {_verdict(plan)}",
    *(f"exchange  {exchange} a layer" for exchange in one.exchanges),
    f"work      {one.flops / 1e12:.2f} Tflop a device in a pass of "
    f"{plan.rows} x {plan.length} tokens",
    f"time      about {_time(plan.passes * one.time)} for {plan.passes} "
    f"pass{several} at {estimate.SHARE:.0%} of the data sheet's rates, beside "
    "loading and compilation (estimated, not run)",
    f"limit     {_limit(plan)}",
  ]


def compiler_lines(plan: Plan) -> list[str]:
  """What the compiler of these devices says, where it is installed."""
  from launch import compile_plan

  said = compile_plan.ask(
    plan.cfg, plan.machine, plan.mesh, plan.rows, plan.length
  )
  if "refused" in said:
    return [f"compiler  {said['refused']}"]
  found = [
    f"compiler  {said['peak'] / 1e9:.2f} GB a device, compiled in "
    f"{app.duration(said['seconds'])}"
  ]
  for kind, axes, count, largest in said["collectives"]:
    several = "s" if count > 1 else ""
    found.append(
      f"          {count} {kind}{several} along {' and '.join(axes)}, the "
      f"largest of {largest:,} numbers"
    )
  return found


def jacobian_lines(
  job: "Job", accelerator: str, mesh: str, dtype: str | None
) -> list[str]:
  """What an exact or estimated Jacobian needs, whose columns are spread.

  Args:
    job: of `launch.jacobian`.
    accelerator: as `accelerators.machine` takes it.
    mesh: as for `make`.
    dtype: of the weights; the derivatives are in float32.

  Raises:
    ValueError: as `make`, or for a budget that holds no column.
  """
  plan = make(job.cfg, accelerator, mesh, dtype, 1, len(job.ids))
  chip, weights = plan.machine.chip, plan.estimate.weights
  if not plan.fits:
    return [
      _devices(plan),
      f"memory    {weights / 1e9:.2f} GB of weights a device, which has "
      f"{chip.memory / 1e9:.0f}: {_verdict(plan)}",
      f"limit     {_limit(plan)}",
    ]
  # As the launcher does: a quarter of what the weights leave.
  room = (chip.memory - weights) / 4
  flops, beside = job.elsewhere(plan.machine.devices, room)
  seconds = flops / (estimate.SHARE * chip.wide_flops)
  whole = weights + max(beside, plan.estimate.beside)
  enough = whole <= estimate.FILLED * chip.memory
  verdict = "fits" if enough else "too much, take more devices"
  return [
    _devices(plan),
    f"memory    about {whole / 1e9:.2f} GB of {chip.memory / 1e9:.0f} a "
    f"device, {weights / 1e9:.2f} of it weights: {verdict}",
    f"work      {flops / 1e12:.2f} Tflop a device, its share of the columns",
    f"time      about {_time(seconds)} at {estimate.SHARE:.0%} of the data "
    "sheet's float32 rate, beside loading and compilation (estimated, not run)",
    f"limit     {'operations' if enough else 'the memory of a device'}",
  ]


def generate_lines(
  cfg: "ModelConfig",
  accelerator: str,
  mesh: str,
  dtype: str | None,
  prompt: int,
  cache: Callable[["ModelConfig"], int],
) -> list[str]:
  """What a text needs that is generated token by token.

  A step for one token reads all weights and the cache once, which is what it
  takes its time for. What devices tell each other of one token is little, and
  how long they wait for each other is not estimated.

  Args:
    cfg: the model.
    accelerator: as `accelerators.machine` takes it.
    mesh: as for `make`; "auto" for the fastest of a single token.
    dtype: of the weights and the cache.
    prompt: its tokens.
    cache: bytes of a model's cache.

  Raises:
    ValueError: as `make`.
  """
  plan = make(cfg, accelerator, mesh, dtype, 1, 1)
  cfg, machine, chip = plan.cfg, plan.machine, plan.machine.chip
  first = estimate.forward(cfg, machine, plan.mesh, 1, prompt)
  tensor = plan.mesh.tensor
  # Keys and values lie where their heads do; other meshes are refused.
  kept = cache(cfg) / tensor
  memory = first.memory + kept
  enough = memory <= estimate.FILLED * chip.memory
  step = plan.estimate.time + kept / (estimate.SHARE * chip.memory_rate)
  return [
    _devices(plan),
    f"memory    about {memory / 1e9:.2f} GB of {chip.memory / 1e9:.0f} a "
    f"device, {first.weights / 1e9:.2f} of it weights and {kept / 1e9:.2f} the "
    f"cache: {'fits' if enough else 'too much, take more devices'}",
    f"time      about {_time(first.time)} for {prompt} tokens of prompt and "
    f"{_time(step)} for each new one ({1 / step:,.0f} tokens/s) at "
    f"{estimate.SHARE:.0%} of the data sheet's rates, beside loading, "
    "compilation and the time that devices wait for each other (estimated, not "
    "run)",
    f"limit     {'reading weights and cache' if enough else 'memory'}",
  ]


def _devices(plan: Plan) -> str:
  return (
    f"devices   {plan.machine.devices} {plan.machine.kind}, --mesh={plan.mesh}"
    f"{'' if plan.given else ' (proposed)'}, {plan.cfg.dtype}"
  )


def show(plan: Plan) -> None:
  """Prints both."""
  for line in (*lines(plan), *compiler_lines(plan)):
    print(line)


def _verdict(plan: Plan) -> str:
  if plan.fits:
    return "fits"
  if needed := enough(plan):
    return f"too much, {needed} {plan.machine.kind} would do"
  return "too much, and more of these devices do not help: take fewer tokens"


def enough(plan: Plan) -> int | None:
  """The fewest devices, doubled from those asked for, that are enough.

  `None` where a thousand are not.
  """
  count = plan.machine.devices
  while count < 1024:
    count *= 2
    machine = plan.machine._replace(devices=count)
    texts = plan.rows * plan.passes
    found = estimate.meshes(plan.cfg, machine, texts, plan.length)
    if found and estimate.fits(found[0][1], machine):
      return count
  return None


def _limit(plan: Plan) -> str:
  one = plan.estimate
  if not plan.fits:
    return "the memory of a device"
  shares = {
    "compute": "operations",
    "memory": "reading weights from memory",
    "links": "what devices send each other",
  }
  listed = ", ".join(
    f"{shares[name]} {_time(seconds)}"
    for name, seconds in sorted(one.seconds.items(), key=lambda x: -x[1])
  )
  return f"{shares[one.limit]}; of a pass: {listed}"


def _time(seconds: float) -> str:
  if seconds < 1:
    return f"{1000 * seconds:.3g} ms"
  return app.duration(seconds)
