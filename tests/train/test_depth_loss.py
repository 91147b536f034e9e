"""Tests of sinkjax.train.depth_loss, against loops in NumPy."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import sinkjax
from sinkjax.data.packing import Packing
from sinkjax.train.depth_loss import HaltTerm, TopTokens, divergence, stopping
from sinkjax.train.loss import loss_of
from sinkjax.train.optimizer import OptimizerConfig
from sinkjax.train.run_config import TrainConfig

SHAPE = (2, 8)
RNG = np.random.default_rng(0)
TOKENS = RNG.integers(64, size=SHAPE)
WEIGHTS = RNG.random(SHAPE) < 0.7
BATCH = {
  "tokens": jnp.asarray(TOKENS),
  "weights": jnp.asarray(WEIGHTS),
  "positions": jnp.asarray(np.tile(np.arange(SHAPE[1]), (2, 1))),
}
TERM = HaltTerm(weight=0.4, prior=0.2)


@pytest.mark.thorough
def test_where_a_token_stops():
  """By hand: a chain of three layers, and the prior with its rest there."""
  share = np.array([[0.5, 0.0], [0.25, 1.0], [0.9, 0.3]])
  p = stopping(jnp.asarray(share))
  np.testing.assert_allclose(p, [[0.5, 0], [0.125, 1], [0.375, 0]], rtol=1e-6)
  prior = np.array([0.2, 0.16, 0.64])
  want = [
    sum(x * np.log(x / y) for x, y in zip(column, prior, strict=True) if x)
    for column in np.asarray(p, float).T
  ]
  np.testing.assert_allclose(divergence(p, 0.2), want, rtol=1e-5)
  # Of the prior itself it is nothing, and nowhere is its slope no number.
  same = jnp.asarray(prior)[:, None]
  np.testing.assert_allclose(divergence(same, 0.2), 0, atol=1e-6)
  slope = jax.grad(lambda s: divergence(stopping(s), 0.2).sum())
  assert np.isfinite(slope(jnp.asarray(share))).all()


@pytest.mark.parametrize(("share", "count"), [(0.25, 2), (0.5, 4), (0.01, 1)])
def test_top_tokens(share, count):
  router = jnp.asarray([[3.0, -1, 5, 5, 0, 5, 2, 1]])
  edit, taken = TopTokens(share), jnp.ones((1, 8))
  got = np.asarray(edit(taken, 1, router))[0]
  # Of three equal ones the first come first.
  order = [2, 3, 5, 0, 6, 7, 4, 1]
  assert set(np.flatnonzero(got)) == set(order[:count])
  np.testing.assert_array_equal(edit(taken, 2, router), taken)


def nats_of(logits):
  """[B, T] nats of the next token, in float64."""
  logits = np.asarray(logits, np.float64)
  logs = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
  following = np.roll(TOKENS, -1, axis=1)
  return -np.take_along_axis(logs, following[..., None], -1)[..., 0]


def targets():
  found = np.roll(WEIGHTS, -1, axis=1)
  found[:, -1] = False
  return found


@pytest.mark.thorough
def test_the_loss_of_halting():
  """Each layer's own prediction, by models of so many layers."""
  cfg = sinkjax.TINY.replace(depth="halting")
  params = sinkjax.init_params(cfg, jax.random.key(0))
  params = jax.tree.map(lambda x: 1.5 * x + 0.01, params)
  loss = jax.jit(loss_of(sinkjax.forward(cfg), separated=False, depth=TERM))
  got = loss(params, BATCH)
  nats, shares = [], []
  for layers in range(1, 4):
    small = cfg.replace(n_layers=layers)
    blocks = jax.tree.map(lambda x, n=layers: x[:n], params["blocks"])
    every = {"depth_open": lambda taken, layer: jnp.ones_like(taken)}
    open_all = sinkjax.intervene(sinkjax.forward(small), every)
    see = {"h": ("halt_share", lambda h: h)}
    run = jax.jit(sinkjax.capture(open_all, see))
    out = run({**params, "blocks": blocks}, BATCH["tokens"])
    nats.append(nats_of(out.logits))
    shares.append(np.asarray(out.trace["h"][-1], np.float64))
  p, left = [], np.ones(SHAPE)
  for h in shares[:-1]:
    p.append(left * h)
    left = left * (1 - h)
  p.append(left)
  prior = np.array([0.2, 0.16, 0.64])
  mean = sum(a * b for a, b in zip(p, nats, strict=True))
  kl = sum(a * np.log(a / b) for a, b in zip(p, prior, strict=True))
  at = targets()
  np.testing.assert_allclose(got.nats, mean[at].sum(), rtol=1e-5)
  np.testing.assert_allclose(got.penalty, 0.4 * kl[at].sum(), rtol=1e-4)
  assert got.targets == at.sum()
  # Without the term it is the loss of use, where tokens stop.
  use = jax.jit(loss_of(sinkjax.forward(cfg), separated=False))(params, BATCH)
  out = jax.jit(sinkjax.forward(cfg))(params, BATCH["tokens"])
  np.testing.assert_allclose(use.nats, nats_of(out.logits)[at].sum(), rtol=1e-5)
  assert use.penalty == 0 and abs(use.nats - got.nats) > 0.1
  slope = jax.jit(jax.grad(lambda p: loss(p, BATCH).objective))(params)
  halt = np.asarray(slope["blocks"]["depth"]["halt"]["kernel"])
  assert np.abs(halt[:2]).max(axis=(1, 2)).min() > 1e-3


