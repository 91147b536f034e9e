"""What a forward pass with every metric needs of each device of a mesh.

Closed forms of the config: no weights, no devices, no compiler. The tests
compare the memory with that of the compilers of TPUs and GPUs.
"""

import dataclasses
import math
from collections.abc import Mapping
from typing import TYPE_CHECKING

from launch.accelerators import AXES, NETWORK, NODE, Machine

if TYPE_CHECKING:
  from sinkjax.config import ModelConfig
  from sinkjax.sharding import MeshConfig

SHARE = 0.4
"""The share of the data sheet's rates that is taken to be reached: what
well-tuned training of dense models reports."""

FILLED = 0.9
"""The share of a device's memory that may be planned for: the estimate leaves
out buffers of the compiler and of sums between devices."""


@dataclasses.dataclass(frozen=True)
class Exchange:
  """What the devices tell each other in a layer.

  Attributes:
    kind: "all-reduce" or "all-gather".
    axis: of the mesh.
    count: how many.
    bytes: that a device sends in all of them, at the least.
  """

  kind: str
  axis: str
  count: int
  bytes: float

  def __str__(self) -> str:
    """For people.

    >>> str(Exchange("all-reduce", "tensor", 2, 2e6))
    '2 all-reduces along tensor, 2.0 MB'
    """
    several = "s" if self.count > 1 else ""
    return (
      f"{self.count} {self.kind}{several} along {self.axis}, "
      f"{self.bytes / 1e6:.1f} MB"
    )


@dataclasses.dataclass(frozen=True)
class Estimate:
  """Of one batch, a device.

  Attributes:
    weights: bytes.
    beside: bytes of all else at the worst moment.
    flops: operations.
    exchanges: of a layer.
    sent: bytes that it sends, in all layers.
    seconds: of each limit: "compute", "memory" for weights that are read from
      it, "links".
  """

  weights: float
  beside: float
  flops: float
  exchanges: tuple[Exchange, ...]
  sent: float
  seconds: Mapping[str, float]

  @property
  def memory(self) -> float:
    """Bytes at the worst moment."""
    return self.weights + self.beside

  @property
  def time(self) -> float:
    """Seconds of a pass: work and reads overlap, exchanges wait for both."""
    return (
      max(self.seconds["compute"], self.seconds["memory"])
      + self.seconds["links"]
    )

  @property
  def limit(self) -> str:
    """What takes longest."""
    return max(self.seconds, key=self.seconds.__getitem__)


def forward(
  cfg: "ModelConfig",
  machine: Machine,
  mesh: "MeshConfig",
  rows: int,
  length: int,
) -> Estimate:
  """Of a batch.

  Args:
    cfg: the model; its dtype is that of the weights.
    machine: the devices.
    mesh: how they are arranged.
    rows: texts of the batch, which every device is given whole.
    length: tokens of each.

  Raises:
    ValueError: for a mesh that is not of these devices, does not divide the
      model, or splits experts.
  """
  import jax

  from sinkjax import sharding
  from sinkjax.models.transformer import param_shapes

  shapes = param_shapes(cfg)
  if mesh.expert != 1:
    raise ValueError(
      f"--mesh={mesh}: an axis of experts is not estimated for devices that "
      "are elsewhere; take data, fsdp and tensor"
    )
  sizes = mesh.by_axis(machine.devices)
  item = 2 if cfg.dtype == "bfloat16" else 4
  share = item * sharding.largest_share(sizes, shapes)
  fsdp, tensor = sizes["fsdp"], sizes["tensor"]
  # Texts that do not divide are done whole by every device; then the weights'
  # axis splits the sums of a product instead.
  split, summed = 1, fsdp
  for axis in "data", "fsdp":
    if rows % (split * sizes[axis]) == 0:
      split *= sizes[axis]
      summed = 1 if axis == "fsdp" else summed
  tokens = rows // split * length
  stream = item * tokens * cfg.d_model
  layer = item * _layer(shapes) / tensor
  table = item * cfg.vocab_size * cfg.d_model / tensor
  # Experts' outputs, before their sum.
  mlp = max(1, cfg.n_experts) * stream / summed
  exchanges = []
  if tensor > 1:
    sent = 2 * (stream + mlp) * (tensor - 1) / tensor
    exchanges.append(Exchange("all-reduce", "tensor", 2, sent))
  partial = item * tokens * _widths(cfg) / tensor
  gathered = fsdp > 1 and (summed == 1 or layer < 2 * partial)
  if gathered:
    sent = layer * (fsdp - 1) / fsdp
    count = _kernels(cfg)
    exchanges.append(Exchange("all-gather", "fsdp", count, sent))
  elif fsdp > 1:
    sent = 2 * partial * (fsdp - 1) / fsdp
    count = _kernels(cfg)
    exchanges.append(Exchange("all-reduce", "fsdp", count, sent))
  by_axis = {one.axis: cfg.n_layers * one.bytes for one in exchanges}
  # Scores in float32, and the pattern.
  attention = (4 + item) * tokens * length * cfg.n_heads / tensor
  hidden = mlp + 3 * item * tokens * cfg.mlp_width / tensor
  inside = max(attention, hidden) + 4 * stream
  # Logits as they are, and in float32 for the loss.
  head = (item + 4) * tokens * cfg.vocab_size / tensor
  if fsdp > 1:
    head += table
    by_axis["fsdp"] += table * (fsdp - 1) / fsdp
  beside = max(inside, head) + (layer if gathered else 0)
  used = sum(x.size for x in jax.tree.leaves(shapes))
  used -= 0 if cfg.tie_embeddings else cfg.vocab_size * cfg.d_model
  pairs = 4 * cfg.n_layers * cfg.n_heads * cfg.head_dim * length
  flops = tokens * (2 * used + pairs) / tensor / summed
  chip = machine.chip
  waits = sum(
    bytes_ / _link_rate(machine, sizes, axis)
    for axis, bytes_ in by_axis.items()
  )
  rate = chip.flops if item == 2 else chip.wide_flops
  seconds = {
    "compute": flops / (SHARE * rate),
    "memory": share / (SHARE * chip.memory_rate),
    "links": waits / SHARE,
  }
  sent = sum(by_axis.values())
  return Estimate(share, beside, flops, tuple(exchanges), sent, seconds)


