"""Measures the paper's claims on a model, and gives each a verdict.

  python -m launch.reproduce --model=smollm2-135m --out=out/paper

runs every experiment of the paper, or those that --experiment names:

{paper}

Other experiments ask what sinks are useful or harmful for on the same model;
--experiment=applications runs all of them:

{applications}

Others train models of their own, with and without sinks. --experiment=training
runs all of them, at a --scale that fits the machine (demo: minutes on two
cores; cpu; gpu; paper):

{training}

  python -m launch.reproduce --experiment=bigram_backcopy --scale=cpu \\
    --out=out/training

Each experiment gets a folder with result.json, arrays.npz, CSV and PNG files;
claims.csv, claims.md, summary.json and report.html cover all of them, and the
first table of the report compares each claim of the paper with what was
measured here. Complete experiments are not repeated. After an interruption the
same command goes on from the last text, batch or condition of a measurement, or
the last run of a sweep, that is finished; other experiments can be added to the
same --out later. --report makes claims and report.html again from the files in
--out and measures nothing.

The same command in another shell shares the runs. Small models do not fill a
GPU: start the command up to six times there, each with
XLA_PYTHON_CLIENT_MEM_FRACTION=0.15 set.

Every field of an experiment's Config is a flag:

  python -m launch.reproduce --config.perturbation.threshold=0.1 --out=out/paper

--chat makes each text the user's message in the chat template of the model's
file; the record and the report name what the template writes around it.

--prompts_file=FILE.jsonl has the experiments read your own texts or chats in
place of theirs, one a line: {{"text": "..."}}, or
{{"messages": [{{"role": "user", "content": "..."}}]}}. It goes with experiments
that do not make their own sequences.

--edit='graded key=0 by=0.5' measures the edited model; --help has every edit.

With several devices --mesh=fsdp:2,tensor:4 splits the model that the paper's
experiments and the applications measure; models that are trained here, and
those of --models, are on one device each. Exact Jacobians and bounds want
--dtype=float32.

A model that no machine can hold is split over several: the same command in a
process on each, with --distributed (TPU pods, Slurm), else with --coordinator,
--processes and --process. All of them run every experiment, and process 0
writes.

--dry_run --accelerator=8xh100 plans the experiments on a model for devices that
are elsewhere, from a folder with config.json alone.

A config file sets the model and many fields at once. configs/reproduce/ has
those of the paper for Gemma 7B and Llama 3.1, and all defaults written out.
"""

import dataclasses
import pathlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from absl import flags

from launch import (
  accelerator_flag,
  app,
  devices,
  edit_flag,
  given_texts,
  reproduce_run,
)
from launch.accelerator_flag import ACCELERATOR
from sinkjax.experiments import BY_NAME, GROUPS, REGISTRY, SCALES, named

ALIASES = {"all": "paper", "uses": "applications"}
"""Earlier words for groups, which recorded commands use."""

EXPERIMENT = flags.DEFINE_list(
  "experiment",
  ["paper"],
  f"A group ({', '.join(GROUPS)}), or any of: {', '.join(BY_NAME)}.",
)
SCALE = flags.DEFINE_enum(
  "scale", "demo", SCALES, "The size of the experiments that train models."
)
CONFIG = app.config_file(
  None,
  "A file of configs/reproduce/. --config.EXPERIMENT.FIELD and the flags below "
  "take precedence over it.",
  # The class stands further down and is looked up when the config is read.
  lambda: _Entries(),
)
MODEL = flags.DEFINE_string(
  "model",
  None,
  "A model's name or path; without it the config's, or smollm2-135m.",
)
OUT = flags.DEFINE_string("out", None, "The folder to write to.")
PREFIX = flags.DEFINE_string(
  "prefix",
  None,
  "Token put before every text: auto (BOS if the model's file says so; the "
  "default), none, a token's text, or id:N for the token of id N. "
  "--prefix= is none, too, where a token has that name.",
)
MODELS = flags.DEFINE_list(
  "models",
  None,
  "Other models, for model_size; without it, both glassllm models.",
)
OFFLOAD = flags.DEFINE_bool(
  "offload", None, "Read the other models one layer at a time."
)
DRY_RUN = flags.DEFINE_bool(
  "dry_run", False, "Check everything, print the plan, write nothing."
)
OVERWRITE = flags.DEFINE_bool(
  "overwrite", False, "Measure, and train, again what is already there."
)
REPORT = flags.DEFINE_bool(
  "report",
  False,
  "Make claims and report.html again from what --out holds; measure nothing.",
)
COMPACT = flags.DEFINE_bool(
  "compact",
  False,
  "With --report: no report.html, and every experiment in at most six small "
  "files, from which --report makes everything again. For git.",
)


