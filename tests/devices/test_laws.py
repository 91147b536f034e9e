"""A mesh changes nothing but the rounding: laws on 8 fake devices."""

import json
import os
import pathlib
import subprocess
import sys

import pytest

import sinkjax
from sinkjax import sharding
from sinkjax.models.transformer import param_shapes

SCRIPT = pathlib.Path(__file__).with_name("laws.py")
ROOT = SCRIPT.parents[2]
CUBE = "data:2,fsdp:2,tensor:2"
EXPERTS = "expert:8;data:2,expert:4;expert:2,fsdp:2,tensor:2"
OTHERS = "tensor:4,fsdp:2;fsdp:8;data:8;data:2,tensor:4"


@pytest.mark.thorough
@pytest.mark.parametrize(
  ("meshes", "parts"),
  [
    (
      CUBE,
      ("forward", "profile", "jacobian", "collectives", "weights_in_shards"),
    ),
    pytest.param(
      CUBE,
      (
        "stream",
        "stream_by_sums",
        "text",
        "odd_heads",
        "decompositions",
        "depth",
      ),
      marks=pytest.mark.slow,
    ),
    pytest.param(
      OTHERS,
      (
        "forward",
        "profile",
        "jacobian",
        "stream",
        "stream_by_sums",
        "text",
        "weights_in_shards",
        "decompositions",
      ),
      marks=pytest.mark.slow,
    ),
    (EXPERTS, ("experts",)),
    pytest.param(CUBE, ("edits",), marks=pytest.mark.slow),
    ("data:2,tensor:4", ("copied",)),
  ],
  ids=["some", "more", "meshes", "experts", "edits", "copied"],
)
def test_laws(meshes, parts):
  script = SCRIPT
  if parts[0] in ("edits", "experts", "copied"):
    script = SCRIPT.with_name("more_laws.py")
  ran = subprocess.run(
    [sys.executable, script, meshes, *parts],
    text=True,
    capture_output=True,
    check=False,
    timeout=1200,  # a program whose devices wait for each other has no end
    env={
      **os.environ,
      "PYTHONPATH": f"{ROOT}:{ROOT}/tests/helpers",
      "XLA_FLAGS": os.environ["XLA_FLAGS"]
      + " --xla_force_host_platform_device_count=8",
    },
  )
  assert ran.returncode == 0, ran.stderr[-2000:]
  found = json.loads(ran.stdout.splitlines()[-1])
  print(found)
  assert len(found) >= len(parts)
  wrong = {name: pair for name, pair in found.items() if not pair[0] <= pair[1]}
  assert not wrong


def test_a_mesh_that_cannot_hold_a_model_is_refused_with_those_that_can():
  cfg = sinkjax.TINY.replace(
    n_heads=9, n_kv_heads=3, d_ff=96, d_model=72, vocab_size=66
  )
  shapes = param_shapes(cfg)
  with pytest.raises(ValueError, match=r"tensor:2 .*attn/k.*--mesh=fsdp:8, or"):
    sharding.check_fits({"data": 1, "fsdp": 4, "tensor": 2}, shapes)
  first = sharding.fitting(6, shapes)[0]
  assert (first.fsdp, first.tensor) == (2, 3)
  assert [str(mesh) for mesh in sharding.fitting(1, shapes)] == ["data:1"]


def test_experts_that_an_axis_does_not_divide_are_refused_with_meshes_that_do():
  one = dict.fromkeys(sharding.AXES, 1)
  dense = param_shapes(sinkjax.TINY)
  with pytest.raises(ValueError, match=r"expert:2 splits .* none; .*=tensor:2"):
    sharding.check_fits(one | {"expert": 2}, dense)
  shapes = param_shapes(
    sinkjax.TINY.replace(n_experts=6, experts_per_token=2, d_ff=6)
  )
  with pytest.raises(ValueError, match=r"expert:4 .* 6, .*/expert.*=fsdp:4"):
    sharding.check_fits(one | {"data": 2, "expert": 4}, shapes)
  found = [str(mesh) for mesh in sharding.fitting(8, shapes)]
  assert "data:4,expert:2" in found and "fsdp:4,expert:2" in found
  assert not any("expert:4" in mesh for mesh in found)
  # Where nobody asks for it, an axis of experts comes last.
  assert "expert" not in found[0]


def test_the_share_of_a_device():
  shapes = param_shapes(sinkjax.TINY)
  whole = sharding.largest_share({"data": 8, "fsdp": 1, "tensor": 1}, shapes)
  half = sharding.largest_share({"data": 1, "fsdp": 2, "tensor": 1}, shapes)
  # Norms alone are copied.
  assert whole / 2 < half < 0.51 * whole
