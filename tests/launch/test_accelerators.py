"""Plans for devices that are elsewhere."""

import pathlib
import re

import jax
import jax.numpy as jnp
import pytest
from launcher import run

import sinkjax
from launch import accelerator_plan, accelerators, estimate
from sinkjax import sharding
from sinkjax.analysis.sensitivity_config import SensitivityConfig, work
from sinkjax.weights import registry

SIZES = pathlib.Path(__file__).parent / "sizes"
PARAMETERS = {
  # As their authors count them; of DeepSeek V3 without its extra layer, and
  # with what the three layers without experts do not use: 256 x 3 x 7168 x 2048
  # less 3 x 7168 x 18432, and shared expert and router, three times.
  "llama-3.1-8b": 8_030_261_248,
  "llama-3.1-70b": 70_553_706_496,
  "llama-3.1-405b": 405_853_388_800,
  "gpt-oss-20b": 20_914_757_184,
  "gpt-oss-120b": 116_829_156_672,
  "deepseek-v3": 671_026_419_200
  + 3 * (257 * 3 * 7168 * 2048 + 256 * 7168 + 256 - 3 * 7168 * 18432),
}


def config(name):
  return registry.peek(SIZES / name)[0]


@pytest.mark.parametrize("name", PARAMETERS)
def test_parameters_of_a_config_alone(name):
  assert registry.peek(SIZES / name)[2] == PARAMETERS[name]


@pytest.mark.parametrize(
  ("text", "kind", "devices", "grid"),
  [
    ("h100", "h100", 1, (1, 1)),
    ("16xh100", "h100", 16, (2, 8)),
    ("12xh100", "h100", 12, None),
    ("4xa100-40", "a100-40", 4, (1, 4)),
    ("v5e:4x4", "v5e", 16, (4, 4)),
    ("8xv5e", "v5e", 8, (2, 4)),
    ("v5p:4x4x4", "v5p", 64, (4, 4, 4)),
    ("4xv5p", "v5p", 4, (2, 2, 1)),
  ],
)
def test_names_of_devices(text, kind, devices, grid):
  machine = accelerators.machine(text)
  assert (machine.kind, machine.devices, machine.grid) == (kind, devices, grid)


@pytest.mark.parametrize(
  "text", ["tpu", "0xh100", "8x", "v5e:4x4x4", "h100:2x2", "v5p:4x4", ""]
)
def test_names_of_no_devices(text):
  with pytest.raises(ValueError, match="like 8xh100, or"):
    accelerators.machine(text)


@pytest.mark.parametrize(
  "text", ["1048577xh100", "v5e:99999x99999", "v5p:999999999x9x999999999"]
)
def test_more_devices_than_any_machine_has(text):
  with pytest.raises(ValueError, match="has more than 1048576 devices"):
    accelerators.machine(text)


@pytest.mark.parametrize("text", ["9" * 5000 + "xh100", "v5e:4x" + "9" * 30])
def test_numbers_of_too_many_digits(text):
  with pytest.raises(ValueError, match="like 8xh100, or"):
    accelerators.machine(text)


def test_the_operations_are_those_of_the_program():
  """As XLA counts them, of a model whose products outweigh all else."""
  cfg = sinkjax.TINY.replace(
    n_layers=2, d_model=1024, n_heads=4, n_kv_heads=4, head_dim=256, d_ff=4096,
    vocab_size=512, max_len=128, scan_layers=False,
  )  # fmt: skip
  params = jax.eval_shape(lambda: sinkjax.init_params(cfg, jax.random.key(0)))
  tokens = jax.ShapeDtypeStruct((2, 128), jnp.int32)
  program = jax.jit(lambda p, t: sinkjax.forward(cfg)(p, t).logits)
  counted = program.lower(params, tokens).cost_analysis()["flops"]
  mesh = sharding.MeshConfig(1)
  one = estimate.forward(cfg, accelerators.machine("h100"), mesh, 2, 128)
  assert one.flops == pytest.approx(counted, rel=0.05)
  # Heads, hidden units and texts are split evenly.
  for text in "data:2,tensor:4", "fsdp:2,tensor:2":
    mesh = sharding.MeshConfig.parse(text)
    machine = accelerators.machine(
      f"{mesh.data * mesh.fsdp * mesh.tensor}xh100"
    )
    part = estimate.forward(cfg, machine, mesh, 2, 128)
    assert part.flops * machine.devices == pytest.approx(one.flops)