def help_text() -> str:
  """What --help prints: this module's text with the registry in it."""
  width = max(map(len, BY_NAME))

  def listed(group: str) -> str:
    return "\n".join(
      f"  {name:<{width}}  {BY_NAME[name].question}" for name in named(group)
    )

  return __doc__.format(**{group: listed(group) for group in GROUPS})


def main() -> None:
  """Checks the flags, then runs the experiments that are not complete."""
  names = reproduce_run.apart(_names(), by_name=not _is_group())
  _check_config()
  if COMPACT.value and not REPORT.value:
    raise ValueError("--compact goes with --report")
  given_texts.check(names, _prefix())
  edits = edit_flag.given()
  if edits and not REPORT.value:
    from launch.reproduce_subject import check_edits

    check_edits(names, edits)
  if not OUT.value and not DRY_RUN.value:
    raise ValueError("--out is missing: the folder to write to")
  accelerator_flag.check(DRY_RUN.value, offload=False)
  if DRY_RUN.value:
    _dry_run(names)
    return
  from sinkjax.experiments.harness import records, runner

  out = pathlib.Path(OUT.value).expanduser()
  if REPORT.value:
    found = records.every(out)
    if not found:
      hint = f"; give {out.parent}" if (out / "result.json").exists() else ""
      raise ValueError(f"--report: {out} holds no complete experiment{hint}")
    runner.report(out, found, page=not COMPACT.value)
    if COMPACT.value:
      runner.compact_all(out, found)
  else:
    from launch.fitting import fitting
    from launch.reproduce_subject import Subject

    def subject(names: Sequence[str]) -> Subject:
      configs = {name: _configured(name) for name in names}
      return Subject(_model(), _prefix(), configs, edits)

    requests = {name: _request(name) for name in names}
    found = reproduce_run.run(
      out,
      names,
      requests,
      subject,
      lambda left, subject: fitting(
        left, _model(), lambda: _config(subject), by_name=not _is_group()
      ),
      overwrite=OVERWRITE.value,
    )
    if found is None:  # another process writes
      return
  _print(found)
  if not COMPACT.value:
    print(f"\nReport: {out / 'report.html'}")


def _config(subject: Any) -> Any:
  """The model's config, without its weights where a file has it."""
  from sinkjax.weights import registry

  found = registry.peek(_model())
  return subject().cfg if found is None else found[0]


def _is_group() -> bool:
  """Whether --experiment is one of `GROUPS`, and not names."""
  asked = EXPERIMENT.value
  return len(asked) == 1 and ALIASES.get(asked[0], asked[0]) in GROUPS


def _names() -> list[str]:
  """The experiments to run, in the order of the registry.

  Raises:
    ValueError: for an unknown name.
  """
  asked = EXPERIMENT.value
  if _is_group():
    return named(ALIASES.get(asked[0], asked[0]))
  unknown = sorted(set(asked) - set(BY_NAME))
  if unknown or not asked:
    raise ValueError(
      f"--experiment={','.join(asked)}: valid are {', '.join(GROUPS)}, "
      f"{', '.join(BY_NAME)}"
    )
  return [entry.name for entry in REGISTRY if entry.name in asked]


class _Entries(Mapping[str, Any]):
  """Types of a config's entries; an experiment is imported when asked for."""

  _own = {"model": str, "prefix": str, "scale": str}

  def __getitem__(self, name: str) -> Any:
    return self._own.get(name) or BY_NAME[name].load().config

  def __iter__(self) -> Iterator[str]:
    return iter((*self._own, *BY_NAME))

  def __len__(self) -> int:
    return len(self._own) + len(BY_NAME)


