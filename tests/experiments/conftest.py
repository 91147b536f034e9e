"""A tiny model with a tokenizer of whole words, as experiments take it."""

import jax
import pytest

import sinkjax
from sinkjax.experiments.result import Subject

TEXT = """\
the old {cat|dog} saw the {red|green} bird and
then {ran|walked} to the garden by the road

a man of the {north|south} had a very long road to go by
the garden and the old bird saw him go
"""


class Words:
  """A token for each word; "walked" has two."""

  bos_id = 1

  def __init__(self):
    words = TEXT.replace("{", " ").replace("}", " ").replace("|", " ").split()
    self.ids = {word: i + 2 for i, word in enumerate(dict.fromkeys(words))}

  def encode(self, text):
    found = []
    for word in text.split():
      found += [self.ids[word]] * (2 if word == "walked" else 1)
    return found


@pytest.fixture(scope="session")
def subject():
  cfg = sinkjax.TINY.replace(n_layers=3)
  params = sinkjax.init_params(cfg, jax.random.key(0))
  params = jax.tree.map(lambda x: x * 1.5, params)
  return Subject("tiny", params, cfg, Words(), [])


@pytest.fixture(scope="session")
def text():
  """Two texts with four places to swap."""
  return TEXT
