"""Every field of every config is a flag, by the types that dataclasses declare.

The fields are read off the dataclasses, so that a new one is tested, too.
"""

import dataclasses
import pathlib
import types
import typing

import pytest

from launch import config_flags
from sinkjax.experiments import BY_NAME
from sinkjax.train.run_config import TrainConfig

ROOT = pathlib.Path(__file__).parents[2]
CONFIGS = ("train", *BY_NAME)
TEXTS = {int: ("3", 3), float: ("0.25", 0.25), bool: ("true", True)}


def declared(name):
  return TrainConfig if name == "train" else BY_NAME[name].load().config


def kinds(kind):
  union = typing.get_origin(kind) in (types.UnionType, typing.Union)
  return typing.get_args(kind) if union else (kind,)


def fields(kind, prefix=""):
  """(path, type, field) of every field, those of parts included."""
  hints = typing.get_type_hints(kind)
  for field in dataclasses.fields(kind):
    yield prefix + field.name, hints[field.name], field
    for part in kinds(hints[field.name]):
      if dataclasses.is_dataclass(part):
        yield from fields(part, f"{prefix}{field.name}.")


def given(config, path, text):
  """What the flag --config.PATH=TEXT sets, and nothing else."""
  _, found = config_flags.split([f"--config.{path}={text}"])
  values = config_flags.read(None, found, config)
  *parents, last = path.split(".")
  for name in parents:
    assert list(values) == [name]
    values = values[name]
  assert list(values) == [last]
  return values[last]


@pytest.mark.parametrize("name", CONFIGS)
def test_every_field_is_set_by_its_default_as_text(name):
  config = declared(name)
  for path, _, field in fields(config):
    default = field.default
    if default is not dataclasses.MISSING:
      found = given(config, path, str(default))
      assert found == default and type(found) is type(default), path


@pytest.mark.parametrize("name", CONFIGS)
def test_a_field_that_may_be_none_is_a_flag(name):
  """It takes a value of its type and none; an error says both."""
  config = declared(name)
  optional = {p: k for p, k, _ in fields(config) if type(None) in kinds(k)}
  if name == "train":
    assert {"sink_target", "model.window", "optimizer.spike"} <= set(optional)
  for path, kind in optional.items():
    for text in ("none", "None"):
      assert given(config, path, text) is None
    (one,) = (k for k in kinds(kind) if k is not type(None))
    if dataclasses.is_dataclass(one):
      text, value = "{'kind': 'linear', 'factor': 2}", {"kind": "linear"}
      value["factor"] = 2.0
    else:
      text, value = TEXTS[one]
    found = given(config, path, text)
    assert found == value and type(found) is type(value)
    with pytest.raises(ValueError, match="zebra") as error:
      given(config, path, "zebra")
    assert str(error.value).startswith(f"--config.{path} must be ")
    assert "or none, got 'zebra'" in str(error.value)


@pytest.mark.parametrize(
  ("path", "text", "message"),
  [
    ("steps", "1.5", "--config.steps must be an integer, got 1.5"),
    ("steps", "none", "--config.steps must be an integer, got 'none'"),
    ("steps", "true", "--config.steps must be an integer, got True"),
    ("details", "1", "--config.details must be true or false, got 1"),
    ("corpus", "(1,)", "a tuple, each of it text, got (1,)"),
    ("packing", "8", "--config.packing must be a dictionary of fields, got 8"),
    ("stages", "({'length': 'x'},)", "stages.length must be an integer"),
    ("model.windo", "1", "no field 'model.windo'; there is window"),
    ("steps.x", "1", "--config has no field 'steps.x'"),
    ("model.rope_scaling.kind", "'a", None),
  ],
)
def test_mistakes_name_field_value_and_type(path, text, message):
  if message is None:
    assert given(TrainConfig, path, text) == text
    return
  with pytest.raises(ValueError) as error:
    given(TrainConfig, path, text)
  assert message in str(error.value)


def test_flags_stand_above_the_file_and_later_ones_above_earlier():
  words = [
    "--config.optimizer.peak=1",
    "--config.optimizer.peak=2",
    "--config.optimizer.clip=none",
    "--config.details",
    "--noconfig.packing.eos",
    "--config.corpus=/data/web",
    "--config.model.rope_scaling.kind=linear",
    "--workdir=x",
  ]
  others, found = config_flags.split(words)
  assert others == ["--workdir=x"]
  path = str(ROOT / "configs" / "train" / "tiny.py")
  plain = config_flags.read(path, [], TrainConfig)
  values = config_flags.read(path, found, TrainConfig)
  config = TrainConfig.from_dict(values)
  assert config.optimizer.peak == 2.0 and config.optimizer.clip is None
  assert config.details is True and config.packing.eos is False
  assert config.corpus == ("/data/web",)
  assert config.model.rope_scaling.kind == "linear"
  changed = {"optimizer", "details", "corpus", "model"}
  assert all(values[k] == v for k, v in plain.items() if k not in changed)


def test_a_file_s_values_are_checked_too(tmp_path):
  file = tmp_path / "config.py"
  file.write_text("def get_config(x='1'):\n  return {'steps': x, 'batch': 2}\n")
  with pytest.raises(ValueError, match=r"--config.steps must be an integer"):
    config_flags.read(str(file), [], TrainConfig)
  file.write_text("def get_config(x='1'):\n  return {'steps': int(x)}\n")
  found = config_flags.read(f"{file}:7", [], TrainConfig)
  assert found == {"steps": 7}
  with pytest.raises(ValueError, match=r"nowhere\.py: no such file"):
    config_flags.read("nowhere.py", [], TrainConfig)


@pytest.mark.parametrize(
  "text",
  [
    *("{[]: 1}", "{{}: 1}", "-" * 9000 + "1", "9" * 400, "-" + "9" * 400),
    *("0x" + "f" * 9000, "(" * 150 + ")" * 150, "[" * 5000, "\x00", "1j"),
  ],
)
@pytest.mark.parametrize("field", ["optimizer.peak", "steps", "held_out"])
def test_what_python_cannot_make_or_write(field, text):
  with pytest.raises(ValueError, match=f"--config.{field} must be") as error:
    config_flags.read(None, [(field, text)], TrainConfig)
  assert len(str(error.value)) < 200