def meshes(
  cfg: "ModelConfig", machine: Machine, texts: int, length: int
) -> "list[tuple[MeshConfig, Estimate]]":
  """Every mesh that divides the model, with its estimate of a batch.

  Args:
    cfg: the model.
    machine: the devices.
    texts: how many there are.
    length: tokens of each.

  Returns:
    Those first that fit the devices' memory, the fastest of them first; then
    those that do not, by their memory.
  """
  from sinkjax import sharding
  from sinkjax.models.transformer import param_shapes

  found = []
  for mesh in sharding.fitting(machine.devices, param_shapes(cfg)):
    if mesh.expert > 1:  # not estimated
      continue
    rows = batch(mesh, texts, length)
    one = forward(cfg, machine, mesh, rows, length)
    # A mesh that splits texts does more of them in a pass.
    key = (False, one.time * math.ceil(texts / rows))
    if not fits(one, machine):
      key = (True, one.memory)
    found.append((key, mesh, one))
  found.sort(key=lambda entry: entry[0])
  return [(mesh, one) for _, mesh, one in found]


def fits(one: Estimate, machine: Machine) -> bool:
  """Whether the memory of each device is enough."""
  return one.memory <= FILLED * machine.chip.memory


def batch(mesh: "MeshConfig", texts: int, length: int) -> int:
  """Texts of a pass, of all that there are, as `sink_profile.batches` has it.

  >>> from sinkjax.sharding import MeshConfig
  >>> [batch(MeshConfig(8), texts, 512) for texts in (3, 20, 99)]
  [3, 16, 16]
  """
  from sinkjax.analysis.sink_profile import BATCH_TOKENS

  ways = mesh.data * mesh.fsdp
  size = ways * max(1, BATCH_TOKENS // length)
  return min(size, texts // ways * ways) or min(size, texts)


def _link_rate(machine: Machine, sizes: Mapping[str, int], axis: str) -> float:
  """Bytes a second that a device sends along an axis."""
  from sinkjax import sharding

  # Neighbours along the last axis are side by side.
  inner = sharding.AXES[sharding.AXES.index(axis) :]
  reach = math.prod(sizes[name] for name in inner)
  if machine.kind not in AXES and reach > NODE:
    return NETWORK
  return machine.chip.link_rate


def _layer(shapes: Mapping) -> int:
  """Parameters of a layer."""
  import jax

  return sum(
    math.prod(leaf.shape[1:]) for leaf in jax.tree.leaves(shapes["blocks"])
  )


def _widths(cfg: "ModelConfig") -> int:
  """Numbers that a layer's products with its large kernels make of a token."""
  heads = (2 * cfg.n_heads + 2 * cfg.n_kv_heads) * cfg.head_dim
  return heads + cfg.d_model + cfg.mlp_width * (1 + cfg.gated_mlp)


def _kernels(cfg: "ModelConfig") -> int:
  """Large kernels of a layer: queries, keys, values, output and the MLP's."""
  return 4 + 2 + cfg.gated_mlp
