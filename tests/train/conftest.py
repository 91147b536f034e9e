"""What the tests of losses and steps share."""

import pytest
from windows import EOS_ID, batch_of, corpus_of

from sinkjax.data.packing import Packing, Windows


@pytest.fixture
def batch():
  """25 windows of 15 tokens, of nine documents one after the other."""
  packing = Packing(15, eos=True)
  return batch_of(Windows(corpus_of([40] * 9), packing, eos_id=EOS_ID))
