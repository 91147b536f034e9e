"""Trains a model from scratch and records how its sinks form.

  python -m launch.train --config=configs/train/tiny.py --workdir=out/tiny

Fetches the corpora that the config names, trains a tokenizer on them, packs
them into windows and trains. However it is interrupted, the same command
resumes from the last complete checkpoint; a run that is stopped ends with 130
for Ctrl-C and 143 for SIGTERM, one that fails with 1. It writes to --workdir:

  metrics.jsonl  every record: training loss, held-out loss, sinks
  tensorboard/   the same records for TensorBoard
  checkpoints/   the last steps and the best one, each verified when it is read
  model/         the trained model: --model=WORKDIR in every other launcher
  *.png, *.csv   curves, and the sink scores of every head at the end
  report.html    all of it on one page
  summary.json   config, numbers, versions, command

Every field of the config is a flag, as in --config.optimizer.peak=0.003 or
--config.optimizer.clip=none. To start from existing weights, give
--start=smollm2-135m or any model that launch.analyze takes, with that model's
own config.

Several devices: --mesh=data:4,fsdp:2. Several processes: run the same command
on each, with --distributed where the environment says how they find each other
(TPU pods, Slurm; launch/run_tpu.sh, launch/run_slurm.sh), else with
--coordinator, --processes and --process. They share --workdir, a folder that
all of them can read and write. A run may resume on another mesh than the one
it was saved on.
"""

import contextlib
import copy
import dataclasses
import os
import pathlib
import shutil
import signal
import sys
import time
from typing import TYPE_CHECKING, Any

from absl import flags

from launch import app, process_flags, train_log, train_processes
from launch.accelerator_flag import ACCELERATOR
from launch.mesh_flag import MESH
from sinkjax import artifacts, limits, outputs

if TYPE_CHECKING:
  from sinkjax.config import ModelConfig
  from sinkjax.data.prepare import Prepared
  from sinkjax.models.transformer import Params
  from sinkjax.train.run_config import TrainConfig

START_FILE = "start.json"
"""The file of --workdir that says what the run began from."""

START_FREE = {
  "max_len",
  "bos_id",
  "eos_id",
  "model_type",
  "dtype",
  "precision",
  "scan_layers",
  "attention",
  "remat",
  "rope_base",
  "init_std",
}
"""Fields in which a run's model may differ from that of --start: the parameters
have the same shapes and the same meaning."""

CONFIG = app.config_file(
  "configs/train/tiny.py",
  "A file of configs/train/. Each of its fields is a flag --config.FIELD.",
  lambda: _declared(),
)
WORKDIR = flags.DEFINE_string("workdir", None, "The folder to write to.")
START = flags.DEFINE_string(
  "start", None, "A model's name or path, to start from its parameters."
)
REPORT = flags.DEFINE_bool(
  "report", False, "Only draw the report of what --workdir holds so far."
)
DRY_RUN = flags.DEFINE_bool(
  "dry_run", False, "Check everything, print the plan, write nothing."
)


def main() -> None:
  """Checks the config, then trains what is left of the run."""
  config = _config()
  if not WORKDIR.value and not DRY_RUN.value:
    raise ValueError("--workdir is missing: the folder to write to")
  if DRY_RUN.value:
    from launch import train_plan
    from sinkjax.weights import registry

    # A corpus may lie on the machine that is planned for.
    train_plan.check(
      config, corpus=not ACCELERATOR.value, own_tokenizer=not START.value
    )
    if START.value and (found := registry.peek(START.value)):
      _same_model(config, found[0])
    train_plan.show(config, WORKDIR.value, _mesh(), ACCELERATOR.value)
    return
  workdir = pathlib.Path(WORKDIR.value).expanduser()
  # As JSON gives it back, with lists for tuples and rounded numbers: it is
  # compared with what is recorded.
  request = artifacts.plain(config.to_dict())
  if REPORT.value:
    from launch import train_report

    _same_run(workdir, request)
    train_report.write_so_far(config, workdir, request)
    return
  begun = _same_start(workdir)
  if app.finished(workdir, request, overwrite=False) is not None:
    return
  first = process_flags.join()
  # One process of a run of several keeps the folder for all.
  lock = contextlib.nullcontext()
  if first:
    lock = outputs.alone(workdir, keeps=lambda _: _begun(workdir))
  with lock:
    if first:
      _same_run(workdir, request)
    app.warm_compiler()
    stopped = _train(config, workdir, request, begun, first)
  train_processes.leave()
  if stopped:
    # As a shell tells of a program that the signal ended.
    sys.exit(128 + stopped)


