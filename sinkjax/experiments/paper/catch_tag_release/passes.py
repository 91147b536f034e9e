"""The forward passes of the experiment, each compiled once.

Axes: L layers, R roles, B texts of a batch, H heads, N KV heads, T tokens.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from sinkjax.config import ModelConfig
from sinkjax.metrics.precision import wide
from sinkjax.metrics.tags import coefficient, share_along, tag, written_by
from sinkjax.models.transformer import forward
from sinkjax.transforms.capture import capture
from sinkjax.transforms.direction_edits import TakeOut
from sinkjax.transforms.intervene import intervene


def check(cfg: ModelConfig) -> None:
  """Refuses a model whose heads write no linear map of what they mix.

  Raises:
    ValueError: naming the field of the config.
  """
  if cfg.gates_heads or cfg.post_norms:
    name = f"gate={cfg.gate!r}" if cfg.gates_heads else "post_norms"
    raise ValueError(
      "what a sink writes is its value through the output projection, which a "
      f"model with {name} changes for each query; choose another model"
    )


def look(cfg: ModelConfig) -> Callable:
  """`f(params, ids [B, T], keys [R, B], queries [R, B, T])`.

  Gives "tags" [L, R, B, D], "caught" [L, R, B], the mean attention on the key,
  and shares along tags [L, R, B]: of a head's output along what the head itself
  wrote, mean over heads; of the attention's output and of the stream along the
  tag. "level" [L, R, B] is the mean coefficient of the attention's output.
  """

  @jax.jit
  def run(
    params: Any, ids: jax.Array, keys: jax.Array, queries: jax.Array
  ) -> dict[str, jax.Array]:
    rows = jnp.arange(len(ids))

    def at_keys(
      pattern: jax.Array, v: jax.Array
    ) -> tuple[jax.Array, jax.Array]:
      weights = jnp.stack([pattern[rows, :, :, key] for key in keys])
      return weights, jnp.stack([v[rows, key] for key in keys])

    watch = {
      "keys": (("pattern", "v"), at_keys),
      "z": ("z", lambda x: x),
      "attention": ("attn_out", lambda x: x),
      "stream": ("resid_post", lambda x: x),
    }
    seen = capture(forward(cfg), watch)(params, ids).trace
    kernels = params["blocks"]["attn"]["o"]["kernel"]

    def of_layer(given: tuple) -> dict[str, jax.Array]:
      kernel, (weights, values), z, attention, stream = given
      written = jax.vmap(written_by, (0, None))(values, kernel)
      tags = jax.vmap(tag)(weights, written, queries)
      heads = jnp.einsum("bthk,hkd->bhtd", wide(z), wide(kernel))

      def along(
        x: jax.Array,
        directions: jax.Array,
        late: jax.Array,
        centred: bool = True,
      ) -> jax.Array:
        # One role after the other: each has its own queries.
        f = functools.partial(share_along, centred=centred)
        return jax.vmap(f, (None, 0, 0))(x, directions, late)

      late = queries[:, :, None]
      count = jnp.maximum(queries.sum(axis=-1), 1)
      levels = jax.vmap(lambda u: coefficient(attention, u))(tags)
      mass = jnp.where(queries[:, :, None], wide(weights), 0).mean(axis=2)
      return {
        "tags": tags,
        "caught": mass.sum(axis=-1) / count,
        "level": jnp.where(queries, levels, 0).sum(axis=-1) / count,
        "heads": along(heads, written, late).mean(axis=-1),
        "heads squared": along(heads, written, late, False).mean(axis=-1),
        "attention": along(attention, tags, queries),
        "attention squared": along(attention, tags, queries, False),
        "stream": along(stream, tags, queries),
      }

    return jax.lax.map(
      of_layer,
      (kernels, seen["keys"], seen["z"], seen["attention"], seen["stream"]),
    )

  return run


def probe(cfg: ModelConfig) -> Callable:
  """`f(params, ids [B, T], directions [L, R, B, D])`.

  Gives "mass" [L, B, T], the attention on position 0, mean over heads, and the
  coefficients [L, R, B, T] of the "attention"'s output and of the "stream".
  """

  @jax.jit
  def run(
    params: Any, ids: jax.Array, directions: jax.Array
  ) -> dict[str, jax.Array]:
    watch = {
      "mass": ("pattern", lambda x: wide(x[..., 0]).mean(axis=1)),
      "attention": ("attn_out", lambda x: x),
      "stream": ("resid_post", lambda x: x),
    }
    seen = capture(forward(cfg), watch)(params, ids).trace
    along = {
      name: coefficient(seen[name][:, None], directions)
      for name in ("attention", "stream")
    }
    return {"mass": seen["mass"], **along}

  return run


def without(cfg: ModelConfig) -> Callable:
  """`f(params, ids, read [L, B, D], write, queries [B, T], level [L, B])`.

  What `TakeOut` takes.

  Gives two [B, T - 1]: nats by which the loss of the next token rises, and KL
  of the unchanged model's distribution to the changed one's.
  """
  f = forward(cfg)

  @jax.jit
  def run(
    params: Any,
    ids: jax.Array,
    read: jax.Array,
    write: jax.Array,
    queries: jax.Array,
    level: jax.Array,
  ) -> tuple[jax.Array, jax.Array]:
    edit = TakeOut(read, write, queries, level)
    plain, edited = (
      jax.nn.log_softmax(wide(g(params, ids).logits[:, :-1]))
      for g in (f, intervene(f, {"attn_out": edit}))
    )
    gap = plain - edited
    change = jnp.take_along_axis(gap, ids[:, 1:, None], axis=-1)[..., 0]
    return change, jnp.sum(jnp.exp(plain) * gap, axis=-1)

  return run
