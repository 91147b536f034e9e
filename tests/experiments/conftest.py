"""A tiny model with a tokenizer of whole words, as experiments take it."""

import re

import jax
import numpy as np
import pytest
from variants import scaled

import sinkjax
from sinkjax.experiments.harness.api import Subject
from sinkjax.experiments.shared.benchmark_tasks import Item

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

  def decode(self, ids):
    words = {self.bos_id: "<s>"} | {i: word for word, i in self.ids.items()}
    return " ".join(words[number] for number in ids)


class Whole:
  """A token for each word, with the space before it."""

  bos_id = 1

  def __init__(self):
    self.ids = {}

  def encode(self, text):
    parts = re.findall(r"\s?\w+|\W", text)
    return [self.ids.setdefault(x, len(self.ids) + 2) for x in parts]

  def decode(self, ids):
    back = {i: x for x, i in self.ids.items()}
    return "".join(back.get(int(i), "<s>") for i in ids)


@pytest.fixture(scope="session")
def subject():
  cfg = sinkjax.TINY.replace(n_layers=3)
  params = sinkjax.init_params(cfg, jax.random.key(0))
  params = scaled(params, 1.5)
  return Subject("tiny", params, cfg, Words(), [])


@pytest.fixture(scope="session")
def text():
  """Two texts with four places to swap."""
  return TEXT


@pytest.fixture(scope="session")
def reader():
  """A model that reads any English."""
  cfg = sinkjax.TINY.replace(vocab_size=700, max_len=512)
  params = sinkjax.init_params(cfg, jax.random.key(1))
  params = scaled(params, 2.5)
  return Subject("tiny", params, cfg, Whole(), [])


@pytest.fixture(scope="session")
def items(subject):
  """Makes questions of random words."""

  def make(count=7):
    words, rng = list(subject.tokenizer.ids), np.random.default_rng(1)

    def text(low, high):
      return " ".join(rng.choice(words, rng.integers(low, high)))

    made = []
    for _ in range(count):
      endings = tuple(f" {text(1, 4)}" for _ in range(3))
      right = np.arange(3) == rng.integers(3)
      made.append(Item(text(2, 30), endings, tuple(map(bool, right))))
    return made

  return make