def _mesh() -> str:
  """--mesh, which stands for all devices along data where it is not given."""
  if MESH.value == "auto":
    return "data:-1"
  from sinkjax import sharding

  if sharding.MeshConfig.parse(MESH.value).expert != 1:
    raise ValueError(
      f"--mesh={MESH.value}: an axis of experts is for analyses; training has "
      "data, fsdp and tensor"
    )
  return MESH.value


def _declared() -> type:
  """The dataclass whose fields a config has."""
  from sinkjax.train.run_config import TrainConfig

  return TrainConfig


def _config() -> "TrainConfig":
  """The run that file and flags describe.

  Raises:
    ValueError: for an unknown field, or a value that is not allowed.
  """
  return _declared().from_dict(CONFIG.value)


def _same_start(workdir: pathlib.Path) -> dict[str, Any]:
  """What is recorded of --start: its name, and the SHA-256 of its bytes.

  Raises:
    ValueError: where the folder holds a run that began from something else.
  """
  path, begun = workdir / START_FILE, {"model": None, "sha256": None}
  if START.value:
    from sinkjax.weights import identity

    sha = identity.of(START.value, without=workdir)["sha256"]
    begun = {"model": START.value, "sha256": sha}
  # Runs begun before this was recorded lack the file.
  known = path.exists() and _begun(workdir)
  old = limits.read_json(path) if known else begun
  with app.reading(path):
    before, same = old["model"], begun["sha256"] == old["sha256"]
  if not same:
    now = f"{START.value} as it is now" if START.value else "random parameters"
    raise ValueError(
      f"{workdir} holds a run that began from "
      f"{before or 'random parameters'}, this one begins from {now}; "
      "choose another --workdir"
    )
  return begun


def _begun(workdir: pathlib.Path) -> bool:
  """Whether a folder holds a step that a run goes on from."""
  return any(
    path.name.isdecimal() for path in (workdir / "checkpoints").glob("*")
  )


def _same_run(workdir: pathlib.Path, request: dict[str, Any]) -> None:
  """Compares the config of a run that has begun with the recorded one.

  Raises:
    ValueError: naming the fields in which the two differ.
  """
  path = workdir / "config.json"
  # A run that was killed before its first checkpoint has nothing to lose.
  if not path.exists() or not _begun(workdir):
    return
  old = limits.read_json(path)
  with app.reading(path):
    changed = [
      f"{name} (was {old.get(name)!r}, now {request.get(name)!r})"
      for name in sorted({*old, *request})
      if old.get(name) != request.get(name)
    ]
  if changed:
    raise ValueError(
      f"{workdir} holds a run of another config: {'; '.join(changed)[:300]}; "
      "choose another --workdir"
    )


def _prepared(config: "TrainConfig") -> "Prepared":
  """The corpus in its own tokens, split into training and held-out."""
  from sinkjax.data.prepare import prepare

  with artifacts.bar("tokenizing") as progress:
    return prepare(
      config.corpus,
      vocab_size=config.text_vocab_size,
      held_out=config.held_out,
      seed=config.seed,
      progress=progress,
    )


def _data(config: "TrainConfig") -> tuple["Params | None", "Prepared"]:
  """(parameters to start from, corpus).

  Raises:
    ValueError: if the model has fewer ids than the tokenizer, or chats that
      begin with BOS would get a second one.
  """
  if START.value:
    start, data = _started(config)
  else:
    start, data = None, _prepared(config)
  chats = data.train.about.get("chats", {})
  if chats.get("starts_with_bos") and config.packing.bos != "none":
    raise ValueError(
      "the chat template of the corpus writes BOS at the start of each chat: "
      f"set --config.packing.bos=none, got {config.packing.bos}"
    )
  made = data.tokenizer.vocab_size
  if made > config.text_vocab_size:
    needed = made + config.packing.registers
    raise ValueError(
      f"the tokenizer has {made} ids, the model fewer; "
      f"set --config.model.vocab_size={needed}"
    )
  return start, data


def _same_model(config: "TrainConfig", cfg: "ModelConfig") -> None:
  """Raises ValueError where --start has another model than the config."""
  mine, theirs = map(dataclasses.asdict, (config.model, cfg))
  for name, value in theirs.items():
    if name not in START_FREE and mine[name] != value:
      raise ValueError(
        f"--start={START.value} has {name}={value!r}, the config {mine[name]!r}"
      )


