"""What `launch.generate` would do: sizes, here or on devices elsewhere."""

import math
from typing import TYPE_CHECKING

import jax

from launch import devices, host_rates
from launch.accelerator_flag import ACCELERATOR
from launch.mesh_flag import MESH
from sinkjax.inference.kv_policy import ByHead
from sinkjax.models.cache import init_cache

if TYPE_CHECKING:
  from sinkjax.config import ModelConfig
  from sinkjax.inference.kv_policy import ByPosition, ByScore

  Kept = ByHead | ByPosition | ByScore


def show(
  model: str, cfg: "ModelConfig", policy: "Kept", prompt: int, most: int
) -> None:
  """Prints the sizes of prompt, text, cache and weights.

  Args:
    model: its name or path.
    cfg: its config.
    policy: what the cache keeps.
    prompt: its tokens.
    most: new tokens, 0 for no limit.

  Raises:
    ValueError: for a mesh or devices that cannot be.
  """
  text = (
    f"{model}: {prompt} tokens of prompt, {most or 'endlessly many'} new ones; "
    f"a cache of {policy.capacity} tokens{_by_head(policy)}"
  )
  if ACCELERATOR.value:
    from launch import accelerator_plan

    print(f"{text}; generates nothing (dry run)")
    for line in accelerator_plan.generate_lines(
      cfg,
      ACCELERATOR.value,
      MESH.value,
      devices.DTYPE.value,
      prompt,
      lambda cfg: cache_bytes(cfg, policy),
    ):
      print(line)
    return
  weights, where = devices.planned(cfg)
  size = cache_bytes(cfg, policy)
  time_ = host_rates.generation(cfg, prompt, most, weights + size)
  print(
    f"{text}, {size / 1e6:.1f} MB; {weights / 1e6:.1f} MB of weights on "
    f"{where}; {time_}; generates nothing (dry run)"
  )


def cache_bytes(cfg: "ModelConfig", policy: "Kept") -> int:
  """Of what a policy keeps of one text."""
  # Shapes alone: a plan must not allocate the cache whose size it prints.
  cache = jax.eval_shape(lambda: init_cache(cfg, policy))
  leaves = jax.tree.leaves(cache)
  return sum(math.prod(x.shape) * x.dtype.itemsize for x in leaves)


def _by_head(policy: "Kept") -> str:
  """What is kept of a text where heads differ."""
  if not isinstance(policy, ByHead):
    return ""
  full = [kept for heads in policy.full for kept in heads]
  return (
    f" in {sum(full)} of {len(full)} KV heads and of "
    f"{policy.first + policy.last} in the others"
  )
