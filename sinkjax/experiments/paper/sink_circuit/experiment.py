"""The neurons that build a sink, and the parts of the score it is given."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from sinkjax.config import ModelConfig
from sinkjax.experiments.harness.api import Result, Subject
from sinkjax.experiments.harness.stats import (
  ends_columns,
  ends_of,
  rank_correlation,
)
from sinkjax.experiments.paper.sink_circuit import detectors
from sinkjax.experiments.paper.sink_circuit.neurons import (
  BATCH,
  Ablation,
  After,
  Builder,
  Norms,
  builder,
  carried,
  contributions,
  look,
)
from sinkjax.experiments.shared.prompt_corpus import Text, apart
from sinkjax.experiments.shared.sink_removal import EPS
from sinkjax.experiments.shared.steps import Steps
from sinkjax.experiments.shared.text_batches import (
  batches,
  by_template,
  templates_of,
  texts_of_length,
)
from sinkjax.metrics.precision import wide
from sinkjax.metrics.score_parts import ScoreParts, score_parts
from sinkjax.models.transformer import forward
from sinkjax.transforms.capture import capture

FEWEST = 4
"""Texts, at least: two that choose layer and neurons, two that are measured."""

FIRST = 8
"""Queries from here on count for the score: earlier ones see few keys."""

REPEATED = 5
"""The token of each text that is repeated: not the first, which every text of a
kind may share."""


@dataclasses.dataclass(frozen=True)
class Config:
  """What is run.

  Attributes:
    count: texts of each domain, as in the experiment `prompts`; half of them
      choose the layer and the neurons, the others are measured.
    tokens: T of each; shorter texts are left out.
    layer: whose neurons are looked at; `None` for the one that builds most.
    deviations: standard deviations above the mean at which the ordinary range
      of norms ends.
    few: neurons that are ablated together.
    neurons: neurons that are ablated one by one, and as many random ones.
    gates_layer: whose gates are asked which token is the first.
    gates: that tell it best, chosen on the texts that choose.
    at: the token that is made to see itself alone, or given the first's index.
    eps: a head has a sink where its score exceeds this.
    seed: of the choice of texts and random neurons.
  """

  count: int = 3
  tokens: int = 48
  layer: int | None = None
  # That of arXiv 2503.08908, as we read it.
  deviations: float = 2.0
  # Two neurons carry the sink of Llama 2 7B there.
  few: int = 2
  neurons: int = 8
  gates_layer: int = 0
  gates: int = 8
  at: int = 16
  eps: float = EPS
  seed: int = 0


def measure(
  subject: Subject,
  config: Config,
  *,
  texts: Sequence[Text] | None = None,
  progress: Callable[[int, int], Any] = lambda done, total: None,
) -> Result:
  """Finds the layer and its neurons, ablates them, and splits scores.

  Args:
    subject: the model; its weights in memory.
    config: what is run.
    texts: other texts than those of `gather`.
    progress: called with (texts done, in all).

  Raises:
    ValueError: for too few texts, a layer that the model does not have, or one
      with experts.

  Cost: about ten forward passes of all texts and two for each neuron, and one
    backward pass.
  """
  cfg = subject.cfg
  if cfg.n_experts:
    raise ValueError("neurons of a model with experts are not told apart here")
  for name in ("layer", "gates_layer"):
    value = getattr(config, name)
    if value is not None and not 0 <= value < cfg.n_layers:
      raise ValueError(f"{name} must be in [0, {cfg.n_layers}), got {value}")
  least = 1 + len(subject.prefix)
  if not least <= config.at < config.tokens:
    raise ValueError(
      f"at must be in [{least}, {config.tokens}), got {config.at}"
    )
  ids = texts_of_length(
    subject, texts, config.count, config.tokens, config.seed, fewest=FEWEST
  )
  some, held = apart(ids, len(ids) // 2, config.seed, subject.template)
  neurons = min(config.neurons, cfg.d_ff // 2)
  passes = 2 + 2 * (2 + 1) + 2 * neurons
  cases = len(detectors.Case)
  step = Steps(progress, 2 * len(some) + (passes + 2 + cases) * len(held))
  chosen = look(subject, some, step)
  built = builder(chosen, config.deviations)
  layer = built.layer if config.layer is None else config.layer
  # Without any, the layer of the greatest output still has neurons to rank.
  if layer is None:
    layer = int(np.argmax(built.over.mean(axis=1)))
  down = np.asarray(
    subject.params["blocks"]["mlp"]["down"]["kernel"][layer], np.float64
  )
  weight = contributions(
    chosen.act[layer].astype(float), np.linalg.norm(down, axis=1)
  )
  order = np.argsort(-weight, kind="stable")
  rng = np.random.default_rng(config.seed)
  random = rng.permutation(order[neurons:])[:neurons]
  top, few = order[:neurons], min(config.few, neurons)
  peak = layer + int(np.argmax(chosen.post[layer:, :, 0].mean(axis=1)))
  of_held = look(subject, held, step)
  same = np.repeat(held[:, REPEATED % held.shape[1], None], held.shape[1], 1)
  of_same = look(subject, same, step)
  ablate = Ablation(subject, layer, peak, config.eps, step)
  sets = {"none": [], "few": top[:few], "random": random[:few]}
  together = {name: ablate(held, gone) for name, gone in sets.items()}
  repeated = {
    name: ablate(same, gone, everywhere=True) for name, gone in sets.items()
  }
  tried = [*top.tolist(), *random.tolist()]
  each = [ablate(held, [neuron]) for neuron in tried]
  slopes = ablate.slopes(held)[:, tried]
  parts = _score_parts(subject, held, step)
  gates, told = detectors.look(
    subject,
    some,
    held,
    layer=config.gates_layer,
    at=config.at,
    count=min(config.gates, cfg.d_ff),
    step=step,
  )
  heads = (chosen.alpha > config.eps).mean(axis=1) > 0.5
  found = _result(
    config,
    {
      "texts": len(held),
      "templates": templates_of(held, subject.template),
      "chosen_layer": layer,
      "builds": built.layer,
      "first_out": built.first,
      "peak": peak,
      "neurons": tried,
      "few": few,
      "sink_heads": int(heads.sum()),
      "biases": bool(cfg.qkv_bias),
      "parts": parts is not None,
    },
    {
      "down": down,
      "weight": weight,
      "top": top,
      "slopes": slopes,
      "heads": heads,
    },
    (chosen, of_held, of_same),
    built,
    (together, repeated, each),
    parts,
  )
  found.tables["gates.csv"] = _gate_table(gates, told["told each"])
  found.arrays.update({f"gates, {what}": x for what, x in told.items()})
  return found


def _gate_table(
  found: detectors.Detectors, told: np.ndarray
) -> tuple[list[str], list[list[Any]]]:
  rows = [
    [int(gate), float(distance), float(share)]
    for gate, distance, share in zip(
      found.gates, found.distance, told.mean(axis=0), strict=True
    )
  ]
  return ["gate", "distance_in_sd", "auroc_on_other_texts"], rows


def _additive(cfg: ModelConfig) -> bool:
  """Whether scores are sums of biases and content."""
  return not (
    cfg.qk_norm
    or cfg.kv_rank
    or cfg.q_rank
    or cfg.attn_softcap is not None
    or cfg.qkv_clip is not None
  )


def _score_parts(
  subject: Subject, ids: np.ndarray, step: Steps
) -> ScoreParts | None:
  """[L, P, H] mean parts of the excess of key 0's score over queries."""
  cfg = subject.cfg
  if not _additive(cfg):
    step(len(ids))
    return None
  watch = {"x": ("attn_in", lambda x: x), "scores": ("scores", lambda x: x)}
  f = capture(forward(cfg), watch)
  attn = subject.params["blocks"]["attn"]
  shape = (cfg.n_layers, cfg.n_heads, cfg.head_dim)
  bias = attn["q"]["bias"] if cfg.qkv_bias else jnp.zeros(shape)

  @jax.jit
  def run(params: Any, attn: Any, bias: jax.Array, ids: jax.Array) -> Any:
    trace = f(params, ids).trace

    def one(layer: Any) -> ScoreParts:
      x, scores, q, k, b = layer
      with jax.default_matmul_precision(cfg.precision):
        parts = score_parts(
          jnp.einsum("btd,dhk->bthk", wide(x), wide(q)),
          jnp.einsum("btd,dhk->bthk", wide(x), wide(k)),
          wide(b),
          scores,
          cfg.score_scale,
        )
      return ScoreParts(*(p[..., FIRST:].mean(axis=-1) for p in parts))

    kernels = attn["q"]["kernel"], attn["k"]["kernel"]
    return jax.lax.map(one, (trace["x"], trace["scores"], *kernels, bias))

  found = []
  for _, count, rows in batches(ids, min(BATCH, len(ids))):
    out = run(subject.params, attn, bias, jnp.asarray(rows))
    found.append([np.asarray(x, np.float64)[:, :count] for x in out])
    step(count)
  return ScoreParts(
    *(np.concatenate(x, axis=1) for x in zip(*found, strict=True))
  )


