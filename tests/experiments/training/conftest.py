"""Texts that tiny models are trained on."""

import pytest

from sinkjax.experiments.shared.sink_rates import SinkRateConfig


@pytest.fixture(scope="session")
def corpus(tmp_path_factory):
  """A folder with the package's own texts, as a corpus."""
  folder = tmp_path_factory.mktemp("texts")
  for i, text in enumerate(SinkRateConfig().texts.split("\n\n")):
    if len(text) > 200:
      (folder / f"{i}.txt").write_text(text)
  return (str(folder),)
