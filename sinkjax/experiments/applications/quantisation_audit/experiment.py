"""Losses with each tensor left out of rounding, and what tensors look like.

Axes: L layers, P texts, T tokens.
"""

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from sinkjax.config import ModelConfig
from sinkjax.experiments.harness.api import Result, Subject
from sinkjax.experiments.harness.stats import ends_columns, ends_of
from sinkjax.experiments.shared.edited_cost import Cost, Setting, meter
from sinkjax.experiments.shared.prompt_corpus import Text
from sinkjax.experiments.shared.steps import Steps
from sinkjax.experiments.shared.text_batches import (
  batches,
  by_template,
  templates_of,
  texts_of_length,
)
from sinkjax.inference.quantize_audit import (
  is_broken,
  kernels_of,
  row_dispersion,
  rows_of_kernel,
  underflow,
  with_kernel,
)
from sinkjax.inference.quantize_linear import (
  inputs_of,
  quantize_inputs,
  quantize_weights,
)
from sinkjax.models.transformer import forward
from sinkjax.transforms.capture import capture

STEPS = ("tensor", "token")
"""What shares a step of the inputs; weights have one for each output."""

CONTROL = 1
"""The token that is kept in place of position 0."""

NOTHING, WEIGHTS, INPUTS = "nothing", "all weights", "all inputs"
SINK, OTHER = "position 0", f"position {CONTROL}"
"""What is left out of rounding, beside tensors by name; keys of results."""

BATCH = 16
"""Texts of one pass: at 64 tokens their logits are 200 MB for a vocabulary of
50,000."""


@dataclasses.dataclass(frozen=True)
class Config:
  """What is run.

  Attributes:
    bits: of weights and inputs.
    count: texts of each domain, as in the experiment `prompts`.
    tokens: T of each; shorter texts are left out.
    seed: of the choice of texts.
  """

  bits: int = 8
  count: int = 3
  tokens: int = 64
  seed: int = 0


class Rounding(NamedTuple):
  """What is rounded.

  Attributes:
    kernel: the one that stays; `None` for none, `WEIGHTS` for all.
    sites: [L] bool by input: whether it is rounded.
    keep: the position that stays, -1 for none.
  """

  kernel: str | None
  sites: dict[str, np.ndarray]
  keep: int = -1