@pytest.mark.thorough
def test_the_loss_of_routed_layers():
  """The largest weights take layer 1, and the predictor learns to say so."""
  cfg = sinkjax.TINY.replace(depth="routed", depth_share=0.375)
  params = sinkjax.init_params(cfg, jax.random.key(0))
  params = jax.tree.map(lambda x: 1.5 * x + 0.01, params)
  f = sinkjax.forward(cfg)
  loss = jax.jit(loss_of(f, separated=False, depth=HaltTerm()))
  got = loss(params, BATCH)
  see = {s: (s, lambda x: x) for s in ("depth_router", "depth_predictor")}
  trace = jax.jit(sinkjax.capture(f, see))(params, BATCH["tokens"]).trace
  router = np.asarray(trace["depth_router"][1])
  # What enters layer 1 is the same in training and in use.
  top = np.zeros(SHAPE)
  for row in range(2):
    top[row, np.argsort(-router[row])[:3]] = 1
  logit = np.asarray(trace["depth_predictor"][1], np.float64)
  right = np.where(top == 1, logit, -logit)
  entropy = np.log1p(np.exp(-right)).mean()
  at = targets()
  np.testing.assert_allclose(got.penalty, entropy * at.sum(), rtol=1e-5)

  def held(taken, layer):
    return jnp.where(jnp.asarray(layer) == 1, jnp.asarray(top), taken)

  forced = sinkjax.intervene(f, {"depth_open": held})
  out = jax.jit(forced)(params, BATCH["tokens"])
  np.testing.assert_allclose(got.nats, nats_of(out.logits)[at].sum(), rtol=1e-5)
  # The term trains the predictor alone, and the nats all but the predictor.
  slopes = [
    jax.jit(jax.grad(lambda p, of=of: getattr(loss(p, BATCH), of)))(params)
    for of in ("penalty", "nats")
  ]
  by_term, by_nats = (s["blocks"]["depth"] for s in slopes)
  assert np.abs(by_term["predictor"]["kernel"][1]).max() > 1e-3
  assert not np.any(by_nats["predictor"]["kernel"])
  assert np.abs(by_nats["router"]["kernel"][1]).max() > 1e-4
  rest = slopes[0]["blocks"]["mlp"]["up"]["kernel"]
  assert not np.any(rest) and not np.any(by_term["router"]["kernel"])


def test_a_run_names_its_term():
  def run(depth, **fields):
    model = sinkjax.TINY.replace(depth=depth)
    return TrainConfig(model, Packing(length=32), OptimizerConfig(), **fields)

  fields = {"probe_tokens": 32}
  plain = run("none", **fields).to_dict()
  assert not {"halt_weight", "halt_prior"} & set(plain)
  halting = run("halting", halt_prior=0.2, **fields)
  assert halting.halt() == HaltTerm(0.01, 0.2)
  assert TrainConfig.from_dict(halting.to_dict()) == halting
  for wrong in ({"halt_prior": 1.0}, {"halt_weight": -1.0}):
    with pytest.raises(ValueError, match="halt_weight must not be negative"):
      dataclasses.replace(halting, **wrong)
  with pytest.raises(ValueError, match="need model.depth='halting', got 'rout"):
    run("routed", halt_prior=0.2, **fields)
