"""Tests of the helper that reads what compilers write."""

import described
import numpy as np
import pytest

from sinkjax import sharding


class Mesh:
  """Two devices along fsdp and two along tensor."""

  axis_names, size = sharding.AXES, 4
  devices = np.arange(4).reshape(1, 2, 2)


@pytest.mark.parametrize(
  ("groups", "axes"),
  [
    ("{{0,1},{2,3}}", ("tensor",)),
    ("{{0,2},{1,3}}", ("fsdp",)),
    ("{{0,1,2,3}}", ("fsdp", "tensor")),
    ("[2,2]<=[4]", ("tensor",)),
    ("[2,2]<=[2,2]T(1,0)", ("fsdp",)),
    ("[1,4]<=[4]", ("fsdp", "tensor")),
    ("mesh['axis_0'=2,'axis_1'=2] {'axis_1'}", ("tensor",)),
    ("mesh['axis_0'=2,'axis_1'=1,'axis_2'=2] {'axis_0'}", ("fsdp",)),
    ("mesh['axis_0'=2,'axis_1'=2] {'axis_0','axis_1'}", ("fsdp", "tensor")),
    (
      "mesh['axis_0'=2,'axis_1'=1,'axis_2'=2], device_ids=([2,2]T(1,0))"
      " {'axis_0'}",
      ("tensor",),
    ),
    ("{}", sharding.AXES),
  ],
)
def test_groups_of_a_collective(groups, axes):
  """Devices 0 to 3 are numbered along tensor first."""
  line = f"%x = f32[2] all-reduce(f32[2] %y), replica_groups={groups}, x=y"
  assert described.axes_of(Mesh, line) == axes


def test_partners_of_a_permute():
  line = "%x = f32[2] collective-permute(f32[2] %y), source_target_pairs="
  assert described.axes_of(Mesh, line + "{{0,1},{1,0}}, x=y") == ("tensor",)
  assert described.axes_of(Mesh, line + "{{0,2},{2,0}}, x=y") == ("fsdp",)


def test_another_notation_is_refused():
  """Taken for all devices, it would be a fault of the program."""
  line = "%x = f32[2] all-reduce(f32[2] %y), replica_groups=other(2), x=y"
  with pytest.raises(ValueError, match="notation"):
    described.axes_of(Mesh, line)