def test_exchanges_in_closed_form():
  """Llama 3.1 8B: sums of 64 x 4,096 numbers, or 218,112,000 parameters."""
  cfg, eight = config("llama-3.1-8b").replace(dtype="bfloat16"), "8xh100"
  machine = accelerators.machine(eight)
  tensor = sharding.MeshConfig.parse("tensor:8")
  (sums,) = estimate.forward(cfg, machine, tensor, 1, 64).exchanges
  assert (sums.kind, sums.axis, sums.count) == ("all-reduce", "tensor", 2)
  assert sums.bytes == 2 * 2 * (64 * 4096 * 2) * 7 / 8
  fsdp = sharding.MeshConfig.parse("fsdp:8")
  (gathers,) = estimate.forward(cfg, machine, fsdp, 8, 512).exchanges
  assert (gathers.kind, gathers.axis, gathers.count) == (
    "all-gather", "fsdp", 7,
  )  # fmt: skip
  layer = 4096 * (2 * 4096 + 2 * 1024 + 3 * 14336 + 2)
  assert gathers.bytes == 2 * layer * 7 / 8
  one = estimate.forward(
    cfg, accelerators.machine("h100"), sharding.MeshConfig(1), 1, 64
  )
  assert one.exchanges == () and one.sent == 0
  # Over two machines the gathers take the network, of a ninth of the rate.
  far = estimate.forward(
    cfg, accelerators.machine("16xh100"), sharding.MeshConfig(1, 16), 16, 512
  )
  near = estimate.forward(cfg, machine, fsdp, 8, 512)
  ratio = far.seconds["links"] / near.seconds["links"]
  assert ratio == pytest.approx(9 * (15 / 16) / (7 / 8))


@pytest.mark.parametrize(
  ("model", "accelerator", "mesh"),
  [
    ("llama-3.1-405b", "v5p:4x4x4", "fsdp:8,tensor:8"),
    ("llama-3.1-70b", "8xh100", "tensor:8"),
    ("llama-3.1-8b", "h100", "data:1"),
  ],
)
def test_the_proposed_mesh_fits(model, accelerator, mesh):
  plan = accelerator_plan.make(
    config(model), accelerator, "auto", "bfloat16", 1, 64
  )
  assert plan.fits and str(plan.mesh) == mesh


def test_the_first_limit_and_what_would_do():
  """116.8e9 parameters in float32 are 467 GB: 16 chips of 16 GB have 256."""
  plan = accelerator_plan.make(
    config("gpt-oss-120b"), "v5e:4x4", "auto", None, 1, 64
  )
  assert not plan.fits and accelerator_plan.enough(plan) == 64
  said = "\n".join(accelerator_plan.lines(plan))
  assert "too much, 64 v5e would do" in said
  assert "limit     the memory of a device" in said
  # Of many texts on a model that fits, devices each take some.
  plan = accelerator_plan.make(
    config("llama-3.1-8b"), "8xh100", "auto", "bfloat16", 64, 1024
  )
  assert (str(plan.mesh), plan.rows, plan.passes) == ("data:8", 8, 8)


@pytest.mark.thorough
def test_a_config_alone_is_planned(tmp_path):
  done = run(
    "analyze", "--dry_run", f"--model={SIZES / 'llama-3.1-405b'}",
    "--accelerator=v5p:4x4x4", "--dtype=bfloat16",
  )  # fmt: skip
  assert done.returncode == 0, done.stderr
  assert "405,853,388,800 parameters" in done.stdout
  assert "64 v5p, --mesh=fsdp:8,tensor:8 (proposed), bfloat16" in done.stdout
  assert re.search(r"memory +about 13.\d+ GB of 95 a device", done.stdout)
  assert "\ncompiler  " in done.stdout


