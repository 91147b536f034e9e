"""How fast this machine is now, measured for estimates of time.

A large product alone does not tell what a score of attention takes, which is
an exponential and a few passes over memory; how fast weights are read, which
bounds a model that makes one token at a time; and how long Python and the
compiler take on cores that do other work, too.
"""

import functools
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
  import jax

  from sinkjax.config import ModelConfig

START = 8.0
"""Seconds to start, to read a small model, to compile and to draw the figures,
where COMPILED is what a compilation takes."""

COMPILED = 0.4
"""Seconds to compile `_attention`, on two free cores of an EPYC processor."""

NARROW = 3.0
"""A layer's products take so many times as long as a large one: measured for
SmolLM2 at 64, 512 and 2,048 tokens, 2.7 to 2.9 with norms and metrics."""

STEP = 0.001
"""Seconds for the call of a compiled program that makes one token."""


COMPILATIONS = 3
"""How often it is compiled to measure this."""

HEADS, LENGTH, WIDTH = 2, 1024, 64
"""Of the attention that is timed: 2 million scores, which take 50 ms."""


class Host(NamedTuple):
  """What was measured of this machine.

  Attributes:
    product: operations a second of a large matrix product.
    score: seconds for one score of attention: product, mask, softmax, average.
    slowness: how many times as long a compilation takes as where START was
      measured; more than 1 also where other work has the cores.
  """

  product: float
  score: float
  slowness: float

  def seconds(self, start: float, work: float) -> float:
    """Of a command.

    Args:
      start: what does not depend on the texts, where slowness is 1.
      work: seconds of products and scores, as this machine does them.
    """
    return start * self.slowness + work


def measure(dtype: str = "float32") -> Host:
  """Measures for about two seconds.

  Args:
    dtype: of the products.
  """
  import jax
  import jax.numpy as jnp
  import numpy as np

  from sinkjax.transforms.jacobian_plan import matmul_rate

  x = np.linspace(-1, 1, HEADS * LENGTH * WIDTH, dtype=np.float32)
  x = jnp.asarray(x.reshape(HEADS, LENGTH, WIDTH))
  begun = time.perf_counter()
  for _ in range(COMPILATIONS):
    # Of a new function each time: JAX keeps the program of one that it knows.
    program = jax.jit(functools.partial(_attention)).lower(x).compile()
  # The average, not the best: other work on the cores comes and goes.
  compiled = (time.perf_counter() - begun) / COMPILATIONS
  score = best(program, x) / (HEADS * LENGTH**2)
  return Host(matmul_rate(dtype), score, compiled / COMPILED)


def _attention(x_HxTxK: "jax.Array") -> "jax.Array":
  """A head's work, with what metrics read of the pattern: two of its forms."""
  import jax
  import jax.numpy as jnp

  scores = jnp.einsum("htk,hsk->hts", x_HxTxK, x_HxTxK)
  past = jnp.tril(jnp.ones((LENGTH, LENGTH), bool))
  pattern = jax.nn.softmax(jnp.where(past, scores, -jnp.inf), axis=-1)
  mixed = jnp.einsum("hts,hsk->htk", pattern, x_HxTxK)
  logs = jnp.where(past, jnp.log(pattern + 1e-9), 0)
  return mixed.sum() + (pattern * logs).sum() + pattern[:, :, 0].sum()


def read_rate() -> float:
  """Bytes a second at which weights are read for a single token."""
  import jax
  import jax.numpy as jnp

  # 128 MB, which is more than caches hold.
  many, size = 2, 4096
  weights = jnp.ones((many, size, size))

  def walk(weights: "jax.Array", x: "jax.Array") -> "jax.Array":
    for i in range(many):
      x = jnp.tanh(weights[i] @ x)
    return x

  seconds = best(jax.jit(walk), weights, jnp.ones(size))
  return 4 * many * size**2 / seconds


def best(program: Callable[..., "jax.Array"], *args: "jax.Array") -> float:
  """Seconds of a compiled program, the least of three calls."""
  import jax

  jax.block_until_ready(program(*args))
  found = []
  for _ in range(3):
    start = time.perf_counter()
    jax.block_until_ready(program(*args))
    found.append(time.perf_counter() - start)
  return min(found)


def forward_seconds(
  cfg: "ModelConfig", parameters: int, lengths: Sequence[int], host: Host
) -> float:
  """A forward pass with every metric of each text, without the start.

  Args:
    cfg: the model.
    parameters: how many it has.
    lengths: tokens of each text.
    host: of `measure`.
  """
  # A multiplication and an addition for each parameter and token.
  products = 2 * sum(lengths) * parameters / host.product
  scores = cfg.n_layers * cfg.n_heads * sum(n**2 for n in lengths)
  return NARROW * products + scores * host.score


def token_seconds(weights: float, read: float) -> float:
  """One new token of a text.

  Args:
    weights: bytes of them.
    read: of `read_rate`.
  """
  return STEP + weights / read


def generation(cfg: "ModelConfig", prompt: int, most: int, held: float) -> str:
  """About how long a text takes, for a plan; measures this machine.

  Args:
    cfg: the model.
    prompt: tokens of it.
    most: new tokens, 0 for no limit.
    held: bytes of weights and cache, which are read for a token.
  """
  import jax

  from launch import app
  from sinkjax.models.transformer import param_shapes

  each = token_seconds(held, read_rate())
  if not most:
    return f"about {1 / each:.2g} tokens/s"
  count = sum(x.size for x in jax.tree.leaves(param_shapes(cfg)))
  host = measure()
  work = forward_seconds(cfg, count, [prompt], host) + most * each
  return (
    f"about {app.duration(host.seconds(START, work))}, {1 / each:.2g} "
    "tokens/s, compilation included"
  )
