"""Does attention in 16 or 8 bits need the sink in full precision?

    python -m launch.reproduce --experiment=attention_precision \\
        --model=smollm2-135m --out=out/applications

Queries, keys, weights and values are rounded to bfloat16, to 8-bit floating
point (e4m3) or to int8, as kernels of low precision round them; the first
token's score, weight and value stay in float32, or only its score, or only its
weight and value, or those of a control token at the same cost, or none. The
loss and the KL divergence from the whole model over many texts.

A simulation: it says what the numbers do, not how fast a kernel would be. Took
31 minutes for SmolLM2-135M on two CPU cores beside much other work. There the
sink's score is what bfloat16 hurts (supported); in 8 bits it hardly matters.
"""

import dataclasses
import enum
import itertools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from sinkjax.experiments.harness.api import Claim, Experiment, Result, Subject
from sinkjax.experiments.harness.effects import (
  LOG_RATIO,
  NATS,
  Effect,
  Expect,
  effect,
)
from sinkjax.experiments.harness.stats import ends_of, format_ratio, mean_of
from sinkjax.experiments.shared.edited_cost import Setting, meter
from sinkjax.experiments.shared.interval_plots import error_bars
from sinkjax.experiments.shared.prompt_corpus import Text
from sinkjax.experiments.shared.steps import Steps
from sinkjax.experiments.shared.text_batches import (
  by_template,
  templates_of,
  texts_of_length,
)
from sinkjax.inference.attention_precision import FORMATS, low_precision
from sinkjax.report import html
from sinkjax.report.figures import FIRST, MUTED, REST, drawing, png

TITLE = "Attention in low precision, and the sink in float32"

WORDS = {
  "bfloat16": "bfloat16",
  "float8_e4m3": "8-bit floating point",
  "int8": "8-bit integers",
}


class Kept(enum.StrEnum):
  """What stays in float32; keys of recorded results."""

  NOTHING = "nothing"
  SINK = "sink"
  SCORE = "score of the sink"
  VALUE = "weight and value of the sink"
  CONTROL = "control token"


SOURCE = "not in the paper"

LOOKS = {
  Kept.NOTHING: ("#444444", "o"),
  Kept.SINK: (FIRST, "s"),
  Kept.SCORE: (FIRST, "^"),
  Kept.VALUE: (FIRST, "v"),
  Kept.CONTROL: (REST, "D"),
}
"""Colour and marker of each condition."""


class Parts(NamedTuple):
  """Positions whose parts stay in float32, `None` for none."""

  score: int | None
  value: int | None


@dataclasses.dataclass(frozen=True)
class Config:
  """What is run.

  Attributes:
    count: texts of each domain, as in the experiment `prompts`.
    tokens: T of each; shorter texts are left out.
    control: the position that is kept in place of the first.
    batch: texts in one forward pass.
    seed: of the choice of texts.
  """

  count: int = 6
  tokens: int = 128
  # The neighbour: nearly as early as the first token, but no sink.
  control: int = 1
  batch: int = 8
  seed: int = 0


def parts_of(kept: Kept, control: int) -> Parts:
  """The positions that a condition keeps.

  >>> parts_of(Kept.SCORE, 1)
  Parts(score=0, value=None)
  """
  return {
    Kept.NOTHING: Parts(None, None),
    Kept.SINK: Parts(0, 0),
    Kept.SCORE: Parts(0, None),
    Kept.VALUE: Parts(None, 0),
    Kept.CONTROL: Parts(control, control),
  }[kept]


