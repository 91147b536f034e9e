"""The programs of the analyses, by the compilers of TPUs and GPUs."""

import collections
import json
import os
import pathlib
import subprocess
import sys

import described
import pytest

pytestmark = pytest.mark.compilers

SCRIPT = pathlib.Path(__file__).with_name("analyses.py")
ROOT = SCRIPT.parents[2]

ANALYSES = (
  "forward",
  "capture",
  "streaming",
  "jacobian",
  "estimates",
  "generation",
)
QUICK = {("capture", "fsdp:2,tensor:2"), ("generation", "tensor:4")}
"""What the gate compiles for TPUs."""

GATHERED = {"forward": 0, "capture": 0, "streaming": 0, "generation": 1024}
"""Elements that may be gathered along any axis. Every device has the whole
cache of a generation, here of 16 places, so keys and values are gathered for
it. The Jacobian's programs are not listed: blocks of derivatives move along
axes that split parameters, and they need only compile."""


def cases():
  for kind, place in described.PLACES.items():
    for analysis in ANALYSES:
      for axes in ("", *described.MESHES):
        quick = kind == "tpu" and (analysis, axes) in QUICK
        marks = () if quick else pytest.mark.slow
        yield pytest.param(place, axes, analysis, marks=marks)


@pytest.mark.parametrize(("place", "axes", "analysis"), list(cases()))
def test_every_program_compiles(place, axes, analysis):
  described.devices(place)
  ran = subprocess.run(
    [sys.executable, SCRIPT, place, axes, analysis],
    text=True,
    capture_output=True,
    check=False,
    env={**os.environ, "PYTHONPATH": f"{ROOT}:{ROOT}/tests/helpers"},
  )
  assert ran.returncode == 0, ran.stderr[-2000:]
  programs = json.loads(ran.stdout.splitlines()[-1])
  refused = {p["name"]: p["refused"] for p in programs if "refused" in p}
  assert programs and not refused
  if analysis in GATHERED:
    for program in programs:
      described.check(_read(program), gathered=GATHERED[analysis])


def _read(program) -> described.Program:
  keyed = {
    (kind, tuple(axes)): (count, largest)
    for kind, axes, count, largest in program["collectives"]
  }
  return described.Program(
    collections.Counter({key: count for key, (count, _) in keyed.items()}),
    {key: largest for key, (_, largest) in keyed.items()},
    collections.Counter(program["kernels"]),
    program["peak"],
  )
