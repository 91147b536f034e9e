"""Tests of sinkjax.sharding: every mesh trains the same model."""

import json
import os
import pathlib
import subprocess
import sys

import jax
import numpy as np
import pytest

import sinkjax
from sinkjax import sharding
from sinkjax.models.transformer import param_shapes

SCRIPT = pathlib.Path(__file__).parent / "train" / "on_devices.py"
MESHES = [
  f"data:{d},fsdp:{f},tensor:{8 // (d * f)}"
  for d in (1, 2, 4, 8)
  for f in (1, 2, 4, 8)
  if 8 % (d * f) == 0
]


@pytest.mark.thorough
@pytest.mark.parametrize(
  "meshes",
  [["data:2,fsdp:2,tensor:2"], pytest.param(MESHES, marks=pytest.mark.slow)],
  ids=["some", "every"],
)
def test_every_mesh_trains_the_same_model(meshes):
  ran = subprocess.run(
    [sys.executable, SCRIPT, *meshes],
    text=True,
    capture_output=True,
    check=False,
    env={
      **os.environ,
      "PYTHONPATH": str(SCRIPT.parents[2]),
      "XLA_FLAGS": os.environ["XLA_FLAGS"]
      + " --xla_force_host_platform_device_count=8",
    },
  )
  assert ran.returncode == 0, ran.stderr[-2000:]
  found = json.loads(ran.stdout.splitlines()[-1])
  one = np.array(found.pop("one"))
  assert len(found) == len(meshes) + 2 and one[0] - one[5] > 0.2
  for name, losses in found.items():
    np.testing.assert_allclose(losses, one, rtol=2e-5, err_msg=name)


def test_parsing():
  parse = sharding.MeshConfig.parse

  def sizes(text):
    return tuple(parse(text).by_axis(8).values())

  assert sizes("fsdp:2, tensor:4") == (1, 2, 4)
  assert sizes("data:-1,tensor:2") == (4, 1, 2)
  # A mesh has an axis of experts only where it splits them.
  assert sizes("expert:1,fsdp:8") == (1, 8, 1)
  assert parse("data:-1,expert:4").by_axis(8) == {
    "data": 2,
    "fsdp": 1,
    "tensor": 1,
    "expert": 4,
  }
  assert str(parse("expert:4,data:2")) == "data:2,expert:4"
  for text, words in {
    "rows:2": "'rows:2' is no axis",
    "data:2,data:4": "each axis once",
    "data:two": "'two' is no number",
    "data:1_0": "'1_0' is no number",
    "data:-2": "'-2' is no number",
    "data:٣": "is no number",
    f"data:{2**32},fsdp:{2**32}": "is no number",
    f"data:{'9' * 5000}": "is no number",
  }.items():
    with pytest.raises(ValueError, match=words):
      parse(text)
  for text in ("data:3", "data:0", "data:-1,fsdp:3", "data:-1,fsdp:-1"):
    with pytest.raises(ValueError, match="there are 8"):
      sizes(text)


def test_what_does_not_divide_is_named():
  sizes = {"data": 1, "fsdp": 1, "tensor": 4}
  shapes = param_shapes(sinkjax.TINY)
  with pytest.raises(ValueError, match=r"tensor:4 does not divide 2.*attn/k"):
    sharding.check_divides(sizes, shapes, 8)
  with pytest.raises(ValueError, match="fsdp:2 do not divide the 3 rows"):
    sharding.check_divides({"data": 1, "fsdp": 2, "tensor": 1}, shapes, 3)


@pytest.mark.parametrize(
  "changes",
  [
    {"sink_logit": True, "gate": "value"},
    {"attn_bias": "kv", "gate": "element"},
    {"gate": "head"},
    {"mixing": "rate"},
    {"mixing": "gate"},
    {"depth": "halting"},
    {"depth": "routed"},
  ],
)
def test_every_large_parameter_has_a_rule(changes):
  """A new parameter without one would be copied to every device, in silence."""
  cfg = sinkjax.TINY.replace(
    qkv_bias=True,
    out_bias=True,
    mlp_bias=True,
    qk_norm=True,
    norm="layer",
    post_norms=True,
    **changes,
  )
  copied = set()
  for path, leaf in jax.tree_util.tree_flatten_with_path(param_shapes(cfg))[0]:
    names = [key.key for key in path]
    spec = sharding.spec_of(names)
    assert len(spec) in (0, len(leaf.shape)), names
    if not any(spec):
      copied.add(names[-1])
  assert copied <= {"scale", "bias"}
