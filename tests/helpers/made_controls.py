"""Made-up results of sweeps whose trained models are read again."""

import numpy as np
import pytest
from made_sweeps import SEEDS, outcomes

from sinkjax.experiments.harness.protocol import judge
from sinkjax.experiments.shared import controlled
from sinkjax.report import html

__all__ = ["SEEDS", "all_drawn", "row_of", "stored", "verdicts"]


def row_of(name, rate, first, mixing=0.3, loss=3.0, **more):
  """Of `controls_of`, with rates and shares of the first token [N, L, H]."""
  rng = np.random.default_rng(0)

  def around(values):
    values = np.asarray(values, float)
    noise = rng.normal(size=(len(SEEDS), *values.shape))
    return (values + 0.001 * noise).tolist()

  return {
    "variant": name,
    "seeds": list(SEEDS),
    "mixing": around(mixing),
    "mixing_rest": around(mixing),
    "rates": around(rate),
    "firsts": around(first),
    "losses": around(np.full(len(rate), loss)),
    **{key: around(value) for key, value in more.items()},
  }


def stored(module, config, rows, truth, folder):
  """The stored result of a sweep whose runs and controls are made up."""
  with outcomes(module, config, truth), pytest.MonkeyPatch.context() as patch:
    patch.setattr(controlled, "controls_of", lambda *args: rows)
    result = module.EXPERIMENT.measure(config, folder=folder)
  return result.as_stored(config)


def verdicts(module, result):
  made = judge(module.EXPERIMENT.claims(result))
  found = {claim.id: claim.verdict for claim in made}
  assert len(found) == len(made)
  return found


def all_drawn(module, result):
  drawn = module.EXPERIMENT.draw(result)
  sections = module.EXPERIMENT.sections(result, drawn)
  assert {section.figure for section in sections} == set(drawn.values())
  assert all(png.startswith(html.PNG_SIGNATURE) for png in drawn.values())
  return sections
