"""Sampling, streams of tokens, and text from them."""

import itertools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import sinkjax
from sinkjax.inference import generate as module
from sinkjax.inference import kv_policy
from sinkjax.inference.generate import as_text, generate
from sinkjax.inference.sampling import LEAST, Sampling, allowed, draw


@pytest.mark.thorough
def test_greedy_is_the_forward_pass_again_and_again(tiny):
  """Prompts shorter than, as long as and longer than whole chunks."""
  params, cfg = tiny
  f = jax.jit(sinkjax.forward(cfg))
  policy = kv_policy.full(9 + 6, chunk=4)
  for length in (1, 3, 4, 8, 9):
    ids = list(range(5, 5 + length))
    found = list(generate(cfg, params, ids, policy=policy, max_tokens=6))
    for token in found:
      row = jnp.array([ids + [0] * (16 - len(ids))])  # one program for all
      assert token == int(f(params, row).logits[0, len(ids) - 1].argmax())
      ids.append(token)


@pytest.mark.slow
def test_seeds_and_chunks(tiny):
  """Draws depend on seed and position, not on how the prompt was cut."""
  params, cfg = tiny
  how, prompt = Sampling(1.0), list(range(11))

  def run(seed, chunk):
    policy = kv_policy.sinks(2, 6, chunk=chunk)
    tokens = generate(
      cfg, params, prompt, policy=policy, how=how, max_tokens=20, seed=seed
    )
    return list(tokens)

  assert run(0, 4) == run(0, 7) == run(0, 4) != run(1, 4)


@pytest.mark.thorough
def test_draws_have_the_probabilities():
  logits = jnp.log(jnp.array([0.5, 0.3, 0.15, 0.05]))
  rows = jnp.tile(logits[None], (40_000, 1))
  for how, want in (
    (Sampling(1.0), [0.5, 0.3, 0.15, 0.05]),
    (Sampling(1.0, top_p=0.7), [0.625, 0.375, 0, 0]),
    (Sampling(1.0, min_p=0.2), [0.5 / 0.95, 0.3 / 0.95, 0.15 / 0.95, 0]),
    (Sampling(0.5), np.square([0.5, 0.3, 0.15, 0.05]) / 0.365),
  ):
    found = np.bincount(draw(rows, jax.random.key(0), how), minlength=4) / 4e4
    np.testing.assert_allclose(found, want, atol=0.01)
    assert (found[np.array(want) == 0] == 0).all()
  assert int(draw(rows[:1], jax.random.key(0), Sampling(0.0))[0]) == 0


@pytest.mark.thorough
def test_top_p_is_the_smallest_set_by_sorting():
  rng = np.random.default_rng(0)
  for scale, top_p in itertools.product((0.1, 1.0, 8.0), (1e-6, 0.3, 0.9)):
    logits = scale * rng.normal(size=(4, 300))
    p = np.asarray(jax.nn.softmax(jnp.asarray(logits, jnp.float32)))
    may = np.asarray(allowed(jnp.asarray(p), Sampling(1.0, top_p=top_p)))
    for row, mask in zip(p, may, strict=True):
      order = np.argsort(-row)
      count = int(np.searchsorted(np.cumsum(row[order]), top_p)) + 1
      assert set(order[:count]) == set(np.flatnonzero(mask))


@pytest.mark.thorough
def test_endless_with_two_programs(tiny, monkeypatch):
  """200 tokens of a model that knows 64 positions; no program but two."""
  params, cfg = tiny
  chex.clear_trace_counter()
  module._step.cache_clear()
  whole = module.advance

  def counted(*args, **kwargs):
    return chex.assert_max_traces(whole(*args, **kwargs), n=2)

  monkeypatch.setattr(module, "advance", counted)
  policy = kv_policy.sinks(2, 6, chunk=4)
  tokens = generate(
    cfg, params, list(range(30)), policy=policy, how=Sampling(1.0)
  )
  found = list(itertools.islice(tokens, 200))
  assert len(found) == 200 and all(0 <= token < 64 for token in found)
  module._step.cache_clear()
  module._fill.cache_clear()


@pytest.mark.thorough
def test_stop(tiny):
  params, cfg = tiny
  policy = kv_policy.window(8, chunk=4)

  def run(**kwargs):
    return list(
      generate(
        cfg,
        params,
        [1, 2, 3],
        policy=policy,
        how=Sampling(1.0),
        seed=2,
        max_tokens=12,
        **kwargs,
      )
    )

  whole = run()
  at = next(i for i in range(2, 12) if whole[i] not in whole[:i])
  assert run(stop={whole[at]}) == whole[:at]


def test_mistakes(tiny):
  params, cfg = tiny

  def run(prompt=(1,), policy=None, **kwargs):
    policy = policy or kv_policy.window(4)
    return generate(cfg, params, prompt, policy=policy, **kwargs)

  with pytest.raises(ValueError, match="prompt is empty"):
    run(())
  with pytest.raises(ValueError, match="token id 64 is outside"):
    run((64,))
  with pytest.raises(ValueError, match="max_tokens must be at least 1"):
    run(max_tokens=0)
  full = kv_policy.full(8)
  with pytest.raises(ValueError, match="1 tokens of prompt and 8 new ones"):
    run(policy=full, max_tokens=8)
  with pytest.raises(ValueError, match="endless new ones do not fit"):
    run(policy=full)
  cold = {"temperature": 1e-320}
  for bad in ({"temperature": -1}, cold, {"top_p": 0}, {"min_p": 2}):
    with pytest.raises(ValueError, match=f"{next(iter(bad))} must be"):
      Sampling(**bad)


class Letters:
  """A tokenizer of single UTF-8 bytes."""

  def decode(self, ids):
    return bytes(ids).decode("utf-8", "replace")


@pytest.mark.parametrize("text", ["plain", "Été 🙂 ok", "ends with 🙂"])
def test_text_in_whole_characters(text):
  pieces = list(as_text(Letters(), text.encode()))
  assert "".join(pieces) == text
  assert not any("\ufffd" in piece for piece in pieces)


def test_text_that_is_no_utf8():
  ids = [65, 0xFF, 66, 0xF0, 0x9F]
  assert "".join(as_text(Letters(), ids)) == Letters().decode(ids)


def test_the_least_temperature_divides_within_float32():
  """Beyond it, all tokens would be equally infinite."""
  logits = jnp.array([[1.0, 1e8, 2.0]])
  how = Sampling(temperature=LEAST)
  draws = {int(draw(logits, jax.random.key(i), how)[0]) for i in range(9)}
  assert draws == {1}