def measure(
  subject: Subject,
  config: Config,
  *,
  texts: Sequence[Text] | None = None,
  progress: Callable[[int, int], Any] = lambda done, total: None,
) -> Result:
  """Every format with every part kept, on every text.

  Args:
    subject: the model; its weights in memory.
    config: what is run.
    texts: other texts than those of `gather`.
    progress: called with (batches done, in all), a batch under one setting.

  Raises:
    ValueError: for fewer than two texts that are long enough, a control that
      is no later token, or a model whose attention has no such simulation.

  Cost: a forward pass of every text for each of 3 formats times 5 conditions,
    with the products of queries and keys three times, and one more.
  """
  if not 0 < config.control < config.tokens - 2:
    raise ValueError(
      f"control must be in [1, {config.tokens - 2}), got {config.control}"
    )
  ids = texts_of_length(
    subject, texts, config.count, config.tokens, config.seed, fewest=2
  )
  settings = {
    (kind, kept): Setting(
      subject.params, low_precision(subject.cfg, kind, *_masks(config, kept))
    )
    for kind, kept in itertools.product(FORMATS, Kept)
  }
  step = Steps(progress, len(settings) * -(-len(ids) // config.batch))
  # The prediction made at a kept token would be better for it alone.
  cost_of = meter(subject, config.batch, config.control + 1, step)
  whole, found = cost_of(ids, settings)
  templates = templates_of(ids, subject.template)
  numbers = {"texts": len(ids), "templates": templates}
  rows = [
    [
      kind,
      kept,
      *ends_of(by_template(cost.loss, numbers)),
      *ends_of(by_template(cost.kl, numbers)),
    ]
    for (kind, kept), cost in found.items()
  ]
  header = ["format", "kept", "loss", "loss_low", "loss_high"]
  arrays = {"whole": whole}
  for (kind, kept), cost in found.items():
    arrays[f"loss, {kind}, {kept}"] = cost.loss
    arrays[f"kl, {kind}, {kept}"] = cost.kl
  return Result(
    numbers=numbers,
    tables={"formats.csv": ([*header, "kl", "kl_low", "kl_high"], rows)},
    arrays=arrays,
  )


def _masks(config: Config, kept: Kept) -> list[Any]:
  """[T] keys whose scores, and whose weights and values, are kept.

  Arrays for every condition, so that a format is compiled once.
  """
  at = jnp.arange(config.tokens)
  return [
    at == (-1 if x is None else x) for x in parts_of(kept, config.control)
  ]


def _values(
  result: Result, what: str, kind: str, kept: Kept, how: Callable = np.asarray
) -> np.ndarray:
  """[n] "loss" or "kl" under a setting, texts of one template averaged."""
  return by_template(
    how(result.arrays[f"{what}, {kind}, {kept}"]), result.numbers
  )


def claims(result: Result) -> list[Claim]:
  """Two of each format."""
  return [
    one
    for kind in FORMATS
    for one in (_harmless(result, kind), _kept(result, kind))
  ]


def _harmless(result: Result, kind: str) -> Claim:
  loss = _values(result, "loss", kind, Kept.NOTHING)
  return Claim(
    id=f"same_loss_in_{kind}",
    claim=f"Attention in {WORDS[kind]} leaves the loss the same.",
    source=SOURCE,
    paper="no number",
    ours=f"the loss changes by {mean_of(loss).text('+.4f', ' nats')}",
    effect=effect(
      loss,
      f"loss with attention in {WORDS[kind]}, less that of the whole model",
      NATS,
      Expect.SAME,
    ),
    how="operands rounded, sums in float32; predictions from position "
    f"{result.config.control + 1} on",
  )


def _kept(result: Result, kind: str) -> Claim:
  kl = {kept: _values(result, "kl", kind, kept, np.log) for kept in Kept}
  gain = kl[Kept.NOTHING] - kl[Kept.SINK]
  control = kl[Kept.NOTHING] - kl[Kept.CONTROL]
  word = WORDS[kind]
  return Claim(
    id=f"sink_in_float32_helps_{kind}",
    claim="With the score, weight and value of the sink in float32, a model "
    f"with attention in {word} is nearer to the whole model.",
    source=SOURCE,
    paper="no number",
    ours=f"with nothing kept KL to the whole model is "
    f"{format_ratio(mean_of(gain))} that with the sink kept, "
    f"{format_ratio(mean_of(control))} that with the control kept",
    effect=_less_kl(
      gain,
      f"KL to the whole model of attention in {word}, over that with the sink "
      "in float32",
    ),
    how=f"the control is position {result.config.control}, at the same cost",
    provided=(
      _less_kl(
        gain - control,
        "KL to the whole model with the control in float32, over that with the "
        "sink",
      ),
    ),
  )


def _less_kl(values: np.ndarray, what: str) -> Effect:
  return effect(values, what, LOG_RATIO, Expect.MORE)


def draw(result: Result) -> dict[str, bytes]:
  """One figure: KL over that with nothing kept, and the change of the loss."""
  with drawing(8.4, 3.4) as figure:
    left, right = figure.subplots(1, 2)
    for number, kept in enumerate(Kept):
      color, marker = LOOKS[kept]
      # Side by side, in the order of the legend.
      at = np.arange(len(FORMATS)) + 0.14 * (number - 2)
      look = {"color": color, "fmt": marker, "label": kept}
      if kept is not Kept.NOTHING:
        error_bars(left, at, np.exp(_ends(_kl_ratios(result, kept))), **look)
      loss = [_values(result, "loss", kind, kept) for kind in FORMATS]
      error_bars(right, at, _ends(loss), **look)
    left.axhline(1, color=MUTED, lw=1)
    right.axhline(0, color=MUTED, lw=1)
    left.set_title("KL over that with nothing kept")
    right.set_title("loss, nats more")
    for ax in (left, right):
      ax.set_xticks(range(len(FORMATS)), FORMATS)
    figure.legend(
      *right.get_legend_handles_labels(),
      title="in float32",
      loc="outside lower center",
      ncols=len(Kept),
      frameon=False,
      fontsize=8.5,
    )
    return {"formats.png": png(figure)}


def _kl_ratios(result: Result, kept: Kept) -> list[np.ndarray]:
  """[n] log KL of each format, less that with nothing kept."""
  return [
    np.subtract(
      *(_values(result, "kl", kind, k, np.log) for k in (kept, Kept.NOTHING))
    )
    for kind in FORMATS
  ]


def _ends(values: Sequence[np.ndarray]) -> np.ndarray:
  """[3, formats] mean, low and high over texts."""
  return np.array([ends_of(one) for one in values]).T


def sections(result: Result, drawn: Mapping[str, bytes]) -> list[html.Section]:
  """The experiment's part of the report."""
  config = result.config
  cost = 200 / (config.tokens + 1)
  return [
    html.Section(
      TITLE,
      body=f"{result.numbers['texts']} texts of {config.tokens} tokens. "
      "Queries, keys, weights and values are rounded, with a step for each "
      "token and head in 8 bits; sums are in float32, and scores in bfloat16 "
      "are stored in it. A key that is kept takes "
      f"{cost:.1f} % of the products in float32, the sink as well as the "
      f"control at position {config.control}.",
      figure=drawn["formats.png"],
      caption="Means with their 95 % intervals over texts. Left: KL divergence "
      "from the whole model, geometric mean of its ratio to that with nothing "
      "in float32. Right: change of the loss.",
      table=html.Table(*result.tables["formats.csv"]),
    )
  ]


EXPERIMENT = Experiment(
  TITLE,
  Config,
  measure,
  claims,
  draw,
  sections,
  chat=lambda config: config.tokens,
  given_texts=True,
  # Other edits of these sites would come before or after the rounding.
  unedited=frozenset(("v", "scores", "pattern")),
)
