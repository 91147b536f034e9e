"""The plans of dry runs, by the compilers of TPUs and GPUs."""

import json
import pathlib

import pytest

import sinkjax
from launch import accelerators, compile_plan, estimate
from sinkjax import sharding
from sinkjax.weights import registry

pytestmark = pytest.mark.compilers

SIZES = pathlib.Path(__file__).parents[1] / "launch" / "sizes"


def ask(*plan):
  """What the compiler says; the test is skipped where there is none."""
  said = compile_plan.ask(*plan)
  if "pip install" in said.get("refused", ""):
    pytest.skip(said["refused"])
  assert "refused" not in said, said
  return said


@pytest.mark.parametrize("name", ["v5e:2x2", "4xh100"])
def test_a_small_plan(name):
  """Weights are gathered along fsdp alone, and no pattern along any axis."""
  cfg = sinkjax.TINY.replace(
    d_model=256, n_heads=4, n_kv_heads=4, head_dim=64, d_ff=1024, max_len=128,
  )  # fmt: skip
  mesh = sharding.MeshConfig.parse("fsdp:2,tensor:2")
  said = ask(cfg, accelerators.machine(name), mesh, 2, 128)
  axes = {tuple(axes) for _, axes, _, _ in said["collectives"]}
  assert said["devices"] == 4 and axes == {("fsdp",), ("tensor",)}
  kinds = {kind for kind, axes, _, _ in said["collectives"] if "tensor" in axes}
  assert kinds == {"all-reduce"}


COMPILED = [
  ("llama-3.1-8b", "v5e:2x4", "tensor:8", 1, 64, "bfloat16"),
  ("llama-3.1-8b", "v5e:4x4", "fsdp:2,tensor:8", 1, 2048, "bfloat16"),
  ("llama-3.1-405b", "v5p:4x4x4", "fsdp:8,tensor:8", 1, 64, "bfloat16"),
  ("llama-3.1-405b", "v5p:4x4x4", "fsdp:8,tensor:8", 1, 2048, "bfloat16"),
  ("llama-3.1-8b", "v5p:2x2x1", "fsdp:4", 4, 1024, "float32"),
  ("gpt-oss-20b", "v5p:2x2x2", "tensor:8", 1, 2048, "bfloat16"),
  ("deepseek-v3", "v5p:4x4x4", "fsdp:8,tensor:8", 1, 64, "bfloat16"),
  ("llama-3.1-8b", "h100", "data:1", 1, 1024, "bfloat16"),
  ("llama-3.1-8b", "8xh100", "tensor:8", 1, 8192, "bfloat16"),
  ("llama-3.1-8b", "8xh100", "data:8", 8, 1024, "float32"),
  ("llama-3.1-8b", "8xh100", "fsdp:8", 8, 512, "bfloat16"),
  ("llama-3.1-8b", "8xh100", "fsdp:2,tensor:4", 2, 1024, "float32"),
  ("llama-3.1-70b", "8xh100", "tensor:8", 1, 64, "bfloat16"),
  ("gpt-oss-20b", "8xh100", "tensor:8", 1, 2048, "bfloat16"),
  ("gpt-oss-120b", "16xh100", "fsdp:2,tensor:8", 1, 64, "bfloat16"),
  ("deepseek-v3", "64xh100", "fsdp:8,tensor:8", 1, 1024, "bfloat16"),
]


@pytest.mark.slow
@pytest.mark.parametrize(
  "case", COMPILED, ids=lambda case: " ".join(map(str, case))
)
def test_the_estimate_is_near_the_compilers(case):
  """Within 15 % of a device's memory."""
  model, accelerator, mesh, rows, length, dtype = case
  cfg = registry.peek(SIZES / model)[0].replace(dtype=dtype)
  machine = accelerators.machine(accelerator)
  mesh = sharding.MeshConfig.parse(mesh)
  said = ask(cfg, machine, mesh, rows, length)
  one = estimate.forward(cfg, machine, mesh, rows, length)
  print(json.dumps(said), one)
  assert one.memory == pytest.approx(said["peak"], rel=0.15)