def measure(
  subject: Subject,
  config: Config,
  *,
  texts: Sequence[Text] | None = None,
  progress: Callable[[int, int], Any] = lambda done, total: None,
) -> Result:
  """The loss under every setting, and the rows of every tensor.

  Args:
    subject: the model; its weights in memory.
    config: what is run.
    texts: other texts than those of `gather`.
    progress: called with (batches done, in all), a batch under one setting.

  Raises:
    ValueError: for fewer than two texts that are long enough, too few bits or a
      model with experts.

  Cost: with 7 kernels and 4 inputs, 34 + 4 L forward passes.
  """
  if not 2 <= config.bits <= 16:
    raise ValueError(f"bits must be in [2, 16], got {config.bits}")
  if config.tokens < CONTROL + 3:
    raise ValueError(
      f"tokens must be at least {CONTROL + 3}, got {config.tokens}"
    )
  # Refuses a model that cannot be rounded before anything is measured.
  rounded = jax.jit(quantize_weights)(subject.params, float(config.bits))
  quantize_inputs(subject.cfg, config.bits, ranges=STEPS[0])
  ids = texts_of_length(
    subject, texts, config.count, config.tokens, config.seed, fewest=2
  )
  names = list(kernels_of(subject.params))
  plans = {step: dict(settings(subject.cfg, names, step)) for step in STEPS}
  count = -(-len(ids) // BATCH)
  step = Steps(progress, count * (1 + sum(map(len, plans.values()))))
  seen = _look(subject, ids, config.bits, step)
  whole, costs = _costs(subject, config, ids, rounded, plans, step)
  templates = templates_of(ids, subject.template)
  numbers = {
    "texts": len(ids),
    "templates": templates,
    "kernels": names,
    "inputs": list(inputs_of(subject.cfg)),
    "gate": subject.cfg.gate,
    "loss": float(whole.mean()),
    "broken": {per: is_broken(costs[per, NOTHING].loss) for per in STEPS},
  }
  weights = _kernels(subject.params, names, config.bits)
  return Result(
    numbers=numbers,
    tables={
      "left_out.csv": _cost_table(costs, numbers),
      "tensors.csv": _tensor_table(seen, weights),
    },
    arrays={
      **{
        f"{what}, {per}, without {out}": x
        for (per, out), cost in costs.items()
        for what, x in cost._asdict().items()
      },
      **{f"{what}, {site}": x for (what, site), x in seen.items()},
    },
  )


def settings(
  cfg: ModelConfig, kernels: Sequence[str], per: str
) -> Iterator[tuple[str, Rounding]]:
  """What is left out, by its name.

  Args:
    cfg: the model.
    kernels: their names.
    per: of `STEPS`. Single layers' inputs are left out with a step a tensor
      alone: with a step a token each costs less than can be told.
  """
  every = np.ones(cfg.n_layers, bool)
  sites = dict.fromkeys(inputs_of(cfg), every)
  none = dict.fromkeys(sites, ~every)
  yield NOTHING, Rounding(None, sites)
  yield WEIGHTS, Rounding(WEIGHTS, sites)
  yield INPUTS, Rounding(None, none)
  for name in kernels:
    yield name, Rounding(name, sites)
  for site in sites:
    yield site, Rounding(None, sites | {site: ~every})
  yield SINK, Rounding(None, sites, 0)
  yield OTHER, Rounding(None, sites, CONTROL)
  if per != STEPS[0]:
    return
  for site in sites:
    for layer in range(cfg.n_layers):
      others = np.arange(cfg.n_layers) != layer
      yield f"{site}, layer {layer}", Rounding(None, sites | {site: others})


def _costs(
  subject: Subject,
  config: Config,
  ids: np.ndarray,
  rounded: Any,
  plans: Mapping[str, Mapping[str, Rounding]],
  step: Callable[[], Any],
) -> tuple[np.ndarray, dict[tuple[str, str], Cost]]:
  """(loss [P] of the whole model, costs by step and by what is left out)."""
  whole, made = kernels_of(subject.params), {}
  for per, plan in plans.items():
    for out, rounding in plan.items():
      params = rounded
      if rounding.kernel == WEIGHTS:
        params = subject.params
      elif rounding.kernel is not None:
        params = with_kernel(rounded, rounding.kernel, whole[rounding.kernel])
      edits = quantize_inputs(
        subject.cfg,
        # Arrays, which are no part of the program: one for each kind of step.
        jnp.asarray(float(config.bits)),
        ranges=per,
        keep=jnp.asarray(rounding.keep),
        layers={site: jnp.asarray(x) for site, x in rounding.sites.items()},
      )
      made[per, out] = Setting(params, edits)
  # Predictions made at a token that is kept would be better for it alone.
  return meter(subject, BATCH, CONTROL + 1, step)(ids, made)


def _look(
  subject: Subject, ids: np.ndarray, bits: int, step: Steps
) -> dict[tuple[str, str], np.ndarray]:
  """[L, P] dispersion, that without position 0, and underflow, by input."""
  sites = inputs_of(subject.cfg)

  def of_rows(value: jax.Array) -> dict[str, jax.Array]:
    rows = value.reshape(*value.shape[:2], -1)
    return {
      "dispersion": row_dispersion(rows),
      "dispersion behind position 0": row_dispersion(rows[:, 1:]),
      **{
        f"underflow, {per}": underflow(rows, float(bits), per=per)
        for per in STEPS
      },
    }

  f = capture(forward(subject.cfg), {site: (site, of_rows) for site in sites})
  look = jax.jit(lambda params, rows: f(params, rows).trace)
  parts = []
  for _, count, rows in batches(ids, min(BATCH, len(ids))):
    out = subject.kept("look", look, subject.params, jnp.asarray(rows))
    parts.append(
      {
        (what, site): np.asarray(x, np.float64)[:, :count]
        for site in sites  # in the model's order, not that of the names
        for what, x in out[site].items()
      }
    )
    step()
  return {
    key: np.concatenate([part[key] for part in parts], axis=1)
    for key in parts[0]
  }


def _kernels(
  params: Any, names: Sequence[str], bits: int
) -> dict[str, tuple[float, float]]:
  """(dispersion, underflow with a step a channel) by kernel, over layers."""
  look = jax.jit(
    lambda rows: (
      row_dispersion(rows).mean(),
      underflow(rows, float(bits), per="token").mean(),
    )
  )
  kernels = kernels_of(params)
  return {
    name: tuple(map(float, look(rows_of_kernel(name, kernels[name]))))
    for name in names
  }


def added(
  result: Result, per: str, out: str = NOTHING, what: str = "loss"
) -> np.ndarray:
  """[n] nats that rounding adds, by independent texts.

  Args:
    result: with its arrays.
    per: of `STEPS`.
    out: what is left out.
    what: "loss" or "kl".
  """
  values = result.arrays[f"{what}, {per}, without {out}"]
  return by_template(values, result.numbers)


def attributed(result: Result, per: str, out: str) -> np.ndarray:
  """[n] nats of the loss that leaving something out gives back."""
  return added(result, per) - added(result, per, out)


def _cost_table(
  costs: Mapping[tuple[str, str], Cost], numbers: Mapping[str, Any]
) -> tuple[list[str], list[list[Any]]]:
  """Added nats, and those given back; not for single layers."""
  rows = []
  for (per, out), cost in costs.items():
    if ", layer" in out:
      continue
    row = [per, out, *ends_of(by_template(cost.loss, numbers))]
    given = by_template(costs[per, NOTHING].loss - cost.loss, numbers)
    broken = numbers["broken"][per]
    row += [None] * 3 if broken else ends_of(given)
    rows.append([*row, float(by_template(cost.kl, numbers).mean())])
  header = ["step of a", "left out"]
  header += ends_columns("added", "given_back")
  return [*header, "kl"], rows


def _tensor_table(
  seen: Mapping[tuple[str, str], np.ndarray],
  weights: Mapping[str, tuple[float, float]],
) -> tuple[list[str], list[list[Any]]]:
  """Means over layers and texts; dispersion is at its best at 1."""
  rows = []
  for site in dict.fromkeys(site for _, site in seen):
    found = {
      what: float(x.mean()) for (what, s), x in seen.items() if s == site
    }
    rows.append([site, *found.values()])
  for name, (dispersion, lost) in weights.items():
    rows.append([name, dispersion, None, None, lost])
  header = ["tensor", "dispersion", "behind position 0"]
  return [*header, "underflow_tensor", "underflow_row"], rows
