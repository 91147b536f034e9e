"""Experiments that a model cannot be measured by."""

import pytest

import sinkjax
from launch.fitting import fitting

NAMES = ["massive", "experts"]


def test_a_group_goes_on_without_what_does_not_fit(capsys):
  dense = sinkjax.TINY
  found = fitting(NAMES, "tiny", lambda: dense, by_name=False)
  assert found == ["massive"]
  said = capsys.readouterr().out
  assert said.startswith("experts: left out for tiny: it needs a model with")
  assert said.count("\n") == 1


def test_what_is_named_and_does_not_fit_is_refused():
  with pytest.raises(ValueError, match="--experiment=experts does not go with"):
    fitting(NAMES, "tiny", lambda: sinkjax.TINY, by_name=True)


def test_what_fits_is_kept_and_a_config_is_read_only_where_it_is_asked_for(
  capsys,
):
  cfg = sinkjax.TINY.replace(n_experts=4, experts_per_token=2)
  assert fitting(NAMES, "tiny", lambda: cfg, by_name=True) == NAMES
  assert fitting(["massive"], "tiny", lambda: 1 / 0, by_name=True)
  assert not capsys.readouterr().out
