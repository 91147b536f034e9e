"""Values that no flag can have, whatever it is for."""

import pytest
from absl import flags

from launch import flag_values


def parsed(*words):
  values = flags.FlagValues()
  own = {"flag_values": values}
  flags.DEFINE_string("text_file", None, "", **own)
  flags.DEFINE_string("prefix", "auto", "", **own)
  flags.DEFINE_string("ours", "", "", **own)
  flags.DEFINE_list("models", None, "", **own)
  flags.DEFINE_float("budget", None, "", **own)
  flags.DEFINE_integer("samples", 64, "", **own)
  flags.DEFINE_bool("quick", False, "", **own)
  flags.DEFINE_enum("norm", "fro", ["fro", "max"], "", **own)
  values(["command", *words])
  return values


@pytest.mark.parametrize(
  ("word", "message"),
  [
    ("--text_file=", "--text_file= is empty: give a value, or leave"),
    ("--text_file= \t", "--text_file=.* is empty"),
    ("--models=", "--models= is empty"),
    ("--models=a,,b", "--models= is empty"),
    ("--budget=nan", "--budget=nan is no finite number"),
    ("--budget=-inf", "--budget=-inf is no"),
    ("--budget=1e999", "--budget=inf is no"),
    (f"--samples={10**30}", r"--samples=1e\+30 is beyond"),
    (f"--samples=-{10**30}", r"--samples=-1e\+30 is beyond"),
  ],
)
def test_refused(word, message):
  with pytest.raises(ValueError, match=message):
    flag_values.check(parsed(word))


@pytest.mark.parametrize(
  "word",
  [
    *("--text_file=a", "--prefix=", "--models=a,b", "--budget=-1.5"),
    *("--samples=-1", "--quick", "--noquick", "--norm=max", "--quick=false"),
  ],
)
def test_allowed(word):
  flag_values.check(parsed(word))


def test_defaults_are_not_looked_at():
  flag_values.check(parsed())


@pytest.mark.parametrize("number", ["-" + "9" * 400, "9" * 400])
def test_a_number_beyond_floats(number):
  """Which could not be written with an exponent."""
  with pytest.raises(ValueError, match="--samples=") as error:
    flag_values.check(parsed(f"--samples={number}"))
  assert len(str(error.value)) < 200
