"""Values that no measurement is defined for are refused by their field."""

import pytest

from sinkjax.experiments import BY_NAME


@pytest.mark.parametrize(
  ("name", "field", "value"),
  [
    ("smoothing", "eps", -0.1),
    ("smoothing", "eps", 1.5),
    ("prompts", "eps", (0.3, float("nan"))),
    ("prompts", "tokens", 0),
    ("perturbation", "threshold", float("inf")),
    ("packing", "steps", -3),
    ("packing", "seeds", ()),
    ("packing", "seeds", [1, 2, 1]),
    ("optimisation", "batch", 0),
    ("streaming", "seed", -1),
  ],
)
def test_refused(name, field, value):
  experiment = BY_NAME[name].load()
  with pytest.raises(ValueError, match=rf"^{field} "):
    experiment.configured("demo", {field: value})


def test_what_is_allowed():
  for name, field, value in (
    ("streaming", "sinks", (0, 3)),
    ("packing", "seeds", (0, 7)),
    ("streaming", "seed", 0),
    ("smoothing", "eps", 0.0),
  ):
    found = BY_NAME[name].load().configured("demo", {field: value})
    assert getattr(found, field) == value
