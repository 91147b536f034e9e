"""Quantised models, with and without the first token kept in full precision.

Keys and values are rounded to few bits, or weights and what they multiply; the
sink token stays as it is, or a control token does, or none. Loss and KL
divergence from the whole model over many texts; which layers need it.
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from sinkjax.experiments.applications.kv_quantisation.claims import (
  claims,
  share_bought,
)
from sinkjax.experiments.harness.api import Result, Subject
from sinkjax.experiments.harness.stats import ends_of, mean_over
from sinkjax.experiments.shared.prompt_corpus import Text, apart, gather
from sinkjax.inference.quantize import Quantize, before_rotation
from sinkjax.inference.quantize_linear import (
  INPUTS,
  RANGES,
  limits_of,
  quantize_inputs,
  quantize_weights,
  range_observers,
)
from sinkjax.models.transformer import forward
from sinkjax.transforms.capture import capture
from sinkjax.transforms.intervene import intervene

NAME, TITLE = "kv_quantisation", "One token in full precision"
NOTHING, SINK, CONTROL = KEPT = ("nothing", "sink", "control")
LAYOUTS = ("token", "channel", "before rotation", "tensor")
"""What shares a step. "token": the numbers of a token's head, keys and values.
"channel": keys of a channel in groups of tokens, values per token (KIVI).
"before rotation": keys of a channel over the text, before they are rotated,
values per token (KVQuant). "tensor": all keys, all values of a text."""

NOWHERE = -1
"""A position and a layer that there is not."""


@dataclasses.dataclass(frozen=True)
class Config:
  """What is run.

  Attributes:
    count: texts of each domain, as in the experiment `prompts`.
    tokens: T of each; shorter texts are left out.
    calibrating: texts kept apart, on which static ranges are found.
    bits: of keys and values.
    group: tokens of a channel that share a step, in the layout "channel".
    widths: (bits of weights, bits of activations).
    control: the position kept instead of the first.
    layer_texts: texts on which single layers are rounded, 2 at least.
    claim_bits: of keys and values, in the claims about them.
    batch: texts in one forward pass.
    seed: of the choice of texts.
  """

  count: int = 6
  tokens: int = 128
  calibrating: int = 8
  bits: tuple[int, ...] = (8, 4, 3, 2)
  group: int = 32
  widths: tuple[tuple[int, int], ...] = ((8, 8), (4, 8), (4, 4))
  control: int = 1
  layer_texts: int = 16
  claim_bits: int = 3
  batch: int = 8
  seed: int = 0


class Setting(NamedTuple):
  """One way to quantise: weights of `params`, and edits."""

  params: Any
  edits: dict[str, Any]


class Cost(NamedTuple):
  """What a setting costs.

  Attributes:
    loss: [P] increase, nats a token.
    kl: [P] KL(whole || quantised), nats a token.
  """

  loss: np.ndarray
  kl: np.ndarray


def run(
  subject: Subject,
  config: Config,
  *,
  texts: Sequence[Text] | None = None,
  progress: Callable[[int, int], Any] = lambda done, total: None,
) -> Result:
  """Every setting on every text, then single layers and sites.

  Args:
    subject: the model; its weights in memory.
    config: what is run.
    texts: other texts than those of `gather`.
    progress: called with (batches done, in all), a batch under one setting.

  Raises:
    ValueError: for too few texts that are long enough, or a config that
      names no token, or not the widths that the claims are about.

  Cost: a forward pass of every text for each setting: 3 times 4 layouts times
    the bits, 3 times 3 ranges times the widths, and one for each width of
    weights; 2 L + 8 more of `layer_texts`.
  """
  _check(config)
  calibrating, held = _split(subject, config, texts)
  some = held[: config.layer_texts]
  limits = _calibrate(subject, config, calibrating)
  settings = _kv_settings(subject, config)
  settings |= _linear_settings(subject, config, limits)
  layers = subject.cfg.n_layers
  batches = -(-len(held) // config.batch), -(-len(some) // config.batch)
  single = 2 * layers + 2 * len(INPUTS)
  total, done = len(settings) * batches[0] + single * batches[1], 0

  def step():
    nonlocal done
    done += 1
    progress(done, total)

  measure = _measurer(subject, config, step)
  whole, found = measure(held, settings)
  telling = _most_telling(found)
  _, alone = measure(some, _layer_settings(subject, config, telling))
  _, sites = measure(some, _site_settings(subject, config, limits))
  return _result(
    subject,
    config,
    (len(calibrating), len(held), len(some)),
    whole,
    found,
    telling,
    alone,
    sites,
  )


def _check(config: Config) -> None:
  if not 0 < config.control < config.tokens - 2:
    raise ValueError(
      f"control must be in [1, {config.tokens - 2}), got {config.control}"
    )
  if config.layer_texts < 2:
    raise ValueError(
      "an interval needs two texts: layer_texts must be 2 at least, got "
      f"{config.layer_texts}"
    )
  if config.claim_bits not in config.bits:
    raise ValueError(
      f"claim_bits must be one of bits={config.bits}, got {config.claim_bits}"
    )
  missing = {(8, 8), (4, 4)} - set(map(tuple, config.widths))
  if missing:
    raise ValueError(
      "the claims are about widths (8, 8) and (4, 4), got "
      f"{tuple(config.widths)}"
    )


def _split(subject, config, texts) -> tuple[np.ndarray, np.ndarray]:
  """(ids of texts that calibrate, ids of the others), [P, T] each."""
  texts = gather(config.count, config.seed) if texts is None else texts
  rows = [subject.prefix + subject.tokenizer.encode(x.text) for x in texts]
  ids = [row[: config.tokens] for row in rows if len(row) >= config.tokens]
  if config.calibrating < 1 or len(ids) < config.calibrating + 2:
    raise ValueError(
      f"{len(ids)} texts have {config.tokens} tokens; {config.calibrating} "
      "that calibrate, 1 at least, and 2 more are needed"
    )
  return apart(np.array(ids), config.calibrating, config.seed)


def _kept(config: Config) -> dict[str, int]:
  """The position that is kept, by name."""
  return {NOTHING: NOWHERE, SINK: 0, CONTROL: config.control}


def _calibrate(subject: Subject, config: Config, ids):
  """{kept: {site: [L, 2]}}."""
  f = forward(subject.cfg)

  @jax.jit
  def look(params, ids, keep):
    return capture(f, range_observers(keep))(params, ids).trace

  def ends(keep):
    parts = [
      look(subject.params, jnp.asarray(part), jnp.asarray(keep))
      for part in np.array_split(ids, -(-len(ids) // config.batch))
    ]
    return limits_of(
      jax.tree.map(lambda *x: jnp.concatenate(x, axis=1), *parts)
    )

  return {name: ends(keep) for name, keep in _kept(config).items()}


def _kv_edits(subject, config, layout, bits, keep, layers):
  """Edits of keys and values in a layout of `LAYOUTS`."""

  def edit(per, group=None):
    return Quantize(
      jnp.asarray(bits, jnp.float32),
      jnp.asarray(keep),
      jnp.asarray(layers),
      per=per,
      group=group,
    )

  if layout in ("token", "tensor"):
    return {"k": edit(layout), "v": edit(layout)}
  if layout == "channel":
    return {"k": edit("channel", config.group), "v": edit("token")}
  positions = np.arange(config.tokens)
  key = edit("channel")
  if subject.cfg.positions == "rope":
    key = before_rotation(subject.cfg, key, positions)
  return {"k": key, "v": edit("token")}


def _kv_settings(subject: Subject, config: Config):
  """{("kv", layout, bits, kept): Setting}."""
  layers = np.arange(subject.cfg.n_layers)
  return {
    ("kv", layout, bits, name): Setting(
      subject.params, _kv_edits(subject, config, layout, bits, keep, layers)
    )
    for layout in LAYOUTS
    for bits in config.bits
    for name, keep in _kept(config).items()
  }


def _linear_edits(subject, limits, ranges, bits, keep, layers):
  return quantize_inputs(
    subject.cfg,
    jnp.asarray(bits, jnp.float32),
    ranges=ranges,
    keep=jnp.asarray(keep),
    layers=layers,
    limits=limits if ranges == RANGES[0] else None,
  )


def _linear_settings(subject: Subject, config: Config, limits):
  """{("linear", ranges, (weights, activations), kept): Setting}.

  With weights alone rounded, ranges are "none" and activations 0.
  """
  layers = jnp.arange(subject.cfg.n_layers)
  rounded = {
    bits: jax.jit(quantize_weights)(subject.params, float(bits))
    for bits in sorted({weights for weights, _ in config.widths})
  }
  alone = {
    ("linear", "none", (bits, 0), NOTHING): Setting(params, {})
    for bits, params in rounded.items()
  }
  return alone | {
    ("linear", ranges, (weights, bits), name): Setting(
      rounded[weights],
      _linear_edits(subject, limits[name], ranges, bits, keep, layers),
    )
    for ranges in RANGES
    for weights, bits in config.widths
    for name, keep in _kept(config).items()
  }


def _most_telling(found) -> tuple[str, int]:
  """(layout, bits) of keys and values where the sink buys back most nats."""
  gains = {
    (layout, bits): float(
      np.mean(
        found["kv", layout, bits, NOTHING].loss
        - found["kv", layout, bits, SINK].loss
      )
    )
    for kind, layout, bits, _ in found
    if kind == "kv"
  }
  return max(gains, key=gains.get)


def _layer_settings(subject: Subject, config: Config, telling):
  """{(layer, kept): Setting}: keys and values of one layer alone."""
  layers, keep = subject.cfg.n_layers, _kept(config)
  return {
    (layer, name): Setting(
      subject.params,
      _kv_edits(subject, config, *telling, keep[name], np.full(layers, layer)),
    )
    for layer in range(layers)
    for name in (NOTHING, SINK)
  }


def _site_settings(subject: Subject, config: Config, limits):
  """{(site, kept): Setting}: 8 bits, static, at one site of every layer."""
  layers = jnp.arange(subject.cfg.n_layers)
  none, keep = jnp.full_like(layers, NOWHERE), _kept(config)
  return {
    (site, name): Setting(
      subject.params,
      _linear_edits(
        subject,
        limits[name],
        RANGES[0],
        8,
        keep[name],
        {one: layers if one == site else none for one in INPUTS},
      ),
    )
    for site in INPUTS
    for name in (NOTHING, SINK)
  }


def _measurer(subject: Subject, config: Config, step: Callable[[], Any]):
  """`measure(ids, settings) -> (loss [P] of the whole model, {key: Cost})`.

  Over the predictions of tokens after all those that may be kept: these would
  gain by their own. Compiled once for each kind of edit; the whole model's
  logits are computed once for each batch.
  """
  f, after = forward(subject.cfg), config.control + 1

  def nll(logs, ids):
    logs, targets = logs[:, after:-1], ids[:, after + 1 :, None]
    return -jnp.mean(jnp.take_along_axis(logs, targets, -1)[..., 0], axis=-1)

  @jax.jit
  def plain(params, ids):
    logs = jax.nn.log_softmax(f(params, ids).logits.astype(jnp.float32))
    return logs, nll(logs, ids)

  @jax.jit
  def each(params, ids, whole, edits):
    out = intervene(f, edits)(params, ids)
    logs = jax.nn.log_softmax(out.logits.astype(jnp.float32))
    kl = jnp.sum(jnp.exp(whole) * (whole - logs), axis=-1)
    return nll(logs, ids), jnp.mean(kl[:, after:], axis=-1)

  def measure(ids, settings):
    wholes, parts = [], {key: [] for key in settings}
    for at in range(0, len(ids), config.batch):
      part = ids[at : at + config.batch]
      full = np.resize(part, (config.batch, part.shape[1]))  # one compile
      logs, loss = plain(subject.params, jnp.asarray(full))
      wholes.append(np.asarray(loss, np.float64)[: len(part)])
      for key, (params, edits) in settings.items():
        ours, kl = each(params, jnp.asarray(full), logs, edits)
        ours, kl = (np.asarray(x, np.float64)[: len(part)] for x in (ours, kl))
        parts[key].append((ours - wholes[-1], kl))
        step()
    return np.concatenate(wholes), {
      key: Cost(*map(np.concatenate, zip(*each, strict=True)))
      for key, each in parts.items()
    }

  return measure


def _table(found, first: list[str], cells: Callable[[Any], list[Any]]):
  """(header, rows) of costs, with what the kept token buys back."""
  header = [
    *first,
    "kept",
    "loss_increase",
    "loss_low",
    "loss_high",
    "kl",
    "kl_low",
    "kl_high",
    "bought_back",
    "bought_low",
    "bought_high",
    "share",
  ]
  rows = []
  for key, cost in found.items():
    row = [*cells(key), key[-1], *ends_of(cost.loss), *ends_of(cost.kl)]
    none = found.get((*key[:-1], NOTHING))
    gain, share = [None] * 3, None
    if none is not None and key[-1] != NOTHING:
      gain = ends_of(none.loss - cost.loss)
      share = share_bought(none.loss, cost.loss)
    rows.append([*row, *gain, share])
  return header, rows


def _result(subject, config, texts, whole, found, telling, alone, sites):
  kv = {key: cost for key, cost in found.items() if key[0] == "kv"}
  linear = {key: cost for key, cost in found.items() if key[0] == "linear"}
  shape = (len(LAYOUTS), len(config.bits), len(KEPT), -1)
  layers = subject.cfg.n_layers
  numbers = {
    "calibrating": texts[0],
    "texts": texts[1],
    "layer_texts": texts[2],
    "tokens": config.tokens,
    "group": config.group,
    "control": config.control,
    "bits": list(config.bits),
    "layouts": list(LAYOUTS),
    "kept": list(KEPT),
    "widths": [list(x) for x in config.widths],
    "loss": mean_over(whole, range(len(whole)))._asdict(),
    "telling": list(telling),
  }
  return Result(
    name=NAME,
    title=TITLE,
    claims=claims(config, found),
    numbers=numbers,
    tables={
      "keys_and_values.csv": _table(
        kv, ["layout", "bits"], lambda key: [key[1], key[2]]
      ),
      "layers.csv": _table(alone, ["layer"], lambda key: [key[0]]),
      "weights_and_activations.csv": _table(
        linear,
        ["ranges", "weight_bits", "activation_bits"],
        lambda key: [key[1], *key[2]],
      ),
      "sites.csv": _table(sites, ["site"], lambda key: [key[0]]),
    },
    arrays={
      "whole": whole,
      **{
        f"kv_{what}": np.reshape([getattr(x, what) for x in kv.values()], shape)
        for what in ("loss", "kl")
      },
      **{
        f"layer_{what}": np.reshape(
          [getattr(x, what) for x in alone.values()], (layers, 2, -1)
        )
        for what in ("loss", "kl")
      },
      **{
        f"linear, {key[1]}, W{key[2][0]}A{key[2][1]}, {key[3]}": cost.loss
        for key, cost in linear.items()
      },
      **{f"site, {key[0]}, {key[1]}": cost.loss for key, cost in sites.items()},
    },
  )