def _started(config: "TrainConfig") -> tuple["Params", "Prepared"]:
  """Parameters of --start, and the corpus in that model's own tokens.

  Raises:
    ValueError: naming the first field in which the config is another model.
  """
  import sinkjax
  from sinkjax.data.prepare import prepare

  params, cfg, tokenizer = sinkjax.load(START.value)
  _same_model(config, cfg)
  with artifacts.bar("tokenizing") as progress:
    data = prepare(
      config.corpus,
      vocab_size=cfg.vocab_size,
      held_out=config.held_out,
      seed=config.seed,
      tokenizer=tokenizer,
      progress=progress,
    )
  return params, data


def _train(
  config: "TrainConfig",
  workdir: pathlib.Path,
  request: dict[str, Any],
  begun: dict[str, Any],
  first: bool,
) -> int:
  """Trains; process `first` writes the log, the model and the report.

  Returns:
    0 for a run that is done, else the signal that stopped it.
  """
  import jax

  from sinkjax import sharding
  from sinkjax.train import checkpoint, loop

  mesh = sharding.make_mesh(sharding.MeshConfig.parse(_mesh()))
  start, data = _data(config)
  stops, began = [], time.monotonic()
  for number in (signal.SIGTERM, signal.SIGINT):
    # The handler only notes the request: the loop saves a checkpoint after the
    # step in progress, and schedulers send SIGTERM before they kill.
    signal.signal(number, lambda number, _: stops.append(number))
  # Last before the training: what fails until here has claimed nothing.
  if first:
    artifacts.write_json(workdir / "config.json", request)
    artifacts.write_json(workdir / START_FILE, begun)
  checkpoints = checkpoint.RunCheckpoints(
    workdir / "checkpoints", keep=config.keep
  )
  log = train_log.Log(config, workdir) if first else train_log.NoLog()
  steps = loop.run(
    config, data, checkpoints, mesh=mesh, start=start, stop=lambda: bool(stops)
  )
  records, state = [], None
  with train_processes.ending_together(), log:
    for record, records, state in steps:  # noqa: B007
      log.write(record, records)
    checkpoints.close()
    if record["kind"] == "stopped":
      if first:
        print(
          f"stopped at step {record['step']}, saved; the same command resumes"
        )
      # Another process may have had the signal.
      return int(stops[0] if stops else signal.SIGTERM)
    # On every process, not the first alone: parameters that are spread over
    # processes can only be gathered by all of them together.
    params = jax.tree.map(sharding.to_host, state.params)
    if first:
      numbers = {
        "tokens": config.steps * config.batch * config.packing.length,
        "corpus_tokens": len(data.train.tokens),
        "skipped": int(state.skipped),
        "seconds_of_this_run": time.monotonic() - began,
      }
      _finish(config, data, workdir, request, records, params, numbers)
  return 0


def _finish(
  config: "TrainConfig",
  data: "Prepared",
  workdir: pathlib.Path,
  request: dict[str, Any],
  records: list[dict[str, Any]],
  params: "Params",
  numbers: dict[str, Any],
) -> None:
  """Writes the model, the figures and, last, the summary."""
  from launch import train_report
  from sinkjax.weights import orbax_io

  # An earlier attempt may have been cut off while it wrote the model.
  shutil.rmtree(workdir / "model", ignore_errors=True)
  cfg = config.trained_model().replace(
    bos_id=data.tokenizer.bos_id, eos_id=data.tokenizer.eos_id
  )
  tokenizer = copy.copy(data.tokenizer)
  # Whoever loads the model should begin texts as the training did.
  tokenizer.add_bos = config.packing.bos != "none"
  orbax_io.save(workdir / "model", params, cfg, tokenizer)
  train_report.write(
    config, workdir, request, records, numbers, data.train.about
  )
  last = {r["kind"]: r for r in records}
  print(
    f"held-out loss {last['eval']['loss']:.3f} nats a token, sink rate "
    f"{100 * last['probe']['sink_rate_0.3']:.1f} % at eps 0.3, attention on "
    f"the first token {last['probe']['first_mass']:.3f}\n"
    f"Report: {workdir / 'report.html'}"
  )


if __name__ == "__main__":
  os.environ.setdefault("GRPC_VERBOSITY", "ERROR")
  app.run(main, __doc__)