def _result(
  config: Config,
  numbers: dict[str, Any],
  neurons: dict[str, np.ndarray],
  seen: tuple[Norms, Norms, Norms],
  built: Builder,
  after: tuple[dict[str, After], dict[str, After], list[After]],
  parts: ScoreParts | None,
) -> Result:
  chosen, held, same = seen
  together, repeated, each = after
  layer, tried = numbers["chosen_layer"], numbers["neurons"]
  few = neurons["top"][: numbers["few"]]
  over = builder(held, config.deviations).over
  plain = together["none"]
  # What a neuron adds to the norm: the norm falls by it where it is ablated.
  falls = np.stack([plain.norm - one.norm for one in each], axis=1)
  act = held.act[layer].astype(float)
  later = [x.later[layer][:, few].mean(axis=1) for x in (held, same)]
  arrays = {
    "over": over,
    "carried": carried(act, neurons["down"], few),
    "falls": falls,
    "slopes": neurons["slopes"],
    # Neurons that all do nothing agree in no order.
    "agreement": np.nan_to_num(rank_correlation(falls, neurons["slopes"])),
    "later, ordinary": later[0],
    "later, repeated": later[1],
    "first, by layer": held.post[:, :, 0].mean(axis=1),
    "others, by layer": held.post[:, :, 1:].mean(axis=(1, 2)),
    "repeated others, by layer": same.post[:, :, 1:].mean(axis=(1, 2)),
  }
  for kind, runs in (("ordinary", together), ("repeated", repeated)):
    for name, one in runs.items():
      for field, value in vars(one).items():
        arrays[f"{field}, {kind}, {name}"] = value
  if parts is not None:
    heads = neurons["heads"]
    # Heads with a sink; all of them where none has one.
    mask = heads if heads.any() else np.ones_like(heads)
    for name, value in parts._asdict().items():
      picked = np.where(mask[:, None], value, 0)
      arrays[f"score, {name}"] = picked.sum(axis=(0, 2)) / mask.sum()
      count = np.maximum(mask.sum(axis=1), 1)
      by_layer = picked.sum(axis=2).mean(axis=1) / count
      arrays[f"score by layer, {name}"] = by_layer
  units = {"templates": numbers["templates"]}
  tables = {
    "layers.csv": _layer_table(chosen, built),
    "neurons.csv": _neuron_table(tried, neurons, falls, each, plain, units),
    "ablation.csv": _ablation_table(together, repeated, units),
  }
  return Result(numbers, tables, arrays)


