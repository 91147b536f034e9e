"""The table of large models is what the estimate says now."""

import plan_sizes
import pytest

from sinkjax import artifacts


@pytest.mark.slow
def test_recorded_plans_are_those_of_the_code():
  header, found = artifacts.read_csv(plan_sizes.FILE)
  rows = [dict(zip(header, values, strict=True)) for values in found]
  asked = [
    (folder, model, devices)
    for folder, model, *places in plan_sizes.ROWS
    for devices in places
  ]
  assert len(rows) == len(asked)
  for recorded, one in zip(rows, asked, strict=True):
    plan, values = plan_sizes.row(*one)
    assert {name: recorded[name] for name in values} == values
    assert plan.fits
    # Every row was compiled, and the estimate is within 15 % of the compiler's.
    assert values["memory_gb"] == pytest.approx(
      recorded["compiler_gb"], rel=0.15
    )


def test_405b_stands_in_the_table():
  header, found = artifacts.read_csv(plan_sizes.FILE)
  rows = [dict(zip(header, values, strict=True)) for values in found]
  (row,) = [
    row
    for row in rows
    if (row["model"], row["devices"]) == ("Llama 3.1 405B", "v5p:4x4x4")
  ]
  assert row["mesh"] == "fsdp:8,tensor:8" and row["compiler_gb"] < 0.9 * 95
