"""Trains a model from nothing, and watches its sinks appear.

  python -m launch.train --config=configs/train/tiny.py --workdir=out/tiny

Fetches the corpora that the config names, trains a tokenizer on them, packs
them into windows and trains. Interrupted in any way, the same command goes on
from the last whole checkpoint. It writes to --workdir:

  metrics.jsonl  every record: training loss, held-out loss, sinks
  tensorboard/   the same for TensorBoard
  checkpoints/   the last steps and the best, each checked when it is read
  model/         the trained model: --model=WORKDIR in every other launcher
  *.png, *.csv   curves, and the sink map at the end
  report.html    all of it on one page
  summary.json   config, numbers, versions, command

Every field of the config can be set: --config.optimizer.peak=0.003. To start
from weights that there are: --start=smollm2-135m or any model that
launch.analyze takes, with the config of that model.

Several devices: --mesh=data:4,fsdp:2. Several processes: the same command on
each, with --distributed where the environment tells them of each other (TPU
pods, Slurm; launch/run_tpu.sh, launch/run_slurm.sh), else with --coordinator,
--processes and --process. They share --workdir, a folder that all can see. A
run that was saved on one mesh goes on on another.
"""

import contextlib
import copy
import json
import os
import pathlib
import signal
import sys
import time
from typing import TYPE_CHECKING, Any

from absl import flags

from launch import app, train_log
from sinkjax import artifacts, provenance

if TYPE_CHECKING:
  from sinkjax.train.run_config import TrainConfig

HEARTBEAT = 20
"""Seconds after which a process that does not answer is taken for dead."""

CONFIG = app.config_file(
  "configs/train/tiny.py",
  "A file of configs/train/, whose every field is a flag --config.FIELD.",
  lambda: _declared(),
)
WORKDIR = flags.DEFINE_string("workdir", None, "The folder to write to.")
MESH = flags.DEFINE_string(
  "mesh", "data:-1", "Devices by axis: data, fsdp, tensor; -1 is the rest."
)
START = flags.DEFINE_string(
  "start", None, "Parameters to start from: a model's name or path."
)
ACCELERATOR = flags.DEFINE_string(
  "accelerator", None, "For --dry_run: estimate for this, e.g. 8xh100, 16xv5e."
)
DISTRIBUTED = flags.DEFINE_bool(
  "distributed", False, "Find the other processes by the environment."
)
COORDINATOR = flags.DEFINE_string(
  "coordinator", None, "HOST:PORT of process 0, where it is told by hand."
)
PROCESSES = flags.DEFINE_integer("processes", None, "How many there are.")
PROCESS = flags.DEFINE_integer("process", None, "This one's number, from 0.")
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

    train_plan.show(config, WORKDIR.value, MESH.value, ACCELERATOR.value)
    return
  from sinkjax import artifacts

  workdir = pathlib.Path(WORKDIR.value).expanduser()
  request = artifacts.plain(config.to_dict())
  if REPORT.value:
    _report_so_far(config, workdir, request)
    return
  if app.finished(workdir, request, overwrite=False) is not None:
    return
  first = _join()
  with artifacts.folder(workdir), _alone(workdir, first):
    if first:
      _same_run(workdir, request)
    app.warm_compiler()
    _train(config, workdir, request, first)
  _leave()


def _join() -> bool:
  """Meets the other processes; whether this is the one that writes.

  Raises:
    ValueError: for flags that do not go together, or no other process found.
  """
  import jax

  told = (COORDINATOR.value, PROCESSES.value, PROCESS.value)
  if not DISTRIBUTED.value and told == (None,) * 3:
    return True
  if not DISTRIBUTED.value and None in told:
    raise ValueError("--coordinator, --processes and --process go together")
  given = {}
  if not DISTRIBUTED.value:
    names = ("coordinator_address", "num_processes", "process_id")
    given = dict(zip(names, told, strict=True))
  try:
    jax.distributed.initialize(
      **given,
      heartbeat_timeout_seconds=HEARTBEAT,
      initialization_timeout=120,
      shutdown_timeout_seconds=HEARTBEAT,
    )
  except (RuntimeError, ValueError) as error:
    raise ValueError(
      f"the processes did not find each other: {error}"
    ) from None
  return jax.process_index() == 0


def _leave() -> None:
  """The processes part together."""
  import jax

  if jax.process_count() > 1:
    jax.distributed.shutdown()


@contextlib.contextmanager
def _together():
  """Where others wait for this process, an error ends it at once.

  Other processes wait for its part of a sum; Orbax's threads for a disk.
  """
  import jax

  try:
    yield
  except BaseException as error:
    text = " ".join(str(error).split())[:300] or type(error).__name__
    count = jax.process_count()
    if isinstance(error, OSError) and "space left" in text:
      text = (
        "the disk is full: the last whole checkpoint stands; make room, and "
        f"the same command goes on ({text})"
      )
    elif count == 1:
      raise
    else:
      text = (
        f"process {jax.process_index()} of {count}: {text}\nIf another process "
        "died, the last whole checkpoint stands: start all of them again."
      )
    print(f"\nerror: {text}", file=sys.stderr, flush=True)
    os._exit(1)


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


@contextlib.contextmanager
def _alone(workdir: pathlib.Path, first: bool):
  """No two runs in one folder; the first process of a run holds it.

  Raises:
    ValueError: if another process trains in it.
  """
  import fcntl

  if not first:
    yield
    return
  with open(workdir / ".lock", "w") as lock:
    try:
      fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
      raise ValueError(
        f"another process is training in {workdir}; wait for it, stop it, or "
        "choose another --workdir"
      ) from None
    yield


