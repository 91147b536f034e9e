"""Does the sink belong to BOS, or to whatever token comes first?

    python -m launch.reproduce --experiment=packing --scale=cpu --out=DIR

Barbero et al. (2025), section 5, table 2: models are trained with five ways of
filling windows and read with BOS in front and without it. If BOS is pinned at
the start of every window, the model comes to rely on it; if BOS is never there,
the sink is at the first token.

The cpu scale (15 runs) took 43 minutes on two CPU cores, the gpu scale (15
runs) 20 minutes on an H200. Expected verdicts: all inconclusive, as three seeds
are fewer than a verdict needs; `seeds` takes more.
"""

import dataclasses
import functools
from typing import Any

from sinkjax.experiments.harness import sweep_figures
from sinkjax.experiments.harness.api import Claim, Result
from sinkjax.experiments.harness.effects import NATS, SHARE, Expect
from sinkjax.experiments.harness.stats import mean
from sinkjax.experiments.harness.sweep import Sweep, Trained
from sinkjax.experiments.harness.sweep_config import (
  GPU_SCALE,
  PAPER_SCALE,
  TOKENS_30B,
  TextConfig,
  chosen,
  text_run,
)
from sinkjax.experiments.harness.sweep_figures import (
  FORMS,
  LOSS,
  MASS,
  RATE,
  Chart,
  Panel,
)
from sinkjax.experiments.shared.seed_effects import no_worse, seed_effect
from sinkjax.train.run_config import TrainConfig

TITLE = "Does the sink belong to BOS?"
WHERE = "section 5, table 2"

WAYS = {
  "causal-document": ("causal", "document"),
  "causal-pinned": ("causal", "pinned"),
  "separate-none": ("document", "none"),
  "separate-document": ("document", "document"),
  "separate-pinned": ("document", "pinned"),
}
"""(mask, BOS) of `Packing` for each way of training."""

PAPER = {
  ("causal-document", "bos"): (65.10, 2.69),
  ("causal-document", "text"): (65.15, 2.70),
  ("causal-pinned", "bos"): (90.84, 2.69),
  ("causal-pinned", "text"): (0.05, 7.56),
  ("separate-none", "text"): (28.23, 2.67),
  ("separate-document", "bos"): (83.33, 2.67),
  ("separate-document", "text"): (50.24, 2.68),
  ("separate-pinned", "bos"): (90.56, 2.67),
  ("separate-pinned", "text"): (0.00, 7.78),
}
"""Sink rate in percent and validation loss of table 2: 120M parameters, 30B
tokens."""


@dataclasses.dataclass(frozen=True)
class Config(TextConfig):
  """What is trained: every way with every seed.

  Attributes:
    ways: names of `WAYS`; each says itself where BOS stands.
  """

  ways: tuple[str, ...] = tuple(WAYS)


SCALES: dict[str, dict[str, Any]] = {
  "demo": {"ways": ("causal-document", "causal-pinned"), "seeds": (0,)},
  "cpu": {},
  "gpu": GPU_SCALE,
  "paper": PAPER_SCALE | {"steps": TOKENS_30B},
}
"""Fields of `Config` by --scale; `paper` is 30B tokens a run."""


def variants(config: Config) -> dict[str, TrainConfig]:
  """The run of each way.

  Raises:
    ValueError: for a name that is no way.
  """
  runs = {
    way: text_run(config, packing={"mask": mask, "bos": bos})
    for way, (mask, bos) in WAYS.items()
  }
  return chosen(runs, config.ways, "packing")


def claims(trained: Trained, result: Result) -> list[Claim]:
  """Rows of the table against each other, in pairs over seeds."""
  final, found = trained.final, []
  for mask in ("causal", "separate"):
    if (f"{mask}-pinned", "bos") in final:
      found += _without_bos(trained, mask)
  for mask in ("causal", "separate"):
    ways = f"{mask}-pinned", f"{mask}-document"
    if all((way, "bos") in final for way in ways):
      found.append(_pinned(trained, mask, *ways))
  if ("separate-none", "text") in final:
    found.append(_never_bos(trained))
  return found


