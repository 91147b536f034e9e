"""`TrainConfig`: all that a run is a function of."""

import dataclasses
from typing import Any

from sinkjax import finite
from sinkjax.config import ModelConfig
from sinkjax.data.packing import Packing
from sinkjax.train.depth_loss import HaltTerm
from sinkjax.train.loss import Noise, SinkTarget
from sinkjax.train.optimizer import OptimizerConfig


@dataclasses.dataclass(frozen=True)
class Stage:
  """A part of a run at one context length.

  Attributes:
    length: tokens of a window.
    steps: of this part.
    rope_base: base of the rotary frequencies, `None` for the model's own.
    start: steps done before it; known to `TrainConfig.all_stages`.
    number: of the stage, likewise.
  """

  length: int
  steps: int
  rope_base: float | None = None
  start: int = 0
  number: int = 0

  @property
  def end(self) -> int:
    """Steps done after it."""
    return self.start + self.steps


@dataclasses.dataclass(frozen=True)
class TrainConfig:
  """A run.

  Attributes:
    model: the architecture.
    packing: how windows are made.
    optimizer: AdamW and its schedule.
    corpus: names or paths, see `data.corpus.gather`.
    steps: of the whole run.
    batch: windows a step.
    accumulate: parts that a batch is worked through in.
    stages: context lengths one after the other, the last of them
      `packing.length`; every step has the tokens of `batch` windows of that
      length. Empty for one length. Each stage visits the corpus in an order
      of its own, from its start.
    held_out: share of the tokens that is not trained on.
    train_share: of the others, the share that is; whole documents.
    seed: of parameters, split and order.
    sink_target: train for this attention on the first token, in every head,
      see `train.loss.SinkTarget`; `None` for what comes by itself.
    sink_weight: of that beside the loss.
    sink_heads: only the first so many heads of each layer are trained for it;
      `None` for all.
    sink_others: with `sink_heads`, what the other heads are trained for.
    halt_weight: with `model.depth="halting"`, of PonderNet's term beside the
      loss, see `train.depth_loss.HaltTerm`.
    halt_prior: that term's prior probability to stop behind a layer.
    noise: norm of a disturbance of every token's embedding, over that of the
      embedding, see `train.loss.Noise`; 0 for none.
    adversarial: it goes where the loss grows fastest, not anywhere.
    details: record gradient norms by group and, where a batch has parts, the
      gradient's noise.
    statistics: "package.module:function" of what else the probe measures, see
      `train.probe.make_probe`.
    log_every: steps between two records of the training loss; there is one
      at each measurement, too.
    eval_every: steps between two measurements on held-out windows.
    eval_windows: how many of these.
    probe_every: steps between two measurements of sinks.
    probe_steps: further steps at which sinks and the held-out loss are
      measured, for what happens before the first multiple of `probe_every`.
    probe_texts: held-out documents on which sinks are measured.
    probe_tokens: of each, what stands before it counted.
    save_every: steps between two checkpoints.
    keep: checkpoints kept beside the best.
  """

  model: ModelConfig
  packing: Packing
  optimizer: OptimizerConfig
  corpus: tuple[str, ...] = ("sotu", "wiki-vital")
  steps: int = 1000
  batch: int = 16
  accumulate: int = 1
  stages: tuple[Stage, ...] = ()
  held_out: float = 0.02
  train_share: float = 1.0
  seed: int = 0
  sink_target: float | None = None
  sink_weight: float = 1.0
  sink_heads: int | None = None
  sink_others: float = 0.0
  halt_weight: float = HaltTerm().weight
  halt_prior: float = HaltTerm().prior
  noise: float = 0.0
  adversarial: bool = False
  details: bool = False
  statistics: tuple[str, ...] = ()
  log_every: int = 10
  eval_every: int = 250
  eval_windows: int = 64
  probe_every: int = 50
  probe_steps: tuple[int, ...] = ()
  probe_texts: int = 32
  probe_tokens: int = 64
  save_every: int = 250
  keep: int = 2

  def __post_init__(self):
    finite.require_fields(self)
    for field in dataclasses.fields(self):
      value = getattr(self, field.name)
      # 0 is a seed like any other, and none is negative; of everything else
      # that is counted there must be one.
      least = 0 if field.name == "seed" else 1
      if field.type is int and value < least:
        raise ValueError(f"{field.name} must be at least {least}, got {value}")
    if self.seed >= 1 << 32:  # JAX's keys are made of 32 bits
      raise ValueError(f"seed must be below 2^32, got {self.seed}")
    # The path "" is the folder that the command runs in.
    if not self.corpus or not all(name.strip() for name in self.corpus):
      raise ValueError(
        f"corpus must name texts, and none by an empty name, got {self.corpus}"
      )
    if max(self.packing.length, self.probe_tokens) > self.model.max_len:
      raise ValueError(
        f"windows of {self.packing.length} and probes of {self.probe_tokens} "
        f"tokens must fit model.max_len={self.model.max_len}"
      )
    if self.batch % self.accumulate:
      raise ValueError(
        f"accumulate={self.accumulate} must divide batch={self.batch}"
      )
    if not all(1 <= step <= self.steps for step in self.probe_steps):
      raise ValueError(
        f"probe_steps must be from 1 to steps={self.steps}, got "
        f"{self.probe_steps}"
      )
    if self.packing.registers >= self.model.vocab_size:
      raise ValueError(
        f"packing.registers={self.packing.registers} leave no id of "
        f"model.vocab_size={self.model.vocab_size} to the text"
      )
    if not 0 < self.train_share <= 1:
      raise ValueError(f"train_share must be in (0, 1], got {self.train_share}")
    self.sink()
    self.halt().check()
    if self.model.depth != "halting" and self.halt() != HaltTerm():
      raise ValueError(
        "halt_weight and halt_prior need model.depth='halting', got "
        f"{self.model.depth!r}"
      )
    if not self.noise >= 0 or (self.adversarial and not self.noise):
      raise ValueError(
        "noise must not be negative, and adversarial=True needs one above 0, "
        f"got noise={self.noise}, adversarial={self.adversarial}"
      )
    if self.stages:
      self._check_stages()

  def sink(self) -> SinkTarget | None:
    """The target that attention on the first token has, if any."""
    if self.sink_others and self.sink_heads is None:
      raise ValueError("sink_others needs sink_heads")
    if self.sink_target is None:
      if self.sink_heads is not None:
        raise ValueError("sink_heads needs a sink_target")
      return None
    return SinkTarget(
      self.sink_target, self.sink_weight, self.sink_heads, self.sink_others
    )

  def halt(self) -> HaltTerm:
    """What is added to the loss of a model whose tokens halt."""
    return HaltTerm(self.halt_weight, self.halt_prior)

  def disturbance(self) -> Noise | None:
    """The noise of the embeddings, if any."""
    if not self.noise:
      return None
    return Noise(self.noise, self.adversarial, self.seed)

  @property
  def text_vocab_size(self) -> int:
    """Ids of the model that are the tokenizer's; registers come after."""
    return self.model.vocab_size - self.packing.registers

  def _check_stages(self):
    total = sum(stage.steps for stage in self.stages)
    last = self.stages[-1].length
    if total != self.steps or last != self.packing.length:
      raise ValueError(
        f"the stages have {total} steps and end at {last} tokens, the run has "
        f"steps={self.steps} and packing.length={self.packing.length}"
      )
    tokens = self.batch * self.packing.length
    for stage in self.stages:
      if stage.steps < 1 or tokens % (stage.length * self.accumulate):
        raise ValueError(
          f"a stage of {stage.steps} steps at {stage.length} tokens cannot "
          f"have the {tokens} tokens a step of batch={self.batch} in "
          f"{self.accumulate} parts"
        )
      if stage.length > self.model.max_len:
        raise ValueError(f"a stage of {stage.length} tokens exceeds max_len")

  def all_stages(self) -> list[Stage]:
    """The stages with their places; one where none is given."""
    stages = self.stages or (Stage(self.packing.length, self.steps),)
    found, at = [], 0
    for number, stage in enumerate(stages):
      found.append(dataclasses.replace(stage, start=at, number=number))
      at += stage.steps
    return found

  def model_at(self, stage: Stage) -> ModelConfig:
    """The model as it is in a stage."""
    if stage.rope_base is None:
      return self.model
    return self.model.replace(rope_base=stage.rope_base)

  def packing_at(self, stage: Stage) -> Packing:
    """The packing of a stage."""
    return dataclasses.replace(self.packing, length=stage.length)

  def batch_at(self, stage: Stage) -> int:
    """Windows a step in a stage."""
    return self.batch * self.packing.length // stage.length

  def trained_model(self) -> ModelConfig:
    """The model as the run leaves it."""
    return self.model_at(self.all_stages()[-1])

  def to_dict(self) -> dict[str, Any]:
    """Plain values, ready for JSON; `from_dict` is the inverse.

    Fields of the noise are left out where there is none, further steps of the
    probe, heads with a sink's target and the term of halting likewise, and the
    optimiser's name where it is AdamW, so that runs made before there were such
    fields are still recognised.
    """
    values = dataclasses.asdict(self) | {"model": self.model.to_dict()}
    if not self.noise:
      del values["noise"], values["adversarial"]
    if not self.probe_steps:
      del values["probe_steps"]
    if self.sink_heads is None:
      del values["sink_heads"], values["sink_others"]
    if self.model.depth != "halting":
      del values["halt_weight"], values["halt_prior"]
    if self.optimizer.name == "adamw":
      del values["optimizer"]["name"]
    return values

  @classmethod
  def from_dict(cls, values: dict[str, Any]) -> "TrainConfig":
    """The config that `to_dict` described.

    Raises:
      ValueError: for a field that there is not, or a value that cannot be.
    """
    values = dict(values)
    try:
      return cls(
        ModelConfig.from_dict(dict(values.pop("model"))),
        Packing(**values.pop("packing")),
        OptimizerConfig(**values.pop("optimizer")),
        corpus=tuple(values.pop("corpus")),
        stages=tuple(Stage(**stage) for stage in values.pop("stages", ())),
        statistics=tuple(values.pop("statistics", ())),
        probe_steps=tuple(values.pop("probe_steps", ())),
        **values,
      )
    except (KeyError, TypeError) as error:
      raise ValueError(f"--config: {error}") from None
