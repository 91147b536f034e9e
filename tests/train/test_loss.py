"""Tests of sinkjax.train.loss: packed windows against documents, and noise."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from windows import BOS_ID, batch_of, corpus_of

from sinkjax.data.packing import Packing, Windows
from sinkjax.models.transformer import forward
from sinkjax.train.loss import (
  Along,
  Noise,
  SinkTarget,
  loss_of,
  next_token_nats,
)
from sinkjax.train.step import make_evaluate as uncached
from sinkjax.transforms.capture import capture
from sinkjax.transforms.edits import add
from sinkjax.transforms.intervene import intervene

# A compiled loss serves every test that asks for the same.
make_evaluate = functools.cache(uncached)


def test_uniform_logits_cost_log_v():
  tokens = jnp.arange(12).reshape(2, 6)
  weights = jnp.ones((2, 6), bool).at[1, 3:].set(False)
  loss = next_token_nats(jnp.zeros((2, 6, 50)), tokens, weights)
  assert float(loss.targets) == 7  # 5 and 2: the first is never a target
  np.testing.assert_allclose(float(loss.nats), 7 * np.log(50), rtol=1e-6)


@pytest.mark.parametrize("bos", ["none", "document", "pinned"])
@pytest.mark.parametrize("fill", ["concatenate", "first_fit"])
def test_a_packed_document_costs_what_it_costs_alone(tiny, bos, fill):
  """Reset positions and a document mask: nothing else may be seen."""
  params, cfg = tiny
  corpus = corpus_of([5, 9, 3, 7])
  packing = Packing(
    31, mask="document", bos=bos, reset_positions=True, fill=fill
  )
  windows = Windows(corpus, packing, bos_id=BOS_ID)
  assert len(windows) == 1
  packed = make_evaluate(cfg, separated=True)(params, batch_of(windows))
  leading = int(windows[0]["tokens"][1])
  loss, nats, targets = make_evaluate(cfg, separated=False), 0.0, 0
  for i in range(len(corpus)):
    own = corpus.part([i])
    alone = Packing(int(own.lengths[0]) + 1, bos=bos)
    batch = batch_of(Windows(own, alone, bos_id=BOS_ID))
    if bos == "pinned" and own.tokens[0] != leading:
      # Of a window's documents only the first is predicted from BOS.
      batch["weights"] = batch["weights"].at[0, 1].set(False)
    found = loss(params, batch)
    nats, targets = nats + float(found.nats), targets + float(found.targets)
  assert float(packed.targets) == targets
  np.testing.assert_allclose(float(packed.nats), nats, rtol=2e-6)


def test_without_the_mask_documents_see_each_other(tiny):
  params, cfg = tiny
  windows = Windows(corpus_of([9, 9, 9]), Packing(27, mask="document"))
  batch = batch_of(windows)
  seen, hidden = (
    float(make_evaluate(cfg, separated=s)(params, batch).nats)
    for s in (False, True)
  )
  assert abs(seen - hidden) > 1e-2


@pytest.mark.parametrize("wrong", [SinkTarget(1.2), SinkTarget(0.5, -1.0)])
def test_a_target_that_cannot_be(tiny, wrong):
  with pytest.raises(ValueError, match=r"mass must be in \[0, 1\]"):
    loss_of(forward(tiny[1]), separated=False, sink=wrong)


@pytest.mark.thorough
def test_targets_by_head(tiny, batch):
  """The first heads of each layer have one target, the others another."""
  params, cfg = tiny
  target = SinkTarget(0.8, 3.0, heads=1, others=0.1)
  found = jax.jit(loss_of(forward(cfg), separated=False, sink=target))(
    params, batch
  )
  seen = capture(forward(cfg), {"p": ("pattern", lambda p: p)})
  pattern = jax.jit(seen)(
    params, batch["tokens"], positions=batch["positions"]
  ).trace["p"]
  alpha = np.asarray(pattern, np.float64)[..., 0].mean(axis=(1, 3))  # [L, H]
  off = np.square(alpha - np.array([0.8, 0.1, 0.1, 0.1])).mean()
  np.testing.assert_allclose(
    float(found.penalty), 3.0 * off * float(found.targets), rtol=1e-5
  )
  for wrong, words in (
    (SinkTarget(0.5, heads=5), "must be 0 to 4, got 5"),
    (SinkTarget(0.5, heads=1, others=-0.1), "other heads' sinks must be in"),
  ):
    with pytest.raises(ValueError, match=words):
      loss_of(forward(cfg), separated=False, sink=wrong)


def test_noise_along_a_direction():
  value = jnp.array([[[3.0, 4.0], [0.0, 2.0], [1.0, 1.0]]])
  way = jnp.array([[[0.0, 1e-30], [5.0, 0.0], [0.0, 0.0]]])
  got = Along(way, 0.5)(value, 0)
  np.testing.assert_allclose(got, [[[3, 6.5], [1, 2], [1, 1]]], rtol=1e-6)
  slope = jax.grad(lambda x: jnp.sum(Along(way, 0.5)(x, 0)))(value)
  np.testing.assert_array_equal(slope, jnp.ones_like(value))


@pytest.mark.slow
def test_adversarial_noise_climbs_as_steeply_as_can_be(tiny, batch):
  """To first order share times sum of |e_t| |g_t|, far above any random."""
  params, cfg = tiny
  share = 1e-3
  seen = capture(forward(cfg), {"x": ("embed", lambda x: x)})
  out = seen(params, batch["tokens"], positions=batch["positions"])
  embeds = out.trace["x"]

  def nats(shift):
    g = intervene(forward(cfg), {"embed": add(shift)})
    return loss_of(g, separated=False)(params, batch).nats

  slope = jax.grad(nats)(jnp.zeros(embeds.shape))
  most = share * jnp.sum(
    jnp.linalg.norm(embeds, axis=-1) * jnp.linalg.norm(slope, axis=-1)
  )
  plain = nats(jnp.zeros(embeds.shape))
  rises = []
  for adversarial in (True, False):
    loss = loss_of(
      forward(cfg), separated=False, noise=Noise(share, adversarial)
    )
    rises.append(float(loss(params, batch, jax.random.key(0)).nats - plain))
  assert rises[0] == pytest.approx(float(most), rel=0.1)
  assert abs(rises[1]) < 0.5 * rises[0]


def test_noise_that_cannot_be(tiny):
  with pytest.raises(ValueError, match="must not be negative, got -0.1"):
    loss_of(forward(tiny[1]), separated=False, noise=Noise(-0.1))