def _pinned(trained: Trained, mask: str, pinned: str, loose: str) -> Claim:
  """That a BOS that is always there draws more attention."""
  a, b = trained.final[pinned, "bos"], trained.final[loose, "bos"]
  return Claim(
    f"pinned_bos_more_attention_{mask}",
    f"With the {mask} mask, a BOS pinned at the start of every window "
    "draws more attention than one at the start of each document.",
    WHERE,
    f"{PAPER[pinned, 'bos'][0]} and {PAPER[loose, 'bos'][0]} % of heads",
    f"attention on the first token {mean(a['first_mass'])} (pinned) and "
    f"{mean(b['first_mass'])} (each document)",
    seed_effect(
      a["first_mass"] - b["first_mass"],
      "attention on a pinned BOS, less that on a BOS of each document",
      SHARE,
      Expect.MORE,
    ),
    "both models read texts with BOS in front",
    (no_worse(b["loss"], a["loss"], loose, pinned),),
  )


def _never_bos(trained: Trained) -> Claim:
  """That the first token is a sink whatever it is."""
  none = trained.final["separate-none", "text"]
  return Claim(
    "sink_without_bos",
    "A model trained without any BOS has a sink at the first token.",
    WHERE,
    "28.2 % of heads",
    f"attention on the first token {mean(none['first_mass'])}, uniform "
    f"attention {trained.uniform:.3f}; heads with a sink "
    f"{mean(100 * none[trained.rate], '.1f')} %",
    seed_effect(
      # Attention on the first token is never 0: without a sink it is uniform.
      none["first_mass"] - trained.uniform,
      "attention on the first token, less uniform attention",
      SHARE,
      Expect.MORE,
    ),
  )


def _without_bos(trained: Trained, mask: str) -> list[Claim]:
  """What taking BOS away does to a model that always had it."""
  way = f"{mask}-pinned"
  bos, text = trained.final[way, "bos"], trained.final[way, "text"]
  (rate, loss), (bare_rate, bare_loss) = PAPER[way, "bos"], PAPER[way, "text"]
  rise = text["loss"] - bos["loss"]
  return [
    Claim(
      f"weaker_sink_without_pinned_bos_{mask}",
      f"A model trained with the {mask} mask and a pinned BOS has a weaker "
      "sink when it reads a text without BOS.",
      WHERE,
      f"{rate:.1f} to {bare_rate:.2f} % of heads",
      f"attention on the first token {mean(bos['first_mass'])} to "
      f"{mean(text['first_mass'])}, uniform attention {trained.uniform:.3f}; "
      f"heads with sink score above {trained.eps:g} "
      f"{mean(100 * bos[trained.rate], '.1f')} to "
      f"{mean(100 * text[trained.rate], '.1f')} %",
      seed_effect(
        text["first_mass"] - bos["first_mass"],
        "attention on the first token without BOS, less that on BOS",
        SHARE,
        Expect.LESS,
      ),
      "one model reads the same texts in both forms",
    ),
    Claim(
      f"loss_without_pinned_bos_{mask}",
      f"A model trained with the {mask} mask and a pinned BOS has a higher "
      "loss when it reads a text without BOS.",
      WHERE,
      f"{loss} to {bare_loss} nats",
      f"loss {mean(rise)} nats higher than {mean(bos['loss'])}",
      seed_effect(
        rise, "the loss without BOS, less that with it", NATS, Expect.MORE
      ),
      "one model predicts the same tokens in both forms",
    ),
  ]


PANELS = (
  Panel("Paper: heads above 0.3, %", lambda row, numbers: row["paper"][0]),
  RATE._replace(title="Ours: heads above {eps:g}, %"),
  MASS,
  LOSS,
)


def _rows(result: Result) -> bytes:
  return sweep_figures.bars(
    result,
    PANELS,
    label=lambda row: f"{row['variant']}: {FORMS[row['form']]}",
    # By default there is one bar for each variant, as it was trained; here the
    # question is what happens in the other form.
    rows=result.numbers["rows"],
  )


EXPERIMENT = Sweep(
  TITLE,
  Config,
  SCALES,
  variants,
  claims,
  charts=[
    Chart(
      "rows.png",
      _rows,
      "The first word of a row is the mask: causal, or separate, which hides "
      "other documents. The second word is where BOS was in training: none, "
      "at the start of each document, or pinned at the start of every window. "
      "Models are measured on the starts of held-out documents, with BOS in "
      "front and without it; the loss is on the same tokens in both cases. "
      "The paper's models have 120M parameters and were trained on 30B "
      "tokens: compare signs, not magnitudes.",
      sweep_figures.bar_caption,
      functools.partial(sweep_figures.table, paper=True),
    )
  ],
  curves=("first_mass", "sink_rate"),
  paper=PAPER,
).experiment()
