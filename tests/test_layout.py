"""The layout that CONTRIBUTING describes: rooms, arrows, registries, sizes."""

import ast
import importlib
import pathlib
import re
import subprocess
import sys

import pytest

from sinkjax.experiments import BY_NAME, GROUPS, REGISTRY, SCALES
from sinkjax.experiments.harness.api import Experiment

ROOT = pathlib.Path(__file__).parents[1]
EXPERIMENTS = ROOT / "sinkjax" / "experiments"

LEVELS = (
  {
    "artifacts",
    "config",
    "config_checks",
    "field_checks",
    "finite",
    "limits",
    "unpacking",
    "mesh_context",
    "model_edits",
    "metrics",
    "outputs",
    "rope_scaling",
    "sharding",
    "sharding_rules",
    "taps",
  },
  {"models", "provenance"},
  {"transforms"},
  {"weights"},
  {"data"},
  {"train", "inference"},
  {"analysis"},
  {"report"},
  {"harness"},
  {"shared"},
  set(GROUPS),
  {"launch"},
)
"""Rooms from the ground up: a room imports rooms below it, never above. The
registry itself, `sinkjax.experiments`, is data and may be read by any room of
experiments and by launch."""

ALLOWED = {("sinkjax.config", "sinkjax.models.normalizers")}
"""The table of normalisers stands beside their functions; a config checks names
against it, and the table's file imports nothing of ours."""

LEVEL = {room: i for i, rooms in enumerate(LEVELS) for room in rooms}


def room_of(module: str) -> str | None:
  """The room of a module's dotted name; `None` for the package itself."""
  parts = module.split(".")
  if parts[0] == "launch":
    return "launch"
  if parts[1:2] == ["experiments"]:
    return parts[2] if len(parts) > 2 else None
  return parts[1] if len(parts) > 1 else None


def modules():
  """(dotted name, syntax tree) of every file of the package and launchers."""
  for folder in ("sinkjax", "launch"):
    for path in sorted((ROOT / folder).rglob("*.py")):
      name = ".".join(path.relative_to(ROOT).with_suffix("").parts)
      yield name.removesuffix(".__init__"), ast.parse(path.read_text("utf-8"))


def imports(tree):
  """The dotted names of ours that a file imports."""
  for node in ast.walk(tree):
    if isinstance(node, ast.Import):
      names = [alias.name for alias in node.names]
    elif isinstance(node, ast.ImportFrom):
      names = [f"{node.module}.{alias.name}" for alias in node.names]
    else:
      continue
    yield from (n for n in names if n.split(".")[0] in ("sinkjax", "launch"))


def experiment_of(module: str) -> str | None:
  parts = module.split(".")
  return parts[3] if len(parts) > 3 and parts[2] in GROUPS else None


def test_imports_go_one_way():
  upward = []
  for module, tree in modules():
    room = room_of(module)
    if room is None or module == "sinkjax.experiments":
      continue
    assert room in LEVEL, f"{module}: no level for the room {room!r}"
    for target in imports(tree):
      other = room_of(target)
      if (module, target.rpartition(".")[0]) in ALLOWED:
        continue
      if other in LEVEL and LEVEL[other] > LEVEL[room]:
        upward.append(f"{module} imports {target}")
  assert not upward


def test_metrics_import_nothing_of_ours():
  for module, tree in modules():
    if room_of(module) == "metrics":
      others = {room_of(target) for target in imports(tree)} - {"metrics"}
      assert not others, (module, others)


def test_no_experiment_imports_another():
  crossing = [
    f"{module} imports {target}"
    for module, tree in modules()
    if (own := experiment_of(module))
    for target in imports(tree)
    if (other := experiment_of(target)) and other != own
  ]
  assert not crossing


def test_wings_hold_what_the_registry_lists():
  assert [path.name for path in EXPERIMENTS.glob("*.py")] == ["__init__.py"]
  for group in GROUPS:
    folder = EXPERIMENTS / group
    found = {
      path.stem
      for path in folder.iterdir()
      if path.stem not in ("__init__", "__pycache__")
    }
    assert found == {e.name for e in REGISTRY if e.group == group}


def test_report_is_only_what_is_generic():
  files = [p for p in (ROOT / "sinkjax" / "report").iterdir() if p.is_file()]
  assert len(files) <= 10


@pytest.mark.parametrize("name", BY_NAME)
def test_every_entry_is_an_experiment(name):
  entry = BY_NAME[name]
  experiment = entry.load()
  assert isinstance(experiment, Experiment)
  assert experiment.title and entry.question.endswith("?")
  assert (experiment.scales is not None) == (entry.group == "training")
  if experiment.scales is None:
    experiment.config()
  else:
    assert set(experiment.scales) == set(SCALES)
    for scale in SCALES:
      experiment.configured(scale, {})
  path = f"sinkjax.experiments.{entry.group}.{entry.name}"
  assert "launch.reproduce" in importlib.import_module(path).__doc__


def test_help_lists_every_experiment():
  done = subprocess.run(
    [sys.executable, "-m", "launch.reproduce", "--help"],
    cwd=ROOT,
    capture_output=True,
    text=True,
    check=True,
  )
  for entry in REGISTRY:
    assert re.search(
      rf"^  {entry.name} +{re.escape(entry.question)}$",
      done.stdout,
      re.MULTILINE,
    ), entry.name


DOORS = {
  "flax": lambda module: room_of(module) == "models",
  "orbax": lambda module: (
    module in ("sinkjax.train.checkpoint", "sinkjax.weights.orbax_io")
  ),
}
"""Where a library is known, so that another one could take its place."""


def test_libraries_come_in_by_one_door():
  for module, tree in modules():
    for node in ast.walk(tree):
      names = []
      if isinstance(node, ast.Import):
        names = [alias.name for alias in node.names]
      elif isinstance(node, ast.ImportFrom):
        names = [node.module or ""]
      for name in names:
        allowed = DOORS.get(name.split(".")[0])
        assert allowed is None or allowed(module), (module, name)


def test_the_formatter_is_rarely_switched_off():
  skipped = sum(
    path.read_text("utf-8").count("# fmt: skip")
    for folder in ("sinkjax", "launch", "tests", "configs", "docs")
    for path in (ROOT / folder).rglob("*.py")
    if path != pathlib.Path(__file__)
  )
  assert skipped < 40


def test_the_readme_is_one_page():
  assert len((ROOT / "README.md").read_bytes()) <= 8192
