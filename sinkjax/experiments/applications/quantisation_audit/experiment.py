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
from sinkjax.experiments.harness.stats import ends_of
from sinkjax.experiments.shared.edited_loss import EditedLoss
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

WHOLE = "everything"
"""Left out: the unchanged model."""

BATCH = 8
"""Texts of one pass that looks at inputs."""


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


class Setting(NamedTuple):
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
    progress: called with (texts done, in all).

  Raises:
    ValueError: for fewer than two texts that are long enough, too few bits or a
      model with experts.

  Cost: with 7 kernels and 4 inputs, 30 + 4 L forward passes.
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
  step = Steps(progress, len(ids) * (1 + sum(map(len, plans.values()))))
  seen = _look(subject, ids, config.bits, step)
  loss = _losses(subject, config, ids, rounded, plans, step)
  templates = templates_of(ids, subject.template)
  numbers = {
    "texts": len(ids),
    "templates": templates,
    "kernels": names,
    "inputs": list(inputs_of(subject.cfg)),
    "gate": subject.cfg.gate,
    "broken": {
      per: is_broken(loss[per, NOTHING] - loss[per, WHOLE]) for per in STEPS
    },
  }
  weights = _kernels(subject.params, names, config.bits)
  return Result(
    numbers=numbers,
    tables={
      "left_out.csv": _loss_table(loss, numbers),
      "tensors.csv": _tensor_table(seen, weights),
    },
    arrays={
      **{f"loss, {per}, without {out}": x for (per, out), x in loss.items()},
      **{f"{what}, {site}": x for (what, site), x in seen.items()},
    },
  )


def settings(
  cfg: ModelConfig, kernels: Sequence[str], per: str
) -> Iterator[tuple[str, Setting]]:
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
  yield WHOLE, Setting(WEIGHTS, none)
  yield NOTHING, Setting(None, sites)
  yield WEIGHTS, Setting(WEIGHTS, sites)
  yield INPUTS, Setting(None, none)
  for name in kernels:
    yield name, Setting(name, sites)
  for site in sites:
    yield site, Setting(None, sites | {site: ~every})
  yield SINK, Setting(None, sites, 0)
  yield OTHER, Setting(None, sites, CONTROL)
  if per != STEPS[0]:
    return
  for site in sites:
    for layer in range(cfg.n_layers):
      others = np.arange(cfg.n_layers) != layer
      yield f"{site}, layer {layer}", Setting(None, sites | {site: others})


def _losses(
  subject: Subject,
  config: Config,
  ids: np.ndarray,
  rounded: Any,
  plans: Mapping[str, Mapping[str, Setting]],
  step: Steps,
) -> dict[tuple[str, str], np.ndarray]:
  """[P] mean loss by what shares a step and what is left out."""
  meter, found = EditedLoss(subject, ids, step), {}
  whole = kernels_of(subject.params)
  # Predictions made at a token that is kept would be better for it alone.
  after = CONTROL + 1
  for per, plan in plans.items():
    for out, setting in plan.items():
      params = rounded
      if setting.kernel == WEIGHTS:
        params = subject.params
      elif setting.kernel is not None:
        params = with_kernel(rounded, setting.kernel, whole[setting.kernel])
      edits = quantize_inputs(
        subject.cfg,
        # Arrays, which are no part of the program: one for each kind of step.
        jnp.asarray(float(config.bits)),
        ranges=per,
        keep=jnp.asarray(setting.keep),
        layers={site: jnp.asarray(x) for site, x in setting.sites.items()},
      )
      nats = meter(edits, params=params)
      found[per, out] = nats[:, after:].mean(axis=1)
  return found


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
    step(count)
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


def attributed(
  result: Result, per: str, out: str, *, against: str = NOTHING
) -> np.ndarray:
  """[n] nats that leaving something out gives back, by independent texts.

  Args:
    result: with its arrays.
    per: of `STEPS`.
    out: what is left out.
    against: what is left out of the loss that it is taken from.
  """
  change = (
    result.arrays[f"loss, {per}, without {against}"]
    - result.arrays[f"loss, {per}, without {out}"]
  )
  return by_template(change, result.numbers)


def _loss_table(
  loss: Mapping[tuple[str, str], np.ndarray], numbers: Mapping[str, Any]
) -> tuple[list[str], list[list[Any]]]:
  """Added nats, and those given back; not for single layers."""
  rows = []
  for (per, out), x in loss.items():
    if ", layer" in out:
      continue
    added = by_template(x - loss[per, WHOLE], numbers)
    row = [per, out, *ends_of(added)]
    given = by_template(loss[per, NOTHING] - x, numbers)
    broken = numbers["broken"][per]
    rows.append(row + ([None] * 3 if broken else ends_of(given)))
  header = ["step of a", "left out"]
  for what in ("added", "given_back"):
    header += [what, f"{what}_low", f"{what}_high"]
  return header, rows


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