def _layer_table(
  norms: Norms, built: Builder
) -> tuple[list[str], list[list[Any]]]:
  rows = [
    [
      layer,
      float(norms.mlp[layer, :, 0].mean()),
      float(built.over[layer].mean()),
      float(built.out[layer]),
      float(norms.mid[layer, :, 0].mean()),
      float(norms.post[layer, :, 0].mean()),
    ]
    for layer in range(len(built.out))
  ]
  header = ["layer", "mlp_norm", "over_range", "texts_out_of_range"]
  return [*header, "norm_before", "norm_after"], rows


def _neuron_table(
  tried: list[int],
  neurons: dict[str, np.ndarray],
  falls: np.ndarray,
  each: list[After],
  plain: After,
  units: dict[str, Any],
) -> tuple[list[str], list[list[Any]]]:
  rows = []
  for i, neuron in enumerate(tried):
    change = by_template(each[i].rate - plain.rate, units)
    loss = by_template(each[i].loss - plain.loss, units)
    rows.append(
      [
        neuron,
        float(neurons["weight"][neuron]),
        float(falls[:, i].mean()),
        float(neurons["slopes"][:, i].mean()),
        float(change.mean()),
        *ends_of(loss),
      ]
    )
  header = ["neuron", "activation_times_norm", "norm_falls_by", "derivative"]
  return [*header, "rate_change", "loss_change", "low", "high"], rows


def _ablation_table(
  together: dict[str, After], repeated: dict[str, After], units: dict[str, Any]
) -> tuple[list[str], list[list[Any]]]:
  header, rows = ["text", "ablated"], []
  header += ends_columns("norm", "others", "rate", "loss")
  for kind, runs in (("ordinary", together), ("repeated", repeated)):
    for name, one in runs.items():
      row: list[Any] = [kind, name]
      for value in vars(one).values():
        row += ends_of(by_template(value, units))
      rows.append(row)
  return header, rows
