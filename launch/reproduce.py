"""The paper's measurements on a model, each claim with a verdict.

  python -m launch.reproduce --model=smollm2-135m --out=out/paper

runs every experiment, or those named:

  perturbation   does a swapped word spread further without the sink?
  smoothing      where the sink goes when the first token is removed or hidden
  jacobian       how much tokens mix, exactly, with and without the sink
  bound          the over-squashing bounds beside the exact Jacobian
  collapse       rank collapse on texts, repeated digits that rounding merges
  prompts        the sink rate over 200 prompts of ten domains, fetched once
  massive        massive activations: what makes them, what hangs on them
  model_size     sink rates of this model and of others (--models), no test

and writes, for each, a folder with result.json, arrays.npz, CSV and PNG files;
and for all of them claims.csv, summary.json and report.html, whose first table
puts each claim of the paper beside what was found here. What is complete is
not run again: the same command goes on after an interruption, and another
experiment can be added to the same --out later.
"""

import dataclasses
import importlib
import pathlib
import time
from typing import Any

from absl import flags

from launch import app

EXPERIMENTS = {
  "perturbation": "perturbation",
  "smoothing": "smoothing",
  "jacobian": "jacobian_maps",
  "bound": "bound",
  "collapse": "collapse",
  "prompts": "prompts",
  "massive": "massive",
  "model_size": "model_size",
}
"""Modules of `sinkjax.experiments` and `sinkjax.report`, by name."""

EXPERIMENT = flags.DEFINE_list(
  "experiment", ["all"], f"all, or some of: {', '.join(EXPERIMENTS)}."
)
MODEL = flags.DEFINE_string("model", "smollm2-135m", "A model's name or path.")
OUT = flags.DEFINE_string("out", None, "The folder to write to.")
PREFIX = flags.DEFINE_string(
  "prefix",
  "auto",
  "Token put before every text: auto (BOS if the model's file says so), none, "
  "a vocabulary entry, or an id.",
)
MODELS = flags.DEFINE_list(
  "models", ["glassllm-en", "glassllm-pt"], "Other models, for model_size."
)
OFFLOAD = flags.DEFINE_bool(
  "offload", False, "Read those other models one layer at a time."
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
      subject = subject or _subject()
      _run(out / name, name, subject)
    found = [
      data for name in EXPERIMENTS if (data := reproduce.read(out / name))
    ]
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
  unknown = sorted(set(asked) - set(EXPERIMENTS))
  if unknown or not asked:
    raise ValueError(
      f"--experiment={','.join(asked)}: valid are all, {', '.join(EXPERIMENTS)}"
    )
  return [name for name in EXPERIMENTS if name in asked]


def _experiment(name: str):
  """An experiment's module, and its config with what flags say."""
  module = importlib.import_module(f"sinkjax.experiments.{EXPERIMENTS[name]}")
  given = {"models": tuple(MODELS.value), "offload": OFFLOAD.value}
  names = {field.name for field in dataclasses.fields(module.Config)}
  config = {k: v for k, v in given.items() if k in names}
  return module, module.Config(**config)


def _request(name: str) -> dict[str, Any]:
  """What decides an experiment's result, as `result.json` keeps it."""
  from sinkjax.report import files

  _, config = _experiment(name)
  return files.plain(
    {"model": MODEL.value, "prefix": PREFIX.value, "config": config}
  )


def _missing(folder: pathlib.Path, request: dict[str, Any]) -> bool:
  """Whether an experiment is still to be run.

  Raises:
    ValueError: where the folder holds another command's.
  """
  from sinkjax.report import reproduce

  old = None if OVERWRITE.value else reproduce.read(folder)
  if old is not None and old["request"] != request:
    raise ValueError(
      f"{folder} holds the result of another command, on "
      f"{old['request']['model']}; choose another --out or give --overwrite"
    )
  if old is not None:
    print(f"{folder.name}: already done, --overwrite runs it again")
  return old is None


def _dry_run(names: list[str]) -> None:
  from launch import prompts
  from sinkjax.weights import registry

  print(f"model        {MODEL.value}")
  found = registry.peek(MODEL.value)
  if found is None:
    package = registry.REGISTRY[MODEL.value]
    print(
      f"             not in the cache: {package.megabytes:.0f} MB would be "
      f"fetched ({package.project} {package.version}, {package.licence})"
    )
  else:
    cfg, tokenizer, parameters = found
    prompts.need_tokenizer(tokenizer, MODEL.value)
    _, why = prompts.resolve_prefix(PREFIX.value, tokenizer)
    print(
      f"             {cfg.n_layers} layers, {parameters:,} parameters, "
      f"{4 * parameters / 1e9:.2f} GB of weights\nprefix       {why}"
    )
  if "model_size" in names:
    for name in MODELS.value:
      print(f"other model  {name}: {_needs(name)}")
  for name in names:
    module, _ = _experiment(name)
    print(f"experiment   {name}: {module.TITLE}")
  print(f"writes       nothing (dry run); else to {OUT.value or '--out'}")


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

  params, cfg, tokenizer = sinkjax.load(MODEL.value)
  prompts.need_tokenizer(tokenizer, MODEL.value)
  prefix, _ = prompts.resolve_prefix(PREFIX.value, tokenizer)
  return Subject(MODEL.value, params, cfg, tokenizer, prefix)


def _run(folder: pathlib.Path, name: str, subject) -> None:
  """One experiment, computed, drawn and written."""
  from sinkjax.report import reproduce

  experiment, config = _experiment(name)
  report = importlib.import_module(f"sinkjax.report.{EXPERIMENTS[name]}")
  start = time.monotonic()
  with app.bar(name) as progress:
    result = experiment.run(subject, config, progress=progress)
  drawn = report.draw(result)
  with app.folder(folder):
    reproduce.write(
      folder, result, drawn, report.sections(result, drawn),
      {"request": _request(name), "seconds": time.monotonic() - start,
       "device": app.device(), "commit": app.commit(),
       "versions": app.versions()},
    )  # fmt: skip


def _report(out: pathlib.Path, found, seconds: float) -> None:
  """claims.csv, report.html and summary.json of all that is complete."""
  from sinkjax.report import files, reproduce

  data = {
    "model": MODEL.value, "command": app.command("reproduce"),
    "device": app.device(), "commit": app.commit(),
    "versions": app.versions(), "seconds": sum(x["seconds"] for x in found),
    "seconds_of_this_run": seconds,
    "experiments": [x["name"] for x in found],
    "claims": [claim for x in found for claim in x["claims"]],
  }  # fmt: skip
  files.write_csv(out / "claims.csv", *reproduce.claims_table(found))
  page = reproduce.page(
    out, found, model=MODEL.value, seconds=data["seconds"],
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
