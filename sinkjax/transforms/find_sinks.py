"""Every attention sink of a text, wherever it stands.

A sink need not be the first token: delimiters, newlines and repeated words
become sinks of their own in the middle of a text, for all layers or for some.
Three signs tell them, each with its own threshold: attention received, the norm
of the hidden state, and its direction, which in the middle layers is the first
token's. The sign by direction is read in the code of arXiv 2512.22213, where
those of a short life are called secondary; its rule for a life counts layers
from the model's end, ours compares with the first token's own life, so that it
serves shallow models as well.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Array, Bool, Float, Int

from sinkjax.metrics.norms import token_norms
from sinkjax.metrics.precision import divide, wide
from sinkjax.metrics.rows import received_mass
from sinkjax.transforms.capture import capture
from sinkjax.transforms.streaming import stream_statistics


class Sink(NamedTuple):
  """One token that is a sink.

  Attributes:
    text: which of the texts.
    position: of the token.
    token: its id.
    kind: "lasting" where the hidden state shows it for at least half of the
      first token's life, "passing" where for less, "attention" where only
      attention does.
    first_layer: the first layer after which it shows, counted from 0.
    last_layer: the last one.
    heads: heads, of all layers, that give it more than `eps`.
    received: the largest attention that it receives from a head.
    norm: its largest norm over that of the tokens that are no sinks.
    cosine: its largest |cosine| with the first token while that is a sink.
    value: the norm of its values over the median of the text's tokens, mean
      over the layers in which it shows.
  """

  text: int
  position: int
  token: int
  kind: str
  first_layer: int
  last_layer: int
  heads: int
  received: float
  norm: float
  cosine: float
  value: float


class FoundSinks(NamedTuple):
  """What `find_sinks` returns.

  Attributes:
    sinks: by text and position.
    mask: [B, T] True at every sink.
    life: [B, 2] the first and the last layer after which the first token has
      the norm to which it rises.
  """

  sinks: list[Sink]
  mask: Bool[np.ndarray, "B T"]
  life: Int[np.ndarray, "B 2"]


def find_sinks(
  fn: Callable,
  params: Any,
  tokens: ArrayLike,
  *,
  eps: float = 0.3,
  heads: float = 0.05,
  ratio: float = 10.0,
  cosine: float = 0.9,
  queries: int = 8,
) -> FoundSinks:
  """Every sink of some texts of one length, at whatever position.

  With h_lt the residual stream after layer l at token t, a_lht the mean
  attention that head h gives to t, and r to f - 1 the first token's life,
  between the largest rise of its norm and the largest fall after that, token t
  is a sink

      by direction   after layer l, r <= l < f, if |cos(h_lt, h_l0)| > cosine
      by norm        after layer l if ||h_lt|| > ratio m_l, m_l the median norm
                     of the tokens that are no sink by direction
      by attention   if a_lht > eps for a share of at least `heads` of all heads
                     of the model, and T - t >= queries

  The first token has its own direction whatever it is: it counts by norm and
  attention alone. Where no other token is left (of a word that is repeated all
  become sinks) m_l is the median of all before the rise.

  Args:
    fn: `forward(cfg)`, or an `intervene` or `capture` of it.
    params: its parameters, or weights read layer by layer.
    tokens: one text [T], or several [B, T], unpadded.
    eps: least attention of a head, as in `sink_rate`.
    heads: least share of heads. Some heads attend to a few tokens for what
      they say, and a share of one head in twenty is more than those are.
    ratio: least norm over the median; the massive tokens of the models measured
      have tens to hundreds of times the median, others less than 4 times.
    cosine: least |cosine|; 0.9 in the code of arXiv 2512.22213.
    queries: fewest queries over which attention to a token is averaged: of the
      last tokens each is seen by a few only, itself first of all.

  Raises:
    ValueError: for thresholds out of range, or as `forward` does.

  Cost: `stream_statistics` with one statistic; L B T (H + 4) numbers of memory
  beside it.

  >>> import jax, sinkjax
  >>> params = sinkjax.init_params(sinkjax.TINY, jax.random.key(0))
  >>> f = sinkjax.forward(sinkjax.TINY)
  >>> find_sinks(f, params, jax.numpy.arange(20), eps=0.9).mask.shape
  (1, 20)
  """
  for name, value, low, high in (
    ("eps", eps, 0, 1),
    ("heads", heads, 0, 1),
    ("cosine", cosine, 0, 1),
    ("ratio", ratio, 1, float("inf")),
  ):
    if not low < value < high:
      raise ValueError(f"{name} must be in ({low}, {high}), got {value}")
  if queries < 1:
    raise ValueError(f"queries must be at least 1, got {queries}")
  tokens = np.atleast_2d(np.asarray(tokens))
  observers = {
    "find_sinks_start": ("embed", token_norms),
    "find_sinks_state": ("resid_post", _state),
    "find_sinks_value": ("v", _value_norms),
  }
  run = stream_statistics(
    capture(fn, observers), {"find_sinks_received": received_mass()}, nll=False
  )
  trace = run(params, tokens).trace
  found = {name: np.asarray(trace[f"find_sinks_{name}"]) for name in _NAMES}
  norms, cosines = (
    np.asarray(trace["find_sinks_state"][name]) for name in ("norm", "cosine")
  )
  sinks, life = [], []
  for b in range(len(tokens)):
    of_text = _Signs(
      start=found["start"][b],
      norms=norms[:, b],
      cosines=np.abs(cosines[:, b]),
      values=found["value"][:, b],
      received=found["received"][:, b],
    )
    first = np.concatenate([of_text.start[:1], of_text.norms[:, 0]])
    lived = life_of(first)
    life.append((lived[0], lived[1] - 1))
    sinks += _of_text(
      of_text,
      tokens[b],
      lived,
      b,
      eps=eps,
      least=heads,
      ratio=ratio,
      cosine=cosine,
      queries=queries,
    )
  mask = np.zeros(tokens.shape, bool)
  for sink in sinks:
    mask[sink.text, sink.position] = True
  return FoundSinks(sinks, mask, np.asarray(life))


_NAMES = "start", "value", "received"


class _Signs(NamedTuple):
  """Of one text: norms of the embedding [T]; the rest by layer.

  Norms, |cosines| with the first token and norms of values [L, T], attention
  received [L, H, T].
  """

  start: np.ndarray
  norms: np.ndarray
  cosines: np.ndarray
  values: np.ndarray
  received: np.ndarray


def _state(hidden: Float[Array, "B T D"]) -> dict[str, Float[Array, "B T"]]:
  norms, hidden = token_norms(hidden), wide(hidden)
  along = jnp.sum(hidden * hidden[:, :1], axis=-1)
  return {"norm": norms, "cosine": divide(along, norms * norms[:, :1])}


def _value_norms(values: Float[Array, "B T N K"]) -> Float[Array, "B T"]:
  return jnp.mean(token_norms(values), axis=-1)


def life_of(first: Float[np.ndarray, "states"]) -> tuple[int, int]:
  """The layer of the first token's largest rise, and that of its fall.

  The fall is the largest one after the rise, and the number of layers if there
  is none.

  Args:
    first: its norms after the embedding and each layer.

  >>> life_of(np.array([1.0, 2.0, 90.0, 91.0, 5.0])), life_of(np.arange(4.0))
  ((1, 3), (0, 3))
  """
  change = np.diff(first)
  rise = int(np.argmax(change))
  after = change[rise + 1 :]
  if not after.size or after.min() >= 0:
    return rise, len(change)
  return rise, rise + 1 + int(np.argmin(after))


def _of_text(
  signs: _Signs,
  ids: np.ndarray,
  life: tuple[int, int],
  text: int,
  *,
  eps: float,
  least: float,
  ratio: float,
  cosine: float,
  queries: int,
) -> list[Sink]:
  """The sinks of one text, by position."""
  layers, length = signs.norms.shape
  rise, fall = life
  alive = np.zeros((layers, 1), bool)
  alive[rise:fall] = True
  direction = (signs.cosines > cosine) & alive
  relative = signs.norms / _usual(signs, direction, rise)
  values = signs.values / np.median(signs.values, axis=1, keepdims=True)
  direction[:, 0] = False
  shown = (relative > ratio) | direction
  heads = signs.received > eps
  heads[..., length - queries + 1 :] = False
  attended = heads.mean(axis=(0, 1)) >= least
  sinks = []
  for t in np.flatnonzero(shown.any(axis=0) | attended):
    lived = int(shown[:, t].sum())
    at = np.flatnonzero(shown[:, t] if lived else heads[..., t].any(axis=1))
    kind = "attention"
    if lived:
      kind = "lasting" if 2 * lived >= fall - rise else "passing"
    cosines = signs.cosines[rise:fall, t]
    sinks.append(
      Sink(
        text,
        int(t),
        int(ids[t]),
        kind,
        int(at[0]),
        int(at[-1]),
        int(heads[..., t].sum()),
        float(signs.received[..., t].max()),
        float(relative[:, t].max()),
        float(cosines.max()),
        float(values[at, t].mean()),
      )
    )
  return sinks


def _usual(signs: _Signs, direction: np.ndarray, rise: int) -> np.ndarray:
  """[L, 1] the norm of tokens that are no sink by direction."""
  layers = len(signs.norms)
  before = signs.start if rise == 0 else signs.norms[rise - 1]
  usual = np.full((layers, 1), np.median(before))
  for layer in range(layers):
    others = signs.norms[layer][~direction[layer]]
    if others.size:
      usual[layer] = np.median(others)
  return usual
