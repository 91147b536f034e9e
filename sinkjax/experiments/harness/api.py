"""What an experiment is, and what it hands over.

An experiment measures, and hands over a `Result`: plain numbers, tables and
arrays. Its claims, its figures and its part of the report are functions of that
result alone, so all three are made again from recorded files without
measuring anything twice.
"""

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from sinkjax import artifacts, taps
from sinkjax.experiments.harness.effects import Count, Effect
from sinkjax.experiments.harness.kept import plainly
from sinkjax.report.html import Section
from sinkjax.weights.chat import GivenChats, UserTurn


class Subject(NamedTuple):
  """The model that is experimented on.

  Attributes:
    name: as the user named it.
    params: its parameters, or weights read layer by layer.
    cfg: its config.
    tokenizer: its tokenizer.
    prefix: ids before every text; with `chat`, those that its template writes.
    chat: the template of which every text is the user's message, or the chats
      that were given as texts; `None` for texts as they stand.
    texts: that the user gave, for experiments with `given_texts`; `None` for
      those of the experiment.
    kept: `kept(what, make, ...)` is `make(...)`, kept for a run that goes on
      where this one is stopped; see `harness.kept`.
  """

  name: str
  params: Any
  cfg: Any
  tokenizer: Any
  prefix: list[int]
  chat: UserTurn | GivenChats | None = None
  texts: Sequence[str] | None = None
  kept: Callable = plainly

  def encode(self, texts: Sequence[str]) -> list[list[int]]:
    """The ids of texts as the model is given them."""
    if self.chat is not None:
      return self.chat.encode(self.tokenizer, texts)
    return [self.prefix + self.tokenizer.encode(text) for text in texts]

  @property
  def template(self) -> int:
    """Tokens of the chat template before each text, 0 without one."""
    return 0 if self.chat is None else len(self.prefix)

  def has_bos(self) -> bool:
    """Whether texts start with BOS."""
    return bool(self.prefix) and self.prefix[0] == self.tokenizer.bos_id


ALL_SITES = frozenset(taps.ALL_SITES)
"""`Experiment.unedited` of one that takes no edits."""


def whole_texts(config: Any) -> float:
  """`Experiment.chat` of one that cuts no text."""
  return math.inf


def fits(cfg: Any) -> str:
  """`Experiment.unfit` of one that measures any model."""
  return ""


@dataclasses.dataclass(frozen=True)
class Claim:
  """A statement about models beside what was measured; `protocol` decides.

  Attributes:
    id: a short name, unique within its experiment, that never changes: the
      wording may be improved, and the verdicts of several models on one claim
      still meet in one row.
    claim: the statement, one full sentence that stands alone.
    source: section, figure or table of the paper, or an arXiv number.
    paper: the figure reported there, with its model; "no number" where the
      source shows a picture or argues.
    ours: what was measured, in words, with its interval.
    effect: what decides; `None` for what cannot be tested.
    how: how the values were made, where the statement leaves it open: texts,
      layers, what was hidden.
    provided: conditions that must hold too, before the claim is supported:
      that a control has less of the effect, that a model is no worse.
    untested: the reason, where `effect` is `None`.
  """

  id: str
  claim: str
  source: str
  paper: str
  ours: str
  effect: Effect | Count | None
  how: str = ""
  provided: tuple[Effect, ...] = ()
  untested: str = ""

  def __post_init__(self):
    if (self.effect is None) != bool(self.untested):
      raise ValueError(
        f"{self.id}: either an effect or the reason why there is none"
      )
    if self.provided and not isinstance(self.effect, Effect):
      raise ValueError(f"{self.id}: conditions qualify an effect")


@dataclasses.dataclass(frozen=True)
class Result:
  """What one experiment measured.

  Attributes:
    numbers: what claims and figures are made from, and what else is worth
      reading. Claims and figures get them as the file holds them: named tuples
      and dataclasses as dicts, arrays as lists, keys as text, floats of seven
      digits.
    tables: {file name: (header, rows)}, one CSV file each.
    arrays: what is too long for JSON, for arrays.npz.
    config: the experiment's Config that was run; set by the runner.
    model: the name of the model, `None` where the experiment trained its own;
      set by the runner.
  """

  numbers: dict[str, Any]
  tables: dict[str, tuple[list[str], list[list[Any]]]]
  arrays: dict[str, np.ndarray]
  config: Any = None
  model: str | None = None

  def records(self, table: str) -> list[dict[str, Any]]:
    """The rows of a table, each by the names of its columns."""
    header, rows = self.tables[table]
    return [dict(zip(header, row, strict=True)) for row in rows]

  def as_stored(self, config: Any, model: str | None = None) -> "Result":
    """The result as its files hold it: what claims and figures are made from.

    Args:
      config: that was run.
      model: the name of the model, if one was given.
    """
    # Claims made right after measuring then equal those made from files.
    numbers = artifacts.plain(self.numbers)
    return dataclasses.replace(
      self, numbers=numbers, config=config, model=model
    )