def test_the_columns_of_a_jacobian_are_spread():
  """8 devices do no more than one, and no less than one with all their memory.

  Memory saves operations; what layers are folded into, each device has whole.
  """
  cfg, room = config("llama-3.1-8b"), 10**11
  one = work(cfg, SensitivityConfig(budget_bytes=room), 64)
  large = work(cfg, SensitivityConfig(budget_bytes=8 * room), 64)
  eight = work(cfg, SensitivityConfig(budget_bytes=room), 64, devices=8)
  assert large.flops <= 8 * eight.flops <= one.flops
  assert eight.bytes <= room


@pytest.mark.parametrize(
  ("model", "accelerator", "lines"),
  [
    (
      "llama-3.1-405b",
      "v5p:4x4x4",
      ["--mesh=fsdp:8,tensor:8 (proposed)", "12.69 of it weights: fits"],
    ),
    (
      "llama-3.1-70b",
      "v5e:2x2",
      ["which has 16: too much, 16 v5e would do", "limit     the memory of a"],
    ),
  ],
)
def test_a_jacobian_is_planned_by_a_config_alone(model, accelerator, lines):
  done = run(
    "jacobian", "--dry_run", f"--model={SIZES / model}", "--dtype=bfloat16",
    f"--accelerator={accelerator}", "--max_tokens=32",
  )  # fmt: skip
  assert done.returncode == 0, done.stderr
  assert all(line in done.stdout for line in lines), done.stdout


def test_experiments_are_planned_by_a_config_alone():
  """Each with its largest pass; the largest of all with all lines."""
  done = run(
    "reproduce",
    "--dry_run",
    f"--model={SIZES / 'llama-3.1-70b'}",
    "--dtype=bfloat16",
    "--accelerator=8xh100",
    "--experiment=prompts,first_token",
  )
  assert done.returncode == 0, done.stderr
  said = done.stdout
  assert "prompts: 8 x 128 tokens, about 35." in said
  assert "first_token: 8 x 8192 tokens, about 63." in said
  assert "estimated    the largest, of first_token: one pass" in said
  assert "8 h100, --mesh=data:2,fsdp:4 (proposed), bfloat16" in said


@pytest.mark.parametrize(
  ("flags", "message"),
  [
    (["--accelerator=8xh100", "--out=never"], "add --dry_run"),
    (["--accelerator=8xtpu", "--dry_run"], "like 8xh100, or"),
    (["--accelerator=8xh100", "--dry_run", "--mesh=tensor:4"], "there are 8"),
    (["--accelerator=h100", "--dry_run", "--offload"], "leave out --acc"),
    (
      ["--accelerator=6xh100", "--dry_run", "--mesh=tensor:3,fsdp:2"],
      "take --mesh=data:3,tensor:2, or",
    ),
  ],
)
def test_what_cannot_be_planned_is_one_line(flags, message):
  done = run("analyze", f"--model={SIZES / 'llama-3.1-8b'}", *flags)
  errors = [x for x in done.stderr.splitlines() if x.startswith("error: ")]
  assert done.returncode == 1 and len(errors) == 1, done.stderr
  assert message in errors[0]


def test_a_text_that_is_generated_elsewhere():
  """Weights and cache are read once a token, at the memory's rate."""
  cfg = config("llama-3.1-8b")
  size = 8 * 2**30

  def lines(mesh, machine):
    return accelerator_plan.generate_lines(
      cfg, machine, mesh, "bfloat16", 100, lambda cfg: size
    )

  one = " ".join(lines("data:1", "h100"))
  weights = 2 * PARAMETERS["llama-3.1-8b"]
  seconds = (weights + size) / (estimate.SHARE * 3.35e12)
  found = re.search(r"([\d.]+) ms for each new one \(([\d,]+) tokens/s\)", one)
  # Three digits are printed.
  assert float(found[1]) == pytest.approx(1000 * seconds, rel=5e-3)
  assert float(found[2]) == pytest.approx(1 / seconds, rel=2e-2)
  assert "of it weights and 8.59 the cache: fits" in one
  # Eight KV heads lie on eight devices.
  assert "and 1.07 the cache" in " ".join(lines("tensor:8", "8xh100"))
  large = accelerator_plan.generate_lines(
    config("llama-3.1-405b"), "8xh100", "auto", "bfloat16", 9, lambda cfg: 0
  )
  assert "take more devices" in large[1] and large[-1] == "limit     memory"