def _setting(name: str, flag: Any, default: str) -> str:
  """A flag, else the config's entry, else the default."""
  given = (flag.value, CONFIG.value.get(name), default)
  # Not the first that is true: --prefix= is a value.
  return next(value for value in given if value is not None)


def _model() -> str:
  return _setting("model", MODEL, "smollm2-135m")


def _prefix() -> str:
  return _setting("prefix", PREFIX, "auto")


def _configured(name: str) -> Any:
  """An experiment's config, as file and flags set its fields."""
  experiment = BY_NAME[name].load()
  given = dict(CONFIG.value.get(name, {}))
  fields = {field.name for field in dataclasses.fields(experiment.config)}
  # --models and --offload set the fields of that name in every experiment.
  for field, value in (("models", MODELS.value), ("offload", OFFLOAD.value)):
    # `None` is a flag that was not given; --nooffload is a value, and false.
    if value is not None and field in fields:
      given[field] = value
  return experiment.configured(SCALE.value, given)


def _check_config() -> None:
  """Checks every value of the config, and that it is made for --scale.

  Raises:
    ValueError: naming the first that is not allowed.
  """
  for name in CONFIG.value:
    if name in BY_NAME:
      _configured(name)
  scale = CONFIG.value.get("scale", SCALE.value)
  if scale != SCALE.value:
    raise ValueError(
      f"--config is made for --scale={scale}, got --scale={SCALE.value}"
    )


def _request(name: str) -> Any:
  """Everything that decides an experiment's result."""
  from sinkjax.experiments.harness.runner import Request

  entry = BY_NAME[name]
  of = {"model": _model(), "prefix": _prefix(), **devices.request()}
  of |= given_texts.request()
  of |= edit_flag.record(edit_flag.given())
  if entry.load().scales is not None:
    # Such an experiment trains its own models: another --model or --prefix does
    # not ask for another result.
    of = {"scale": SCALE.value}
  return Request(entry, _configured(name), of)


NEW_TEXTS = (
  "its texts are some that no recorded run has read: verdicts on them are "
  "confirmatory, see docs/protocol.md"
)
"""What a dry run says of a seed that is not 0."""


def _dry_run(names: list[str]) -> None:
  from sinkjax.experiments.harness import costs, power
  from sinkjax.weights import registry

  found = {name: BY_NAME[name].load() for name in names}
  on_a_model = [name for name in names if found[name].scales is None]
  if ACCELERATOR.value and len(on_a_model) < len(names):
    raise ValueError(
      f"--accelerator={ACCELERATOR.value} plans experiments on a given model; "
      "for models that are trained, ask launch.train --dry_run"
    )
  if on_a_model:
    from launch import reproduce_plan

    configs = {name: _configured(name) for name in names}
    names = reproduce_plan.show_model(
      _model(), _prefix(), configs, by_name=not _is_group()
    )
  for name in names:
    experiment = found[name]
    config = _configured(name)
    if experiment.scales is None:  # else `models` are those that it trains
      for other in getattr(config, "models", ()):
        registry.peek(other)  # its headers, where it is on this machine
    lines = [] if experiment.plan is None else experiment.plan(config)
    # A sweep's units are its seeds; other configs count texts each in its way.
    seeds = getattr(config, "seeds", None)
    units = len(seeds) if isinstance(seeds, tuple) else None
    print(f"experiment   {name}: {experiment.title}")
    if not given_texts.request() and experiment.draws_new_texts(config):
      lines = [*lines, NEW_TEXTS]
    scale = None if experiment.scales is None else SCALE.value
    times = costs.plan(name, scale)
    for line in [*lines, *power.plan(name, units), *times]:
      print(f"             {line}")
  print(f"writes       nothing (dry run); else to {OUT.value or '--out'}")


def _print(found: Any) -> None:
  """Every claim with its verdict."""
  for one in found:
    print(f"\n{one.entry.name}: {one.entry.load().title}")
    for claim in one.claims():
      print(f"  {claim.verdict:<28}{claim.claim}\n{'':30}{claim.ours}")


if __name__ == "__main__":
  app.run(main, help_text())