def _same_run(workdir: pathlib.Path, request: dict[str, Any]) -> None:
  """A folder belongs to one config.

  Raises:
    ValueError: naming what differs from the run that it holds.
  """
  from sinkjax import artifacts

  path = workdir / "config.json"
  if not path.exists():
    artifacts.write_json(path, request)
    return
  old = json.loads(path.read_text("utf-8"))
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


def _prepared(config):
  from sinkjax.data.prepare import prepare

  with artifacts.bar("tokenizing") as progress:
    return prepare(
      config.corpus,
      vocab_size=config.text_vocab_size,
      held_out=config.held_out,
      seed=config.seed,
      progress=progress,
    )


def _train(config, workdir, request: dict[str, Any], first: bool) -> None:
  """The run, its log, and what it leaves; files are `first`'s to write."""
  import jax

  from sinkjax import sharding
  from sinkjax.train import checkpoint, loop

  mesh = sharding.make_mesh(sharding.MeshConfig.parse(MESH.value))
  data, start = _prepared(config), None
  if START.value:
    start, data = _started(config, data)
  made = data.tokenizer.vocab_size
  if made > config.text_vocab_size:
    needed = made + config.packing.registers
    raise ValueError(
      f"the tokenizer has {made} ids, the model fewer; "
      f"set --config.model.vocab_size={needed}"
    )
  stops, began = [], time.monotonic()
  for number in (signal.SIGTERM, signal.SIGINT):
    signal.signal(number, lambda *_: stops.append(time.monotonic()))
  checkpoints = checkpoint.RunCheckpoints(
    workdir / "checkpoints", keep=config.keep
  )
  log = train_log.Log(config, workdir) if first else train_log.NoLog()
  steps = loop.run(
    config, data, checkpoints, mesh=mesh, start=start, stop=lambda: bool(stops)
  )
  records, state = [], None
  with _together(), log:
    for record, records, state in steps:  # noqa: B007
      log.write(record, records)
    checkpoints.close()
    if record["kind"] == "stopped":
      if first:
        print(
          f"stopped at step {record['step']}, saved; the same command goes on"
        )
      return
    params = jax.tree.map(sharding.to_host, state.params)
    if first:
      _finish(
        config,
        data,
        workdir,
        request,
        records,
        params,
        int(state.skipped),
        time.monotonic() - began,
      )


def _started(config, data):
  """Parameters of --start, and the data in that model's own tokens.

  Raises:
    ValueError: naming the first field in which the config is another model.
  """
  import sinkjax
  from sinkjax.data.prepare import prepare

  params, cfg, tokenizer = sinkjax.load(START.value)
  free = {
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
  mine, theirs = config.model.to_dict(), cfg.to_dict()
  for name, value in theirs.items():
    if name not in free and mine[name] != value:
      raise ValueError(
        f"--start={START.value} has {name}={value!r}, the config {mine[name]!r}"
      )
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


def _finish(
  config, data, workdir, request, records, params, skipped, seconds
) -> None:
  """The model, the pictures and the summary, which comes last."""
  import shutil

  from sinkjax.weights import orbax_io

  shutil.rmtree(workdir / "model", ignore_errors=True)
  cfg = config.trained_model().replace(
    bos_id=data.tokenizer.bos_id, eos_id=data.tokenizer.eos_id
  )
  tokenizer = copy.copy(data.tokenizer)
  tokenizer.add_bos = config.packing.bos != "none"
  orbax_io.save(workdir / "model", params, cfg, tokenizer)
  numbers = {
    "tokens": config.steps * config.batch * config.packing.length,
    "corpus_tokens": len(data.train.tokens),
    "skipped": skipped,
    "seconds_of_this_run": seconds,
  }
  _write_report(config, workdir, request, records, numbers, data.train.about)
  last = {r["kind"]: r for r in records}
  print(
    f"held-out loss {last['eval']['loss']:.3f} nats a token, sink rate "
    f"{100 * last['probe']['sink_rate_0.3']:.1f} % at eps 0.3, attention on "
    f"the first token {last['probe']['first_mass']:.3f}\n"
    f"Report: {workdir / 'report.html'}"
  )


def _write_report(
  config, workdir, request, records, numbers, corpus, *, complete=True
) -> None:
  from launch.train_plan import parameters
  from sinkjax.report import train as report

  numbers = {"parameters": parameters(config.model), **numbers}
  meta = {
    "command": provenance.command("train"),
    "device": provenance.device(),
    "commit": provenance.commit(),
    "versions": provenance.versions(),
    "request": request,
    "corpus": corpus,
  }
  report.write(workdir, records, numbers, meta, complete=complete)


def _report_so_far(config, workdir: pathlib.Path, request) -> None:
  """The page of a run that goes on, or was cut off; reads the log only.

  Raises:
    ValueError: if nothing is measured yet.
  """
  try:
    lines = (workdir / "metrics.jsonl").read_text("utf-8").splitlines()
  except OSError:
    raise ValueError(f"{workdir} has no metrics.jsonl: no run yet") from None
  records = []
  for line in lines:
    with contextlib.suppress(ValueError):  # the last one may be half written
      records.append(json.loads(line))
  kinds = {record["kind"] for record in records}
  if not {"train", "eval", "probe"} <= kinds:
    raise ValueError(f"{workdir} has no step yet: nothing to draw")
  done = max(record["step"] for record in records)
  skipped = [r["skipped"] for r in records if r["kind"] == "train"][-1]
  numbers = {
    "tokens": done * config.batch * config.packing.length,
    "skipped": skipped,
  }
  _write_report(
    config, workdir, request, records, numbers, None, complete=False
  )
  print(f"{done} of {config.steps} steps. Report: {workdir / 'report.html'}")


if __name__ == "__main__":
  os.environ.setdefault("GRPC_VERBOSITY", "ERROR")
  app.run(main, __doc__)