@dataclasses.dataclass(frozen=True)
class Experiment:
  """One question, and how it is answered.

  Attributes:
    title: of its part of the report.
    config: a frozen dataclass whose fields all have defaults; each is a flag.
    measure: `measure(subject, config, progress=...)` on a given model, or, for
      an experiment that trains its own models, `measure(config, folder=...,
      progress=...)`; gives a `Result`. `progress` is called with (steps done,
      steps in all).
    claims: the claims of a result, as the files hold it; `protocol.judge` gives
      them their verdicts, `Recorded.claims` those of a folder.
    draw: its figures, PNG files by name.
    sections: its part of the report, from the result and the figures.
    scales: fields of the config by --scale, for an experiment that trains;
      `None` for one on a given model.
    plan: lines that --dry_run prints of a config, or `None` for nothing.
    chat: tokens of the shortest text of a config, for an experiment whose texts
      may stand in a chat template: all go through `Subject.encode`. `None` for
      one that makes sequences of its own, in which a template has no place.
    given_texts: whether it reads `Subject.texts` in place of its own texts
      where a user gives some: all of those that are long enough.
    unedited: sites at which it takes no edits of the model
      (`sinkjax.edited`): all for what runs layers in a way of its own, or
      compares the model with others.
    condense: the result without the parts of its arrays that no claim and no
      figure reads, for the compact form; `None` where everything is read.
    unfit: of a model's config, why the experiment cannot measure such a model,
      "" where it can. As one of a group it is then left out.
  """

  title: str
  config: type
  measure: Callable[..., Result]
  claims: Callable[[Result], list[Claim]]
  draw: Callable[[Result], dict[str, bytes]]
  sections: Callable[[Result, Mapping[str, bytes]], list[Section]]
  scales: Mapping[str, Mapping[str, Any]] | None = None
  plan: Callable[[Any], list[str]] | None = None
  chat: Callable[[Any], float] | None = None
  given_texts: bool = False
  condense: Callable[[Result], Result] | None = None
  unedited: frozenset[str] = frozenset()
  unfit: Callable[[Any], str] = fits

  def draws_new_texts(self, config: Any) -> bool:
    """Whether a config's texts are others than those of the recorded runs.

    So are those of every seed but 0, see `prompt_corpus.gather`, which gives
    `count` texts of each domain to experiments with these two fields.
    """
    chosen = hasattr(config, "count") and getattr(config, "seed", 0) > 0
    return self.given_texts and chosen

  def configured(self, scale: str, given: Mapping[str, Any]) -> Any:
    """The config at a scale, with the fields that are given.

    Raises:
      ValueError: for a field that the experiment does not have, or a value
        that no field of its kind can have.
    """
    names = {field.name for field in dataclasses.fields(self.config)}
    unknown = sorted(set(given) - names)
    if unknown:
      raise ValueError(f"no {unknown[0]}; it has {', '.join(sorted(names))}")
    preset = {} if self.scales is None else dict(self.scales[scale])
    fields = {k: _frozen(v) for k, v in (preset | dict(given)).items()}
    made = self.config(**fields)
    presets = (self.scales or {}).values()
    for name in given:
      value = fields[name]
      # What a scale of its own leaves empty may be empty.
      if value != () or all(x.get(name) != () for x in presets):
        _check(name, value, getattr(self.config(), name))
    return made


def _frozen(value: Any) -> Any:
  """Lists, as JSON and config files have them, as the tuples of a config."""
  if isinstance(value, list | tuple):
    return tuple(_frozen(item) for item in value)
  return value


SHARES = ("eps", "share", "shares", "threshold", "thresholds")
"""Fields whose numbers are parts of a whole, where they are not whole."""

FROM_ZERO = ("seed", "sinks", "layer")
"""Words in the names of fields whose whole numbers may be 0."""


def _check(name: str, value: Any, default: Any) -> None:
  """Raises for a number that no measurement is defined for.

  Args:
    name: of the field.
    value: what it is to be.
    default: what it is by default.
  """
  if isinstance(default, tuple) and default and value == ():
    raise ValueError(f"{name} must not be empty")
  seeds = value if "seed" in name and isinstance(value, tuple) else ()
  if len(set(seeds)) != len(seeds):
    raise ValueError(f"{name} has a value twice: {value}")
  for number in _numbers(value):
    least = 1 if isinstance(number, int) else 0
    if any(word in name for word in FROM_ZERO) or 0 in _numbers(default):
      least = 0
    most = math.inf
    if name in SHARES and isinstance(number, float):
      most = 1
    if not (math.isfinite(number) and least <= number <= most):
      limit = f" and at most {most}" if most == 1 else ""
      raise ValueError(f"{name} must be at least {least}{limit}, got {number}")


def _numbers(value: Any) -> list[int | float]:
  """The numbers of a nest of tuples."""
  if isinstance(value, tuple):
    return [number for item in value for number in _numbers(item)]
  number = isinstance(value, int | float) and not isinstance(value, bool)
  return [value] if number else []
